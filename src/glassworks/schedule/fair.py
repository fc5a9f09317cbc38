"""Fair shares between users: virtual token counters (VTC, OSDI 2024) over any inner policy.

Each user has a counter of the service received: tokens of prompts, and twice the tokens produced, since they cost more.
The user with the least is next; among one user's jobs the inner policy decides. A user who comes back after a pause is
lifted to the least counter of those active: nobody saves service up. While two users both have jobs waiting, what they
received since then differs by a bound that does not grow with time (VTC, theorem 4.4).

Of users without jobs so many are remembered; beyond, who is least ahead is lifted early, which gives nobody more.

Within one order, a job counts before it runs, so that users alternate in a batch. A job that is computed again after it
was dropped pays once. A user with twice the weight pays half for the same, and so gets twice as much.
"""

from collections import Counter
from collections.abc import Sequence

from glassworks.schedule.base import Job
from glassworks.schedule.policy import Key, Policy

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
_AWAY = 1024
"""How many users without jobs are remembered."""


class Fair(Policy):
    """By what the user has received, then by `inner`."""

    def __init__(self, inner: Policy) -> None:
        self._inner = inner
        self.received: dict[str, float] = {}
        self._jobs: Counter[str] = Counter()
        self._paid: dict[int, float] = {}
        self._last = 0.0

    def arrive(self, job: Job) -> None:
        self._inner.arrive(job)  # first: it may refuse the job
        if not self._jobs[job.user]:
            least = min((self.received[user] for user in self._jobs), default=self._last)
            self.received[job.user] = max(self.received.get(job.user, 0.0), least)
        self._jobs[job.user] += 1
        self._paid[job.id] = 0.0

    def charge(self, job: Job, seconds: float) -> None:
        self._pay(job)
        self._inner.charge(job, seconds)

    def finish(self, job: Job) -> None:
        self._pay(job)
        self._inner.finish(job)
        del self._paid[job.id]
        self._jobs[job.user] -= 1
        self._last = self.received[job.user]
        if not self._jobs[job.user]:
            del self._jobs[job.user]
            self._forget()

    def _forget(self) -> None:
        """Of too many users without jobs, the one who is least ahead: coming back would lift it first."""
        away = [user for user in self.received if user not in self._jobs]
        if len(away) > _AWAY:
            del self.received[min(away, key=self.received.__getitem__)]

    def promote(self, job: Job) -> None:
        self._inner.promote(job)

    def key(self, job: Job) -> Key:
        return (self.received[job.user], *self._inner.key(job))

    def turn_s(self, job: Job) -> float:
        return self._inner.turn_s(job)

    def order(self, jobs: Sequence[Job]) -> list[Job]:
        virtual = dict(self.received)
        tagged = []
        for job in self._inner.order(jobs):
            tagged.append((virtual[job.user], job))
            virtual[job.user] += OUTPUT_WEIGHT * job.rows / job.weight
        tagged.sort(key=lambda each: each[0])  # stable: the inner order decides between equals
        return [job for _, job in tagged]

    def _pay(self, job: Job) -> None:
        prompt = min(job.computed_tokens, job.prompt_tokens)
        worth = job.rows * (PROMPT_WEIGHT * prompt + OUTPUT_WEIGHT * job.produced_tokens)
        due = worth - self._paid[job.id]
        if due > 0:  # less than was paid: it was dropped, and is being computed again
            self.received[job.user] += due / job.weight
            self._paid[job.id] = worth
