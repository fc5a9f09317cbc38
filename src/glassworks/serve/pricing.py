"""The price of one call, from meta tensors before it runs, or from the numbers where the size depends on them.

torch itself says what shape a call gives, on tensors without memory; `graph.price` says what that costs. Where even the
shape depends on numbers (a mask, counts, the largest of some classes), nothing is known before: the call is priced once
its operands are there, right before it would run.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from glassworks.errors import LimitExceeded
from glassworks.graph.operations import OPERATIONS, Operation
from glassworks.graph.price import Form, Price, price
from glassworks.trace import binding
from glassworks.trace.shapes import RULES

MOST_RESULTS = 2**14
"""Tensors that one call may give."""
_IN_PIECES = frozenset(["unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit"])
_UNSIZED = frozenset({"linalg.lstsq"})
"""Operations that torch has no shapes for, and that give no more than they are given."""


class NeedsValues(Exception):
    """The size of what a call gives depends on numbers."""


def operation_of(name: str) -> Operation:
    """The entry of an operation or of its in-place form."""
    return OPERATIONS.get(name) or OPERATIONS[name[:-1]]


def quote(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Price, Any]:
    """The price of a call on meta tensors, and what it gives, as meta tensors.

    Raises:
        NeedsValues: not known before it runs.
        LimitExceeded: too many results to look at.
        Exception: what torch raises at such shapes, as it would when it runs.
    """
    key = _key((name, args, tuple(kwargs.items())))
    known = _KNOWN.get(key)
    if known is None:
        _count_results(name, args, kwargs)
        found = (
            torch.empty(0, device="meta") if _too_many_to_count(name, args, kwargs) else _on_meta(name, args, kwargs)
        )
        known = _priced(name, args, kwargs, found), found
        if isinstance(found, torch.Tensor):
            if len(_KNOWN) >= _KEPT:
                _KNOWN.clear()
            _KNOWN[key] = known
    return known


_KNOWN: dict[Any, tuple[Price, Any]] = {}
"""Quotes of calls that were asked for before: torch takes a hundred times as long as a look here."""
_KEPT = 1024


def _key(value: Any) -> Any:
    """What a quote depends on, as something that can be looked up: equal numbers of two types are two."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride()
    if isinstance(value, slice):
        return slice, _key((value.start, value.stop, value.step))
    if isinstance(value, list | tuple):
        return type(value), *map(_key, value)
    return type(value), repr(value)


def quote_now(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Price:
    """The price of a call whose operands are here; nothing of it is run but counts, sums and maxima of operands."""
    counted = _SIZED_BY_VALUES.get(name)
    if counted is not None:
        found: Any = counted(*args, **kwargs)
        return _priced(name, args, kwargs, found)
    try:
        return quote(name, _as_meta(args), {key: _as_meta(item) for key, item in kwargs.items()})[0]
    except NeedsValues:
        pass
    numbers = tuple([_with_numbers(item) for item in args[1:]])
    if name in ("getitem", "setitem_"):
        numbers = (_without_masks(args[1]), *numbers[1:])
    try:
        return quote(name, (*_as_meta(args[:1]), *numbers), {key: _with_numbers(item) for key, item in kwargs.items()})[
            0
        ]
    except NeedsValues:
        if name not in _UNSIZED:
            raise
        return _priced(name, args, kwargs, ())


def _on_meta(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    function = RULES.get(name) or binding.bound(name)
    try:
        with warnings.catch_warnings():  # the run itself will say what it has to say
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)
    except NotImplementedError as error:
        raise NeedsValues(name) from error
    except RuntimeError as error:
        if "meta tensor" in str(error).lower():
            raise NeedsValues(name) from error
        if "overflow" in str(error):
            return torch.empty(2**60, device="meta")  # more than can be counted, and than anybody is allowed
        raise


def _priced(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Any) -> Price:
    operands = [_form(tensor) for tensor in tensors_in((args, tuple(kwargs.values())))]
    return price(operation_of(name), operands, [_form(tensor) for tensor in tensors_in(found)], args, kwargs)


def _form(tensor: torch.Tensor) -> Form:
    return Form(tuple(tensor.shape), tensor.element_size())


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a structure, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def _count_results(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call that gives more tensors than anybody looks at, before they are made."""
    if name not in _IN_PIECES:
        return
    own = (*args, None, None)
    number = None if name == "unbind" else next(iter([*own[1:2], *[v for k, v in kwargs.items() if k != "dim"]]))
    dim = kwargs.get("dim", own[1] if name == "unbind" else own[2])
    length = _length(args[0] if args else None, dim or 0)
    number = number if type(number) is int else 1
    by_size = {"unbind": length, "split": -(-length // max(1, number)), "chunk": min(number, length)}
    count = by_size.get(name, number)
    if count > MOST_RESULTS:
        raise LimitExceeded(f"results of {name}: {count} tensors asked for, {MOST_RESULTS} allowed; keep one tensor")


def _length(value: Any, dim: Any) -> int:
    inside = isinstance(value, torch.Tensor) and type(dim) is int and -value.ndim <= dim < value.ndim
    return value.shape[dim] if inside else 0


def _too_many_to_count(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the number of combinations is itself too long a computation; the price says what it comes to."""
    if name != "combinations" or not isinstance(args[0], torch.Tensor):
        return False
    r = kwargs.get("r", args[1] if len(args) > 1 else 2)
    return type(r) is int and args[0].numel() ** min(max(r, 0), 64) > 2**62


# Where sizes depend on numbers.


def _as_meta(value: Any, number: Callable[[torch.Tensor], Any] = lambda value: value.to("meta")) -> Any:
    """Arguments with meta tensors; a tensor that is one whole number as `number` has it."""
    if isinstance(value, torch.Tensor):
        whole = value.ndim == 0 and not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        return number(value) if whole else value.to("meta")
    if isinstance(value, slice):
        return slice(*[_as_meta(item, number) for item in (value.start, value.stop, value.step)])
    if isinstance(value, list | tuple):
        return type(value)([_as_meta(item, number) for item in value])
    return value


def _with_numbers(value: Any) -> Any:
    """Arguments with meta tensors, and whole numbers that stand in tensors as numbers: they may be sizes."""
    return _as_meta(value, lambda tensor: tensor.item())


def _without_masks(index: Any) -> Any:
    """An index in which a mask is the positions that it selects."""
    if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) and index.ndim:
        count = int(torch.count_nonzero(index))
        return tuple([torch.empty(count, dtype=torch.int64, device="meta")] * index.ndim)
    if isinstance(index, tuple):
        return tuple(part for item in index for part in _as_parts(_without_masks(item), item))
    return _with_numbers(index)


def _as_parts(found: Any, item: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) and isinstance(item, torch.Tensor) else (found,)


def _selected(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    both = math.prod(torch.broadcast_shapes(value.shape, mask.shape))  # type: ignore[no-untyped-call]
    most = int(torch.count_nonzero(mask)) * (both // max(1, mask.numel()))
    return torch.empty(most, dtype=value.dtype, device="meta")


def _positions(value: torch.Tensor, **others: Any) -> torch.Tensor:
    return torch.empty(int(torch.count_nonzero(value)), max(1, value.ndim), dtype=torch.int64, device="meta")


def _where(condition: torch.Tensor, *branches: Any) -> Any:
    return torch.where(condition.to("meta"), *_as_meta(branches)) if branches else _positions(condition)


def _distinct(value: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    ids = torch.empty(value.shape, dtype=torch.int64, device="meta")
    return torch.empty(value.shape, dtype=value.dtype, device="meta"), ids, ids


def _counts(value: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> torch.Tensor:
    classes = int(value.max()) + 1 if value.numel() else 0
    return torch.empty(max(classes, int(minlength), 0), dtype=torch.float64, device="meta")


def _one_hot(value: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    classes = int(num_classes) if int(num_classes) >= 0 else (int(value.max()) + 1 if value.numel() else 0)
    return torch.empty((*value.shape, max(classes, 0)), dtype=torch.int64, device="meta")


def _repeated(
    value: torch.Tensor, repeats: Any = None, dim: int | None = None, *, output_size: int | None = None
) -> torch.Tensor:
    counts = value if repeats is None else torch.as_tensor(repeats)
    length = value.numel() if dim is None else value.shape[dim]
    total = int(counts.sum()) * (length if counts.numel() == 1 and repeats is not None else 1)
    others = 1 if dim is None else value.numel() // max(1, length)
    return torch.empty(max(total, 0) * others, dtype=value.dtype, device="meta")


_SIZED_BY_VALUES: dict[str, Callable[..., Any]] = {
    "masked_select": _selected,
    "nonzero": _positions,
    "argwhere": _positions,
    "where": _where,
    "unique": _distinct,
    "unique_consecutive": _distinct,
    "bincount": _counts,
    "one_hot": _one_hot,
    "repeat_interleave": _repeated,
}
