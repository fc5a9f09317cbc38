"""A model without torch: a backend that answers from bytes, and a worker that holds it (run this file to start one).

What is saved of a site is zeros of its shape; constants, inputs and parameters are themselves. `call mul` sleeps for
its second argument, `call div` raises ZeroDivisionError with the line of the call, `call exp` raises a type nobody
knows, `call log` ends the process, `call sqrt` takes 192 MiB and is ended by the kernel's signal for want of memory.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from glassworks.graph.backend import Experiment, Generation, Inputs, Results, run_in_order
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.sites import Event, Site, SiteTable
from glassworks.graph.wire import Blob

WIDTH = 8


def table(*, tokens: int | None = None) -> SiteTable:
    """Two modules in a row; with `tokens`, a plain module's table for inputs of that length."""
    axes = ("batch", "seq", WIDTH) if tokens is None else (1, tokens, WIDTH)
    places = (("a", "input"), ("a", "output"), ("b", "output"))
    events = tuple(Event(path, port, 0, {"leaf": f"{path}.{port}"}) for path, port in places)  # type: ignore[arg-type]
    names = [f"{event.path}.{event.port}" for event in events]
    return SiteTable(
        family="Fake",
        events=events,
        sites={name: Site(name, order, (), axes, "float32") for order, name in enumerate(names)},
        calls={"a": 1, "b": 1},
        children={"": ("a", "b"), "a": (), "b": ()},
        kinds={"a": "Linear", "b": "Linear"},
        parameters={"a.weight": ("float32", (WIDTH, WIDTH))},
        plain=tokens is not None,
        vocab=50 if tokens is None else 0,
    )


class Odd(Exception):
    """A type that does not travel."""


class FakeBackend:
    """Answers from bytes. `ran` counts experiments; `plain` makes it a module that reads one tensor."""

    def __init__(self, *, plain: bool = False) -> None:
        self.ran = 0
        self.asked: list[Inputs | None] = []
        self._plain = plain

    def sites(self, inputs: Inputs | None = None, *, within: frozenset[str] = frozenset()) -> SiteTable:
        self.asked.append(inputs)
        if not self._plain:
            return table()
        return table(tokens=inputs.invokes[0].args[0].shape[1] if inputs else 0)

    def run(self, graph: Graph, inputs: Inputs, generation: Generation | None = None) -> Results:
        self.ran += 1
        values: dict[int, Any] = {}
        for n in range(len(graph)):
            values[n] = self._value(n, graph, inputs, values)
        saves = {node.target: values[node.args[0].node] for node in graph.nodes if node.kind == "save"}
        steps = 1 if generation is None else generation.max_new_tokens
        return Results(saves, steps, [[[True]] * steps])

    def run_session(self, experiments: Sequence[Experiment]) -> list[Results]:
        return run_in_order(self, experiments)

    def _value(self, n: int, graph: Graph, inputs: Inputs, values: dict[int, Any]) -> Any:
        node = graph.nodes[n]
        match node.kind:
            case "read":
                rows = inputs.invokes[0].ids or ((0,),)
                return zeros(len(rows), max(map(len, rows)), WIDTH)
            case "constant":
                return graph.constants[node.args[0]].blob()
            case "input":
                return inputs.named[node.target]
            case "parameter":
                return zeros(WIDTH, WIDTH)
            case "call":
                return self._call(n, graph, values)
        return None

    def _call(self, n: int, graph: Graph, values: dict[int, Any]) -> Any:
        name, args = graph.nodes[n].target, graph.nodes[n].args
        if name == "div":
            error = ZeroDivisionError("division by zero")
            error.add_note(f"  at {graph.where(n)}")
            raise error
        if name == "exp":
            raise Odd("no such thing")
        if name == "log":
            os._exit(9)
        if name == "sqrt":
            taken = b"x" * (192 * 2**20)
            os.kill(os.getpid(), signal.SIGKILL if taken else 0)
        if name == "mul":
            time.sleep(args[1])
        return values[args[0].node]


def zeros(*shape: int) -> Blob:
    count = 1
    for size in shape:
        count *= size
    return Blob("float32", shape, bytes(4 * count))


def main() -> int:
    from glassworks.serve import worker
    from glassworks.serve.host import ModelHost
    from glassworks.serve.one_by_one import OneByOne

    options = worker.parser().parse_args()
    if options.model == "broken":
        return 3
    if options.model == "slow":
        time.sleep(60)
    files = {"tokenizer.json": b"{}"}
    limits = Limits(**json.loads(options.limits))
    host = ModelHost(FakeBackend(), tokenizer=files, result_bytes=limits.result_bytes, run_s=limits.run_s)
    worker.run(OneByOne(host), socket_path=options.socket, while_open=options.while_open)
    return 0


FAKE = (sys.executable, __file__)
"""The command that starts a worker with this model."""
LIMITS = Limits(body_bytes=2**20, nodes=100, result_bytes=10_000, tokens_per_row=600)

if __name__ == "__main__":
    sys.exit(main())
