"""Shortest remaining processing time first, for one who knows the truth: a bound that no real policy reaches.

`expected_tokens` of every job is the true number. It minimises mean completion time on one row (Schrage 1968).
"""

from glassworks.errors import InputError
from glassworks.schedule.base import Job
from glassworks.schedule.cost import IterationCost
from glassworks.schedule.policy import Key, Policy


class Srpt(Policy):
    """By the seconds that are left."""

    def __init__(self, cost: IterationCost) -> None:
        self._cost = cost

    def arrive(self, job: Job) -> None:
        if job.expected_tokens is None:
            raise InputError(
                "srpt is an oracle: each job must come with expected_tokens, its true number of tokens; got None; "
                'take "srpt-predicted" where it is not known'
            )

    def key(self, job: Job) -> Key:
        return (self.turn_s(job), job.arrival_s, job.id)

    def turn_s(self, job: Job) -> float:
        left = (job.expected_tokens or 0.0) - job.produced_tokens
        return left * self._cost.minimal_s + self._cost.prefill_token_s * (job.pending_tokens - 1)
