"""Skip-join multi-level feedback queues (FastServe, NSDI 2026, section 4.1): short jobs first, without knowing which.

Level k may use the quantum q x 2^k, q being the shortest iteration there is. A job joins the first level whose quantum
its prompt fits in (it skips those above), is charged for the time it runs, and sinks a level when its quantum is used.
Within a level, turns are taken in the order of joining it: a job that is only preempted keeps its turn.

Surprises: the number of levels has no bound (they double, so few are ever used). The quantum follows the cost model,
which learns; levels already taken stay.
"""

from collections.abc import Sequence

from glassworks.schedule.base import Job
from glassworks.schedule.cost import IterationCost
from glassworks.schedule.policy import Key, Policy


class Mlfq(Policy):
    """By level, then by turn."""

    def __init__(self, cost: IterationCost) -> None:
        self._cost = cost
        self._turns = 0

    def arrive(self, job: Job) -> None:
        first_s, level = self._cost.prefill_s(job.prompt_tokens), 0
        while self.quantum_s(level) < first_s:
            level += 1
        self._join(job, level)

    def charge(self, job: Job, seconds: float) -> None:
        job.used_s += seconds
        if job.used_s >= self.quantum_s(job.level):
            self._join(job, job.level + 1)

    def promote(self, job: Job) -> None:
        self._join(job, 0)

    def quantum_s(self, level: int) -> float:
        """What a job may use of a level before it sinks."""
        return self._cost.minimal_s * 2.0**level

    def key(self, job: Job) -> Key:
        return (job.level, job.queued)

    def turn_s(self, job: Job) -> float:
        return max(0.0, self.quantum_s(job.level) - job.used_s)

    def waits_s(self, order: Sequence[Job], rows: int) -> list[float]:
        """Until those ahead have sunk to its level: the quanta they have yet to use on the way, over the rows."""
        waits, ahead, below_s = [], 0, 0.0
        for job in order:
            # sum over those ahead of q(2^level - 2^theirs) = what they use from their level down to this one
            waits.append(max(0.0, (ahead * self.quantum_s(job.level) - below_s) / rows))
            ahead += job.rows
            below_s += job.rows * self.quantum_s(job.level)
        return waits

    def _join(self, job: Job, level: int) -> None:
        self._turns += 1
        job.level, job.used_s, job.queued = level, 0.0, self._turns
