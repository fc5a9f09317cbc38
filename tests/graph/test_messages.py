"""Requests, results, errors and files as bytes: exact both ways, and strict about everything else."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassworks import errors
from glassworks.errors import InputError, LimitExceeded, RemoteError, UnknownSite, WireError
from glassworks.graph import messages, tree, wire
from glassworks.graph.backend import Experiment, Generation, Inputs, Results, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import Node, Ref, SentLine
from glassworks.graph.wire import Blob

ONE = Blob("float32", (2,), struct.pack("<2f", 1.0, math.nan))
TWO = Blob("bfloat16", (0, 3), b"")

blobs = st.builds(
    lambda dtype, count: Blob(dtype, (count,), bytes(range(count * wire.ITEM_BYTES[dtype]))),
    st.sampled_from(["float32", "bfloat16", "int64", "bool", "float8_e4m3fn"]),
    st.integers(0, 5),
)
numbers = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats() | st.complex_numbers()
scalars = st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"]))
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
trees = st.recursive(
    scalars | blobs,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal with types, order of keys, and bits of floats."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    return bool(a == b)


def graph(*, constants: tuple[Any, ...] = (), line: int = 7) -> Graph:
    nodes = [Node("read", "logits", (), (), (), 0, (0, None))]
    nodes += [Node("constant", "", (k,), (), (), -1, None) for k in range(len(constants))]
    nodes += [Node("save", f"s{n}", (Ref(n),), (), (n,), -1, None) for n in range(len(nodes))]
    return Graph(tuple(nodes), (SentLine("notebook.py", line),) * len(nodes), constants)


def experiment(**changes: Any) -> Experiment:
    rows = Rows(ids=((1, 2, 3), (4,)), args=(ONE, [1, (2.5, None)]), kwargs={"scale": -0.0, "mask": TWO})
    parts: dict[str, Any] = {
        "graph": graph(constants=(ONE, TWO)),
        "inputs": Inputs((rows,), named={"steer": ONE}, rows=4),
        "generation": Generation(5, {"do_sample": True, "temperature": 0.7}),
    }
    return Experiment(**parts | changes)


def change(data: bytes, edit: Any) -> bytes:
    """The message with its JSON changed by `edit`, its tensors as they were."""
    message, found = wire.unpack(data)
    edit(message)
    return wire.pack(message, found)


# Trees.


@given(trees)
def test_tree_round_trip(value: Any) -> None:
    leaves: list[Any] = []
    data = json.loads(json.dumps(tree.flatten(value, leaves, where="here"), allow_nan=False))
    assert same(tree.unflatten(data, leaves, where="here"), value)


def test_subclasses_travel_as_what_they_are_subclasses_of() -> None:
    class Pair(tuple[int, int]):
        pass

    assert tree.flatten(Pair((1, 2)), [], where="x") == {"tuple": [1, 2]}


def test_a_leaf_is_what_the_predicate_says() -> None:
    class Tensor:
        pass

    leaves: list[Any] = []
    found = tree.flatten([Tensor()], leaves, where="x", as_leaf=lambda v: ONE if type(v) is Tensor else None)
    assert found == [{"leaf": 0}]
    assert leaves == [ONE]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": object()}, "x.a: a object cannot travel"),
        ({1: 2}, "keys of a dict must be text"),
        ([2**63], "does not fit 64 bits"),
        ({1, 2}, "a set cannot travel"),
    ],
)
def test_what_cannot_travel_is_named(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tree.flatten(value, [], where="x")


def test_trees_are_of_bounded_depth() -> None:
    value: Any = 1
    for _ in range(40):
        value = [value]
    with pytest.raises(InputError, match="deeper than 32"):
        tree.flatten(value, [], where="x")
    with pytest.raises(WireError, match="deeper than 32"):
        tree.unflatten(value, [], where="x")


@pytest.mark.parametrize(
    "value",
    [1.5, {"leaf": 1}, {"leaf": -1}, {"leaf": "0"}, {"tuple": 3}, {"dict": []}, {"float": "x"}, {"float": 1}]
    + [{"ref": 0}, {"slice": [0, 1, 2]}, {}, {"leaf": 0, "tuple": []}, 2**63, {"complex": ["0x1p0"]}],
)
def test_malformed_trees_are_refused(value: Any) -> None:
    with pytest.raises(WireError, match="here"):
        tree.unflatten([value], [ONE], where="here")


# Requests.


def test_request_round_trip() -> None:
    linked = experiment(links={"steer": (0, "s0")}, generation=None)
    request = messages.decode_request(messages.encode_request("toy", [experiment(), linked]))
    assert request.model == "toy"
    first, second = request.experiments
    assert first.graph == experiment().graph
    assert str(first.graph.lines[0]) == "notebook.py:7"
    assert first.inputs == experiment().inputs
    assert first.generation == experiment().generation
    assert second.links == {"steer": (0, "s0")}
    assert second.generation is None


def test_each_tensor_travels_once() -> None:
    big = Blob("uint8", (100_000,), bytes(100_000))
    again = Blob("uint8", (100_000,), bytes(100_000))
    many = [experiment(graph=graph(constants=(big, again))) for _ in range(8)]
    assert len(messages.encode_request("toy", many)) < 150_000


@given(st.lists(trees, max_size=3).map(tuple), st.dictionaries(keys, trees, max_size=3))
def test_arguments_round_trip(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    inputs = Inputs((Rows(args=args, kwargs=named),), named=named)
    data = messages.encode_request("toy", [Experiment(graph(), inputs)])
    own = messages.decode_request(data).experiments[0].inputs
    assert same(own.invokes[0].args, args)
    assert same(own.invokes[0].kwargs, named)
    assert same(own.named, named)
    assert same(messages.decode_inputs(messages.encode_inputs(inputs))[0].invokes[0].args, args)


def test_tensors_of_inputs_go_through_the_converters() -> None:
    class Tensor:
        pass

    inputs = Inputs((Rows(args=(Tensor(),)),))
    data = messages.encode_request(
        "toy", [Experiment(graph(), inputs)], as_leaf=lambda v: ONE if type(v) is Tensor else None
    )
    request = messages.decode_request(data, from_blob=lambda blob: ("tensor", blob.dtype))
    assert request.experiments[0].inputs.invokes[0].args == (("tensor", "float32"),)


def test_an_unknown_dtype_does_not_travel() -> None:
    odd = Blob("complex128", (1,), bytes(8))
    with pytest.raises(InputError, match="complex128 cannot travel"):
        messages.encode_request("toy", [experiment(graph=graph(constants=(odd,)))])


def _first(message: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = message["request"]["experiments"][0]
    return found


EDITS = {
    "version": lambda m: m["request"].update(version=2),
    "version True": lambda m: m["request"].update(version=True),
    "'who' is unknown": lambda m: m["request"].update(who="me"),
    "'leaves' is missing": lambda m: m["request"].pop("leaves"),
    "'more' is unknown": lambda m: m.update(more=1),
    "model must be a name": lambda m: m["request"].update(model=3),
    "experiments a list": lambda m: m["request"].update(experiments=[]),
    "leaves must be numbers": lambda m: m["request"].update(leaves=[9]),
    "tensor 0 belongs to nothing": lambda m: (
        m["request"].update(leaves=[1, 1, 1]),
        _first(m).update(constants=[1, 1]),
    ),
    "experiment 0: expected an object": lambda m: m["request"].update(experiments=[7]),
    "'user' is unknown": lambda m: _first(m).update(user=1),
    "'graph' is missing": lambda m: _first(m).pop("graph"),
    "this side reads 1": lambda m: _first(m)["graph"].update(version=9),
    "constants must be numbers": lambda m: _first(m).update(constants=["0"]),
    "the graph has 2, 3 are listed": lambda m: _first(m).update(constants=[0, 1, 1]),
    "ids must be lists": lambda m: _first(m)["inputs"]["invokes"][0].update(ids=[[1.5]]),
    "ids must be": lambda m: _first(m)["inputs"]["invokes"][0].update(ids=[[True]]),
    "args must be a tuple": lambda m: _first(m)["inputs"]["invokes"][0].update(args=[]),
    "kwargs: must be a dict": lambda m: _first(m)["inputs"]["invokes"][0].update(kwargs=[]),
    "'seed' is unknown": lambda m: _first(m)["inputs"]["invokes"][0].update(seed=1),
    "invokes must be a list": lambda m: _first(m)["inputs"].update(invokes=None),
    "rows a positive number": lambda m: _first(m)["inputs"].update(rows=0),
    "named: must be a dict": lambda m: _first(m)["inputs"].update(named=None),
    "there is no tensor 77": lambda m: _first(m)["inputs"].update(named={"dict": {"a": {"leaf": 77}}}),
    "max_new_tokens must be": lambda m: _first(m)["generation"].update(max_new_tokens=-1),
    "options: must be a dict": lambda m: _first(m)["generation"].update(options=3),
    "'beams' is unknown": lambda m: _first(m)["generation"].update(beams=3),
    "links must be an object": lambda m: _first(m).update(links=[]),
    "'a' must be \\[number": lambda m: _first(m).update(links={"a": [0]}),
}


@pytest.mark.parametrize("message", EDITS)
def test_each_malformed_field_is_named(message: str) -> None:
    data = change(messages.encode_request("toy", [experiment()]), EDITS[message])
    with pytest.raises(WireError, match=message):
        messages.decode_request(data)


JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    "x",
    [],
    {},
    [[]],
    {"ref": 0},
    {"tuple": [{"leaf": 0}]},
    2**63,
    {"float": "0x1p99999"},
]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *[found for key in keys for found in _paths(value[key], (*path, key))]]


def refused_or_read(data: bytes) -> bool:
    """Refused with an error of ours, or a request that says the same when it is sent on."""
    try:
        request = messages.decode_request(data)
    except WireError:
        return True
    return messages.decode_request(messages.encode_request(request.model, request.experiments)) == request


def test_junk_anywhere_is_refused_or_read() -> None:
    message, found = wire.unpack(messages.encode_request("toy", [experiment(links={"a": (0, "s0")})]))
    for path in _paths(message)[1:]:
        for junk in JUNK:
            changed = json.loads(json.dumps(message))
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = junk
            assert refused_or_read(wire.pack(changed, found))


def test_the_numbers_of_rows_travel() -> None:
    own = experiment(inputs=Inputs((Rows(ids=((1, 2), (4,))),), numbers=(7, 3)))
    message, found = wire.unpack(messages.encode_request("toy", [own]))
    [read] = messages.decode_request(wire.pack(message, found)).experiments
    assert read.inputs.numbers == (7, 3)
    for numbers, says in (([7], "2 rows of tokens, and numbers has 1"), ([7, -1], "at least 0"), (0, "must be a list")):
        message["request"]["experiments"][0]["inputs"]["numbers"] = numbers
        with pytest.raises(WireError, match=says):
            messages.decode_request(wire.pack(message, found))


def test_tensors_are_numbered_without_gaps() -> None:
    message, found = wire.unpack(messages.encode_request("toy", [experiment()]))
    with pytest.raises(WireError, match="tensor 1 is missing"):
        messages.decode_request(wire.pack(message, {"0": found["0"], "other": found["1"]}))


@settings(max_examples=200)
@given(st.data())
def test_cut_and_changed_bytes_are_refused_or_read(data: Any) -> None:
    good = messages.encode_request("toy", [experiment()])
    place = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(
        st.sampled_from([good[:place], good[:place] + b"\x00" + good[place + 1 :], good + b"\x00" * (place + 1)])
    )
    assert refused_or_read(bad)


# Results.


@given(st.dictionaries(keys, trees, max_size=4), st.integers(0, 2**40))
def test_results_round_trip(values: dict[str, Any], forwards: int) -> None:
    alive = [[[True, False], [False, False]], []]
    sent = [Results(values, forwards, alive, {3: ONE, 12: TWO}), Results({})]
    [own, empty] = messages.decode_results(messages.encode_results(sent))
    assert own.gradients == {3: ONE, 12: TWO}
    assert same(dict(own), values)
    assert (own.forwards, own.alive) == (forwards, alive)
    assert (dict(empty), empty.forwards, list(empty.alive)) == ({}, 0, [])


def test_results_over_the_limit_are_refused_with_both_figures() -> None:
    values = {"a": Blob("uint8", (600,), bytes(600)), "b": [Blob("uint8", (500,), bytes(500))]}
    with pytest.raises(LimitExceeded, match="at least 1100 bytes, 1000 are allowed"):
        messages.encode_results([Results(values)], limit_bytes=1000)
    assert messages.encode_results([Results(values)], limit_bytes=1100)


@pytest.mark.parametrize(
    ("message", "edit"),
    [
        ("version", lambda m: m["results"].update(version="1")),
        ("must be a list", lambda m: m["results"].update(results={})),
        ("'time' is unknown", lambda m: m["results"]["results"][0].update(time=1)),
        ("forwards must be", lambda m: m["results"]["results"][0].update(forwards=None)),
        ("alive must hold", lambda m: m["results"]["results"][0].update(alive=[[[1]]])),
        ("alive must hold", lambda m: m["results"]["results"][0].update(alive=[True])),
        ("gradients must be named", lambda m: m["results"]["results"][0].update(gradients={"dict": {"x": None}})),
        ("values: must be a dict", lambda m: m["results"]["results"][0].update(values=[])),
    ],
)
def test_malformed_results_are_refused(message: str, edit: Any) -> None:
    data = change(messages.encode_results([Results({"a": ONE})]), edit)
    with pytest.raises(WireError, match=message):
        messages.decode_results(data)


# Errors.


def _noted(error: Exception, *notes: str) -> Exception:
    for note in notes:
        error.add_note(note)
    return error


OWN = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", [*OWN, IndexError, RuntimeError, KeyError, ZeroDivisionError, MemoryError])
def test_errors_keep_their_type_message_and_notes(kind: type[Exception]) -> None:
    back = messages.decode_error(messages.encode_error(_noted(kind("what 'happened'"), "  at notebook.py:3")))
    assert type(back) is kind
    assert str(back) == str(kind("what 'happened'"))
    assert back.__notes__ == ["  at notebook.py:3"]


def test_an_error_says_which_field_is_wrong_where_that_is_known() -> None:
    error = errors.InputError("temperature must be at most 2")
    assert set(json.loads(messages.encode_error(error))["error"]) == {"version", "type", "message", "notes"}
    error.param, error.code = "temperature", None  # type: ignore[attr-defined]
    sent = messages.encode_error(error)
    assert json.loads(sent)["error"] | {"notes": []} == {
        "version": 1, "type": "InputError", "message": "temperature must be at most 2", "notes": [],
        "param": "temperature", "code": None,
    }  # fmt: skip
    back: Any = messages.decode_error(sent)
    assert type(back) is errors.InputError
    assert back.param == "temperature"
    assert not hasattr(back, "code")


def test_other_errors_become_remote_errors_that_name_the_type() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    class Shadow(Exception):
        pass

    Shadow.__name__ = "IndexError"
    back = messages.decode_error(messages.encode_error(OutOfMemoryError("40 GiB")))
    assert type(back) is RemoteError
    assert str(back) == "OutOfMemoryError: 40 GiB"
    assert type(messages.decode_error(messages.encode_error(Shadow("x")))) is RemoteError
    assert type(messages.decode_error(messages.encode_error(OSError("no space left on drive")))) is RemoteError


def test_a_class_below_one_of_ours_travels_as_ours() -> None:
    class Narrower(UnknownSite):
        pass

    assert type(messages.decode_error(messages.encode_error(Narrower("x")))) is UnknownSite


def test_a_name_from_the_wire_never_picks_a_class_outside_the_list() -> None:
    for name in ("SystemExit", "KeyboardInterrupt", "eval", "Exception", "os.system"):
        data = json.dumps({"error": {"version": 1, "type": name, "message": "m", "notes": []}}).encode()
        assert type(messages.decode_error(data)) is RemoteError


@pytest.mark.parametrize("data", [b"", b"<html>", b"[]", b'{"error": 1}', b'{"error": {"version": 1}}', b"\xff"])
def test_what_is_no_error_message_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        messages.decode_error(data)


# Files.


def test_files_round_trip() -> None:
    files = {"tokenizer.json": b'{"a": 1}', "tokenizer_config.json": b"", "chat_template.jinja": "é".encode()}
    assert messages.decode_files(messages.encode_files(files)) == files
    assert messages.decode_files(messages.encode_files({})) == {}


@pytest.mark.parametrize("name", ["../a.json", "/etc/a.json", ".a.json", "a.py", "a.bin", "a/b.json", "\u0430.json"])
def test_files_have_plain_names_of_kinds_that_are_data(name: str) -> None:
    with pytest.raises(WireError, match="is not the name of a file"):
        messages.decode_files(messages.encode_files({name: b""}))


def test_the_package_never_unpickles() -> None:
    root = Path(messages.__file__).parents[1]
    files = [path for part in ("graph", "client", "serve") for path in (root / part).glob("*.py")]
    assert files
    for path in files:
        text = path.read_text()
        assert "import pickle" not in text
        assert "torch.load" not in text
