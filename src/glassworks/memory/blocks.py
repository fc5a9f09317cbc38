"""Blocks: the keys and values of so many tokens in all layers, as rows of one tensor a layer and kind.

A pool is the memory of one tier; a block is a number in it. The first block of a pool is never handed out and holds
zeros: it is what a padded gather reads where a row has no block. A block is cleared when it is handed out, since what
stands behind a row's last token is multiplied by a probability of zero, and zero times somebody else's NaN is NaN.
"""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glassworks.errors import BudgetExceeded
from glassworks.memory.arena import Arena
from glassworks.units import spelled


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Keys `[tokens, heads, key_dim]` and values `[tokens, heads, value_dim]` of one attention layer."""

    heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a token leaves behind, layer by layer, in the order of the forward pass."""

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers."""
        return sum(own.heads * (own.key_dim + own.value_dim) for own in self.layers) * self.dtype.itemsize


class Pool:
    """The blocks of one tier.

    Attributes:
        keys, values: for each layer `[blocks, heads, block_tokens, dim]`.
        count: blocks that can be handed out. reserved: those of them that are promised to somebody and not handed out.

    Args:
        left_bytes: what is left of the arena for others than blocks.

    Raises:
        BudgetExceeded: the arena does not hold a single block.
    """

    def __init__(
        self, geometry: Geometry, arena: Arena, *, block_tokens: int, device: torch.device, file: bool = False,
        pinned: bool = False, poison: bool = False, left_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.arena, self.block_bytes = arena, geometry.token_bytes * block_tokens
        blocks = (arena.budget_bytes - left_bytes) // self.block_bytes
        if blocks < 2:
            raise BudgetExceeded(
                f"the {arena.name} has {spelled(arena.budget_bytes)}; one block of {block_tokens} tokens takes "
                f"{spelled(self.block_bytes)}, and there must be two: give it more, or take fewer tokens a block"
            )
        arena.take(self.block_bytes, "the block of zeros")
        self.count, self.reserved = blocks - 1, 0
        self._file = _temporary() if file else None
        self._poison, self._pinned = poison, pinned
        self._taken, self._offset = 0, 0
        shapes = [(own.heads, block_tokens, own.key_dim) for own in geometry.layers]
        self.keys = [self._tensor((blocks, *shape), geometry.dtype, device) for shape in shapes]
        shapes = [(own.heads, block_tokens, own.value_dim) for own in geometry.layers]
        self.values = [self._tensor((blocks, *shape), geometry.dtype, device) for shape in shapes]
        if self._file is not None:
            self._file.unlink()  # the mapping keeps it until the pool goes
        self._device = device
        self._fill([0], 0.0)
        self._free = list(range(blocks - 1, 0, -1))

    def _tensor(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if self._file is None:
            return torch.empty(shape, dtype=dtype, device=device, pin_memory=self._pinned)
        size = math.prod(shape)
        end = self._offset + size * dtype.itemsize
        with self._file.open("r+b") as file:
            file.truncate(end)
        whole = torch.from_file(str(self._file), shared=True, size=end // dtype.itemsize, dtype=dtype)
        found = whole[self._offset // dtype.itemsize :].view(shape)
        self._offset = end
        return found

    @property
    def free(self) -> int:
        """Blocks that anybody may have: neither taken nor reserved, and within what is left of the arena."""
        return min(len(self._free) - self.reserved, self.arena.free_bytes // self.block_bytes)

    def take(self, count: int, *, reserved: int = 0, clear: bool = True) -> list[int]:
        """Blocks, cleared unless they are about to be overwritten; `reserved`: how many of them were promised.

        Raises:
            BudgetExceeded: so many are not free.
        """
        if count - reserved > self.free:
            raise BudgetExceeded(f"{count} blocks of the {self.arena.name} are needed and {self.free} are free")
        self.arena.take((count - reserved) * self.block_bytes, f"{count} blocks")
        self.reserved -= reserved
        found = [self._free.pop() for _ in range(count)]
        if found and clear:
            self._fill(found, 0.0)
        return found

    def forbid(self, blocks: Sequence[int]) -> None:
        """Nobody may read these until a copy has filled them."""
        if self._poison:
            self._fill(blocks, math.nan)

    def give(self, blocks: Sequence[int], *, reserved: int = 0) -> None:
        """Blocks are free again, but for so many that stay promised. Nobody may read them from now on."""
        if not blocks:
            return
        if self._poison:
            self._fill(blocks, math.nan)
        self._free.extend(blocks)
        self.reserved += reserved
        self.arena.give((len(blocks) - reserved) * self.block_bytes)

    def reserve(self, count: int) -> bool:
        """Promise blocks to somebody; whether there were so many."""
        if count > self.free:
            return False
        self.arena.take(count * self.block_bytes, f"{count} blocks")
        self.reserved += count
        return True

    def unreserve(self, count: int) -> None:
        """Blocks that were promised are anybody's again."""
        self.reserved -= count
        self.arena.give(count * self.block_bytes)

    def _fill(self, blocks: Sequence[int], number: float) -> None:
        at = torch.tensor(blocks, device=self._device)
        for tensor in (*self.keys, *self.values):
            tensor.index_fill_(0, at, number)


def _temporary() -> Path:
    handle, name = tempfile.mkstemp(suffix=".kv")
    os.close(handle)
    return Path(name)


def copy_blocks(source: Pool, destination: Pool, pairs: Sequence[tuple[int, int]]) -> None:
    """Copy blocks of one pool to blocks of another: `(from, to)`."""
    froms = torch.tensor([a for a, _ in pairs])
    tos = torch.tensor([b for _, b in pairs])
    for ours, theirs in zip((*source.keys, *source.values), (*destination.keys, *destination.values), strict=True):
        moved = ours.index_select(0, froms.to(ours.device)).to(theirs.device, non_blocking=True)
        theirs.index_copy_(0, tos.to(theirs.device), moved)
