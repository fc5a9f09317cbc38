"""Blocks of the KV store during one decision: who gets them, who gives them up, and how.

A job that lacks blocks takes them from residents behind it in the order: those that will run again last leave first,
for the host while it has room; what is still lacking is made up by dropping, fewest tokens first. Residents that have
not been served a few times since they came back are spared, and none is dropped again that has not produced a few
tokens since: computing again cannot go on for ever. Knows nothing of policies: it is given an order,
and how long each job in it expects to wait.

Surprises: a job that has to wait for blocks keeps its claim on them, so that those behind it do not take them. One that
cannot get enough, since the rest are spared, takes none away; it only closes the door: until the end of this decision
no job may come in, while residents may go on growing. The host keeps room for residents that may not be recomputed,
up to all the tokens they may ever have.
"""

from collections.abc import Callable, Sequence

from glassworks.schedule.base import Job, Memory, Place

SPARED = 4
"""Iterations in which a job is served before its blocks may be taken (FastServe reference: no thrashing)."""


class Room:
    """What is left, and the copies and drops decided so far."""

    def __init__(self, order: Sequence[Job], memory: Memory, waits_s: Callable[[], Sequence[float]]) -> None:
        self.memory = memory
        self.free = memory.free_blocks
        self.leave: list[Job] = []
        self.come: list[Job] = []
        self.drop: list[Job] = []
        self._order = order
        self._waits_s = waits_s
        self._closed = False
        self._kept: set[int] = set()
        """Jobs that run or come in this decision, or have left already: no victims."""
        self._soon = sum(job.own_blocks for job in order if job.place is Place.LEAVING)
        self._host_free = memory.host_free_blocks
        held = [job for job in order if not job.recomputable and job.place in (Place.DEVICE, Place.COMING)]
        self._promised = sum(map(self._worst, held))

    def keep(self, job: Job) -> None:
        """It is no victim in this decision."""
        self._kept.add(job.id)

    def gone(self, job: Job) -> bool:
        """Whether it was told to leave, or was dropped, for one ahead of it."""
        return job in self.leave or job in self.drop

    def take(self, rank: int, job: Job, tokens: int, *, spared: int = SPARED) -> bool:
        """Blocks for a job of that rank to hold so many tokens in each row: whether it has them at once.

        Where not, they are claimed for it, if victims behind it can give them up.
        """
        need = job.blocks(tokens, self.memory.block_tokens) - job.held_blocks
        if need > 0:
            if self._closed and spared and job.place is not Place.DEVICE:
                return False
            if need > self.free and not self._make(rank, need, spared):
                self._closed = True
                return False
            now = min(need, max(self.free, 0))
            if now < need:  # the rest is still being copied away
                self.free -= now
                self._soon -= need - now
                return False
            self.free -= need
        self._kept.add(job.id)
        return True

    def swap_out(self, rank: int) -> None:
        """Ahead of need: of those behind `rank`, the resident that will wait longest leaves, if the host has room."""
        for job in self._victims(rank, SPARED):
            if job.own_blocks <= self._host_room(job):
                self._leave(job)
                return

    def swap_in(self, job: Job, spare_blocks: int) -> None:
        """Ahead of need: a job comes back, if so many blocks stay free besides."""
        need = job.blocks(job.computed_tokens + 1, self.memory.block_tokens)
        if need + spare_blocks <= self.free:
            self.free -= need
            self._kept.add(job.id)
            self.come.append(job)

    def _make(self, rank: int, need: int, spared: int) -> bool:
        """Finds victims until the blocks suffice, now or once they are copied; takes none if they never would."""
        have, room = self.free + self._soon, self._host_free
        leaving: list[Job] = []
        staying: list[Job] = []
        for job in self._victims(rank, spared) if have < need else ():
            if have < need and job.own_blocks <= room - (self._promised if job.recomputable else 0):
                leaving.append(job)
                room -= job.own_blocks
                have += job.own_blocks
            elif job.recomputable and job.produced_tokens - job.kept_tokens >= spared:
                staying.append(job)
        dropped: list[Job] = []
        for job in sorted(staying, key=lambda each: (each.computed_tokens, each.id)):
            if have >= need:
                break
            dropped.append(job)
            have += job.own_blocks
        if have < need:
            return False
        for job in leaving:
            self._leave(job)
        for job in dropped:
            self._drop(job)
        return True

    def _victims(self, rank: int, spared: int) -> list[Job]:
        """Residents behind that rank which may give up blocks, the longest to wait first."""
        waits = self._waits_s()
        behind = [
            (-waits[place], -place, job)
            for place, job in enumerate(self._order)
            if place > rank and job.place is Place.DEVICE and job.own_blocks > 0
            and job.served >= spared and job.id not in self._kept
        ]  # fmt: skip
        return [job for *_, job in sorted(behind, key=lambda each: each[:2])]

    def _leave(self, job: Job) -> None:
        self.leave.append(job)
        self._kept.add(job.id)
        self._host_free -= job.own_blocks
        if not job.recomputable:
            self._promised -= self._worst(job)
        if self.memory.instant:
            self.free += job.own_blocks
        else:
            self._soon += job.own_blocks

    def _drop(self, job: Job) -> None:
        self.drop.append(job)
        self._kept.add(job.id)
        self.free += job.own_blocks

    def _host_room(self, job: Job) -> int:
        return self._host_free - (self._promised if job.recomputable else 0)

    def _worst(self, job: Job) -> int:
        return job.blocks(job.prompt_tokens + job.max_new_tokens, self.memory.block_tokens)
