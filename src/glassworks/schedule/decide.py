"""The one decision of an iteration, which every policy, the engine and the simulator share: an order in, a batch out.

Pure: it reads jobs and changes none. Rows are given out in the order. A row that decodes takes one token of the budget
and a prompt what is left of it, less a token for each row still to be filled (Sarathi-Serve, section 4: no decode
stalls behind a prompt). Blocks are `room`'s.

Whoever performs a decision does so in this order: drop, leave, come, run.

Surprises. Where copies take time, a job on the host that is due is asked to come, and its row goes to a ready job in
the meantime. Only one job of each level may be in the middle of its prompt, or unfinished prompts would fill the store;
the first of the order and those that starve may begin all the same. If nothing at all could run, the oldest job gets
its blocks even from residents that are normally spared: so something always moves, and what moves gets on.
"""

from collections.abc import Callable, Sequence

from glassworks.schedule.base import UNLIMITED, Decision, Job, Limits, Memory, Place
from glassworks.schedule.room import Room

_AMPLE = 2
"""Jobs come ahead of need if so many times the reserve stays free: apart from where leaving ends, so none swings."""


def decide(
    order: Sequence[Job],
    *,
    limits: Limits,
    memory: Memory,
    waits_s: Callable[[], Sequence[float]],
    starving: int = 0,
    reserve_blocks: int = 0,
) -> Decision:
    """What the next iteration does.

    `order`: all jobs, first to run first; the first `starving` of them starve. `waits_s`: for each, the expected time
    until it runs, asked for only if blocks are short. `reserve_blocks`: what newcomers are likely to need.
    """
    batch = _Batch(order, limits, memory, waits_s, starving)
    batch.fill()
    if batch.stuck():
        batch.force()
    if memory.total_blocks != UNLIMITED and not memory.instant:
        batch.swap_ahead(reserve_blocks)
    room = batch.room
    if room is None:
        return Decision(tuple(batch.run))
    return Decision(tuple(batch.run), tuple(room.leave), tuple(room.come), tuple(room.drop))


class _Batch:
    """The batch as it is filled."""

    def __init__(
        self,
        order: Sequence[Job],
        limits: Limits,
        memory: Memory,
        waits_s: Callable[[], Sequence[float]],
        starving: int,
    ) -> None:
        self.run: list[tuple[Job, int]] = []
        self._order, self._limits, self._memory, self._waits_s = order, limits, memory, waits_s
        self._limited = memory.total_blocks != UNLIMITED
        self.room = Room(order, memory, waits_s) if self._limited else None
        self._privileged = max(1, starving)
        self._rows, self._tokens, self._prompts = limits.rows, limits.tokens, 0
        self._wanted = 0
        """Rows that the jobs considered so far would take if all were ready."""
        self._partial: set[int] | None = None

    def fill(self) -> None:
        """Gives out rows until there are no more."""
        last = len(self._order) - 1
        for rank, job in enumerate(self._order):
            if not self._rows:
                break
            if job.rows > self._rows or (self.room is not None and self.room.gone(job)):
                continue
            place = job.place
            if place is not Place.LEAVING and place is not Place.COMING:
                tokens = self._tokens_for(rank, job, min(self._rows - job.rows, last - rank))
                if tokens and self._ready(rank, job, tokens):
                    self._start(job, tokens)
            self._wanted += job.rows

    def fetch(self, rank: int, job: Job, tokens: int) -> None:
        """Asks a job on the host to come, if blocks can be had for it."""
        room = self._made_room()
        if job not in room.come and room.take(rank, job, job.computed_tokens + tokens):
            room.come.append(job)

    def stuck(self) -> bool:
        """Whether nothing runs, nothing moves, and nothing was asked to."""
        room = self.room
        if self.run or room is None or room.leave or room.come or room.drop:
            return False
        return not any(job.place in (Place.LEAVING, Place.COMING) for job in self._order)

    def force(self) -> None:
        """The oldest job, whatever it takes from the others. Not the first of the order, which changes: two that
        starve in turn would each undo what the other has begun."""
        room = self._made_room()
        able = [job for job in self._order if job.rows <= self._rows and self._tokens_for(0, job, 0)]
        for job in sorted(able, key=lambda each: (each.arrival_s, each.id))[:1]:
            room.keep(job)
            tokens = self._tokens_for(0, job, 0)
            if room.take(-1, job, job.computed_tokens + tokens, spared=0):
                if job.place is Place.HOST:
                    room.come.append(job)
                if job.place is not Place.HOST or self._memory.instant:
                    self._start(job, tokens)

    def swap_ahead(self, reserve_blocks: int) -> None:
        """Before blocks are short: one job leaves, or comes; never both in one decision."""
        room = self._made_room()
        if room.leave or room.drop or room.come or any(job.place is Place.LEAVING for job in self._order):
            return
        if room.free < reserve_blocks:
            running = {job.id for job, _ in self.run}
            last = max((rank for rank, job in enumerate(self._order) if job.id in running), default=0)
            room.swap_out(last)
            return
        for job in self._order:
            if job.place is Place.HOST:
                room.swap_in(job, _AMPLE * reserve_blocks)
                return

    def _ready(self, rank: int, job: Job, tokens: int) -> bool:
        """Whether it has its blocks on the device in this iteration."""
        if job.place is Place.HOST:
            if self._memory.instant:
                room = self._made_room()
                come = room.take(rank, job, job.computed_tokens + tokens)
                room.come += [job] if come else []
                return come
            if self._wanted + job.rows <= self._limits.rows:
                self.fetch(rank, job, tokens)
            return False
        return self.room is None or self.room.take(rank, job, job.computed_tokens + tokens)

    def _start(self, job: Job, tokens: int) -> None:
        self.run.append((job, tokens))
        self._rows -= job.rows
        self._prompts += job.is_prefilling
        left = self._tokens - tokens * job.rows
        # A whole prompt may exceed the budget; the rows that decode beside it do not stall.
        self._tokens = left if left >= 0 else min(self._tokens, self._rows)
        if self._partial is not None and job.computed_tokens == 0 and tokens < job.pending_tokens:
            self._partial.add(job.level)

    def _tokens_for(self, rank: int, job: Job, behind: int) -> int:
        """How many tokens of each row fit; 0: none. `behind`: rows that may still be filled after it."""
        pending = job.prompt_tokens + job.produced_tokens - job.computed_tokens
        if pending == 1 and job.computed_tokens:
            return 1 if self._tokens >= job.rows else 0
        if not job.chunkable:
            return pending if pending * job.rows <= self._tokens or not self._prompts else 0
        spare = max(self._tokens - behind, min(self._tokens, job.rows))
        tokens = min(pending, spare // job.rows)
        begins_a_part = tokens < pending and not job.computed_tokens and rank >= self._privileged
        return 0 if begins_a_part and job.level in self._partial_levels() else tokens

    def _partial_levels(self) -> set[int]:
        """Levels that have a job in the middle of its prompt."""
        if self._partial is None:
            begun = {job.level for job, n in self.run if n < job.pending_tokens}
            self._partial = begun | {job.level for job in self._order if job.computed_tokens and job.is_prefilling}
        return self._partial

    def _made_room(self) -> Room:
        if self.room is None:
            self.room = Room(self._order, self._memory, self._waits_s)
        return self.room
