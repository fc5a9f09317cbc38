"""The jobs of one model that wait, and whose turn it is: fair shares between keys, then age and priority.

Between keys decides `schedule.fair`, as it does among the rows of an engine: the key that has received least, by its
weight, is next. Among one key's jobs the oldest is next, where a step of priority counts as so much age: so a job of
low priority waits longer, and never for ever. Reads no clock and touches no ledger.
"""

import heapq
import itertools
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from glassworks.schedule.base import Job
from glassworks.schedule.cost import IterationCost
from glassworks.schedule.fair import Fair
from glassworks.schedule.fcfs import Fcfs

AGE_S = 60.0
"""What a step of priority is worth."""


class Waiting(Protocol):
    """A job as far as a queue looks at it: `tokens` is what it is expected to cost."""

    @property
    def id(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def created_s(self) -> float: ...


T = TypeVar("T", bound=Waiting)


class FairQueue(Generic[T]):
    """Jobs by key. `weight_of`: of a key's id."""

    def __init__(self, weight_of: Callable[[str], float] = lambda owner: 1.0) -> None:
        self._weight_of = weight_of
        self._fair = Fair(Fcfs(IterationCost()))
        self._numbers = itertools.count()
        self._known: dict[str, Job] = {}
        self._heaps: dict[str, list[tuple[float, int, T]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    def count(self, owner: str) -> int:
        """Jobs of one key that wait."""
        return len(self._heaps.get(owner, ()))

    @property
    def owners(self) -> list[str]:
        """Keys that have jobs waiting."""
        return list(self._heaps)

    def add(self, item: T) -> None:
        """A job waits from here on; one that was taken before comes back to its place and pays no more."""
        job = self._known.get(item.id)
        if job is None:
            aged_s = item.created_s - AGE_S * item.priority
            weight = self._weight_of(item.owner)
            job = Job(next(self._numbers), aged_s, max(item.tokens, 1), 0, user=item.owner, weight=weight)
            self._known[item.id] = job
            self._fair.arrive(job)
        heapq.heappush(self._heaps.setdefault(item.owner, []), (job.arrival_s, job.id, item))

    def take(self, allowed: Callable[[str], bool] = lambda owner: True) -> T | None:
        """The next job of a key that is allowed one more; it has had its turn."""
        heads = [self._known[heap[0][2].id] for owner, heap in self._heaps.items() if allowed(owner)]
        if not heads:
            return None
        job = min(heads, key=self._fair.key)
        _, _, item = heapq.heappop(self._heaps[job.user])
        self._drop_empty(job.user)
        job.computed_tokens = job.prompt_tokens
        self._fair.charge(job, 0.0)
        return item

    def remove(self, item: T) -> bool:
        """A job waits no more; whether it did."""
        heap = self._heaps.get(item.owner, [])
        left = [entry for entry in heap if entry[2].id != item.id]
        if len(left) == len(heap):
            return False
        heapq.heapify(left)
        self._heaps[item.owner] = left
        self._drop_empty(item.owner)
        self.end(item.id)
        return True

    def end(self, id: str) -> None:
        """A job has ended, whatever the way."""
        job = self._known.pop(id, None)
        if job is not None:
            self._fair.finish(job)

    def position(self, item: T) -> int | None:
        """How many of the waiting are likely to have their turn before this one; None: it does not wait."""
        job = self._known.get(item.id)
        own = self._heaps.get(item.owner, [])
        if job is None or not any(entry[2].id == item.id for entry in own):
            return None
        before = sum(entry[:2] < (job.arrival_s, job.id) for entry in own)
        rounds = (before + 1) / self._weight_of(item.owner)
        others = [(owner, len(heap)) for owner, heap in self._heaps.items() if owner != item.owner]
        return before + sum(min(count, int(rounds * self._weight_of(owner))) for owner, count in others)

    def _drop_empty(self, owner: str) -> None:
        if not self._heaps[owner]:
            del self._heaps[owner]
