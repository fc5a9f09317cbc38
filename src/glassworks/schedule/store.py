"""A KV store that holds no tensors: blocks counted exactly, copies that take time, for simulations.

It performs decisions in the order drop, leave, come, run, as the engine does, and refuses to overdraw: a scheduler that
asks for what is not there is told so. Copies out and copies in are two links, each of which does one copy after the
other, beside the computation.
"""

import math
from collections import deque
from dataclasses import dataclass

from glassworks.errors import GlassworksError, InputError
from glassworks.schedule.base import UNLIMITED, Decision, Job, Memory, Place


@dataclass(frozen=True)
class LimitedKV:
    """Room for keys and values. `link_blocks_per_s`: each way; None: copies take no time."""

    device_blocks: int = UNLIMITED
    host_blocks: int = UNLIMITED
    block_tokens: int = 16
    link_blocks_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.device_blocks < 1 or self.host_blocks < 0 or self.block_tokens < 1:
            raise InputError(f"expected blocks and tokens in a block to be positive, on the host perhaps 0; got {self}")
        if self.link_blocks_per_s is not None and not self.link_blocks_per_s > 0:
            raise InputError(f"link_blocks_per_s must be positive, or None for at once; got {self.link_blocks_per_s}")


class Store:
    """The blocks of all jobs."""

    def __init__(self, kv: LimitedKV) -> None:
        self.kv = kv
        self.device_used, self.host_used, self.peak_blocks = 0, 0, 0
        self.swaps, self.drops, self.dropped_tokens = 0, 0, 0
        self._instant = kv.link_blocks_per_s is None
        self._out: deque[tuple[float, Job]] = deque()
        self._in: deque[tuple[float, Job]] = deque()
        self._on_host: dict[int, int] = {}

    def memory(self) -> Memory:
        """What a scheduler is told."""
        kv = self.kv
        free = kv.device_blocks - self.device_used if kv.device_blocks != UNLIMITED else UNLIMITED
        return Memory(kv.block_tokens, kv.device_blocks, free, kv.host_blocks - self.host_used, self._instant)

    def settle(self, now_s: float) -> None:
        """Copies that have ended by now."""
        while self._out and self._out[0][0] <= now_s:
            self._left(self._out.popleft()[1])
        while self._in and self._in[0][0] <= now_s:
            self._came(self._in.popleft()[1])

    def next_s(self) -> float:
        """When the next copy ends; infinite if there is none."""
        return min((queue[0][0] for queue in (self._out, self._in) if queue), default=math.inf)

    def perform(self, decision: Decision, now_s: float) -> list[Job]:
        """Moves what is to be moved. Returns those dropped."""
        for job in decision.drop:
            self._check(job, Place.DEVICE, "dropped")
            self.drops += 1
            self.dropped_tokens += job.computed_tokens
            self.release(job)
            job.computed_tokens = 0
        for job in decision.leave:
            self._check(job, Place.DEVICE, "copied to the host")
            self._leave(job, now_s)
        for job in decision.come:
            self._check(job, Place.HOST, "copied to the device")
            self._come(job, now_s)
        return list(decision.drop)

    def grow(self, job: Job, tokens: int) -> bool:
        """Gives a job the blocks to hold so many tokens; False: it is not on the device, or they are not there."""
        if job.place not in (Place.DEVICE, Place.NOWHERE):
            return False
        more = job.blocks(tokens, self.kv.block_tokens) - job.held_blocks
        if more > 0:
            if self.device_used + more > self.kv.device_blocks:
                return False
            self._use(more)
            job.held_blocks += more
            job.own_blocks = job.held_blocks
        job.place = Place.DEVICE
        return True

    def release(self, job: Job) -> None:
        """A job on the device gives up all its blocks."""
        self.device_used -= job.held_blocks
        job.held_blocks = job.own_blocks = 0
        job.place = Place.NOWHERE

    def _leave(self, job: Job, now_s: float) -> None:
        self.host_used += job.held_blocks
        if self.host_used > self.kv.host_blocks:
            raise GlassworksError(
                f"the host has {self.kv.host_blocks} blocks; job {job.id} would make {self.host_used}"
            )
        self._on_host[job.id] = job.held_blocks
        self.swaps += 1
        job.place = Place.LEAVING
        if self._instant:
            self._left(job)
        else:
            self._out.append((self._end_s(self._out, now_s, job.held_blocks), job))

    def _left(self, job: Job) -> None:
        self.release(job)
        job.place = Place.HOST

    def _come(self, job: Job, now_s: float) -> None:
        job.held_blocks = job.own_blocks = self._on_host[job.id]
        self._use(job.held_blocks)
        job.place = Place.COMING
        if self._instant:
            self._came(job)
        else:
            self._in.append((self._end_s(self._in, now_s, job.held_blocks), job))

    def _came(self, job: Job) -> None:
        job.place = Place.DEVICE
        self.host_used -= self._on_host.pop(job.id)

    def _end_s(self, queue: deque[tuple[float, Job]], now_s: float, blocks: int) -> float:
        begin_s = max(now_s, queue[-1][0]) if queue else now_s
        return begin_s + blocks / (self.kv.link_blocks_per_s or math.inf)

    def _use(self, blocks: int) -> None:
        self.device_used += blocks
        self.peak_blocks = max(self.peak_blocks, self.device_used)
        if self.device_used > self.kv.device_blocks:
            raise GlassworksError(f"the device has {self.kv.device_blocks} blocks; {self.device_used} were asked for")

    @staticmethod
    def _check(job: Job, place: Place, verb: str) -> None:
        if job.place is not place:
            raise GlassworksError(f"job {job.id} is {job.place.value}; it cannot be {verb}")
