"""Logit lens: what each layer would say next, had it the last word (nostalgebraist, 2020)."""

import glassworks as gw

PROMPT = "The Eiffel Tower is in the city of"

model = gw.load("toy")
with model.trace(PROMPT) as t:
    lens = [model.unembed(layer.output[:, -1]).softmax(-1).max(-1) for layer in model.layers]
    words = [best.indices.save() for best in lens]
    sure = [best.values.save() for best in lens]

print(f"{PROMPT} ...")
for number, (word, p) in enumerate(zip(words, sure, strict=True)):
    print(f"  after layer {number}: {model.decode(word):10} {float(p):6.1%}")
print(f"{t.forwards} forward pass")
