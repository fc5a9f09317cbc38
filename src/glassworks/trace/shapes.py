"""Shapes without running: sites from the table, everything else on tensors of the meta device.

In a generation some axes differ from step to step. They are worked out twice, with two stand-in sizes, and an axis that
comes out different is unknown: None.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from glassworks.errors import GraphError
from glassworks.graph.nodes import Dtype, Node, replace_refs
from glassworks.graph.operations import OPERATIONS, look_up
from glassworks.graph.sites import SiteTable
from glassworks.trace import binding


class Written(Protocol):
    """Where nodes stand: a recorder, or a stored graph."""

    @property
    def nodes(self) -> Sequence[Node]: ...
    @property
    def lines(self) -> Sequence[Any]: ...
    @property
    def constants(self) -> Sequence[Any]: ...
    @property
    def table(self) -> SiteTable: ...


Sizes = Mapping[str, int | None]
Perform = Callable[[int, tuple[Any, ...], dict[str, Any]], Any]
_STAND_INS = (5, 11)


class Unsure(NamedTuple):
    """What is known of a tensor some of whose axes differ from step to step."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype


class Shapes:
    """Meta tensors of the nodes of one recorder, worked out on demand.

    `sizes_of(invoke, steps)` gives the sizes of batch, seq and source where a site was written; None: it differs.
    `perform(node, args, kwargs)` stands in for torch where somebody wants to look at a call first.
    """

    def __init__(
        self, recorder: Written, sizes_of: Callable[[int, Any], Sizes], *, perform: Perform | None = None
    ) -> None:
        self._recorder = recorder
        self._sizes_of = sizes_of
        self._perform = perform
        self._known: tuple[dict[int, Any], dict[int, Any]] = ({}, {})

    def given(self, node: int, value: Any) -> None:
        """Say what a node gives, where somebody knows better."""
        for known in self._known:
            known[node] = value

    def settled(self, node: int) -> Any:
        """The meta tensor alone, where every size is known."""
        return self._meta(node, 0)

    def __call__(self, node: int) -> Any:
        """A meta tensor (or several, in torch's structure); `Unsure` where an axis is not known."""
        pair = [self._meta(node, which) for which in (0, 1)]
        return _merge(*pair)

    def _meta(self, node: int, which: int) -> Any:
        known = self._known[which]
        waiting = [node]
        while waiting:
            n = waiting[-1]
            missing = [d for d in _needs(self._recorder.nodes[n]) if d not in known] if n not in known else []
            if missing:
                waiting.extend(missing)
                continue
            waiting.pop()
            if n not in known:
                known[n] = self._compute(n, which)
        return known[node]

    def _compute(self, n: int, which: int) -> Any:
        recorder = self._recorder
        node, known = recorder.nodes[n], self._known[which]
        match node.kind:
            case "read":
                return self._site(node.target, self._sizes_of(node.invoke, node.steps), which)
            case "constant":
                return recorder.constants[node.args[0]].tensor.to("meta")
            case "parameter":
                dtype, shape = recorder.table.parameters[node.target]
                return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            case "input":
                return torch.empty(node.args[0], dtype=getattr(torch, node.args[1]), device="meta")
            case "item":
                return known[node.deps[0]][node.args[1]]
            case "update":
                return known[node.deps[0]]
            case "grad" | "save" | "grad_write" | "backward" | "state":
                return known[node.deps[0]]
            case "carry":
                return known[node.deps[1]]
            case "carried":
                return self._state(n, known[node.deps[0]])
            case "cond":
                return self._either(n, known[node.deps[1]], known[node.deps[2]], which)
            case "apply" | "effect":
                raise GraphError(
                    f"what gw.apply({node.target}) gives has no shape before it runs; for a tuple of results write "
                    f"results=, for the shape itself model.live\n  at {recorder.lines[n]}"
                )
            case "module":
                return self._module(node.target, known[node.deps[0]])
            case "result":
                sizes = self._sizes_of(node.invoke, None)
                return torch.empty(_filled(sizes, which)["batch"], _STAND_INS[which], dtype=torch.int64, device="meta")
            case "call":
                return self._call(n, which)
        raise GraphError(f"the shape of a {node.kind} is not known\n  at {recorder.lines[n]}")

    def _site(self, name: str, sizes: Sizes, which: int) -> torch.Tensor:
        site = self._recorder.table[name]
        shape = [_STAND_INS[which] if axis == "?" else axis for axis in site.axes]
        filled = _filled(sizes, which)
        own = [axis if isinstance(axis, int) else _size(axis, filled) for axis in shape]
        return torch.empty(own, dtype=getattr(torch, site.dtype), device="meta")

    def _state(self, n: int, begins: torch.Tensor) -> torch.Tensor:
        if begins.ndim == 0:
            raise GraphError(
                f"a state that begins as a number takes the shape of what is assigned, which is not known before it "
                f"runs; begin it as a tensor of its shape\n  at {self._recorder.lines[n]}"
            )
        return begins

    def _either(self, n: int, a: torch.Tensor, b: torch.Tensor, which: int) -> torch.Tensor:
        """What both branches agree on; an axis that differs is unknown."""
        if a.ndim != b.ndim or a.dtype != b.dtype:
            raise GraphError(
                f"the branches of gw.cond give {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}, so what it "
                f"gives is known only when it runs\n  at {self._recorder.lines[n]}"
            )
        sizes = [x if x == y else _STAND_INS[which] for x, y in zip(a.shape, b.shape, strict=True)]
        return torch.empty(sizes, dtype=a.dtype, device="meta")

    def _module(self, path: str, given: Any) -> Any:
        table = self._recorder.table
        width = table["logits"].axes[-1] if path == "unembed" else table.widths.get(path, (0, 0))[1]
        if not isinstance(width, int) or not width:
            raise GraphError(f"the shape that {path!r} gives is not known before it runs")
        return torch.empty((*given.shape[:-1], width), dtype=given.dtype, device="meta")

    def structure(self, node: int) -> Any:
        """The results of a call that may have several, as torch gives them: only their number and kind are meant."""
        own = self._recorder.nodes[node]
        if not OPERATIONS[own.target].data_dependent:
            return self(node)
        args, kwargs = arguments(own, lambda d: _stand_in(self._meta(d, 0)))
        return binding.bound(own.target)(*args, **kwargs)

    def _call(self, n: int, which: int) -> Any:
        node, known, recorder = self._recorder.nodes[n], self._known[which], self._recorder
        args, kwargs = arguments(node, known.__getitem__)
        if node.target in ("getitem", "setitem_"):
            args = (args[0], _index(args[1]), *args[2:])
        if self._perform is not None:
            return self._perform(n, args, kwargs)
        perform = RULES.get(node.target) or binding.bound(node.target)
        try:
            return perform(*args, **kwargs)
        except Exception as error:
            needs_values = isinstance(error, NotImplementedError) or "meta tensor" in str(error)
            if needs_values and look_up(node.target).data_dependent:
                line = recorder.lines[n]
                raise GraphError(f"the shape that {node.target} gives depends on values\n  at {line}") from None
            error.add_note(f"  at {recorder.lines[n]}")
            raise


def _index(index: Any) -> Any:
    """An index in which a number that is not known yet is some number."""
    if isinstance(index, torch.Tensor):
        return 0 if index.ndim == 0 and index.dtype != torch.bool else index
    return tuple([_index(item) for item in index]) if type(index) is tuple else index


def _needs(node: Node) -> tuple[int, ...]:
    """The nodes whose shapes the shape of a node follows from."""
    match node.kind:
        case "cond":
            return node.deps[1:3]
        case "carried":
            return node.deps[:1]
        case "apply" | "effect" | "log" | "stop":
            return ()
    return node.operands


def _stand_in(meta: torch.Tensor) -> torch.Tensor:
    """A tensor with numbers, as many axes and as few elements as possible."""
    return torch.zeros([1] * meta.ndim, dtype=meta.dtype)


def _covariance(value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    rows = value.reshape(1, -1) if value.ndim < 2 else value
    dtype = value.dtype if value.is_floating_point() or value.is_complex() else torch.get_default_dtype()
    return torch.empty((rows.shape[0], rows.shape[0]), dtype=dtype, device="meta").squeeze()


def _combinations(value: torch.Tensor, r: int = 2, with_replacement: bool = False) -> torch.Tensor:
    count = len(value) + r - 1 if with_replacement else len(value)
    return value.new_empty((math.comb(count, r), r) if r else (0,))


RULES: dict[str, Callable[..., torch.Tensor]] = {
    "combinations": _combinations, "corrcoef": _covariance, "cov": _covariance,
}  # fmt: skip
"""Operations whose result has a known size and which torch does not perform on meta tensors."""


def arguments(node: Any, value_of: Callable[[int], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a node as torch takes them."""
    args = tuple([_dtype(replace_refs(item, value_of)) for item in node.args])
    if not node.kwargs:
        return args, {}
    return args, {name: _dtype(replace_refs(item, value_of)) for name, item in node.kwargs}


def _dtype(value: Any) -> Any:
    return getattr(torch, value.name) if type(value) is Dtype else value


def _filled(sizes: Sizes, which: int) -> dict[str, int]:
    return {name: _STAND_INS[which] if size is None else size for name, size in sizes.items()}


def _size(axis: str, sizes: Mapping[str, int]) -> int:
    product = 1
    for part in axis.split("*"):
        product *= sizes[part]
    return product


def _merge(first: Any, second: Any) -> Any:
    if isinstance(first, torch.Tensor):
        if first.shape == second.shape:
            return first
        shape = tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))
        return Unsure(shape, first.dtype)
    items = [_merge(a, b) for a, b in zip(first, second, strict=True)]
    return type(first)(items)
