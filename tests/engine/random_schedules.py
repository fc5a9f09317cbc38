"""Schedules that no policy would make: who runs, leaves, comes back and is computed again is drawn, not decided.

They are legal, so whatever comes of them is the mechanism's. A job that was starved for long runs in the end, so that
every schedule ends.
"""

import random
from collections.abc import Sequence

from glassworks.schedule.base import Decision, Job, Limits, Memory, Place


class RandomScheduler:
    """A `Scheduler` that draws.

    Attributes:
        left, came, dropped, cut: how often it did each.
    """

    def __init__(self, seed: int, *, restless: float = 0.3) -> None:
        self._draw = random.Random(seed)
        self._restless = restless
        self.left = self.came = self.dropped = self.cut = 0

    def arrive(self, job: Job, now_s: float) -> None:
        pass

    def charge(self, job: Job, seconds: float, now_s: float) -> None:
        job.last_served_s = now_s

    def finish(self, job: Job, now_s: float) -> None:
        pass

    def decide(self, jobs: Sequence[Job], *, now_s: float, limits: Limits, memory: Memory) -> Decision:
        draw = self._draw
        order = list(jobs)
        draw.shuffle(order)
        free, away = memory.free_blocks, memory.host_free_blocks
        run, leave, come, drop = [], [], [], []
        for job in order:
            if job.place is Place.DEVICE and draw.random() < self._restless:
                if job.recomputable and draw.random() < 0.5:
                    drop.append(job)
                    free += job.own_blocks
                elif memory.instant and job.held_blocks <= away:
                    leave.append(job)
                    away -= job.held_blocks
                    free += job.own_blocks
                elif job.held_blocks <= away:
                    leave.append(job)
                    away -= job.held_blocks
            elif job.place is Place.HOST and job.own_blocks <= free and draw.random() < 0.7:
                come.append(job)
                free -= job.own_blocks
        moved = {*leave, *come, *drop}
        for job in order:
            if job in moved or job.place not in (Place.NOWHERE, Place.DEVICE) or len(run) >= limits.rows:
                continue
            count = job.pending_tokens
            if job.chunkable and count > 1 and draw.random() < 0.5:
                count = draw.randint(1, count - 1)
                self.cut += 1
            need = max(job.blocks(job.computed_tokens + count, memory.block_tokens) - job.held_blocks, 0)
            if need <= free and draw.random() < 0.8:
                free -= need
                run.append((job, count))
        if not (run or moved):
            self._make_way(order, leave, drop, come, memory)
        self.left, self.came, self.dropped = self.left + len(leave), self.came + len(come), self.dropped + len(drop)
        return Decision(tuple(run), tuple(leave), tuple(come), tuple(drop))

    def _make_way(
        self, order: Sequence[Job], leave: list[Job], drop: list[Job], come: list[Job], memory: Memory
    ) -> None:
        """Nobody can go on: somebody leaves or is dropped; at the worst, somebody comes back."""
        here = [job for job in order if job.place is Place.DEVICE]
        for job in here[1:] or here:
            if job.recomputable:
                drop.append(job)
                return
            if job.held_blocks <= memory.host_free_blocks and len(here) > 1:
                leave.append(job)
                return
        for job in order:
            if job.place is Place.HOST and job.own_blocks <= memory.free_blocks:
                come.append(job)
                return
