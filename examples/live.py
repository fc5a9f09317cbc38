"""A forward pass with plain Python between its layers: look at numbers, and decide by them what to change."""

import glassworks as gw

PROMPT = "The Eiffel Tower is in the city of"

model = gw.load("toy")
paris, rome = model.token(" Paris"), model.token(" Rome")
with model.trace("The Colosseum is in the city of"):
    others = [layer.output[:, -1].save() for layer in model.layers]

with model.live(PROMPT) as t:
    for number, layer in enumerate(model.layers):
        says = model.unembed(layer.output[:, -1])[0]
        ahead = float(says[paris] - says[rome])
        print(f"after layer {number}: {model.decode(says.argmax()):9} Paris leads Rome by {ahead:.1f}")
        if ahead > 5:
            print("  it is sure by now: go on with what it thinks of the Colosseum")
            layer.output[:, -1] = others[number].value
            break
    top = model.logits[:, -1].argmax(-1).save()
print(f"{PROMPT}{model.decode(top)}")

again = model.run(t.graph, PROMPT)
print(
    f"the path that was taken is a graph of {len(t.graph)} nodes, and gives the same: {bool(again['0'] == top.value)}"
)
