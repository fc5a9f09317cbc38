"""A remote session: the same blocks on a model that is elsewhere; values flow between them, and only data travels.

With a service (`glassworks serve toy`) write `gw.connect(url, api_key=...).model("toy")`; here it is in this process,
behind the same codec, checks and limits.
"""

import torch

import glassworks as gw

here = gw.load("toy")
there = gw.connect(here)


def swapped(model: gw.Model) -> torch.Tensor:
    """The logits of one prompt with a vector that an earlier block of the session read."""
    with model.session():
        with model.trace("The Colosseum is in the city of") as t:
            vector = model.layers[0].output[:, t.find("Colosseum")].save()
        with model.trace("The Eiffel Tower is in the city of") as t:
            model.layers[0].output[:, t.find("Eiffel Tower")] = vector
            last = model.logits[:, -1].save()
    return last.value


local, remote = swapped(here), swapped(there)
print(f"here:{here.decode(local.argmax(-1))}, there:{there.decode(remote.argmax(-1))}")
print(f"the same bits: {torch.equal(local, remote)}")
try:
    with there.trace("The Eiffel Tower is in the city of"):
        there.logits[:, 10_000].save()
except IndexError as error:
    print(f"an error comes back with its type and the line:\n  {error}\n  {error.__notes__[0]}")
