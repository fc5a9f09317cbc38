"""Shortest predicted remaining time first, with predictions that may be wrong or absent (TRAIL, SSJF).

Once a job outlives its prediction the estimate doubles, and doubles again: from then on it sinks as it would in the
queues of `mlfq`, whose quanta double. So does a job of which nothing was predicted, from its first token.
"""

from glassworks.schedule.base import Job
from glassworks.schedule.cost import IterationCost
from glassworks.schedule.policy import Key, Policy


class Predicted(Policy):
    """By the seconds that seem to be left."""

    def __init__(self, cost: IterationCost) -> None:
        self._cost = cost
        self._estimates: dict[int, float] = {}

    def arrive(self, job: Job) -> None:
        self._estimates[job.id] = max(1.0, job.expected_tokens or 1.0)

    def charge(self, job: Job, seconds: float) -> None:
        while self._estimates[job.id] <= job.produced_tokens:
            self._estimates[job.id] *= 2

    def finish(self, job: Job) -> None:
        self._estimates.pop(job.id, None)

    def key(self, job: Job) -> Key:
        return (self.turn_s(job), job.arrival_s, job.id)

    def turn_s(self, job: Job) -> float:
        left = max(1.0, self._estimates[job.id] - job.produced_tokens)
        return left * self._cost.minimal_s + self._cost.prefill_token_s * (job.pending_tokens - 1)
