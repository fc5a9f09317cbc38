"""Steering a generation: a direction between two cities is added at one step of it, and not at the others."""

import glassworks as gw

PROMPT = "The Louvre is in the city of"

model = gw.load("toy")
layer = model.layers[3]
with model.trace() as t:
    with t.invoke("The Colosseum is in the city of"):
        rome = layer.output[:, -1]
    with t.invoke("The Eiffel Tower is in the city of"):
        paris = layer.output[:, -1]
    direction = (rome - paris).save()

print(f"{PROMPT}{model.complete(PROMPT, max_new_tokens=2)}   (as it is)")
for step in range(2):
    for strength in (0.25, 0.5, 1.0):
        with model.generate(PROMPT, max_new_tokens=2) as t, t.steps[step]:
            layer.output[:, -1] += strength * direction.value
        print(f"{PROMPT}{model.decode(t.result)[0]}   (step {step} steered by {strength})")
