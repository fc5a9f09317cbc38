"""What the test that kills a run, and the process that is killed, share."""

from typing import Any

import glassworks as gw

PROMPTS = [[5 + k % 50, 6, 7, *[8] * (k % 5)] for k in range(80)]


def graph_of(model: Any) -> gw.Graph:
    with model.record() as t:
        model.layers[1].output.save("h")
        model.layers[1].output.save("mean", reduce="mean")
    return t.graph
