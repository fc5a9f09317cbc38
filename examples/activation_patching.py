"""Activation patching: at which layer is the landmark's city read from the landmark? One sweep, one forward pass."""

import glassworks as gw

CLEAN, OTHER = "The Eiffel Tower is in the city of", "The Colosseum is in the city of"

model = gw.load("toy")
answers = []
with model.trace() as t:
    with t.invoke(OTHER) as other:
        at = other.find("Colosseum")
        source = [layer.output[:, at] for layer in model.layers]
    for layer, vector in zip(model.layers, source, strict=True):
        with t.invoke(CLEAN) as clean:
            layer.output[:, clean.find("Eiffel Tower")] = vector
            answers.append(model.logits[:, -1].argmax(-1).save())

print(f"{CLEAN} ..., with the Colosseum's vector at ' Tower':")
for number, answer in enumerate(answers):
    print(f"  after layer {number}:{model.decode(answer)}")
print(f"{len(answers) + 1} runs, {t.forwards} forward pass")
