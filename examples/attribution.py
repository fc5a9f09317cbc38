"""Attribution: gradient times input, for what each sublayer adds to the residual at two tokens of the prompt."""

import glassworks as gw

PROMPT = "The Eiffel Tower is in the city of"

model = gw.load("toy")
paris, rome = model.token(" Paris"), model.token(" Rome")
with model.trace(PROMPT) as t:
    last = model.logits[0, -1]
    t.backward(last[paris] - last[rome])
    scores = {}
    for number, layer in enumerate(model.layers):
        for name, part in (("attn", layer.attn), ("mlp", layer.mlp)):
            scores[f"layer {number} {name:4}"] = (part.output * part.output.grad).sum(-1).save()  # [batch, seq]
    landmark = t.find("Eiffel Tower")[0]

print("what pushes logit( Paris) - logit( Rome) up:   at ' Tower'   at ' of'")
for name, score in scores.items():
    here, there = score[0, landmark].item(), score[0, -1].item()
    print(f"  {name}{here:43.2f}{there:11.2f}  {'+' * round(4 * max(there, 0))}{'-' * round(4 * max(-there, 0))}")
