"""What a policy is: an order of the jobs that wait and run, first come first, and what it learns from time they use.

A policy knows no rows, tokens or blocks: the one decision that all share (`decide`) turns its order into a batch. The
guard rails, such as the bound on starvation, are outside it too (`guarded`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from glassworks.schedule.base import Job

Key = tuple[float, ...]


class Policy(ABC):
    """Orders jobs by a key, least first. What it need not know of, it leaves as it is here: nothing happens."""

    def arrive(self, job: Job) -> None:  # noqa: B027
        """A job has come."""

    def charge(self, job: Job, seconds: float) -> None:  # noqa: B027
        """A job took part in an iteration of `seconds`; its tokens are counted already."""

    def finish(self, job: Job) -> None:  # noqa: B027
        """A job has ended."""

    def promote(self, job: Job) -> None:  # noqa: B027
        """A job starved: it starts anew, as if it had used nothing."""

    @abstractmethod
    def key(self, job: Job) -> Key:
        """Its place in the order."""

    @abstractmethod
    def turn_s(self, job: Job) -> float:
        """How long it will run, once it does, before the jobs behind it come to their turn."""

    def order(self, jobs: Sequence[Job]) -> list[Job]:
        """All of them, the first to run first."""
        return sorted(jobs, key=self.key)

    def waits_s(self, order: Sequence[Job], rows: int) -> list[float]:
        """For each of a list in this order, the expected time until it runs (T_execute of FastServe's ENST)."""
        waits, ahead_s = [], 0.0
        for job in order:
            waits.append(ahead_s / rows)
            ahead_s += self.turn_s(job) * job.rows
        return waits
