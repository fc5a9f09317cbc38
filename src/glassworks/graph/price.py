"""What an operation costs, from its class and the forms of its operands and results: floating-point work, and memory.

Bounds from above, within a small factor of the truth; nothing is run. Bytes are what the operation allocates: its
results, unless they are views, and what it needs besides. Arguments that are no tensors count only where the work
depends on them. Knows nothing of torch: a form is a shape and the size of an item.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from glassworks.graph.operations import Operation

_A_VALUE = 8
"""Work for an element where it is more than a multiplication: exponentials, accumulation, comparisons."""
_SORTING = frozenset({"kthvalue", "mode", "median", "nanmedian", "quantile", "nanquantile", "unique"})
_RANDOM = 32
_DECOMPOSED = 32
"""Work for an element of a matrix and each of its columns, for the costliest of the decompositions."""
_TEMPORARIES = 4
_UNCOUNTABLE = 2**62
_SERIES = 256
"""Matrix products of an exponential, at most."""


class Form(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    item_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * self.item_bytes


class Price(NamedTuple):
    """Floating-point operations, and bytes allocated."""

    flops: int
    bytes: int

    def times(self, count: int) -> "Price":
        return Price(self.flops * count, self.bytes * count)

    def plus(self, other: "Price") -> "Price":
        return Price(self.flops + other.flops, self.bytes + other.bytes)


FREE = Price(0, 0)


def price(
    operation: Operation,
    operands: Sequence[Form],
    results: Sequence[Form],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Price:
    """The price of one call. `args` and `kwargs` are as torch takes them; only numbers and texts are looked at."""
    kwargs = kwargs or {}
    out = sum(form.size_bytes for form in results)
    touched = max((form.elements for form in (*operands, *results)), default=0)
    match operation.cost:
        case "view":
            return FREE if operation.aliasing == "always" else Price(sum(form.elements for form in results), out)
        case "elementwise":
            work = max(touched, _broadcast(operands)) * _unrolled(operation.name, args, kwargs)
            return Price(_A_VALUE * work, max(out, work * _item(operands)))
        case "reduction":
            return _reduction(operation.name, operands, results, args, kwargs)
        case "gather":
            return _gather(operation.name, operands, results, args, kwargs)
        case "sort":
            return Price(_A_VALUE * touched * _log(touched), 2 * out)
        case "matmul":
            return _matmul(operation.name, operands, results, args)
        case "decomposition":
            return _decomposition(operation.name, operands, results, args)
        case "create":
            return Price((_RANDOM if operation.random else 1) * sum(form.elements for form in results), 2 * out)
    raise AssertionError(f"{operation.name} has no class: {operation.cost}")


def _item(operands: Sequence[Form]) -> int:
    return max((form.item_bytes for form in operands), default=1)


def _log(elements: int) -> int:
    return max(1, elements.bit_length())


def _broadcast(operands: Sequence[Form]) -> int:
    """Elements of the operands broadcast together; 0 where they are not made to be."""
    sizes: dict[int, int] = {}
    for form in operands:
        for axis, size in enumerate(reversed(form.shape)):
            if sizes.setdefault(axis, size) != size:
                if 1 not in (size, sizes[axis]):
                    return 0
                sizes[axis] = size if sizes[axis] == 1 else sizes[axis]
    return math.prod(sizes.values())


def _unrolled(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many values one element becomes on the way, where a number among the arguments says so."""
    given = {"mvlgamma": "p", "local_response_norm": "size"}.get(name)
    number = kwargs.get(given, args[1] if len(args) > 1 else 1) if given else 1
    return max(1, number) if type(number) is int else 1


def _reduction(
    name: str, operands: Sequence[Form], results: Sequence[Form], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Price:
    """A loss of two operands makes the whole broadcast before it sums."""
    out, made = sum(form.size_bytes for form in results), sum(form.elements for form in results)
    work = max([_broadcast(operands), made, *[form.elements for form in operands]])
    work *= _unrolled(name, args, kwargs)
    factor = _log(work) if name in _SORTING else 1
    products = made * max(1, *operands[0].shape[-1:]) if name in ("cov", "corrcoef") else 0
    return Price(_A_VALUE * work * factor + 2 * products, out + work * _item(operands))


def _gather(
    name: str, operands: Sequence[Form], results: Sequence[Form], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Price:
    out = sum(form.size_bytes for form in results)
    moved = sum(form.elements for form in (*operands, *results))
    if name == "combinations":  # torch marks all n**r choices before it keeps the sorted ones
        count = kwargs.get("r", args[1] if len(args) > 1 else 2)
        marked = min(operands[0].elements ** min(max(int(count), 1), 64), _UNCOUNTABLE)
        return Price(marked, out + marked * (1 + operands[0].item_bytes))
    if "pool" in name:  # each result looks at its window: no more than the whole row, or the whole image
        return Price(moved * max(1, math.prod(operands[0].shape[-2:] if "2d" in name else operands[0].shape[-1:])), out)
    if name in _SORTING or name in ("searchsorted", "bucketize", "unique_consecutive"):
        return Price(_A_VALUE * moved * _log(moved), 2 * out)
    return Price(moved, out)


# Products.


def _matmul(name: str, operands: Sequence[Form], results: Sequence[Form], args: Sequence[Any]) -> Price:
    out = sum(form.size_bytes for form in results)
    made = sum(form.elements for form in results)
    if name in ("conv1d", "conv2d", "conv3d"):
        window = math.prod(operands[1].shape[1:])
        unfolded = made // max(1, operands[1].shape[0]) * window * operands[0].item_bytes
        return Price(2 * made * window, out + unfolded)
    if name in ("conv_transpose1d", "conv_transpose2d"):
        spread = operands[0].elements * math.prod(operands[1].shape[1:])
        columns = spread // max(1, operands[1].shape[0]) * operands[0].item_bytes
        return Price(2 * spread, out + columns)
    if name == "scaled_dot_product_attention":
        query, key, value = operands[:3]
        pairs = query.elements // max(1, query.shape[-1]) * key.shape[-2]
        return Price(2 * pairs * (query.shape[-1] + value.shape[-1]), out + 2 * pairs * query.item_bytes)
    if name == "bilinear":
        first, second = operands[0], operands[1]
        return Price(2 * made * first.shape[-1] * second.shape[-1], out * (1 + second.shape[-1]))
    if name == "einsum" and isinstance(args[0], str):
        return _einsum(args[0], operands, results)
    if name == "linalg.multi_dot":
        return _chain(operands, out)
    if len(operands) > 2 and name == "einsum":  # labels as numbers: each element with each other, at most
        every = math.prod(form.elements for form in operands)
        return Price(2 * every, out + every * _item(operands))
    return Price(_contraction(name, operands, made), out + sum(form.size_bytes for form in operands))


_LAST = frozenset(["matmul", "mm", "bmm", "mv", "dot", "inner", "linear", "cdist", "linalg.vecdot", "vdot"])
_ADDED = frozenset(["addmm", "addmv", "baddbmm"])


def _contraction(name: str, operands: Sequence[Form], made: int) -> int:
    """Work of a product of two tensors. In general no more than the root of what is read, read again and made."""
    if name in _LAST:
        return 2 * made * max(1, *operands[0].shape[-1:])
    if name in _ADDED:
        return 2 * made * max(1, *operands[1].shape[-1:])
    if name == "addbmm":
        return 2 * made * max(1, operands[1].elements // max(1, operands[1].shape[-2]))
    first, second = (sorted([form.elements for form in operands], reverse=True) + [1, 1])[:2]
    return 2 * (math.isqrt(first * second * max(1, made)) + 1)


def _einsum(equation: str, operands: Sequence[Form], results: Sequence[Form]) -> Price:
    """Pairs from the left, as torch contracts; each step makes the labels that are still wanted."""
    terms, _, wanted = equation.replace(" ", "").partition("->")
    parts = [_labels(term, form) for term, form in zip(terms.split(","), operands, strict=False)]
    sizes = {label: size for part in parts for label, size in part.items()}
    out = sum(form.size_bytes for form in results)
    last = set(wanted) if "->" in equation else {label for label in sizes if terms.count(label) == 1}
    last |= {label for label in sizes if label.startswith("...")}
    have, flops, largest = set(parts[0]) if parts else set(), 0, out
    for k in range(1, len(parts)):
        flops += 2 * math.prod(sizes[label] for label in have | set(parts[k]))
        later = last.union(*[set(part) for part in parts[k + 1 :]])
        have = (have | set(parts[k])) & later
        largest = max(largest, math.prod(sizes[label] for label in have) * _item(operands))
    return Price(flops or sum(form.elements for form in operands), largest + sum(form.size_bytes for form in operands))


def _labels(term: str, form: Form) -> dict[str, int]:
    """Label -> size; the axes that dots stand for are counted from the right."""
    before, dots, after = term.partition("...")
    inner = len(form.shape) - len(before) - len(after)
    names = [*before, *[f"...{inner - k}" for k in range(inner)], *after] if dots else list(term)
    return dict(zip(names, form.shape, strict=False))


def _chain(operands: Sequence[Form], out: int) -> Price:
    """A product of matrices from the left; torch's own order costs no more."""
    rows = operands[0].elements // max(1, *operands[0].shape[-1:])
    flops = largest = 0
    for form in operands[1:]:
        flops += 2 * rows * form.elements
        largest = max(largest, rows * max(1, *form.shape[-1:]) * form.item_bytes)
    return Price(flops, out + 2 * largest)


def _decomposition(name: str, operands: Sequence[Form], results: Sequence[Form], args: Sequence[Any]) -> Price:
    matrix = operands[0]
    rows, columns = (1, 1, *matrix.shape)[-2:]
    largest = max(form.elements for form in (*operands, *results))
    work = _DECOMPOSED * largest * min(rows, columns)
    if name == "linalg.matrix_exp":
        work = _SERIES * 2 * matrix.elements * columns
    if name == "linalg.matrix_power":
        power = abs(args[1]) if len(args) > 1 and type(args[1]) is int else 2**63
        work += 4 * matrix.elements * columns * power.bit_length()
    held = sum(form.size_bytes for form in (*operands, *results))
    return Price(work, _TEMPORARIES * held)
