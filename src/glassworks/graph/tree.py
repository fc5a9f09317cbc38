"""Nested lists, tuples and dicts with tensors at the leaves, as JSON and a list of leaves, and back, exactly.

Lists stay lists, tuples stay tuples, dicts keep their order; floats travel in hexadecimal, so that NaN,
infinities and the last bit survive. What a tensor is, the caller decides (`AsLeaf`); this file knows only its
bytes. A subclass of a list, tuple, dict or number travels as what it is a subclass of.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from glassworks.errors import InputError, WireError
from glassworks.graph.wire import Blob, Constant, spell

DEPTH = 32
"""How deep a tree may be nested."""


@runtime_checkable
class HasBlob(Protocol):
    """What is a leaf without being asked: it knows its own bytes."""

    def blob(self) -> Blob: ...


AsLeaf = Callable[[Any], Constant | None]
"""A tensor as a constant; None for what is no tensor."""


def own_leaf(value: Any) -> Any:
    """The `AsLeaf` of a layer without tensors: blobs, and whatever has `blob()`."""
    return value if isinstance(value, HasBlob) else None


def flatten(value: Any, leaves: list[Constant], *, where: str, as_leaf: AsLeaf = own_leaf, depth: int = 0) -> Any:
    """The tree as JSON, in which `{"leaf": k}` is the k-th of `leaves`; its own leaves are appended there.

    Raises:
        InputError: names `where`, and what cannot travel.
    """
    if depth > DEPTH:
        raise InputError(f"{where} is nested deeper than {DEPTH}; give a flatter structure")
    if value is None or isinstance(value, bool | str):
        return value
    leaf = as_leaf(value)
    if leaf is not None:
        leaves.append(leaf)
        return {"leaf": len(leaves) - 1}
    if isinstance(value, list | tuple):
        items = [flatten(item, leaves, where=where, as_leaf=as_leaf, depth=depth + 1) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {"dict": _dict(value, leaves, where, as_leaf, depth)}
    return _number(value, where)


def _dict(value: dict[Any, Any], leaves: list[Constant], where: str, as_leaf: AsLeaf, depth: int) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{where}: the keys of a dict must be text to travel, got {key!r}")
    return {
        str(key): flatten(item, leaves, where=f"{where}.{key}", as_leaf=as_leaf, depth=depth + 1)
        for key, item in value.items()
    }


def _number(value: Any, where: str) -> Any:
    if isinstance(value, int):
        if abs(value) >= 2**63:
            raise InputError(f"{where}: {value} does not fit 64 bits")
        return int(value)
    if isinstance(value, float):
        return {"float": float(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    raise InputError(
        f"{where}: a {type(value).__name__} cannot travel; give tensors, numbers, text, None, and lists, "
        "tuples or dicts of them"
    )


def unflatten(value: Any, leaves: Sequence[Any], *, where: str, depth: int = 0) -> Any:
    """The inverse of `flatten`. WireError names `where`."""
    if depth > DEPTH:
        raise WireError(f"{where}: nested deeper than {DEPTH}")
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int and abs(value) < 2**63:
        return value
    if isinstance(value, list):
        return [unflatten(item, leaves, where=where, depth=depth + 1) for item in value]
    if isinstance(value, dict) and len(value) == 1:
        [(tag, inner)] = value.items()
        return _tagged(tag, inner, leaves, where, depth)
    raise WireError(f"{where}: not a value: {spell(value)}")


def _tagged(tag: str, inner: Any, leaves: Sequence[Any], where: str, depth: int) -> Any:
    match tag:
        case "leaf" if type(inner) is int:
            if not 0 <= inner < len(leaves):
                raise WireError(f"{where}: there is no tensor {inner}; the message has {len(leaves)}")
            return leaves[inner]
        case "tuple" if isinstance(inner, list):
            return tuple([unflatten(item, leaves, where=where, depth=depth + 1) for item in inner])
        case "dict" if isinstance(inner, dict):
            return {
                key: unflatten(item, leaves, where=f"{where}.{key}"[:120], depth=depth + 1)
                for key, item in inner.items()
            }
        case "float" if isinstance(inner, str):
            return _float(inner, where)
        case "complex" if isinstance(inner, list) and len(inner) == 2 and all(isinstance(part, str) for part in inner):
            return complex(_float(inner[0], where), _float(inner[1], where))
    raise WireError(f"{where}: not a value: {tag[:40]!r}")


def _float(text: str, where: str) -> float:
    try:
        return float.fromhex(text)
    except (ValueError, OverflowError):
        raise WireError(f"{where}: {text[:40]!r} is not a float in hexadecimal") from None
