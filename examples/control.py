"""Decisions while the model runs: a condition, a state that steps hand on, a stop, a log, a function of one's own."""

import torch

import glassworks as gw

PROMPTS = [f"The {landmark} is in the city of" for landmark in ("Louvre", "Brandenburg Gate", "Eiffel Tower")]

model = gw.load("toy")
layer, paris = model.layers[4], model.token(" Paris")
with model.trace() as t:
    with t.invoke("The Colosseum is in the city of"):
        rome = layer.output[:, -1]
    with t.invoke("The Louvre is in the city of"):
        direction = (rome - layer.output[:, -1]).save()

# A condition is in the graph, so it can be stored or sent: each prompt decides for itself, in one batch.
with model.trace() as t:
    answers = []
    for prompt in PROMPTS:
        with t.invoke(prompt):
            resid = layer.output[:, -1]

            def move_to_rome() -> None:
                layer.output[:, -1] += direction.value

            gw.cond(model.unembed(resid).argmax(-1) == paris, move_to_rome, lambda: None)
            answers.append(model.logits[:, -1].argmax(-1).save())
for prompt, answer in zip(PROMPTS, answers, strict=True):
    print(f"{prompt}{model.decode(answer)}")

# A state goes from step to step; here it adds up how surprising the text is, and ends it when that is enough.
with model.generate("The", max_new_tokens=40, do_sample=True, temperature=1.5, seed=1) as t:
    surprise, chances = t.state(0.0), t.state(torch.zeros(1, model.table.vocab))
    with t.steps[1:]:
        surprise.value = surprise.value - chances.value[0, model.ids[0, -1]]
        gw.log("so far", surprise.value)
        t.stop(when=surprise.value > 10)
    with t.steps[:]:
        chances.value = model.logits[:, -1].log_softmax(-1)
print(f"The{model.decode(t.result)[0]}: {len(t.logs)} entries, the last: {t.logs[-1].text} nats")


# A function of one's own stays whole, with the gradient that it gives itself.
class Rounded(torch.autograd.Function):
    """Rounds to tenths; its gradient is as if it had not."""

    @staticmethod
    def forward(ctx, value):
        return (value * 10).round() / 10

    @staticmethod
    def backward(ctx, gradient):
        return gradient


with model.trace(PROMPTS[0]) as t:
    resid = layer.output
    layer.output = gw.apply(Rounded.apply, resid)
    t.backward(model.logits[0, -1, paris])
    gradient = resid.grad.norm().save()
print(f"through the rounded residual, logit( Paris) still has a gradient of norm {gradient:.2f}")
