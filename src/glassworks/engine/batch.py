"""The rows of some invokes as one padded batch, and where each invoke's own rows and tokens are in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from glassworks.errors import InputError
from glassworks.graph.backend import Rows
from glassworks.graph.nodes import ALL_ROWS
from glassworks.graph.wire import Blob
from glassworks.run.rows import Slot
from glassworks.trace.tensors import TensorConstant, as_tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded rows.

    Attributes:
        ids: int64 `[batch, seq]`, padded at the left. mask: bool `[batch, seq]`, where a row has a token.
        lengths: invoke -> the lengths of its rows. starts: invoke -> its first row.
        kwargs: what goes to the model besides.
        numbers: of each row, its number in the experiment.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: Mapping[int, tuple[int, ...]]
    starts: Mapping[int, int]
    kwargs: Mapping[str, Any]
    numbers: tuple[int, ...]
    padded: bool = field(default=False)

    @property
    def positions(self) -> torch.Tensor:
        """int64 `[batch, seq]`: each token's place among its row's own."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    def slots(self, axis: str, *, tokens: int | None = None, before: int = 0) -> dict[int, Slot]:
        """Invoke -> its part of the batch.

        Args:
            axis: the axis that the prompt's tokens stand on, `seq` or `source`.
            tokens: how many tokens a row has on `seq` where that is another axis, or another step.
            before: how many new tokens of a generation attention looks back at besides the prompt.
        """
        own = {invoke: self._slot(invoke, axis, tokens, before) for invoke in self.lengths}
        whole = not self.padded
        every = Slot(0, len(self.numbers), {}, {} if whole else self._masks(self.mask, axis, tokens, before), whole)
        return {**own, ALL_ROWS: every}

    def _slot(self, invoke: int, axis: str, tokens: int | None, before: int) -> Slot:
        lengths = self.lengths[invoke]
        start, count, longest = self.starts[invoke], len(lengths), max(lengths)
        width = {axis: longest}
        if axis == "seq":
            width = {"seq": longest if tokens is None else tokens, "context": longest + before}
        own = self.mask[start : start + count, -longest:]
        mask = self._masks(own, axis, tokens, before) if min(lengths) < longest else {}
        return Slot(start, count, width, mask, len(self.lengths) == 1 and not self.padded)

    def _masks(self, own: torch.Tensor, axis: str, tokens: int | None, before: int) -> dict[str, torch.Tensor]:
        """Where rows have tokens of their own, bool `[rows, width]`, for each axis that has padding."""
        if axis == "source":
            return {"source": own}
        context = torch.cat([own, own.new_ones(len(own), before)], dim=1) if before else own
        return {"context": context} if tokens is not None else {"seq": own, "context": context}


def padded(
    invokes: Mapping[int, Rows], numbers: Sequence[tuple[int, ...]], *, device: torch.device | None, pad: int = 0
) -> Batch:
    """The rows of invokes under each other.

    Args:
        numbers: of the rows of every invoke of the experiment, their numbers in it.
    """
    rows = [row for own in invokes.values() for row in own.ids]
    if not rows or not all(rows):
        raise InputError("a prompt has no tokens")
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(width, device=device)[None] >= (width - lengths)[:, None]
    starts, at = {}, 0
    for invoke, own in invokes.items():
        starts[invoke] = at
        at += len(own.ids)
    return Batch(
        ids=ids,
        mask=mask,
        lengths={invoke: tuple(len(row) for row in own.ids) for invoke, own in invokes.items()},
        starts=starts,
        kwargs=_merged_kwargs(list(invokes.values()), device),
        numbers=tuple(number for invoke in invokes for number in numbers[invoke]),
        padded=bool((lengths < width).any()),
    )


def _merged_kwargs(invokes: Sequence[Rows], device: torch.device | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rows in invokes:
        found.update({name: placed(value, device) for name, value in rows.kwargs.items()})
    return found


def placed(value: Any, device: torch.device | None) -> Any:
    """A tree of arguments with its tensors on the device of use."""
    if isinstance(value, torch.Tensor):
        own = value.clone() if value.is_inference() else value  # gradients may have to pass it
        return own if device is None or own.device == device else own.to(device)
    if isinstance(value, TensorConstant | Blob):
        return placed(as_tensor(value), device)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(placed(item, device) for item in value)
    if isinstance(value, dict):
        return {key: placed(item, device) for key, item in value.items()}
    return value
