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
from glassworks.graph.operations import OPERATIONS, look_up

_SPELLINGS = {
    "abs": "absolute __abs__", "neg": "negative __neg__", "add": "__add__ __radd__", "acos": "arccos",
    "sub": "subtract __sub__", "mul": "multiply __mul__ __rmul__", "asin": "arcsin", "atan": "arctan",
    "div": "divide true_divide __truediv__ __div__", "rsub": "__rsub__", "rdiv": "__rtruediv__ __rdiv__",
    "floor_divide": "__floordiv__", "rfloordiv": "__rfloordiv__", "remainder": "__mod__", "rmod": "__rmod__",
    "pow": "__pow__", "rpow": "__rpow__", "matmul": "__matmul__ linalg.matmul", "eq": "__eq__",
    "ne": "not_equal __ne__",
    "lt": "less __lt__", "le": "less_equal __le__", "gt": "greater __gt__", "ge": "greater_equal __ge__",
    "bitwise_and": "__and__ __rand__", "bitwise_or": "__or__ __ror__", "bitwise_xor": "__xor__ __rxor__",
    "bitwise_not": "__invert__", "bitwise_left_shift": "__lshift__", "bitwise_right_shift": "__rshift__",
    "clamp": "clip", "trunc": "fix", "transpose": "swapaxes swapdims", "movedim": "moveaxis", "acosh": "arccosh",
    "asinh": "arcsinh", "atanh": "arctanh", "atan2": "arctan2", "cat": "concat concatenate", "getitem": "__getitem__",
    "trapezoid": "trapz", "vstack": "row_stack", "outer": "ger", "positive": "__pos__",
    "sigmoid": "special.expit", "lgamma": "special.gammaln", "digamma": "special.psi",
    "mvlgamma": "special.multigammaln",
    "igamma": "special.gammainc", "igammac": "special.gammaincc", "conj_physical": "conj", "mH": "adjoint",
    "linalg.det": "det", "linalg.slogdet": "slogdet", "linalg.inv": "inverse", "linalg.pinv": "pinverse",
    "linalg.matrix_power": "matrix_power", "linalg.matrix_exp": "matrix_exp",
}  # fmt: skip
"""Operation -> its other names; torch's own name of the operation is always one."""

_OTHERWISE = frozenset({(F, "unfold"), (torch, "embedding"), (torch, "kl_div"), (torch, "cosine_embedding_loss"),
    (torch, "binary_cross_entropy_with_logits"), (torch, "adaptive_max_pool1d"), (torch, "dropout"),
    (torch, "poisson_nll_loss"), (torch, "hinge_embedding_loss"), (torch, "margin_ranking_loss"),
    (torch, "triplet_margin_loss")})  # fmt: skip
"""Functions that share a name with an operation and do something else, or take their arguments otherwise."""


def _set(base: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    base[index] = value
    return base


_PERFORM: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "where": torch.where,
    "rsub": torch.rsub,
    "rpow": torch.Tensor.__rpow__,
    "rdiv": lambda value, other: other / value,
    "rfloordiv": lambda value, other: other // value,
    "rmod": lambda value, other: other % value,
    "mT": lambda value: value.mT,
    "mH": lambda value: value.mH,
}
"""Operations that torch has under no one name, or whose method and function differ."""


def _in_namespace(space: ModuleType | type, name: str) -> Any:
    found: Any = space
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@cache
def bound(name: str) -> Callable[..., Any]:
    """What performs an operation. A name that ends in `_` works in place on a copy of its first argument.

    Raises:
        UnknownOperation: it is not in the table.
    """
    look_up(name)
    if name not in OPERATIONS:
        return _on_a_copy(name)
    if name in _PERFORM:
        return _PERFORM[name]
    for space in (torch.Tensor, F, torch):
        found = _in_namespace(space, name)
        if callable(found):
            return found  # type: ignore[no-any-return]
    if OPERATIONS[name].inplace:
        return _on_a_copy(name + "_")
    raise UnknownOperation(
        f"this torch ({torch.__version__}) has no {name!r}; the table of operations expects 2.11 or later"
    )


def _on_a_copy(name: str) -> Callable[..., Any]:
    method = _set if name == "setitem_" else getattr(torch.Tensor, name)

    def perform(base: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return method(base.clone(), *args, **kwargs)  # type: ignore[no-any-return]

    return perform


_SPACES: tuple[tuple[Any, str], ...] = (
    (torch.Tensor, "Tensor"), (F, "torch.nn.functional"), (torch, "torch"), (torch.special, "torch.special"),
)  # fmt: skip


@cache
def spellings(name: str) -> dict[str, Callable[..., Any]]:
    """How torch spells an operation, or with a `_` at its end the in-place form: text -> callable.

    `Tensor.add` is the method, `Tensor.__radd__` what `2 + tensor` calls.
    """
    plain = name if name in OPERATIONS else name[:-1]
    found: dict[str, Callable[..., Any]] = {}
    for spelling in (plain, *_SPELLINGS.get(plain, "").split()):
        own = spelling if name == plain else _in_place(spelling)
        for space, text in _SPACES:
            function = _in_namespace(space, own)
            known = space is not torch.Tensor and (own.startswith("__") or function in found.values())
            if callable(function) and (space, own) not in _OTHERWISE and not known:
                found[f"{text}.{own}"] = function
    return found


def _in_place(spelling: str) -> str:
    """`add` -> `add_`, `__add__` -> `__iadd__`."""
    if spelling == "setitem":
        return "__setitem__"
    return f"__i{spelling[2:]}" if spelling.startswith("__") else spelling + "_"


@cache
def _names() -> dict[Any, str]:
    """Callable -> name of the operation, over all spellings; an in-place one ends in `_`."""
    names: dict[Any, str] = {}
    for name, operation in OPERATIONS.items():
        for own in (name, name + "_") if operation.inplace else (name,):
            for function in spellings(own).values():
                names.setdefault(function, own)
    return names


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
        hint = f": write {INSTEAD[spelled]}" if spelled in INSTEAD else hint
        raise UnknownOperation(f"torch's {spelled!r} is not a permitted operation{hint}")
    return name


INSTEAD = {
    "equal": "(a == b).all(), which is a Value",
    "allclose": "torch.isclose(a, b).all(), which is a Value",
    "empty_like": "torch.zeros_like(value)",
    "new_empty": "value.new_zeros(...)",
    "normal_": "torch.randn_like(value)",
    "uniform_": "torch.rand_like(value)",
    "bernoulli_": "torch.bernoulli(chances)",
}
"""What to write for some operations that are not permitted."""

_REORDERED = {
    torch.Tensor.where: (1, 0),
    torch.polygamma: (1, 0),
    torch.special.polygamma: (1, 0),
}
"""Spellings that take their first arguments in another order than the operation does."""


def ordered(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The positional arguments of a torch callable in the order of the operation that it spells."""
    order = _REORDERED.get(function)
    return args if order is None else (*[args[k] for k in order], *args[len(order) :])


@cache
def attributes() -> dict[str, str]:
    """Method of a tensor, operators among them -> the operation that it performs; in-place forms end in `_`."""
    found: dict[str, str] = {}
    for name, operation in OPERATIONS.items():
        for own in (name, name + "_") if operation.inplace else (name,):
            methods = [text.partition(".") for text in spellings(own)]
            found.update({attribute: own for space, _, attribute in methods if space == "Tensor"})
    return found
