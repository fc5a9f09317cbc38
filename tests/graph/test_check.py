"""What a stranger may ask for: each limit with both figures, each node that cannot be with its line."""

import random
from typing import Any

import pytest

from glassworks.errors import (
    GlassworksError,
    GraphError,
    InputError,
    LimitExceeded,
    OrderError,
    UnknownOperation,
    UnknownSite,
)
from glassworks.graph.backend import Experiment, Generation, Inputs, Rows
from glassworks.graph.check import REFUSED_KEYWORDS, check_request
from glassworks.graph.check_inputs import DECODER_KEYWORDS, ROW_KEYWORDS
from glassworks.graph.codec import KINDS
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.messages import Request
from glassworks.graph.nodes import ALL_ROWS, Dtype, Listed, Node, Ref, SentLine, Slice, refs_in
from glassworks.graph.operations import OPERATIONS
from glassworks.graph.options import GENERATION_OPTIONS
from glassworks.graph.sites import Event, Site, SiteTable
from glassworks.graph.wire import Blob


def _table(*, plain: bool = False) -> SiteTable:
    places = [("a", "input"), ("a", "output"), ("b", "input"), ("b", "output"), ("head", "output")]
    events = tuple(Event(path, port, 0, {"leaf": f"{path}.{port}"}) for path, port in places)  # type: ignore[arg-type]
    sites = {
        f"{e.path}.{e.port}": Site(f"{e.path}.{e.port}", n, (), ("batch", "seq", 8), "float32")
        for n, e in enumerate(events)
    }
    return SiteTable(
        family="Small",
        events=events,
        sites=sites,
        modules={"first": "a"},
        calls={"a": 1, "b": 1, "head": 1},
        children={"": ("a", "b", "head"), "a": (), "b": (), "head": ()},
        kinds={"": "Small", "a": "Linear", "b": "Linear", "head": "Linear"},
        parameters={"a.weight": ("float32", (8, 8))},
        plain=plain,
        vocab=0 if plain else 50,
    )


TABLE = _table()


def node(kind: str, target: str = "", *args: Any, invoke: int = ALL_ROWS, **kwargs: Any) -> Node:
    own = tuple(kwargs.items())
    deps = tuple(refs_in((args, *[value for _, value in own])))
    return Node(kind, target, args, own, deps, invoke, None)


READ = node("read", "a.output", invoke=0)
SAVE = node("save", "s", Ref(0))


def graph(*nodes: Node, constants: tuple[Any, ...] = (), invokes: int = 1) -> Graph:
    lines = tuple(SentLine("work.py", 10 + n) for n in range(len(nodes)))
    return Graph(nodes, lines, constants, invokes)


def experiment(*nodes: Node, **parts: Any) -> Experiment:
    own = graph(*(nodes or (READ, SAVE)), **{k: parts.pop(k) for k in ("constants", "invokes") if k in parts})
    return Experiment(own, parts.pop("inputs", Inputs((Rows(ids=((1, 2, 3),)),))), **parts)


def check(*experiments: Experiment, table: SiteTable = TABLE, **limits: int) -> None:
    check_request(Request("small", experiments), table, Limits(**limits))


def call(name: str, *args: Any, **kwargs: Any) -> Experiment:
    """An experiment that calls one operation on a read (node 0)."""
    return experiment(READ, node("call", name, Ref(0), *args, **kwargs), node("save", "s", Ref(1)))


# Limits.


def _rows(*lengths: int) -> Inputs:
    return Inputs((Rows(ids=tuple((1,) * length for length in lengths)),))


BIG = Blob("float32", (100,), bytes(400))
OVER = {
    "experiments: 3 asked for, 2 allowed": ([experiment()] * 3, {"experiments": 2}),
    "nodes: 4 asked for, 3 allowed": ([experiment()] * 2, {"nodes": 3}),
    "constants_bytes: 400 asked for, 399 allowed": (
        [experiment(READ, SAVE, node("constant", "", 0), constants=(BIG,))] * 2,
        {"constants_bytes": 399},
    ),
    "constants_bytes: 400 asked": (
        [experiment(inputs=Inputs((Rows(ids=((1,),), kwargs={"x": [BIG]}),)))],
        {"constants_bytes": 399},
    ),
    "rows: 3 asked for, 2 allowed": ([experiment(inputs=_rows(1, 1, 1))], {"rows": 2}),
    "tokens_per_row .invoke 0, row 1.: 5 asked for, 4 allowed": (
        [experiment(inputs=_rows(1, 5))],
        {"tokens_per_row": 4},
    ),
    "tokens: 6 asked for, 5 allowed": ([experiment(inputs=_rows(3, 3))], {"tokens": 5}),
    "max_new_tokens: 9 asked for, 8 allowed": ([experiment(generation=Generation(9))], {"max_new_tokens": 8}),
    "text in arguments .call.: 70 characters": ([call("sum", "x" * 70)], {}),
    "text in arguments .invoke 0.: 64 char": (
        [experiment(inputs=Inputs((Rows(ids=((1,),), kwargs={"x": "y" * 64}),)))],
        {},
    ),
}


@pytest.mark.parametrize("message", OVER)
def test_each_limit_is_named_with_both_figures(message: str) -> None:
    experiments, limits = OVER[message]
    with pytest.raises(LimitExceeded, match=message):
        check(*experiments, **limits)


def test_what_is_at_the_limit_passes() -> None:
    check(experiment(inputs=_rows(4, 4)), nodes=2, rows=2, tokens_per_row=4, tokens=8, experiments=1)


@pytest.mark.parametrize("value", [0, -1, 1.5, None, True])
def test_limits_are_positive_ints(value: Any) -> None:
    with pytest.raises(InputError, match="nodes must be a positive int"):
        Limits(nodes=value)


# Inputs.


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("2 invokes, and inputs for 1", experiment(invokes=2)),
        ("invoke 0 has no rows", experiment(inputs=Inputs((Rows(),)))),
        ("row 1 has no tokens", experiment(inputs=_rows(2, 0))),
        ("token 50 is not in 0..49", experiment(inputs=Inputs((Rows(ids=((1, 50),)),)))),
        ("token -1 is not in 0..49", experiment(inputs=Inputs((Rows(ids=((-1,),)),)))),
        ("the input 'x' is missing; given: \\['y'\\]\n  at work.py:10",
         experiment(node("input", "x"), SAVE, inputs=Inputs((Rows(ids=((1,),)),), named={"y": BIG}))),
        ("'custom_generate' is not known here", experiment(generation=Generation(1, {"custom_generate": "a/b"}))),
        ("'num_beams' must be an int of at least 1", experiment(generation=Generation(1, {"num_beams": 0}))),
        ("'temperature' must be a number, got 'hot'", experiment(generation=Generation(1, {"temperature": "hot"}))),
        ("'temperature' must be a number, got 'True'", experiment(generation=Generation(1, {"temperature": True}))),
        ("'do_sample' must be true or false", experiment(generation=Generation(1, {"do_sample": 1}))),
        ("'top_k' must be a whole number", experiment(generation=Generation(1, {"top_k": 1.5}))),
        ("'eos_token_id' must be a token id, or a list", experiment(generation=Generation(1, {"eos_token_id": [-1]}))),
        ("'bad_words_ids' must be a list of lists", experiment(generation=Generation(1, {"bad_words_ids": [5]}))),
        ("only those below 0 come earlier", experiment(links={"x": (0, "s")})),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_used(message: str, wrong: Experiment) -> None:
    with pytest.raises(InputError, match=message):
        check(wrong)


def _ints(*rows: list[int]) -> Blob:
    return Blob(
        "int64", (len(rows), len(rows[0])), b"".join(n.to_bytes(8, "little", signed=True) for r in rows for n in r)
    )


def _with(**keywords: Any) -> Experiment:
    return experiment(inputs=Inputs((Rows(ids=((1, 2, 3), (4, 5)), kwargs=keywords),)))


@pytest.mark.parametrize(
    ("message", "keywords"),
    [
        ("'output_attentions' is not permitted at a service; known: attention_mask", {"output_attentions": True}),
        ("'past_key_values' is not permitted", {"past_key_values": BIG}),
        ("'attention_mask' must be a tensor of int64", {"attention_mask": [[1, 1]]}),
        ("'attention_mask' must be a tensor of int64", {"attention_mask": BIG}),
        (
            "'attention_mask' is \\[2, 2\\]; the prompts are 2 rows of at most 3",
            {"attention_mask": _ints([1, 1], [1, 1])},
        ),
        ("'position_ids' is \\[3, 3\\]", {"position_ids": _ints(*[[0, 1, 2]] * 3)}),
        ("'position_ids' must hold numbers from 0 to 8191", {"position_ids": _ints([0, 1, 8192])}),
        ("'position_ids' must hold numbers from 0", {"position_ids": _ints([0, -1, 2])}),
        ("token 50 is not in 0..49", {"decoder_input_ids": _ints([1, 50], [1, 2])}),
        ("'decoder_input_ids' has no tokens", {"decoder_input_ids": Blob("int64", (2, 0), b"")}),
    ],
)
def test_keywords_of_the_model_are_few_and_fit_the_rows(message: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"invoke 0.*{message}"):
        check(_with(**keywords))


def test_keywords_that_fit_pass_and_count_as_tokens() -> None:
    good = {name: _ints([0, 1, 1], [0, 0, 1]) for name in ROW_KEYWORDS | DECODER_KEYWORDS}
    check(_with(**good), tokens=5 + 2 * 6)
    with pytest.raises(LimitExceeded, match="tokens: 17 asked for, 16 allowed"):
        check(_with(**good), tokens=16)
    with pytest.raises(LimitExceeded, match=r"tokens_per_row .*'decoder_input_ids'.: 5 asked for, 4"):
        check(_with(decoder_input_ids=_ints([1] * 5, [1] * 5)), tokens_per_row=4)


def test_a_model_of_tokens_takes_no_arguments_without_names() -> None:
    with pytest.raises(InputError, match="invoke 0: a model of tokens takes no arguments without names, got 1"):
        check(experiment(inputs=Inputs((Rows(ids=((1,),), args=(BIG,)),))))
    with pytest.raises(InputError, match="invoke 0 has no rows"):
        check(experiment(inputs=Inputs((Rows(kwargs={"decoder_input_ids": _ints([1])}),))))
    check(experiment(inputs=Inputs((Rows(args=(BIG,), kwargs={"anything": 1}),))), table=_table(plain=True))


def test_links_lead_to_earlier_saves() -> None:
    uses = [node("input", "x", (1, 3, 8), "float32"), SAVE]
    check(experiment(), experiment(*uses, links={"x": (0, "s")}))
    with pytest.raises(InputError, match="experiment 1 of 2: the input 'x' is linked to 't', which experiment 0"):
        check(experiment(), experiment(*uses, links={"x": (0, "t")}))


def test_generation_options_run_no_code() -> None:
    assert not GENERATION_OPTIONS & {"custom_generate", "trust_remote_code", "assistant_model", "streamer"}


def test_a_plain_module_has_a_table_for_its_inputs() -> None:
    asked = []

    def table_of(own: Experiment) -> SiteTable:
        asked.append(own.inputs)
        return _table(plain=True)

    bare = SiteTable(family="Plain", events=(), sites={}, plain=True)
    own = experiment(inputs=Inputs((Rows(args=(BIG,)),)))
    check_request(Request("m", (own,)), bare, Limits(), table_of=table_of)
    assert asked == [own.inputs]
    with pytest.raises(LimitExceeded):
        check_request(Request("m", (own,)), bare, Limits(constants_bytes=1), table_of=table_of)
    assert len(asked) == 1


# Nodes.


@pytest.mark.parametrize(
    ("kind", "message", "nodes"),
    [
        (UnknownSite, "has no site 'a.outptu'; the nearest: a.output", [node("read", "a.outptu"), SAVE]),
        (UnknownOperation, "'system' is not a permitted operation", [READ, node("call", "system", Ref(0))]),
        (UnknownOperation, "'sum_' is not a permitted", [READ, node("call", "sum_", Ref(0))]),
        (UnknownOperation, "'as_strided' is not", [READ, node("call", "as_strided", Ref(0), (1,), (1,))]),
        (UnknownOperation, "'__class__' is not", [READ, node("call", "__class__", Ref(0))]),
        (GraphError, "has no module 'c'", [READ, node("module", "c", Ref(0))]),
        (GraphError, "has no module ''", [READ, node("module", "", Ref(0))]),
        (UnknownOperation, "a: the argument out=", [READ, node("module", "a", Ref(0), out=Ref(0))]),
        (GraphError, "has no parameter 'b.weight'", [READ, node("parameter", "b.weight")]),
        (GraphError, "'complex128' is not a known dtype", [READ, node("call", "to", Ref(0), Dtype("complex128"))]),
        (GraphError, "'__dict__' is not a known dtype", [READ, node("call", "sum", Ref(0), dtype=Dtype("__dict__"))]),
        (GraphError, "a save takes the arguments R", [READ, node("save", "t")]),
        (GraphError, "a write takes the arguments R .*, got i", [READ, node("write", "a.output", 0)]),
        (GraphError, "a read takes the arguments none", [READ, node("read", "a.output", Ref(0))]),
        (GraphError, "a read takes no keywords", [READ, node("read", "a.output", x=1)]),
        (GraphError, "a item takes the arguments Ri", [READ, node("item", "", Ref(0), "x")]),
        (GraphError, "a save cannot have reduce='max'", [READ, node("save", "t", Ref(0), reduce="max")]),
        (GraphError, "a save cannot have path=", [READ, node("save", "t", Ref(0), path="/tmp")]),
        (GraphError, "two saves are named 's'\n  at work.py:11\n  at work.py:12", [READ, SAVE, SAVE]),
        (GraphError, "a constant is a captured tensor, .* got 'x'", [READ, node("constant", "x", 0)]),
        (GraphError, "a gradient belongs to a backward", [READ, node("grad", "", Ref(0), Ref(0))]),
        (GraphError, "invoke 3 is not among", [READ, node("read", "a.output", invoke=3)]),
        (GraphError, "a.input is no output of a module", [READ, node("skip", "a.input", Ref(0))]),
        (GraphError, "head.output is no output of a module", [READ, node("skip", "head.output", Ref(0))]),
        (GraphError, "an update takes", [READ, node("update", "", Ref(0), (("view",),), Ref(0))]),
        (GraphError, "an update takes", [READ, node("update", "", Ref(0), (), Ref(0))]),
        (GraphError, "through views only, 'sum'", [READ, node("update", "", Ref(0), (("sum", (), ()),), Ref(0))]),
        (UnknownOperation, "'open'", [READ, node("update", "", Ref(0), (("open", (), ()),), Ref(0))]),
        (GraphError, "an input takes a shape", [READ, node("input", "x", "y")]),
    ],
)  # fmt: skip
def test_nodes_that_cannot_be(kind: type[Exception], message: str, nodes: list[Node]) -> None:
    inputs = Inputs((Rows(ids=((1,),)),), named={"x": BIG})
    with pytest.raises(kind, match=message) as caught:
        check(experiment(*nodes, inputs=inputs, constants=(BIG,)))
    assert "at work.py:1" in str(caught.value)


@pytest.mark.parametrize("keyword", sorted(REFUSED_KEYWORDS))
@pytest.mark.parametrize("name", ["zeros_like", "sum", "embedding"])
def test_keywords_that_reach_outside_are_refused_on_every_call(keyword: str, name: str) -> None:
    with pytest.raises(UnknownOperation, match=rf"{name}: the argument {keyword}= is not permitted\n  at work.py:11"):
        check(call(name, **{keyword: "cpu"}))


@pytest.mark.parametrize(
    "wrong",
    [
        call("relu", True),
        call("silu", Ref(0)),
        call("leaky_relu", 0.1, True),
        call("dropout", 0.5, True, True),
        call("embedding", Ref(0), None, 1.0),
        call("to", "cuda:0"),
        call("to", "meta"),
        call("view", Dtype("int8")),
        call("view", dtype=Dtype("int8")),
    ],
)
def test_arguments_that_would_change_weights_or_leave_the_device(wrong: Experiment) -> None:
    with pytest.raises(UnknownOperation, match=r"not permitted|cannot be named"):
        check(wrong)


@pytest.mark.parametrize(
    "good",
    [
        call("relu"),
        call("relu", False),
        call("dropout", 0.5, False, False),
        call("embedding", Ref(0), None, None),
        call("to", Dtype("bfloat16")),
        call("add_", 1.0),
        call("einsum", "bij->bji"),
        call("mse_loss", Ref(0), reduction="mean"),
        call("getitem", (Slice(None, None, None), Listed([0, 1]), ...)),
        call("zeros_like", device=None, requires_grad=False),
    ],
)
def test_ordinary_arguments_pass(good: Experiment) -> None:
    check(good)


def test_everything_of_the_language_passes() -> None:
    nodes = (
        READ,
        node("constant", "", 0),
        node(
            "update",
            "",
            Ref(0),
            (("getitem", ((Slice(None, None, None), -1),), ()), ("view", (8,), ())),
            Ref(1),
        ),
        node("write", "a.output", Ref(2), invoke=0),
        node("parameter", "a.weight"),
        node("module", "first", Ref(0)),
        node("module", "unembed", Ref(0)),
        node("call", "topk", Ref(0), 2),
        node("item", "", Ref(7), 1),
        node("skip", "b.output", Ref(0), invoke=0),
        node("read", "head.output", invoke=0),
        node("call", "sum", Ref(10)),
        node("backward", "", Ref(11)),
        node("grad", "", Ref(0), Ref(12)),
        node("grad_write", "", Ref(0), Ref(12), Ref(1)),
        node("save", "g", Ref(13), reduce="mean", single=True),
        node("save", "t", Ref(8)),
        node("input", "x"),
        node("save", "x", Ref(17)),
    )
    inputs = Inputs((Rows(ids=((1, 2),)),), named={"x": BIG}, rows=3)
    check(experiment(*nodes, constants=(BIG,), inputs=inputs))


def test_order_errors_are_found_before_anything_runs() -> None:
    late = (node("read", "b.output", invoke=0), node("write", "a.output", Ref(0), invoke=0))
    with pytest.raises(OrderError, match=r"written at work.py:11\n  read at    work.py:10"):
        check(
            experiment(
                *late,
                node("read", "head.output", invoke=0),
                node("save", "s", Ref(2)),
                node("save", "u", Ref(0)),
            )
        )


def test_one_of_several_experiments_is_named() -> None:
    with pytest.raises(UnknownSite, match=r"experiment 1 of 2: .*\n  at work.py:10"):
        check(experiment(), experiment(node("read", "nowhere")))


VALUES: list[Any] = [
    None,
    True,
    0,
    3,
    -1,
    2.5,
    "x",
    "cpu",
    Ref(0),
    Ref(1),
    Dtype("float32"),
    Slice(0, None, None),
]
VALUES += [Listed([0]), (Ref(0), 1), Ellipsis, (), (("getitem", (0,), ()),), 1j]
TARGETS = [
    "",
    "a.output",
    "b.output",
    "head.output",
    "a",
    "unembed",
    "a.weight",
    "x",
    *random.Random(0).sample(sorted(OPERATIONS), 20),
]


def test_random_graphs_are_refused_with_errors_of_ours_or_pass() -> None:
    draw = random.Random(7)
    passed = 0
    for _ in range(4000):
        nodes = [READ]
        for n in range(1, draw.randint(2, 7)):
            own = [
                Ref(draw.randrange(n)) if draw.random() < 0.6 else draw.choice(VALUES)
                for _ in range(draw.randint(0, 3))
            ]
            own = [Ref(0) if type(item) is Ref and item.node >= n else item for item in own]
            keywords = {"x": draw.choice(VALUES)} if draw.random() < 0.1 and n > 1 else {}
            kind = draw.choice([*sorted(KINDS), "save", "call"])
            nodes.append(node(kind, draw.choice(TARGETS), *own, invoke=draw.choice([0, ALL_ROWS]), **keywords))
        if any(dep >= n for n, made in enumerate(nodes) for dep in made.deps):
            continue
        generation = draw.choice([None, Generation(3)])
        try:
            check(experiment(*nodes, generation=generation, inputs=Inputs((Rows(ids=((1,),)),), named={"x": BIG})))
            passed += 1
        except GlassworksError:
            pass
    assert passed > 20
