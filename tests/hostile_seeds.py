"""Small honest requests for a model without torch, and the table that they are for: where fuzzers of bytes start."""

from typing import Any

from glassworks.graph import messages
from glassworks.graph.backend import Experiment, Generation, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Dtype, Listed, Node, Ref, SentLine, Slice, refs_in
from glassworks.graph.sites import Event, Site, SiteTable
from glassworks.graph.wire import Blob

PLACES = (("a", "input"), ("a", "output"), ("b", "input"), ("b", "output"), ("head", "output"))
TABLE = SiteTable(
    family="Small",
    events=tuple(Event(path, port, 0, {"leaf": f"{path}.{port}"}) for path, port in PLACES),  # type: ignore[arg-type]
    sites={
        f"{path}.{port}": Site(f"{path}.{port}", n, (), ("batch", "seq", 8), "float32")
        for n, (path, port) in enumerate(PLACES)
    },
    modules={"first": "a"},
    calls={"a": 1, "b": 1, "head": 1},
    children={"": ("a", "b", "head"), "a": (), "b": (), "head": ()},
    kinds={"": "Small", "a": "Linear", "b": "Linear", "head": "Linear"},
    parameters={"a.weight": ("float32", (8, 8))},
    widths={"a": (8, 8), "b": (8, 8), "head": (8, 8)},
    vocab=50,
)


def node(kind: str, target: str = "", *args: Any, invoke: int = ALL_ROWS, steps: Any = None, **kwargs: Any) -> Node:
    own = tuple(kwargs.items())
    return Node(kind, target, args, own, tuple(refs_in((args, *[value for _, value in own]))), invoke, steps)


def experiment(*nodes: Node, constants: tuple[Any, ...] = (), invokes: int = 1, **parts: Any) -> Experiment:
    lines = tuple(SentLine("work.py", 10 + n) for n in range(len(nodes)))
    rows = tuple(Rows(ids=((1, 2, 3), (4, 5))) for _ in range(invokes))
    return Experiment(Graph(nodes, lines, constants, invokes), parts.pop("inputs", Inputs(rows)), **parts)


READ = node("read", "a.output", invoke=0)
STEER = Blob("float32", (8,), bytes(32))
LARGE = Blob("float32", (2**19,), bytes(2**21))


def honest() -> list[Experiment]:
    """Each kind of node, argument and input at least once."""
    return [
        experiment(READ, node("save", "s", Ref(0))),
        experiment(
            READ,
            node("constant", "trains", 0),
            node("call", "add", Ref(0), Ref(1), alpha=0.5),
            node("call", "getitem", Ref(2), (Slice(None, -1, 2), ..., None, Listed([0, 1]))),
            node("call", "to", Ref(3), Dtype("float64")),
            node("write", "b.output", Ref(2), invoke=0),
            node("save", "s", Ref(4), reduce="mean"),
            constants=(STEER,),
        ),
        experiment(
            READ,
            node("call", "topk", Ref(0), 2, -1),
            node("item", "", Ref(1), 0),
            node("update", "", Ref(0), (("getitem", (0,), ()),), Ref(2)),
            node("skip", "b.output", Ref(0), invoke=1),
            node("module", "first", Ref(0)),
            node("parameter", "a.weight"),
            node("input", "x", (None, 8), "float32"),
            node("call", "matmul", Ref(7), Ref(6)),
            node("save", "t", Ref(8)),
            node("save", "u", Ref(5)),
            invokes=2,
            inputs=Inputs((Rows(ids=((1,),)), Rows(ids=((2, 3),))), named={"x": STEER}, rows=2),
        ),
        experiment(
            READ,
            node("call", "sum", Ref(0)),
            node("backward", "", Ref(1)),
            node("grad", "", Ref(0), Ref(2)),
            node("grad_write", "", Ref(0), Ref(2), Ref(3)),
            node("save", "g", Ref(3)),
        ),
        experiment(
            READ,
            node("call", "any", Ref(0)),
            node("call", "add", Ref(0), 1)._replace(deps=(0, 1), when=((1, True),)),
            node("cond", "", Ref(1), Ref(2), Ref(0)),
            node("write", "b.output", Ref(3), invoke=0),
            node("log", "", "seen", Ref(1)),
            node("save", "s", Ref(3)),
        ),
        experiment(
            node("constant", "", 0),
            node("state", "", Ref(0)),
            node("carried", "", Ref(1), invoke=0, steps=(0, None)),
            node("read", "head.output", invoke=0, steps=(0, None)),
            node("call", "add", Ref(2), Ref(3)),
            node("carry", "", Ref(1), Ref(4), invoke=0, steps=(0, None)),
            node("call", "amax", Ref(3)),
            node("call", "gt", Ref(6), 5),
            node("stop", "", Ref(7), invoke=0, steps=(0, None)),
            node("save", "s", Ref(4)),
            constants=(STEER,),
            generation=Generation(3),
        ),
        experiment(
            node("read", "head.output", invoke=0, steps=(0, None)),
            node("call", "rand_like", Ref(0)),
            node("result", "", invoke=0),
            node("save", "r", Ref(2), single=True),
            node("save", "n", Ref(1)),
            generation=Generation(4, {"temperature": 0.5, "eos_token_id": [1, 2], "do_sample": True}),
        ),
    ]


def seeds() -> list[bytes]:
    """The honest experiments one by one, and two of them as a session."""
    own = honest()
    linked = experiment(node("input", "y"), node("save", "z", Ref(0)), links={"y": (0, "s")})
    large = experiment(READ, node("constant", "", 0), node("save", "s", Ref(1)), constants=(LARGE,))
    bodies = [messages.encode_request("small", [one]) for one in own]
    bodies.append(messages.encode_request("small", [own[0], linked]))
    return [*bodies, messages.encode_request("small", [large], aside={})]
