"""What clients and services say to each other: requests, results and errors as bytes, and back, strictly.

A request is one safetensors message that holds several graphs, what they run on, and every tensor once,
however many experiments use it. Results are the same the other way. An error is a small JSON text: the type,
the message and the notes, which name the user's own lines; tracebacks stay where they are. Nothing here is
ever unpickled.

Tensors are constants or blobs at this level. A layer that has tensors of its own gives `as_leaf` and
`from_blob`.
"""

import builtins
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glassworks import errors
from glassworks.errors import GlassworksError, InputError, LimitExceeded, RemoteError, WireError
from glassworks.graph import logs, tree, wire
from glassworks.graph.backend import Experiment, Generation, Inputs, Results, Rows
from glassworks.graph.graph import Graph

VERSION = 1
_ERROR_CHARACTERS = 10_000
_WORD_CHARACTERS = 100
_OPENAIS = frozenset(["param", "code"])
FILE_SUFFIXES = (".json", ".jinja", ".txt", ".model")

FromBlob = Callable[[wire.Blob], Any]
"""A blob as a tensor of the layer above."""


def _same(blob: wire.Blob) -> Any:
    return blob


@dataclass(frozen=True, slots=True)
class Request:
    """Experiments, in the order in which they are to run as one job, on a model by name."""

    model: str
    experiments: tuple[Experiment, ...]


class _Tensors:
    """The tensors of a message, each once."""

    def __init__(self) -> None:
        self.blobs: dict[str, wire.Blob] = {}
        self._numbers: dict[str, int] = {}

    def add(self, constant: wire.Constant, where: str) -> int:
        blob = constant.blob()
        if blob.dtype not in wire.ITEM_BYTES:
            raise InputError(f"{where}: a tensor of {blob.dtype} cannot travel; known: {', '.join(wire.ITEM_BYTES)}")
        number = self._numbers.setdefault(wire.digest(blob), len(self.blobs))
        self.blobs.setdefault(str(number), blob)
        return number

    def without(self, numbers: set[int]) -> dict[str, list[Any]]:
        """Take out the large ones among these, as what stands for them; gives them by name."""
        digests = {number: digest for digest, number in self._numbers.items()}
        large = {}
        for number in sorted(numbers):
            blob = self.blobs[str(number)]
            if blob.size_bytes > wire.LARGE_BYTES:
                large[str(number)] = [digests[number], blob.dtype, list(blob.shape)]
                del self.blobs[str(number)]
        return large


# Requests.


def encode_request(
    model: str,
    experiments: Sequence[Experiment],
    *,
    as_leaf: tree.AsLeaf = tree.own_leaf,
    aside: dict[str, wire.Blob] | None = None,
) -> bytes:
    """Experiments for a model as bytes.

    Args:
        aside: takes the large captured tensors, by digest; the message then holds the digests only.

    Raises:
        InputError: an argument that cannot travel, with its place.
    """
    tensors, leaves = _Tensors(), list[wire.Constant]()
    own = [_experiment_to_json(experiment, tensors, leaves, as_leaf) for experiment in experiments]
    numbers = [tensors.add(leaf, "inputs") for leaf in leaves]
    whole = dict(tensors.blobs)
    captured = {number for experiment in own for number in experiment["constants"]}.difference(numbers)
    large = {} if aside is None else tensors.without(captured)
    if aside is not None:
        aside.update({digest: whole[name] for name, (digest, _, _) in large.items()})
    message = {"version": VERSION, "model": model, "experiments": own, "leaves": numbers, "large": large}
    return wire.pack({"request": message}, tensors.blobs)


def encode_tensor(blob: wire.Blob) -> bytes:
    """One tensor as a message of its own."""
    return wire.pack({"tensor": {"version": VERSION}}, {"0": blob})


def decode_tensor(data: bytes | memoryview) -> wire.Blob:
    """The inverse of `encode_tensor`. WireError: the message is none, or of more than one tensor."""
    message, blobs = wire.unpack(data)
    _fields(_fields(message, {"tensor"}, "message")["tensor"], set(), "tensor", True)
    [blob] = _numbered(blobs, {}) if len(blobs) == 1 else [None]
    if not isinstance(blob, wire.Blob):
        raise WireError(f"a message of a tensor holds one, got {len(blobs)}")
    return blob


def _experiment_to_json(
    experiment: Experiment, tensors: _Tensors, leaves: list[wire.Constant], as_leaf: tree.AsLeaf
) -> dict[str, Any]:
    graph, constants = experiment.graph.to_message()
    numbers = [tensors.add(constants[f"constant.{k}"], f"constant {k}") for k in range(len(constants))]
    generation = experiment.generation
    return {
        "graph": graph,
        "constants": numbers,
        "inputs": _inputs_to_json(experiment.inputs, leaves, as_leaf),
        "generation": None
        if generation is None
        else {
            "max_new_tokens": generation.max_new_tokens,
            "options": tree.flatten(dict(generation.options), leaves, where="generation options", as_leaf=as_leaf),
        },
        "links": {name: [number, save] for name, (number, save) in experiment.links.items()},
    }


def _inputs_to_json(inputs: Inputs, leaves: list[wire.Constant], as_leaf: tree.AsLeaf) -> dict[str, Any]:
    invokes = [
        {
            "ids": [[int(token) for token in row] for row in rows.ids],
            "args": tree.flatten(tuple(rows.args), leaves, where=f"arguments of invoke {k}", as_leaf=as_leaf),
            "kwargs": tree.flatten(dict(rows.kwargs), leaves, where=f"keywords of invoke {k}", as_leaf=as_leaf),
        }
        for k, rows in enumerate(inputs.invokes)
    ]
    named = tree.flatten(dict(inputs.named), leaves, where="named inputs", as_leaf=as_leaf)
    numbers = None if inputs.numbers is None else list(inputs.numbers)
    return {"invokes": invokes, "named": named, "rows": inputs.rows, "numbers": numbers}


def decode_request(
    data: bytes | memoryview, *, from_blob: FromBlob = _same, aside: Mapping[str, wire.Blob] | None = None
) -> Request:
    """The inverse of `encode_request`. Tensors of graphs stay blobs; those of inputs go through `from_blob`.

    `aside` has the large tensors; without it they stay what the message says of them.

    Raises:
        WireError: names the field that is wrong.
    """
    message, blobs = wire.unpack(data)
    body = _fields(
        _fields(message, {"request"}, "message")["request"],
        {"model", "experiments", "leaves", "large"},
        "request",
        True,
    )
    if not isinstance(body["model"], str) or not isinstance(body["experiments"], list) or not body["experiments"]:
        raise WireError("request: model must be a name, and experiments a list of at least one")
    tensors = _numbered(blobs, _large(body["large"], aside))
    used = set(_tensor_numbers(body["leaves"], tensors, "request: leaves"))
    if any(isinstance(tensors[k], wire.Absent) for k in used):
        raise WireError("request: leaves: only captured tensors may be elsewhere; send this one in the message")
    made = {k: from_blob(tensors[k]) for k in used}  # each once, however often it stands there
    leaves = [made[k] for k in body["leaves"]]
    experiments = []
    for position, value in enumerate(body["experiments"]):
        experiment, numbers = _experiment_from_json(value, tensors, leaves, f"experiment {position}")
        experiments.append(experiment)
        used.update(numbers)
    _all_used(used, tensors)
    return Request(body["model"], tuple(experiments))


def _large(value: Any, aside: Mapping[str, wire.Blob] | None) -> dict[str, Any]:
    """The tensors that travel by digest, by name."""
    if not isinstance(value, dict):
        raise WireError("request: large must be an object")
    found: dict[str, Any] = {}
    for name, item in value.items():
        absent = wire.absent_from_json(item, f"request: large: tensor {wire.spell(name)}")
        if aside is not None and absent.digest not in aside:
            raise WireError(f"request: large: tensor {wire.spell(name)} was not sent")
        found[name] = absent if aside is None else aside[absent.digest]
    return found


def _experiment_from_json(
    value: Any, tensors: list[wire.Blob], leaves: list[Any], where: str
) -> tuple[Experiment, list[int]]:
    body = _fields(value, {"graph", "constants", "inputs", "generation", "links"}, where)
    numbers = _tensor_numbers(body["constants"], tensors, f"{where}: constants")
    try:
        graph = Graph.from_message(body["graph"], {f"constant.{k}": tensors[n] for k, n in enumerate(numbers)})
    except WireError as error:
        raise WireError(f"{where}: {error}") from None
    if len(graph.constants) != len(numbers):
        raise WireError(f"{where}: constants: the graph has {len(graph.constants)}, {len(numbers)} are listed")
    inputs = _inputs_from_json(body["inputs"], leaves, f"{where}: inputs")
    generation = _generation_from_json(body["generation"], leaves, f"{where}: generation")
    return Experiment(graph, inputs, generation, _links(body["links"], f"{where}: links")), numbers


def _inputs_from_json(value: Any, leaves: list[Any], where: str) -> Inputs:
    body = _fields(value, {"invokes", "named", "rows", "numbers"}, where)
    rows = body["rows"]
    if not isinstance(body["invokes"], list) or not (rows is None or (type(rows) is int and rows >= 1)):
        raise WireError(f"{where}: invokes must be a list, and rows a positive number or null")
    invokes = [_rows(item, leaves, f"{where}: invoke {k}") for k, item in enumerate(body["invokes"])]
    numbers = _row_numbers(body["numbers"], sum(len(own.ids) for own in invokes), where)
    return Inputs(tuple(invokes), _mapping(body["named"], leaves, f"{where}: named"), rows, numbers)


def _row_numbers(value: Any, count: int, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(number) is int and 0 <= number < 2**62 for number in value):
        raise WireError(f"{where}: numbers must be a list of numbers of at least 0, or null")
    if len(value) != count:
        raise WireError(f"{where}: there are {count} rows of tokens, and numbers has {len(value)}")
    return tuple(value)


def _rows(value: Any, leaves: list[Any], where: str) -> Rows:
    body = _fields(value, {"ids", "args", "kwargs"}, where)
    ids = body["ids"]
    if not isinstance(ids, list) or not all(isinstance(row, list) and all(type(t) is int for t in row) for row in ids):
        raise WireError(f"{where}: ids must be lists of token numbers")
    args = tree.unflatten(body["args"], leaves, where=f"{where}: args")
    if not isinstance(args, tuple):
        raise WireError(f"{where}: args must be a tuple")
    return Rows(tuple(tuple(row) for row in ids), args, _mapping(body["kwargs"], leaves, f"{where}: kwargs"))


def _generation_from_json(value: Any, leaves: list[Any], where: str) -> Generation | None:
    if value is None:
        return None
    body = _fields(value, {"max_new_tokens", "options"}, where)
    if type(body["max_new_tokens"]) is not int or body["max_new_tokens"] < 0:
        raise WireError(f"{where}: max_new_tokens must be a number of at least 0")
    return Generation(body["max_new_tokens"], _mapping(body["options"], leaves, f"{where}: options"))


def _links(value: Any, where: str) -> dict[str, tuple[int, str]]:
    if not isinstance(value, dict):
        raise WireError(f"{where} must be an object")
    for name, link in value.items():
        good = isinstance(link, list) and len(link) == 2 and type(link[0]) is int and isinstance(link[1], str)
        if not good:
            raise WireError(f"{where}: {name[:40]!r} must be [number of an experiment, name of a save]")
    return {name: (link[0], link[1]) for name, link in value.items()}


# Inputs alone: what the site table of a plain module depends on.


def encode_inputs(inputs: Inputs, *, within: Collection[str] = (), as_leaf: tree.AsLeaf = tree.own_leaf) -> bytes:
    """What a site table is asked for: what a graph would run on, and which modules are looked into. InputError."""
    tensors, leaves = _Tensors(), list[wire.Constant]()
    own = _inputs_to_json(inputs, leaves, as_leaf)
    numbers = [tensors.add(leaf, "inputs") for leaf in leaves]
    asked = {"version": VERSION, "inputs": own, "leaves": numbers, "within": sorted(within)}
    return wire.pack({"inputs": asked}, tensors.blobs)


def decode_inputs(data: bytes | memoryview, *, from_blob: FromBlob = _same) -> tuple[Inputs, frozenset[str]]:
    """The inverse of `encode_inputs`: the inputs, and the modules looked into. Raises WireError."""
    message, blobs = wire.unpack(data)
    body = _fields(_fields(message, {"inputs"}, "message")["inputs"], {"inputs", "leaves", "within"}, "inputs", True)
    tensors = _numbered(blobs, {})
    numbers = _tensor_numbers(body["leaves"], tensors, "inputs: leaves")
    _all_used(set(numbers), tensors)
    within = body["within"]
    if not isinstance(within, list) or not all(isinstance(path, str) for path in within):
        raise WireError("inputs: within must be a list of module paths")
    return _inputs_from_json(body["inputs"], [from_blob(tensors[k]) for k in numbers], "inputs"), frozenset(within)


# Results.


def encode_results(
    results: Sequence[Results], *, as_leaf: tree.AsLeaf = tree.own_leaf, limit_bytes: int | None = None
) -> bytes:
    """Results as bytes.

    Raises:
        LimitExceeded: the tensors are larger than `limit_bytes` together; found out before they are joined.
    """
    leaves: list[wire.Constant] = []
    own = [
        {
            "values": tree.flatten(dict(result.saves), leaves, where="saves", as_leaf=as_leaf),
            "forwards": result.forwards,
            "alive": [[[bool(row) for row in step] for step in invoke] for invoke in result.alive],
            "gradients": tree.flatten(
                {str(k): value for k, value in result.gradients.items()},
                leaves,
                where="gradients",
                as_leaf=as_leaf,
            ),
            "logs": [logs.to_json(entry) for entry in result.logs],
        }
        for result in results
    ]
    blobs, size_bytes = {}, sum(len(entry.text) for result in results for entry in result.logs)
    for k, leaf in enumerate(leaves):
        blobs[str(k)] = blob = leaf.blob()
        size_bytes += blob.size_bytes
        if limit_bytes is not None and size_bytes > limit_bytes:
            raise LimitExceeded(
                f"result_bytes: the saves hold at least {size_bytes} bytes, {limit_bytes} are allowed; save "
                "less: a slice, fewer layers, or reduce='mean'"
            )
    return wire.pack({"results": {"version": VERSION, "results": own}}, blobs)


def decode_results(data: bytes | memoryview, *, from_blob: FromBlob = _same) -> list[Results]:
    """The inverse of `encode_results`. Raises WireError."""
    message, blobs = wire.unpack(data)
    body = _fields(_fields(message, {"results"}, "message")["results"], {"results"}, "results", True)
    if not isinstance(body["results"], list):
        raise WireError("results: must be a list")
    leaves = [from_blob(blob) for blob in _numbered(blobs, {})]
    return [_result(value, leaves, f"result {k}") for k, value in enumerate(body["results"])]


def _result(value: Any, leaves: list[Any], where: str) -> Results:
    body = _fields(value, {"values", "forwards", "alive", "gradients", "logs"}, where)
    if type(body["forwards"]) is not int or body["forwards"] < 0:
        raise WireError(f"{where}: forwards must be a number")
    alive = body["alive"]
    if not _nested(alive, 2) or not all(type(row) is bool for invoke in alive for step in invoke for row in step):
        raise WireError(f"{where}: alive must hold lists of lists of true and false")
    gradients = _mapping(body["gradients"], leaves, f"{where}: gradients")
    if not all(name.isdecimal() and name.isascii() and len(name) < 10 for name in gradients):
        raise WireError(f"{where}: gradients must be named by the numbers of constants")
    values = _mapping(body["values"], leaves, f"{where}: values")
    if not isinstance(body["logs"], list) or len(body["logs"]) > logs.ENTRIES + 1:
        raise WireError(f"{where}: logs must be a list of at most {logs.ENTRIES + 1}")
    said = [logs.from_json(entry, f"{where}: logs: entry {k}") for k, entry in enumerate(body["logs"])]
    return Results(values, body["forwards"], alive, {int(name): item for name, item in gradients.items()}, said)


def _nested(value: Any, depth: int) -> bool:
    return isinstance(value, list) and (depth == 0 or all(_nested(item, depth - 1) for item in value))


# Errors.

_OWN = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, GlassworksError)
}
_PYTHONS = """ArithmeticError AssertionError AttributeError FloatingPointError IndexError KeyError LookupError
MemoryError NotImplementedError OverflowError RecursionError RuntimeError TimeoutError TypeError ValueError
ZeroDivisionError"""
_BUILTIN: dict[str, type[Exception]] = {name: getattr(builtins, name) for name in _PYTHONS.split()}


def encode_error(error: BaseException) -> bytes:
    """An error as JSON text. What is neither ours nor a common one of Python's becomes a RemoteError.

    `param` and `code`, where an error has them, are OpenAI's: the field of a body that is wrong, and a word for how.
    """
    kind = next((k.__name__ for k in type(error).__mro__ if _OWN.get(k.__name__) is k), None)
    if kind is None and _BUILTIN.get(type(error).__name__) is type(error):
        kind = type(error).__name__
    message = str(error.args[0]) if isinstance(error, KeyError) and len(error.args) == 1 else str(error)
    if kind is None:
        kind, message = "RemoteError", f"{type(error).__name__}: {message}"
    notes = [str(note)[:_ERROR_CHARACTERS] for note in getattr(error, "__notes__", ())]
    body = {"version": VERSION, "type": kind, "message": message[:_ERROR_CHARACTERS], "notes": notes}
    found = {name: getattr(error, name, None) for name in _OPENAIS}
    if any(isinstance(value, str) for value in found.values()):
        body.update(
            {name: value[:_WORD_CHARACTERS] if isinstance(value, str) else None for name, value in found.items()}
        )
    return json.dumps({"error": body}).encode()


def decode_error(data: bytes | memoryview) -> Exception:
    """The error to raise. WireError: not an error message of ours."""
    message = wire.json_of(bytes(data), "the error message")
    value = _fields(message, {"error"}, "message")["error"]
    extra = _OPENAIS & set(value) if isinstance(value, dict) else set()
    body = _fields(value, {"type", "message", "notes"} | extra, "error", True)
    if not isinstance(body["type"], str) or not isinstance(body["message"], str) or not isinstance(body["notes"], list):
        raise WireError("error: type and message must be text, notes a list")
    kind: type[Exception] | None = _OWN.get(body["type"]) or _BUILTIN.get(body["type"])
    found = kind(body["message"]) if kind else RemoteError(f"{body['type']}: {body['message']}")
    for note in body["notes"]:
        found.add_note(str(note))
    for name in (name for name in extra if isinstance(body[name], str)):
        setattr(found, name, body[name])
    return found


# Files of a tokenizer.


def encode_files(files: Mapping[str, bytes]) -> bytes:
    """Small files, by their plain names, as one message."""
    blobs = {name: wire.Blob("uint8", (len(content),), content) for name, content in files.items()}
    return wire.pack({"files": {"version": VERSION, "names": list(files)}}, blobs)


def decode_files(data: bytes | memoryview) -> dict[str, bytes]:
    """The inverse of `encode_files`. WireError: also for a name that is not a plain file name of a kind that
    is data."""
    message, blobs = wire.unpack(data)
    names = _fields(_fields(message, {"files"}, "message")["files"], {"names"}, "files", True)["names"]
    if not isinstance(names, list) or sorted(map(str, names)) != sorted(blobs):
        raise WireError("files: names must list the tensors of the message")
    for name in names:
        plain = name.replace("_", "").replace("-", "").replace(".", "").isalnum() and not name.startswith(".")
        if not (plain and name.isascii() and name.endswith(FILE_SUFFIXES)) or blobs[name].dtype != "uint8":
            raise WireError(f"files: {name[:80]!r} is not the name of a file ending in {', '.join(FILE_SUFFIXES)}")
    return {name: bytes(blobs[name].data) for name in names}


# Parts.


def _fields(value: Any, fields: set[str], where: str, versioned: bool = False) -> dict[str, Any]:
    """The object, if it has exactly these fields, and (if it is versioned) a version that this side reads."""
    if not isinstance(value, dict):
        raise WireError(f"{where}: expected an object with {', '.join(sorted(fields))}, got {type(value).__name__}")
    version = value.get("version") if versioned else VERSION
    if type(version) is not int or version != VERSION:
        raise WireError(
            f"{where}: version {wire.spell(version)}; this side reads {VERSION}: upgrade the older of the two"
        )
    expected = fields | ({"version"} if versioned else set())
    for name in sorted(expected - set(value)):
        raise WireError(f"{where}: the field {name!r} is missing")
    for name in sorted(set(value) - expected):
        raise WireError(f"{where}: the field {name[:40]!r} is unknown in version {VERSION}")
    return value


def _mapping(value: Any, leaves: list[Any], where: str) -> dict[str, Any]:
    found = tree.unflatten(value, leaves, where=where)
    if not isinstance(found, dict):
        raise WireError(f"{where}: must be a dict")
    return found


def _numbered(blobs: dict[str, wire.Blob], large: Mapping[str, Any]) -> list[wire.Blob]:
    """The tensors in the order of their names, which must be 0, 1, 2 ..."""
    every = {**blobs, **large}
    for k in range(len(blobs) + len(large)):
        if str(k) not in every:
            count = len(blobs) + len(large)
            raise WireError(f"tensor {k} is missing: the {count} tensors must be named by their numbers, from 0")
    return [every[str(k)] for k in range(len(every))]


def _tensor_numbers(value: Any, tensors: list[wire.Blob], where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(k) is int and 0 <= k < len(tensors) for k in value):
        raise WireError(f"{where} must be numbers of tensors below {len(tensors)}")
    return value


def _all_used(used: set[int], tensors: list[wire.Blob]) -> None:
    for k in range(len(tensors)):
        if k not in used:
            raise WireError(f"tensor {k} belongs to nothing in the message")
