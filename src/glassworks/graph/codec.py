"""Nodes as JSON values and back, exactly: floats travel in hexadecimal, tensors beside the JSON, as bytes.

Decoding is strict: an unknown kind, operation, field or version is refused, and every reference must point back.
What a graph may *do* is checked in `check`; this file only makes sure that it is one.
"""

from collections.abc import Sequence
from typing import Any

from glassworks.errors import WireError
from glassworks.graph.nodes import GUARDED, AnyLine, Dtype, Guards, Listed, Node, Ref, SentLine, Slice, refs_in
from glassworks.graph.wire import spell

VERSION = 1
KINDS = frozenset(
    [
        "read",
        "write",
        "skip",
        "call",
        "update",
        "item",
        "module",
        "parameter",
        "constant",
        "input",
        "result",
        "backward",
        "grad",
        "grad_write",
        "save",
        "cond",
        "state",
        "carried",
        "carry",
        "stop",
        "log",
    ]
)
"""What travels: functions of the author's (`apply`, `effect`) do not."""
_DEPTH = 16
_NAME_CHARACTERS = 256


def argument_to_json(value: Any) -> Any:
    """One argument: plain JSON for what JSON has, a one-key object for the rest."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if type(value) is complex:
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if type(value) is Ref:
        return {"ref": value.node}
    if type(value) is Slice:
        return {"slice": [argument_to_json(item) for item in value]}
    if type(value) is Dtype:
        return {"dtype": value.name}
    if value is Ellipsis:
        return {"ellipsis": True}
    if type(value) is Listed:
        return [argument_to_json(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [argument_to_json(item) for item in value]}
    raise TypeError(f"a graph cannot hold a {type(value).__name__}: {value!r}")


def argument_from_json(value: Any, where: str, depth: int = 0) -> Any:
    """The inverse of `argument_to_json`. WireError names `where`."""
    if depth > _DEPTH:
        raise WireError(f"{where}: arguments nested deeper than {_DEPTH}")
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        if abs(value) >= 2**63:
            raise WireError(f"{where}: {spell(value)} does not fit 64 bits")
        return value
    if isinstance(value, list):
        return Listed(argument_from_json(item, where, depth + 1) for item in value)
    if isinstance(value, dict) and len(value) == 1:
        [(tag, inner)] = value.items()
        return _tagged(tag, inner, where, depth)
    raise WireError(f"{where}: not an argument: {spell(value)}")


def _tagged(tag: str, inner: Any, where: str, depth: int) -> Any:
    match tag:
        case "float" if isinstance(inner, str):
            return _float(inner, where)
        case "complex" if isinstance(inner, list) and len(inner) == 2 and all(isinstance(i, str) for i in inner):
            return complex(_float(inner[0], where), _float(inner[1], where))
        case "ref" if type(inner) is int and inner >= 0:
            return Ref(inner)
        case "slice" if isinstance(inner, list) and len(inner) == 3:
            return Slice(*[argument_from_json(item, where, depth + 1) for item in inner])
        case "dtype" if isinstance(inner, str):
            return Dtype(inner)
        case "ellipsis" if inner is True:
            return Ellipsis
        case "tuple" if isinstance(inner, list):
            return tuple(argument_from_json(item, where, depth + 1) for item in inner)
    raise WireError(f"{where}: not an argument: {spell(tag)}")


def _float(text: str, where: str) -> float:
    try:
        return float.fromhex(text)
    except (ValueError, OverflowError):
        raise WireError(f"{where}: {text[:40]!r} is not a float in hexadecimal") from None


def node_to_json(node: Node, line: AnyLine | None = None) -> dict[str, Any]:
    """A node without what is empty; `line` adds the file's own name and the number."""
    found: dict[str, Any] = {"kind": node.kind}
    if node.target:
        found["target"] = node.target
    if node.args:
        found["args"] = [argument_to_json(item) for item in node.args]
    if node.kwargs:
        found["kwargs"] = {name: argument_to_json(item) for name, item in node.kwargs}
    if node.invoke >= 0:
        found["invoke"] = node.invoke
    if node.steps is not None:
        found["steps"] = list(node.steps)
    if node.when:
        found["when"] = [list(guard) for guard in node.when]
    if line is not None:
        found["line"] = [line.file.replace("\\", "/").rpartition("/")[2], line.number]
    return found


def _is_kind(value: Any) -> bool:
    return isinstance(value, str) and value in KINDS


_FIELDS = frozenset({"kind", "target", "args", "kwargs", "invoke", "steps", "when", "line"})


def node_from_json(value: Any, position: int) -> tuple[Node, SentLine | None]:
    """The inverse of `node_to_json`. WireError names the node by its position."""
    where = f"node {position}"
    if not isinstance(value, dict) or not set(value) <= _FIELDS or not _is_kind(value.get("kind")):
        raise WireError(f"{where}: not a node of version {VERSION}: {spell(value)}")
    line = _line(value.get("line"), where)
    where = f"{where} ({line})" if line else where
    target, args, kwargs = value.get("target", ""), value.get("args", []), value.get("kwargs", {})
    if not isinstance(target, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
        raise WireError(f"{where}: target, args or kwargs are of the wrong type")
    if max(map(len, (target, *kwargs))) > _NAME_CHARACTERS:
        raise WireError(f"{where}: a name of more than {_NAME_CHARACTERS} characters")
    own_args = tuple(argument_from_json(item, where) for item in args)
    own_kwargs = tuple((name, argument_from_json(item, where)) for name, item in kwargs.items())
    when = _guards(value.get("when"), value["kind"], where)
    deps = (*refs_in((own_args, *[item for _, item in own_kwargs])), *[predicate for predicate, _ in when])
    if any(dep >= position for dep in deps):
        raise WireError(f"{where}: refers to node {max(deps)}, which does not come before it")
    invoke = value.get("invoke", -1)
    if type(invoke) is not int or invoke < -1:
        raise WireError(f"{where}: invoke must be a number, got {spell(invoke)}")
    node = Node(value["kind"], target, own_args, own_kwargs, deps, invoke, _steps(value.get("steps"), where), when)
    return node, line


def _guards(value: Any, kind: str, where: str) -> Guards:
    if value is None:
        return ()
    good = isinstance(value, list) and 0 < len(value) <= _DEPTH and kind in GUARDED
    if not good or not all(map(_is_guard, value)):
        raise WireError(
            f"{where}: when must list [node, true or false], at most {_DEPTH}, of a node that a branch may hold"
        )
    return tuple([(predicate, wanted) for predicate, wanted in value])


def _is_guard(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return type(value[0]) is int and value[0] >= 0 and type(value[1]) is bool


def _steps(value: Any, where: str) -> tuple[int, int | None] | None:
    if value is None:
        return None
    good = isinstance(value, list) and len(value) == 2 and type(value[0]) is int and value[0] >= 0
    if not good or not (value[1] is None or (type(value[1]) is int and value[1] > value[0])):
        raise WireError(f"{where}: steps must be [first, end], got {spell(value)}")
    return value[0], value[1]


def _line(value: Any, where: str) -> SentLine | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str) or type(value[1]) is not int:
        raise WireError(f"{where}: line must be [file, number], got {spell(value)}")
    name = value[0].replace("\\", "/").rpartition("/")[2]
    if len(name) > 200 or not name.isprintable():
        raise WireError(f"{where}: line names no file")
    return SentLine(name, value[1])


def nodes_to_json(nodes: Sequence[Node], lines: Sequence[AnyLine | None]) -> list[dict[str, Any]]:
    return [node_to_json(node, line) for node, line in zip(nodes, lines, strict=True)]
