"""The one store of keys and values: tables of blocks on the device, and where they go when it is not their turn.

A table belongs to one request. It grows by blocks, shares full ones with requests that begin alike, leaves for the host
(or the disk) and comes back; each copy has a fence, and `poll` is told of those that have passed. Blocks are counted
by who uses them: nothing is freed while a copy reads it, nothing is read while a copy writes it.

Knows nothing of models or requests; see `run.packed` for who fills the blocks and `schedule` for who decides.
"""

from collections import Counter
from collections.abc import Sequence
from enum import Enum

import torch

from glassworks.memory.arena import Arena
from glassworks.memory.blocks import Geometry, Pool, copy_blocks
from glassworks.memory.budget import KVBudget
from glassworks.memory.links import Fence, Link, SameMemory
from glassworks.memory.prefix import PrefixIndex, block_keys

FRAMES = 8
"""One part in so many of each tier off the device is never given to blocks: it is left for what requests have saved."""


class Where(Enum):
    """Of a table's blocks."""

    HERE = "on the device"
    LEAVING = "leaving"
    AWAY = "away"
    COMING = "coming back"


class Table:
    """The blocks of one request, in the order of its tokens.

    Attributes:
        owner: whose it is; only its own tables share blocks with it.
        blocks: on the device. away: off it, in `tier`. where: which of them count.
        tokens: how many have been computed.
        reserved: blocks off the device that are promised to it and that it does not have now. is_promised: it has such.
        closed: its request has ended.
        generation: of the store, when its first token was computed.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.blocks: list[int] = []
        self.away: list[int] = []
        self.tier: Pool | None = None
        self.reserved, self.is_promised = 0, False
        self.where = Where.HERE
        self.tokens = 0
        self.fence: Fence | None = None
        self.closed = False
        self.generation = 0

    def __repr__(self) -> str:
        return f"<{self.tokens} tokens in {len(self.blocks) or len(self.away)} blocks, {self.where.value}>"


class KVStore:
    """Keys and values of all requests of one engine.

    Args:
        arenas: of the device, and of the tiers off it. block_tokens: tokens in a block. device: where steps run.
        out, back: the links from the device and to it. poison: fill what nobody may read with NaN (for tests).
    """

    def __init__(
        self, geometry: Geometry, arenas: Sequence[Arena], *, block_tokens: int = 16,
        device: torch.device, out: Link | None = None, back: Link | None = None, poison: bool = False,
    ) -> None:  # fmt: skip
        here, *others = arenas
        self.geometry, self.block_tokens = geometry, block_tokens
        self.pool = Pool(geometry, here, block_tokens=block_tokens, device=device, poison=poison)
        self.tiers = [
            Pool(
                geometry, arena, block_tokens=block_tokens, device=torch.device("cpu"), file=arena.name == "disk",
                pinned=device.type == "cuda" and arena.name == "host", poison=poison,
                left_bytes=arena.budget_bytes // FRAMES,
            )
            for arena in others
            if arena.budget_bytes - arena.budget_bytes // FRAMES >= 2 * geometry.token_bytes * block_tokens
        ]  # fmt: skip
        self.out, self.back = out or SameMemory(), back or SameMemory()
        self.prefixes = PrefixIndex()
        self._users: Counter[int] = Counter()
        self._doubles = 0  # uses of blocks beyond the first of each
        self._moving: list[Table] = []
        self._generation = 0  # goes up whenever all beginnings are forgotten

    # What there is.

    @property
    def total_blocks(self) -> int:
        """Of the device."""
        return self.pool.count

    @property
    def free_blocks(self) -> int:
        """Blocks of the device that a request may have now: free, or known and used by nobody."""
        return self.pool.free + self.prefixes.idle

    @property
    def away_free_blocks(self) -> int:
        """Blocks off the device that a request may have now, in the roomiest tier."""
        return max((tier.free for tier in self.tiers), default=0)

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)

    def own_blocks(self, table: Table) -> int:
        """Blocks that would be free if this table let go of them."""
        if not self._doubles:
            return len(table.blocks)
        return sum(self._users[block] == 1 for block in table.blocks)

    # Tables.

    def open(self, owner: str = "") -> Table:
        """A table without tokens."""
        return Table(owner)

    def promise(self, table: Table, tokens: int) -> bool:
        """Keep room off the device for so many tokens of a table, so that it can leave whenever it must; whether a
        tier has that room now."""
        count = self.blocks(tokens)
        table.tier = next((tier for tier in self.tiers if tier.reserve(count)), None)
        if table.tier is None:
            return False
        table.reserved, table.is_promised = count, True
        return True

    def make_room(self, size_bytes: int) -> None:
        """Forget blocks that nobody uses until the arena of the device has so many bytes, or there are none left."""
        short = size_bytes - self.pool.arena.free_bytes
        if short > 0:
            self.pool.give(self.prefixes.forget_idle(-(-short // self.pool.block_bytes)))

    def grow(self, table: Table, tokens: int) -> bool:
        """Give a table blocks for so many tokens in all; whether there were enough."""
        assert table.where is Where.HERE, "a table grows on the device"
        need = self.blocks(tokens) - len(table.blocks)
        if need > self.free_blocks:
            return False
        if not table.tokens:
            table.generation = self._generation
        table.blocks += self._taken(need) if need > 0 else []
        return True

    def _taken(self, count: int) -> list[int]:
        short = count - self.pool.free
        if short > 0:
            self.pool.give(self.prefixes.forget_idle(short))
        found = self.pool.take(count)
        self._users.update(found)
        return found

    def _let_go(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._users[block] -= 1
        unused = [block for block in blocks if not self._users[block]]
        self._doubles -= len(blocks) - len(unused)
        for block in unused:
            del self._users[block]
            if self.prefixes.is_known(block):
                self.prefixes.rest(block)
        self.pool.give([block for block in unused if not self.prefixes.is_known(block)])

    def close(self, table: Table) -> None:
        """A request has ended: its blocks are free, once no copy uses them."""
        if table.closed:
            return
        table.closed = True
        if table not in self._moving:
            self._release(table)

    def _release(self, table: Table) -> None:
        self._let_go(table.blocks)
        self._give_away(table, keep=False)
        table.blocks = []
        if table.reserved:
            assert table.tier is not None
            table.tier.unreserve(table.reserved)
            table.reserved = 0

    def drop(self, table: Table) -> None:
        """Forget what was computed: it will be computed again."""
        assert table.where in (Where.HERE, Where.AWAY), "nothing is dropped while it is copied"
        self._let_go(table.blocks)
        self._give_away(table, keep=True)
        table.blocks, table.tokens, table.where = [], 0, Where.HERE

    def _give_away(self, table: Table, *, keep: bool) -> None:
        if table.away:
            assert table.tier is not None
            kept = len(table.away) if keep and table.is_promised else 0
            table.tier.give(table.away, reserved=kept)
            table.reserved += kept
            table.away = []

    # Moving.

    def leave(self, table: Table) -> bool:
        """Begin to copy a table off the device; whether there is room."""
        assert table.where is Where.HERE, "only what is on the device can leave it"
        count = len(table.blocks)
        tier = table.tier if table.reserved else next((tier for tier in self.tiers if tier.free >= count), None)
        if tier is None:
            return False
        ours = min(count, table.reserved)
        table.tier, table.away = tier, tier.take(count, reserved=ours, clear=False)
        table.reserved -= ours
        pairs = list(zip(table.blocks, table.away, strict=True))
        self._send(table, self.out, self.pool, tier, pairs, Where.LEAVING)
        return True

    def come(self, table: Table) -> bool:
        """Begin to copy a table back to the device; whether there is room."""
        assert table.where is Where.AWAY, "only what is away can come back"
        assert table.tier is not None
        if len(table.away) > self.free_blocks:
            return False
        table.blocks = self._taken(len(table.away))
        pairs = list(zip(table.away, table.blocks, strict=True))
        self._send(table, self.back, table.tier, self.pool, pairs, Where.COMING)
        return True

    def _send(
        self, table: Table, link: Link, source: Pool, destination: Pool, pairs: list[tuple[int, int]], where: Where
    ) -> None:
        destination.forbid([block for _, block in pairs])
        table.where = where
        table.fence = link.send(lambda: copy_blocks(source, destination, pairs), len(pairs) * source.block_bytes)
        self._moving.append(table)
        self.poll()

    def poll(self) -> bool:
        """Let go of what has been copied; whether copies are still under way."""
        for table in list(self._moving):
            assert table.fence is not None
            if not table.fence.passed():
                continue
            self._moving.remove(table)
            table.fence = None
            if table.where is Where.LEAVING:
                self._let_go(table.blocks)
                table.blocks, table.where = [], Where.AWAY
            else:
                self._give_away(table, keep=True)
                table.where = Where.HERE
            if table.closed:
                self._release(table)
        return bool(self._moving)

    # Beginnings that several share.

    def forget(self) -> None:
        """Forget all beginnings: nobody takes over what is there now, nor what goes on from it."""
        self._generation += 1
        self.pool.give(self.prefixes.clear())

    def adopt(self, table: Table, ids: Sequence[int]) -> int:
        """Take over blocks that hold the beginning of a text; gives how many tokens. The last token is never among
        them: somebody has to compute what follows it."""
        if table.blocks:
            return 0
        found = self.prefixes.find(block_keys(ids[:-1], self.block_tokens, owner=table.owner))
        for block in found:
            self.prefixes.wake(block)
        self._doubles += sum(self._users[block] > 0 for block in found)
        self._users.update(found)
        table.blocks, table.tokens = list(found), len(found) * self.block_tokens
        table.generation = self._generation
        return table.tokens

    def publish(self, table: Table, ids: Sequence[int]) -> None:
        """Let others with the same owner take over the full blocks of a table that holds the tokens `ids`, unless
        beginnings were forgotten since it began."""
        if table.generation != self._generation:
            return
        known = ids[: table.tokens]
        keys = block_keys(known, self.block_tokens, owner=table.owner)
        for key, block in zip(keys, table.blocks, strict=False):
            self.prefixes.add(key, block)


def arenas_of(budget: KVBudget) -> list[Arena]:
    """One for each tier, the device first."""
    sizes = {"device": budget.device_bytes, "host": budget.host_bytes, "disk": budget.disk_bytes}
    return [Arena(name, size) for name, size in sizes.items() if size]
