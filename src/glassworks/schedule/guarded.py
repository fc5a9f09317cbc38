"""A policy with the guard rails that all share: the bound on starvation, no thrashing, room for bursts.

It keeps what a scheduler keeps of a job (when it was last served, how often since it came back, what is expected of it)
and asks `decide` before every iteration. It reads no clock and touches no blocks.

Surprises: a job that starves stays in front until it has been served, whatever its policy says, and starts anew in it.
Where blocks are so short that nothing could run, the oldest job goes before all until it has produced a few tokens: the
others could undo each other's preparations for ever, each in its turn.
"""

import math
from collections.abc import Sequence

from glassworks.errors import InputError
from glassworks.schedule.base import Decision, Job, Limits, Memory, Place
from glassworks.schedule.decide import decide
from glassworks.schedule.lengths import Predictor
from glassworks.schedule.policy import Policy
from glassworks.schedule.room import SPARED

_AHEAD = 8
"""Iterations ahead of which blocks are kept for newcomers and jobs are fetched before they starve."""
_FORGETTING = 0.98


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
        self._first: Job | None = None
        """The oldest job, while it goes before all, until it has produced `_until_tokens`."""
        self._until_tokens = 0
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
        order, starving = self._order(jobs, now_s)
        decision = decide(
            order, limits=limits, memory=memory, starving=starving, due=self._due(jobs, now_s, limits, memory),
            waits_s=lambda: self._waits_s(order, now_s, limits), reserve_blocks=self._reserve_blocks(memory),
        )  # fmt: skip
        for job in decision.come:
            job.served = 0
        if jobs and not decision.run and self._first is None:
            self._first = min(jobs, key=lambda job: (job.arrival_s, job.id))
            self._until_tokens = self._first.produced_tokens + SPARED
        return decision

    def _order(self, jobs: Sequence[Job], now_s: float) -> tuple[list[Job], int]:
        """Perhaps the oldest, those that starve, least recently served first, and the policy's."""
        order, starving = self._starving_first(jobs, now_s)
        if self._first is not None:
            order.remove(self._first)
            order.insert(0, self._first)
            starving += 1
        return order, min(starving, len(order))

    def _starving_first(self, jobs: Sequence[Job], now_s: float) -> tuple[list[Job], int]:
        if self._starvation_s is None:
            return self.policy.order(jobs), 0
        served_by_s = now_s - self._starvation_s
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

    def _due(self, jobs: Sequence[Job], now_s: float, limits: Limits, memory: Memory) -> list[Job]:
        """Jobs on the host that will starve within a few iterations; no more than rows."""
        if self._starvation_s is None or memory.instant or self._first is not None:
            return []
        ahead_s = min(_AHEAD * self._iteration_s, self._starvation_s / 2)
        served_by_s = now_s - self._starvation_s + ahead_s
        due = [job for job in jobs if job.place is Place.HOST and job.last_served_s <= served_by_s]
        due.sort(key=lambda job: (job.last_served_s, job.id))
        return due[: limits.rows]

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
