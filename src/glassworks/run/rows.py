"""Rows: how one invoke's part of a batch is read and written, padded or not.

A batch is padded at the left. A *slot* says which rows are an invoke's and how wide its own tokens are, so that a lone
prompt sees exactly its own; several prompts in one invoke see the width of their longest, with zeros at the padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from glassworks.errors import WriteError
from glassworks.graph.nodes import ALL_ROWS
from glassworks.graph.sites import FOLDED, Site


@dataclass(frozen=True, slots=True)
class Slot:
    """One invoke's part of a forward pass.

    Attributes:
        start, count: its rows. width: axis -> how many of its last places are the invoke's own.
        mask: axis -> bool `[count, width]`, where padding stands inside the invoke; absent where there is none.
        whole: the slot is the whole batch, unpadded: tensors pass as they are.
        first: axis -> its own first place there, where its places are not the last: in a packed batch.
    """

    start: int
    count: int
    width: Mapping[str, int]
    mask: Mapping[str, torch.Tensor]
    whole: bool
    first: Mapping[str, int] = field(default_factory=dict)


class Leaf:
    """The current value of a site during its event: the model's tensor, and what invokes have written over it."""

    __slots__ = ("_came", "_pieces", "_sizes", "_slots", "changed", "raw", "site")

    def __init__(self, raw: torch.Tensor, site: Site, slots: Mapping[int, Slot], sizes: Mapping[str, int]) -> None:
        self.site, self._slots, self._sizes = site, slots, sizes
        self.raw = self._came = raw
        self._pieces: dict[int, torch.Tensor] = {}
        self.changed = False

    def read(self, invoke: int) -> torch.Tensor:
        """The invoke's current value, in the axes that the table says; padding reads as 0."""
        return self._refolded(self._read(invoke))

    def _read(self, invoke: int) -> torch.Tensor:
        """The same with rows and tokens apart."""
        if invoke in self._pieces:
            return self._pieces[invoke]
        slot = self._slots[invoke]
        if invoke == ALL_ROWS:
            self._settle()
        if slot.whole:
            return self._shown(self.raw)
        shown = self._shown(self.raw)
        value = self._narrow(shown, slot)
        mask = self._mask(slot, value)
        if mask is not None:
            return torch.where(mask, value, _zero(value))
        # Alone it would be one piece of memory, and what may be done with it must not depend on company.
        return value.contiguous() if shown.is_contiguous() else value

    def write(self, invoke: int, value: torch.Tensor, *, exact: bool = False) -> None:
        """Make `value`, cast and broadcast, the invoke's current value. `exact`: it has the form already."""
        old = self._read(invoke)
        if not exact:
            value = _fitted(value, self._refolded(old))
        value = value if value.shape == old.shape else value.reshape(old.shape)
        mask = None if exact else self._mask(self._slots[invoke], value)
        value = value if mask is None else torch.where(mask, value, _zero(value))
        if invoke == ALL_ROWS:
            self._settle()
        self._pieces[invoke] = value
        self.changed = True
        if invoke == ALL_ROWS or self.site.inplace:
            self._settle()

    def result(self) -> torch.Tensor:
        """What the model goes on with."""
        self._settle()
        return self.raw

    def seen_as(self, site: Site) -> "Leaf":
        """The same tensor as another site of its event shows it."""
        other = Leaf(self.result(), site, self._slots, self._sizes)
        other._came, other.changed = self._came, self.changed
        return other

    def _settle(self) -> None:
        """Put what invokes wrote into one tensor."""
        if not self._pieces:
            return
        pieces, self._pieces = self._pieces, {}
        [first] = pieces if len(pieces) == 1 else [None]
        if first is not None and self._slots[first].whole and not self.site.inplace:
            self.raw = self._hidden(pieces[first])
            return
        full = self._shown(self._came if self.site.inplace else self.raw.clone())
        for invoke, value in pieces.items():
            slot = self._slots[invoke]
            part = self._narrow(full, slot)
            mask = self._mask(slot, part)
            part.copy_(value if mask is None else torch.where(mask, value, part))
        self.raw = self._came if self.site.inplace else self._hidden(full)

    # Axes.

    def _shown(self, raw: torch.Tensor) -> torch.Tensor:
        """The event's tensor as the site shows it: a view, if rows and tokens are not folded in an odd way."""
        full = self._unfolded(raw)
        if self.site.heads:
            full = full.reshape(*full.shape[:-1], self.site.heads, -1)
        return full.transpose(1, 2) if self.site.swapped else full

    def _hidden(self, full: torch.Tensor) -> torch.Tensor:
        """The inverse of `_shown`."""
        if self.site.swapped:
            full = full.transpose(1, 2)
        return self._folded(full.flatten(-2) if self.site.heads else full)

    def _refolded(self, value: torch.Tensor) -> torch.Tensor:
        """A value whose rows and tokens the site has on one axis, as its module returns them."""
        if self.site.unfold or not self._is_folded():
            return value
        at = self._labels().index("batch")
        return value.flatten(at, at + 1)

    def _labels(self) -> tuple[Any, ...]:
        """Labels of the axes that the site shows."""
        if self.site.unfold:
            return self.site.axes
        return tuple(part for axis in self.site.axes for part in FOLDED.get(str(axis), (axis,)))

    def _is_folded(self) -> bool:
        return self.site.unfold or any(axis in FOLDED for axis in self.site.axes)

    def _unfolded(self, raw: torch.Tensor) -> torch.Tensor:
        if not self._is_folded():
            return raw
        labels = self._labels()
        if raw.ndim == len(labels) - bool(self.site.heads):
            return raw
        at = labels.index("batch")
        tokens = self._sizes[labels[at + 1]]
        return raw.reshape(*raw.shape[:at], -1, tokens, *raw.shape[at + 1 :])

    def _folded(self, full: torch.Tensor) -> torch.Tensor:
        if not self._is_folded() or full.ndim == self.raw.ndim:
            return full
        at = self._labels().index("batch")
        return full.reshape(*full.shape[:at], -1, *full.shape[at + 2 :])

    def _narrow(self, full: torch.Tensor, slot: Slot) -> torch.Tensor:
        tokens = self.site.can_be_shared
        for axis, label in enumerate(self._labels()):
            if label == "batch":
                full = full.narrow(axis, slot.start, slot.count)
            elif tokens and label in slot.width and full.shape[axis] > slot.width[label]:
                first = slot.first.get(label, full.shape[axis] - slot.width[label])
                full = full.narrow(axis, first, slot.width[label])
        return full

    def _mask(self, slot: Slot, value: torch.Tensor) -> torch.Tensor | None:
        """bool, broadcastable to `value`: where a row has tokens of its own; None if everywhere."""
        if not slot.mask:
            return None
        labels = self._labels()
        found: torch.Tensor | None = None
        for axis, label in enumerate(labels):
            if label in slot.mask and "batch" in labels:
                shape = [1] * value.ndim
                shape[labels.index("batch")], shape[axis] = slot.count, value.shape[axis]
                mask = slot.mask[label][:, -value.shape[axis] :].reshape(shape)  # a window shows the last places only
                found = mask if found is None else found & mask
        return found


def _zero(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device)


def _fitted(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`value` cast and broadcast to the form of a site's current value."""
    if value.dtype != like.dtype or value.device != like.device:
        value = value.to(dtype=like.dtype, device=like.device)
    if value.shape != like.shape:
        try:
            value = value.expand(like.shape).contiguous()
        except RuntimeError:
            raise WriteError(
                f"a value of shape {list(value.shape)} does not broadcast to the site's {list(like.shape)}"
            ) from None
    return value
