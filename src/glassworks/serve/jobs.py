"""Jobs of a service: requests that were let in and whose author did not wait. One at a time a model, in order.

A job belongs to the key that made it; to any other key its id is unknown. What has ended is kept for a day, and for
each key so many bytes of results, the oldest let go first. Jobs live in this process: they end with it.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from glassworks.client.content import size_of
from glassworks.errors import Cancelled, LimitExceeded, RemoteError
from glassworks.graph.jobs import CANCELLED, DONE, ENDED, FAILED, QUEUED, RUNNING
from glassworks.serve.answers import Answer, refusal

UNFINISHED = 256
"""Jobs of one key that wait or run."""
KEPT_S = 24 * 3600.0
KEPT_BYTES = 4 * 2**30
"""Results of one key."""
KEPT_JOBS = 4096
"""Jobs of one key that have ended."""


@dataclass(eq=False)
class Served:
    """One job.

    Attributes:
        forwards: how many forward passes it may take.
        run: gives its answer; is called once.
    """

    id: str
    owner: str
    model: str
    forwards: int
    run: Callable[[], Answer] | None
    status: str = QUEUED
    answer: Answer | None = None
    ended_at: float = 0.0
    cancelled: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """The jobs of a service. `now_s` is a clock."""

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._jobs: dict[str, Served] = {}
        self._waiting: dict[str, deque[Served]] = {}
        self._running: dict[str, Served] = {}

    def submit(self, owner: str, model: str, forwards: int, run: Callable[[str], Answer]) -> Served:
        """Let a job wait for its turn; `run` is called with its id, in a thread of the model's.

        Raises:
            LimitExceeded: too many of this key wait already.
        """
        id = f"job-{secrets.token_urlsafe(18)}"
        job = Served(id, owner, model, forwards, lambda: run(id))
        with self._lock:
            waiting = sum(other.owner == owner and other.status not in ENDED for other in self._jobs.values())
            if waiting >= UNFINISHED:
                raise LimitExceeded(
                    f"jobs: {waiting + 1} asked for, {UNFINISHED} allowed; wait for some, or cancel some"
                )
            self._let_go(owner)
            self._jobs[id] = job
            self._waiting.setdefault(model, deque()).append(job)
            if model not in self._running:
                self._running[model] = job
                threading.Thread(target=self._work, args=(model,), name="glassworks-jobs", daemon=True).start()
        return job

    def find(self, owner: str, id: str) -> Served:
        """A job of this key. RemoteError: there is none, whether or not another key has it."""
        with self._lock:
            self._let_go(owner)
            job = self._jobs.get(id)
        if job is None or job.owner != owner:
            raise RemoteError(
                f"no job {id[:60]!r}: it was never made with this key, or ended so long ago that it was let go"
            )
        return job

    def position(self, job: Served) -> int | None:
        """How many jobs are before one in the queue of its model."""
        with self._lock:
            if job.status in ENDED:
                return None
            if job.status == RUNNING:
                return 0
            return self._waiting[job.model].index(job) + (self._running[job.model].status == RUNNING)

    def cancel(self, job: Served) -> bool:
        """Call a job off; whether it is running, so that whoever runs it is to be told."""
        with self._lock:
            if job.status in ENDED:
                return False
            job.cancelled = True
            if job.status == RUNNING:
                return True
            self._waiting[job.model].remove(job)
            self._end(job, None)
        return False

    # The queue.

    def _work(self, model: str) -> None:
        """Run what waits for a model; end when nothing does, so that nothing is held by an idle thread."""
        while True:
            with self._lock:
                waiting = self._waiting[model]
                if not waiting:
                    del self._running[model], self._waiting[model]
                    return
                job = self._running[model] = waiting.popleft()
                job.status = RUNNING
            assert job.run is not None
            answer = job.run()
            with self._lock:
                self._end(job, answer)

    def _end(self, job: Served, answer: Answer | None) -> None:
        """With the lock held."""
        called_off = job.cancelled and (answer is None or answer[0] != 200)
        job.status = CANCELLED if called_off else DONE if answer is not None and answer[0] == 200 else FAILED
        job.answer = refusal(409, Cancelled(f"the job {job.id} was cancelled")) if called_off else answer
        job.run, job.ended_at = None, self._now_s()
        job.ended.set()

    def _let_go(self, owner: str) -> None:
        """Forget what ended too long ago, and what is too much of this key's. With the lock held."""
        ended = [job for job in self._jobs.values() if job.status in ENDED]
        old = [job for job in ended if self._now_s() - job.ended_at > KEPT_S]
        own = sorted((job for job in ended if job.owner == owner), key=lambda job: -job.ended_at)
        held = 0
        for k, job in enumerate(own):
            held += size_of(job.answer[1]) if job.answer is not None else 0
            if held > KEPT_BYTES or k >= KEPT_JOBS:
                old.append(job)
        for job in old:
            self._jobs.pop(job.id, None)
