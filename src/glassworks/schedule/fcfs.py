"""First come, first served: what most engines do. A job that runs keeps its row until it ends."""

from glassworks.schedule.base import Job
from glassworks.schedule.cost import IterationCost
from glassworks.schedule.policy import Key, Policy


class Fcfs(Policy):
    """By the time of arrival."""

    def __init__(self, cost: IterationCost) -> None:
        self._cost = cost

    def key(self, job: Job) -> Key:
        return (job.arrival_s, job.id)

    def turn_s(self, job: Job) -> float:
        expected = job.max_new_tokens if job.expected_tokens is None else job.expected_tokens
        return max(1.0, expected - job.produced_tokens) * self._cost.minimal_s
