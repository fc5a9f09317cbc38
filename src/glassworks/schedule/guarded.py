"""A policy with the guard rails that all share: the bound on starvation, no thrashing, room for bursts.

It keeps what a scheduler keeps of a job (when it was last served, how often since it came back, what is expected of it)
and asks `decide` before every iteration. It reads no clock and touches no blocks.

Surprises: a job that starves stays in front until it has been served, whatever its policy says, and starts anew in it.
Where blocks are too few for all jobs it goes to the front earlier, by the time that those who are away need to come in
turns, since blocks that are in use cannot be had at once. With no more jobs than rows past it the bound is kept, to
within two iterations, where that time is at most half of it (`_lead_s`); on a slower link the bound is what is aimed at
and waits are longer, for copies take as long as they take.

Where nothing runs and nothing is on its way, or where copies are made again and again and nothing runs, the oldest job
goes before all until it has produced a few tokens: the others could undo each other's preparations for ever, each in
its turn. That nothing runs while a copy is under way is no reason: it would undo what was just begun.
"""

import math
from collections.abc import Sequence

from glassworks.errors import InputError
from glassworks.schedule.base import UNLIMITED, Decision, Job, Limits, Memory, Place
from glassworks.schedule.copies import MOVING, Copies
from glassworks.schedule.decide import decide
from glassworks.schedule.lengths import Predictor
from glassworks.schedule.policy import Policy
from glassworks.schedule.room import SPARED

_AHEAD = 8
"""Iterations ahead of which blocks are kept for newcomers."""
_FORGETTING = 0.98
_PREPARATIONS = 8
"""Decisions in a row that only move blocks: more of them undo each other."""


class PolicyScheduler:
    """A `Scheduler`: a policy, a bound on starvation in seconds (None: none) and perhaps a predictor of lengths."""

    def __init__(
        self, policy: Policy, *, starvation_s: float | None = None, predictor: Predictor | None = None
    ) -> None:
        if starvation_s is not None and not starvation_s > 0:
            raise InputError(f"a bound on starvation is seconds > 0, or None for no bound; got {starvation_s}")
        self.policy = policy
        self._starvation_s = starvation_s
        self._predictor = predictor
        self._known: set[int] = set()
        self._promoted: set[int] = set()
        self._iteration_s = 0.0
        self._copies = Copies()
        self._first: Job | None = None
        """The oldest job, while it goes before all, until it has produced `_until_tokens`."""
        self._until_tokens = 0
        self._preparations = 0
        self._arrived_tokens, self._rate_tokens = 0, 0.0

    def arrive(self, job: Job, now_s: float) -> None:
        """Takes a job in; one that was dropped keeps its place in the policy, for it has used its time."""
        if job.id in self._known:
            job.served, job.kept_tokens = 0, job.produced_tokens
            return
        # Who has never left may: else newcomers, parked after one token each, would hold the store against all others.
        job.served, job.kept_tokens = SPARED, -SPARED
        self._known.add(job.id)
        self._arrived_tokens += job.prompt_tokens * job.rows
        if self._predictor is not None and job.expected_tokens is None:
            job.expected_tokens = self._predictor.predict(job.prompt_tokens, job.max_new_tokens, job.user)
        self.policy.arrive(job)

    def charge(self, job: Job, seconds: float, now_s: float) -> None:
        """Counts an iteration. The job's tokens have been counted by then."""
        job.last_served_s = now_s
        job.served += 1
        self._promoted.discard(job.id)
        self._iteration_s = seconds
        if job is self._first and job.produced_tokens >= self._until_tokens:
            self._first = None
        self.policy.charge(job, seconds)

    def finish(self, job: Job, now_s: float) -> None:
        """Forgets a job, and learns how long it was."""
        self._known.discard(job.id)
        self._promoted.discard(job.id)
        self._first = None if job is self._first else self._first
        if self._predictor is not None and job.produced_tokens:
            self._predictor.observe(job.prompt_tokens, job.produced_tokens, job.user)
        self.policy.finish(job)

    def decide(self, jobs: Sequence[Job], *, now_s: float, limits: Limits, memory: Memory) -> Decision:
        """What the next iteration does."""
        self._rate_tokens = _FORGETTING * self._rate_tokens + (1 - _FORGETTING) * self._arrived_tokens
        self._arrived_tokens = 0
        if not memory.instant:
            self._copies.observe(jobs, now_s)
        order, starving = self._order(jobs, now_s, self._lead_s(jobs, memory))
        decision = decide(
            order, limits=limits, memory=memory, starving=starving, reserve_blocks=self._reserve_blocks(memory),
            waits_s=lambda: self._waits_s(order, now_s, limits),
        )  # fmt: skip
        for job in decision.come:
            job.served = 0
        self._keep_moving(jobs, decision)
        return decision

    def _keep_moving(self, jobs: Sequence[Job], decision: Decision) -> None:
        """Let the oldest job go first where nothing runs and nothing is on its way, or where copies come to nothing."""
        moves = bool(decision.leave or decision.come or decision.drop)
        self._preparations = 0 if decision.run else self._preparations + moves
        waits = moves or any(job.place in MOVING for job in jobs)
        if decision.run or not jobs or self._first is not None or (waits and self._preparations <= _PREPARATIONS):
            return
        self._first = min(jobs, key=lambda job: (job.arrival_s, job.id))
        self._until_tokens = self._first.produced_tokens + SPARED

    def _lead_s(self, jobs: Sequence[Job], memory: Memory) -> float:
        """How long before the bound a job goes first, to have its blocks by then: half the bound at most.

        Where not all fit, those that are away come in turns, as many as fit at a time: what is there is copied away,
        they are copied in, and are left alone for a few iterations.
        """
        if self._starvation_s is None or memory.total_blocks == UNLIMITED:
            return 0.0
        needs = [(job, job.blocks(job.prompt_tokens + job.produced_tokens, memory.block_tokens)) for job in jobs]
        if sum(need for _, need in needs) <= memory.total_blocks:
            return 0.0
        away = sum(need for job, need in needs if job.place is not Place.DEVICE)
        turns = 1 + math.ceil(away / max(1, memory.total_blocks))
        copies_s = 0.0 if memory.instant else 2 * away * self._copies.block_s
        return min(turns * (SPARED + 1) * self._iteration_s + copies_s, self._starvation_s / 2)

    def _order(self, jobs: Sequence[Job], now_s: float, lead_s: float) -> tuple[list[Job], int]:
        """Perhaps the oldest, those that starve, least recently served first, and the policy's."""
        order, starving = self._starving_first(jobs, now_s, lead_s)
        if self._first is not None:
            order.remove(self._first)
            order.insert(0, self._first)
            starving += 1
        return order, min(starving, len(order))

    def _starving_first(self, jobs: Sequence[Job], now_s: float, lead_s: float) -> tuple[list[Job], int]:
        if self._starvation_s is None:
            return self.policy.order(jobs), 0
        served_by_s = now_s - self._starvation_s + lead_s
        starving = [job for job in jobs if job.last_served_s <= served_by_s]
        if not starving:
            return self.policy.order(jobs), 0
        for job in starving:
            if job.id not in self._promoted:
                self._promoted.add(job.id)
                self.policy.promote(job)
        starving.sort(key=lambda job: (job.last_served_s, job.id))
        rest = [job for job in jobs if job.last_served_s > served_by_s]
        return starving + self.policy.order(rest), len(starving)

    def _waits_s(self, order: Sequence[Job], now_s: float, limits: Limits) -> list[float]:
        """FastServe's ENST: until its turn comes, or until it starves."""
        waits = self.policy.waits_s(order, limits.rows)
        if self._starvation_s is None:
            return waits
        bound_s = self._starvation_s - now_s
        return [min(wait, max(0.0, bound_s + job.last_served_s)) for wait, job in zip(waits, order, strict=True)]

    def _reserve_blocks(self, memory: Memory) -> int:
        """What prompts that come within a few iterations are likely to need; a quarter of all at most."""
        tokens = _AHEAD * self._rate_tokens
        return min(math.ceil(tokens / memory.block_tokens), memory.total_blocks // 4)
