"""The one place where the names of operations meet torch: what performs a name, and which name a callable has.

`bound(name)` is what runs. `name_of(callable)` folds the spellings of one operation together, so that a graph does not
depend on how its author likes to write. Functions of `torch.nn.functional` win over those of `torch` where both exist
and differ in their arguments (`embedding`, `kl_div`).
"""

import difflib
import operator
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from glassworks.errors import UnknownOperation
from glassworks.graph.operations import OPERATIONS

_SPELLINGS = {
    "abs": "absolute __abs__", "neg": "negative __neg__", "add": "__add__ __radd__", "acos": "arccos",
    "sub": "subtract __sub__", "mul": "multiply __mul__ __rmul__", "asin": "arcsin", "atan": "arctan",
    "div": "divide true_divide __truediv__ __div__", "rsub": "__rsub__", "rdiv": "__rtruediv__ __rdiv__",
    "floor_divide": "__floordiv__", "rfloordiv": "__rfloordiv__", "remainder": "__mod__", "rmod": "__rmod__",
    "pow": "__pow__", "rpow": "__rpow__", "matmul": "__matmul__", "eq": "__eq__", "ne": "not_equal __ne__",
    "lt": "less __lt__", "le": "less_equal __le__", "gt": "greater __gt__", "ge": "greater_equal __ge__",
    "bitwise_and": "__and__ __rand__", "bitwise_or": "__or__ __ror__", "bitwise_xor": "__xor__ __rxor__",
    "bitwise_not": "__invert__", "bitwise_left_shift": "__lshift__", "bitwise_right_shift": "__rshift__",
    "clamp": "clip", "trunc": "fix", "transpose": "swapaxes swapdims", "movedim": "moveaxis", "acosh": "arccosh",
    "asinh": "arcsinh", "atanh": "arctanh", "atan2": "arctan2", "cat": "concat concatenate", "getitem": "__getitem__",
    "setitem": "__setitem__", "trapezoid": "trapz", "vstack": "row_stack", "sgn": "", "linalg.vecdot": "linalg.vecdot",
    "matrix_power": "", "outer": "ger", "linalg.inv": "inverse", "special.expit": "", "det": "", "positive": "__pos__",
}  # fmt: skip

_AUGMENTED = {
    "truediv": "div", "floordiv": "floor_divide", "mod": "remainder", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
}  # fmt: skip
"""Augmented assignments whose operation has another name."""

_OWN_MEANING = {"unfold": F.unfold}
"""Functions that share a name with an operation and do something else."""


def _set(base: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    base[index] = value
    return base


def _where(condition: Any, *branches: Any) -> Any:
    return torch.where(condition, *branches)


_PERFORM: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "where": _where,
    "rsub": torch.rsub,
    "rpow": torch.Tensor.__rpow__,
    "rdiv": lambda value, other: other / value,
    "rfloordiv": lambda value, other: other // value,
    "rmod": lambda value, other: other % value,
    "mT": lambda value: value.mT,
    "to": lambda value, dtype: value.to(dtype),
}
"""Operations that torch has under no one name, or whose method and function differ."""


def _in_namespace(space: ModuleType | type, name: str) -> Any:
    found: Any = space
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@cache
def bound(name: str) -> Callable[..., Any]:
    """What performs an operation. A name that ends in `_` works in place on a copy of its first argument."""
    if name not in OPERATIONS and name.endswith("_"):
        return _on_a_copy(name)
    if name in _PERFORM:
        return _PERFORM[name]
    for space in (torch.Tensor, F, torch):
        found = _in_namespace(space, name)
        if callable(found):
            return found  # type: ignore[no-any-return]
    if name == "setitem" or callable(getattr(torch.Tensor, name + "_", None)):
        return _on_a_copy(name + "_")
    raise UnknownOperation(
        f"this torch ({torch.__version__}) has no {name!r}; the table of operations expects 2.11 or later"
    )


def _on_a_copy(name: str) -> Callable[..., Any]:
    method = _set if name == "setitem_" else getattr(torch.Tensor, name)

    def perform(base: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return method(base.clone(), *args, **kwargs)  # type: ignore[no-any-return]

    return perform


@cache
def _names() -> dict[Any, str]:
    """Callable -> name of the operation, over all spellings."""
    names: dict[Any, str] = {}

    def learn(name: str, spelling: str, suffix: str = "") -> None:
        for space in (torch.Tensor, F, torch, torch.special):
            found = _in_namespace(space, spelling + suffix)
            differs = space in (torch, torch.special) and _same_name_other_arguments(name)
            if found is not None and not differs and found is not _OWN_MEANING.get(name):
                names.setdefault(_key(found), name + suffix)

    for name, operation in OPERATIONS.items():
        for spelling in (name, *_SPELLINGS.get(name, "").split()):
            learn(name, spelling)
            if operation.inplace and not spelling.startswith("__"):
                learn(name, spelling, "_")
    for short in [
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
        "matmul",
    ]:
        method = getattr(torch.Tensor, f"__i{short}__", None)
        if method is not None:
            names[_key(method)] = _AUGMENTED.get(short, short) + "_"
    names[_key(torch.Tensor.__setitem__)] = "setitem_"
    return names


def _same_name_other_arguments(name: str) -> bool:
    own, other = _in_namespace(F, name), _in_namespace(torch, name)
    return own is not None and other is not own and not callable(_in_namespace(torch.Tensor, name))


def _key(function: Any) -> Any:
    return getattr(function, "__wrapped__", function) if isinstance(function, property) else function


def name_of(function: Callable[..., Any]) -> str:
    """The operation that a torch callable spells; an in-place one ends in `_`.

    Raises:
        UnknownOperation: with the nearest names.
    """
    name = _names().get(function)
    if name is None:
        spelled = getattr(function, "__name__", repr(function))
        near = difflib.get_close_matches(spelled, OPERATIONS, n=3)
        hint = f"; the nearest: {', '.join(near)}" if near else ""
        raise UnknownOperation(f"torch's {spelled!r} is not a permitted operation{hint}")
    return name


@cache
def attributes() -> dict[str, str]:
    """Attribute of a tensor -> the operation that it performs, over spellings and in-place forms."""
    found: dict[str, str] = {}
    for name, operation in OPERATIONS.items():
        for spelling in (name, *_SPELLINGS.get(name, "").split()):
            if "." in spelling or spelling.startswith("__"):
                continue
            if callable(getattr(torch.Tensor, spelling, None)):
                found[spelling] = name
            if operation.inplace and callable(getattr(torch.Tensor, spelling + "_", None)):
                found[spelling + "_"] = name + "_"
    return found
