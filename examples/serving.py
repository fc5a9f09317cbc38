"""Many requests share each step: a streamed reply, a graph, one called off, and a policy that lets short ones by."""

import glassworks as gw

PROMPTS = [f"The {name} is in the city of" for name in ("Eiffel Tower", "Colosseum", "Louvre", "Brandenburg Gate")]

model = gw.load("toy")
kv = gw.KVBudget(device="16MiB", host="64MiB")  # keys and values of all requests; who has to wait, waits on the host
engine = gw.Engine(model, policy="mlfq", kv=kv, rows=8)

for token in engine.submit(gw.Request(PROMPTS[0], max_new_tokens=8)):
    print(token.text, end="", flush=True)
print("   (streamed)")

with model.record() as t, t.steps[0]:
    model.layers[3].output[:, -1] += 4.0 * gw.input("direction", (128,))
    model.logits[:, -1].softmax(-1).max().save("sure")
with model.trace() as pair:
    with pair.invoke(PROMPTS[1]):
        rome = model.layers[3].output[0, -1]
    with pair.invoke(PROMPTS[0]):
        direction = (rome - model.layers[3].output[0, -1]).save()
steered = gw.Request(PROMPTS[2], max_new_tokens=2, graph=t.graph, inputs={"direction": direction.value})
plain = [gw.Request(prompt, max_new_tokens=2) for prompt in PROMPTS]
for reply in engine.run([steered, *plain]):
    looked = f"steered, sure {reply.saves['sure'].item():.2f}" if reply.request is steered else "as it is"
    print(f"{reply.request.prompt}{reply.text}   ({looked}; of {engine.stats.steps} steps so far)")

long = engine.submit(gw.Request("Rome is a city in", max_new_tokens=2000, options={"eos_token_id": []}))
for count, _ in enumerate(long, start=1):
    if count == 5:
        break
long.cancel()
print(
    f"called off after {len(long.tokens)} tokens; blocks in use: {engine.store.total_blocks - engine.store.free_blocks}"
)

for policy in ("fcfs", "mlfq"):
    one_row = gw.Engine(model, policy=policy, rows=1)  # a single place, so that the policy matters
    first = one_row.submit(gw.Request("Rome is a city in", max_new_tokens=100, options={"eos_token_id": []}))
    short = one_row.submit(gw.Request(PROMPTS[3], max_new_tokens=3)).wait()
    print(f"{policy}: behind a long request that has {len(first.tokens)} tokens by then:{short.text}")
