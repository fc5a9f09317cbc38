"""Which blocks hold which beginning of a text, so that requests that begin alike compute it once.

A block is known by the tokens up to its end and by whose they are: nobody learns from a shared block, or from how
soon a first token comes, what somebody else has asked. What a graph has shaped is never offered. Only full blocks are
known. Knows nothing of tensors.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

Key = bytes


def block_keys(ids: Sequence[int], block_tokens: int, *, owner: str) -> Iterator[Key]:
    """The key of each full block of a text, from the first on."""
    key = hashlib.blake2b(owner.encode(), digest_size=16).digest()
    for end in range(block_tokens, len(ids) + 1, block_tokens):
        own = ",".join(map(str, ids[end - block_tokens : end])).encode()
        key = hashlib.blake2b(key + own, digest_size=16).digest()
        yield key


class PrefixIndex:
    """Blocks by key, and those of them that nobody uses, the longest unused first."""

    def __init__(self) -> None:
        self._block_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._block_of)

    @property
    def idle(self) -> int:
        """How many known blocks nobody uses."""
        return len(self._idle)

    def find(self, keys: Iterator[Key]) -> list[int]:
        """The blocks of the longest known beginning."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def add(self, key: Key, block: int) -> None:
        """A block is full. The first that comes under a key stays."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key], self._key_of[block] = block, key

    def is_known(self, block: int) -> bool:
        """Whether a block can be found."""
        return block in self._key_of

    def rest(self, block: int) -> None:
        """Nobody uses a known block any more; it stays until it is needed."""
        self._idle[block] = None

    def wake(self, block: int) -> None:
        """A known block is used again."""
        self._idle.pop(block, None)

    def forget_idle(self, count: int) -> list[int]:
        """Forget so many unused blocks, the longest unused first; they are whoever's asks."""
        found = [self._idle.popitem(last=False)[0] for _ in range(min(count, len(self._idle)))]
        for block in found:
            del self._block_of[self._key_of.pop(block)]
        return found

    def clear(self) -> list[int]:
        """Forget all; gives the blocks that nobody uses."""
        idle = list(self._idle)
        self._block_of, self._key_of = {}, {}
        self._idle.clear()
        return idle
