"""Control nodes as data: their text and bytes, and what a stranger may not make of them."""

import json
import random
from typing import Any

import pytest

from glassworks.errors import GlassworksError, GraphError, LimitExceeded, WireError
from glassworks.graph import logs
from glassworks.graph.backend import Experiment, Generation, Inputs, Results, Rows, untaken
from glassworks.graph.check import Limits, check_request
from glassworks.graph.flow import effects
from glassworks.graph.graph import Graph
from glassworks.graph.logs import LogEntry
from glassworks.graph.messages import Request, decode_results, encode_results
from glassworks.graph.nodes import ALL_ROWS, Node, Ref, SentLine, refs_in
from glassworks.graph.passes import joined
from glassworks.graph.sites import Event, Site, SiteTable
from glassworks.graph.wire import pack, unpack


def node(kind: str, *args: Any, target: str = "", invoke: int = ALL_ROWS, steps: Any = None, when: Any = ()) -> Node:
    deps = (*refs_in(args), *[predicate for predicate, _ in when])
    return Node(kind, target, args, (), deps, invoke, steps, when)


READ = node("read", target="a.output", invoke=0)
PRED = node("call", Ref(0), target="any")
YES, NO = ((1, True),), ((1, False),)
TWICE = node("call", Ref(0), 2, target="mul", when=YES)
THRICE = node("call", Ref(0), 3, target="mul", when=NO)


def table() -> SiteTable:
    places = [("", "input"), ("a", "input"), ("a", "output"), ("b", "output")]
    events = tuple(Event(path, port, 0, {"leaf": f"{path}.{port}"}) for path, port in places)
    sites = {
        f"{e.path}.{e.port}": Site(f"{e.path}.{e.port}", n, (), ("batch", "seq", 8), "float32")
        for n, e in enumerate(events)
    }
    return SiteTable(family="Small", events=events, sites=sites, kinds={"": "Small"}, vocab=50)


def graph(*nodes: Node) -> Graph:
    return Graph(nodes, tuple(SentLine("work.py", 10 + n) for n in range(len(nodes))))


def check(*nodes: Node, generation: Generation | None = None) -> None:
    experiment = Experiment(graph(*nodes), Inputs((Rows(ids=((1, 2),)),)), generation)
    check_request(Request("small", (experiment,)), table(), Limits())


WHOLE = (
    READ,
    PRED,
    TWICE,
    THRICE,
    node("cond", Ref(1), Ref(2), Ref(3)),
    node("write", Ref(4), target="a.output", invoke=0),
    node("state", Ref(4)),
    node("carried", Ref(6), invoke=0),
    node("carry", Ref(6), Ref(7), invoke=0),
    node("carried", Ref(6), Ref(8), invoke=0),
    node("stop", Ref(1), invoke=0),
    node("log", "text", Ref(9), 1.5),
    node("save", Ref(2), target="inside", when=YES),
    node("save", Ref(4), target="chosen"),
)


def test_all_kinds_pass_and_survive() -> None:
    own = graph(*WHOLE)
    decoded = Graph.decode(own.encode())
    assert decoded == own
    assert decoded.nodes == own.nodes
    assert decoded.structure == own.structure
    assert [decoded.nodes[n].deps for n in (2, 3)] == [(0, 1), (0, 1)]
    check(*WHOLE)


def test_a_guard_is_part_of_what_a_graph_does() -> None:
    assert graph(*WHOLE) != graph(*WHOLE[:2], TWICE._replace(when=NO), *WHOLE[3:])
    assert graph(*WHOLE).structure != graph(*WHOLE[:2], TWICE._replace(when=NO), *WHOLE[3:]).structure


def test_joining_moves_guards() -> None:
    both = joined(graph(*WHOLE), graph(*WHOLE))
    moved = both.nodes[len(WHOLE) + 2]
    assert moved.when == ((len(WHOLE) + 1, True),)
    assert moved.deps == (len(WHOLE), len(WHOLE) + 1)
    assert moved.operands == (len(WHOLE),)


def test_the_text_says_it_aloud() -> None:
    text = str(graph(*WHOLE))
    for line in ("mul(%0, 2) if %1", "mul(%0, 3) unless %1", "%2 if %1 else %3", "state, at first %4", "%6 now",
                 "%6 = %7", "stop when %1", "log('text', %9, 1.5)", "save(%2) as 'inside' if %1"):  # fmt: skip
        assert line in text


def test_what_a_graph_runs_for() -> None:
    assert list(effects(graph(*WHOLE))) == [11, 12, 13]
    assert untaken(graph(*WHOLE), {"chosen": 1}) == {"inside": "work.py:22"}


@pytest.mark.parametrize(
    ("message", "nodes"),
    [
        ("stands in a branch that may not be taken", [READ, PRED, TWICE, node("save", Ref(2), target="s")]),
        ("stands in a branch", [READ, PRED, TWICE, node("save", Ref(2), target="s", when=NO)]),
        ("stands in a branch", [READ, PRED, TWICE, node("cond", Ref(1), Ref(0), Ref(2))]),
        ("stands in a branch", [READ, PRED, TWICE, node("cond", Ref(2), Ref(0), Ref(0))]),
        ("stands in a branch", [READ, PRED, TWICE, node("log", Ref(2))]),
        ("stands in a branch", [READ, PRED, TWICE, node("write", Ref(2), target="a.output", invoke=0)]),
        ("the predicate 2 stands in", [READ, PRED, TWICE, node("save", Ref(0), target="s", when=((2, True),))]),
        ("a cond takes the arguments RRR", [READ, PRED, node("cond", Ref(1), Ref(0))]),
        ("a stop takes the arguments R", [READ, PRED, node("stop", True)]),
        ("a state takes the arguments R", [READ, node("state", 0)]),
        ("a carried takes a state", [READ, node("carried")]),
        ("a carried takes a state", [READ, node("carried", 0)]),
        ("names node 0, a read", [READ, node("carried", Ref(0))]),
        ("names node 0, a read", [READ, node("carry", Ref(0), Ref(0))]),
        ("node 0 is none of them", [READ, node("state", Ref(0)), node("carried", Ref(1), Ref(0))]),
        ("node 2 is none of them",
         [READ, node("state", Ref(0)), node("carry", Ref(1), Ref(0), invoke=0), node("carried", Ref(1), Ref(2))]),
    ],
)  # fmt: skip
def test_nodes_that_cannot_be(message: str, nodes: list[Node]) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        check(*nodes, node("save", Ref(0), target="last"))
    assert "at work.py:1" in str(caught.value)


def test_text_of_a_log_has_a_limit() -> None:
    check(READ, node("log", "x" * logs.CHARACTERS, Ref(0)))
    with pytest.raises(LimitExceeded, match=r"text in arguments \(log\): 2001 characters"):
        check(READ, node("log", "x" * (logs.CHARACTERS + 1), Ref(0)))


def _sent(change: Any) -> bytes:
    message, blobs = graph(*WHOLE).to_message()
    change(message["nodes"])
    return pack({"graph": message}, blobs)


@pytest.mark.parametrize(
    "when",
    [[], {}, [[1]], [[1, 1]], [[-1, True]], [["1", True]], [[True, True]], [[1, True]] * 17, [[3, True]], [1, True]],
)
def test_guards_that_are_none_are_refused(when: Any) -> None:
    with pytest.raises(WireError, match=r"node 2 \(work.py:12\)"):
        Graph.decode(_sent(lambda nodes: nodes[2].update(when=when)))


@pytest.mark.parametrize("kind", ["read", "write", "carried", "state", "carry"])
def test_kinds_that_happen_either_way_have_no_guard(kind: str) -> None:
    where = next(n for n, own in enumerate(WHOLE) if (own.kind == kind and n > 1) or own.kind == kind == "read")

    def change(nodes: Any) -> None:
        nodes[where]["when"] = [[0, True]]

    with pytest.raises(WireError, match="when must list"):
        Graph.decode(_sent(change))


@pytest.mark.parametrize("kind", ["apply", "effect"])
def test_functions_do_not_travel(kind: str) -> None:
    with pytest.raises(WireError, match="not a node of version"):
        Graph.decode(_sent(lambda nodes: nodes[2].update(kind=kind)))
    own = Graph((READ, node(kind, 0, Ref(0), target="f")), (), (), 1, 0, (abs,))
    with pytest.raises(GraphError, match=r"gw\.apply\(f\)"):
        own.encode()


# Logs.


def test_entries_travel_without_lines() -> None:
    entries = [LogEntry("norm 3", 4, 2, (0, 1), "secret/folder/work.py:3"), LogEntry("plain", 0)]
    [found] = decode_results(encode_results([Results({}, logs=entries)]))
    assert [(e.text, e.node, e.step, e.rows, e.line) for e in found.logs] == [
        ("norm 3", 4, 2, (0, 1), ""),
        ("plain", 0, None, (), ""),
    ]
    assert b"secret" not in encode_results([Results({}, logs=entries)])
    assert str(entries[0]) == "work.py:3, step 2, rows 0 to 1: norm 3"


def test_logs_count_as_results() -> None:
    with pytest.raises(LimitExceeded, match="result_bytes"):
        encode_results([Results({"x": _blob()}, logs=[LogEntry("x" * 100, 0)])], limit_bytes=100)


def _blob() -> Any:
    from glassworks.graph.wire import Blob

    return Blob("float32", (1,), bytes(4))


@pytest.mark.parametrize(
    "entry",
    [["x", 0, None], ["x", -1, None, []], [1, 0, None, []], ["x", 0, -1, []], ["x", 0, None, [True]],
     ["x" * 2001, 0, None, []], "x", ["x", True, None, []]],
)  # fmt: skip
def test_entries_that_are_none_are_refused(entry: Any) -> None:
    message, _ = unpack(encode_results([Results({})]))
    message["results"]["results"][0]["logs"] = [entry]
    with pytest.raises(WireError, match="result 0: logs: entry 0 must be"):
        decode_results(pack(message, {}))


def test_too_many_entries_are_refused() -> None:
    message, _ = unpack(encode_results([Results({})]))
    message["results"]["results"][0]["logs"] = [["x", 0, None, []]] * (logs.ENTRIES + 2)
    with pytest.raises(WireError, match="at most 10001"):
        decode_results(pack(json.loads(json.dumps(message)), {}))


# Anything at all.


def test_random_control_is_refused_with_errors_of_ours_or_passes() -> None:
    draw = random.Random(11)
    kinds = ["cond", "state", "carried", "carry", "stop", "log", "save", "call", "read", "write", "result"]
    passed = 0
    for _ in range(4000):
        nodes = [READ, PRED, node("state", Ref(0))]
        for n in range(3, draw.randint(4, 10)):
            kind = draw.choice(kinds)
            count = {"cond": 3, "carry": 2, "read": 0, "result": 0, "carried": draw.randint(1, 3)}.get(kind, 1)
            args = [Ref(draw.randrange(n)) for _ in range(count)]
            args = [Ref(2), *args[1:]] if kind in ("carried", "carry") and draw.random() < 0.9 else args
            target = draw.choice(["a.output", "b.output", ".input"]) if kind in ("read", "write") else ""
            target = {"call": "neg", "save": f"s{n}"}.get(kind, target)
            when = tuple((draw.randrange(n), draw.random() < 0.5) for _ in range(draw.choice([0, 0, 0, 1, 2])))
            own = node(kind, *args, target=target, invoke=draw.choice([0, 0, ALL_ROWS]), when=when)
            nodes.append(own._replace(steps=draw.choice([None, None, (0, 1), (1, 3), (0, None)])))
        try:
            check(*nodes, generation=draw.choice([None, Generation(3), Generation(3)]))
            passed += 1
        except GlassworksError:
            pass
    assert passed > 100
