"""`wait=False`: a job that somebody waits for only when a value of it is used.

The first use of a saved Value, of `t.result` or of the job's results waits for the job, and delivers everything that
came of it. What the run raised is raised at each use. A task awaits the job instead, so that its event loop goes on.
"""

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

from glassworks.graph.backend import Results
from glassworks.graph.jobs import DONE, Event, Job
from glassworks.trace.value import Value


class Submitted:
    """The job of a block, a session or a run: a `graph.jobs.Job` that delivers what it gives.

    Args:
        job: as the backend knows it.
        values: what waits for it.
        deliver: takes the results of each experiment.
    """

    def __init__(self, job: Job, values: Sequence[Value], deliver: Callable[[list[Results]], None]) -> None:
        self._job, self._deliver = job, deliver
        self._values: Sequence[Value] = values
        self._lock, self._settled = RLock(), False
        for value in values:
            value.waits_for(self)

    @property
    def id(self) -> str:
        return self._job.id

    @property
    def status(self) -> str:
        """`queued`, `running`, `done`, `failed` or `cancelled`; a service may say another word."""
        return self._job.status

    @property
    def position(self) -> int | None:
        """How many jobs are before it; 0 while it runs, None once it has ended."""
        return self._job.position

    @property
    def progress(self) -> float:
        """How far it is, from 0 to 1."""
        return self._job.progress

    @property
    def expected_start_s(self) -> float | None:
        """In how many seconds it may begin, as things stand; None: it has begun, or nobody can tell."""
        return self._job.expected_start_s

    def wait(self, *, timeout_s: float | None = None) -> None:
        """Until it has ended, however it ends. TimeoutError: it has not, within that time."""
        self._job.wait(timeout_s=timeout_s)
        if self._job.status == DONE:
            self.settle()

    def cancel(self) -> None:
        """Call it off: at once if it waits, before its next forward pass if it runs; nothing if it has ended."""
        self._job.cancel()

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """What happens to it, as it happens, to its end: each event (`.number`, `.kind`, `.data`) once and in order.

        Args:
            after: the number of the last event that is known already.
        """
        return self._job.events(after=after)

    def results(self, to: str | Path | None = None) -> Results | list[Results]:
        """Wait, and give the saves by name; of a session a list, a block each. `to`: a folder or a `.safetensors` file
        that they are written to as well. What the run raised is raised here."""
        self.settle()
        return self._job.results(to)

    def settle(self) -> None:
        """Wait, and deliver what came, once. What the run raised is raised here, each time."""
        with self._lock:
            if not self._settled:
                self._take(self._job.each())

    def _take(self, found: list[Results]) -> None:
        self._settled = True
        for value in self._values:
            value.waits_no_more()
        self._values = ()
        self._deliver(found)

    # In a task.

    def __await__(self) -> Generator[Any, None, Results | list[Results]]:
        """`await t.job`: as `results()`."""
        return self._awaited().__await__()

    async def _awaited(self) -> Results | list[Results]:
        await self.settle_async()
        return self._job.results()

    async def settle_async(self) -> None:
        """As `settle`."""
        found = await self._job.each_async()
        with self._lock:  # never held while anything is awaited
            if not self._settled:
                self._take(found)

    async def wait_async(self, *, timeout_s: float | None = None) -> None:
        """As `wait`."""
        await self._job.wait_async(timeout_s=timeout_s)
        if await self._job.status_async() == DONE:
            await self.settle_async()

    async def status_async(self) -> str:
        """As `status`."""
        return await self._job.status_async()

    async def cancel_async(self) -> None:
        """As `cancel`."""
        await self._job.cancel_async()

    def events_async(self, *, after: int = 0) -> AsyncIterator[Event]:
        """As `events`: `async for event in t.job.events_async():`."""
        return self._job.events_async(after=after)

    def __repr__(self) -> str:
        return repr(self._job)


class Awaited(Mapping[str, Any]):
    """Results of a run that nobody has waited for yet: a mapping by save name whose first use waits.

    Attributes:
        job: what it waits for.
    """

    def __init__(self, job: Job, join: Callable[[list[Results]], Results]) -> None:
        self._found: Results | None = None
        self._join = join
        self.job = Submitted(job, (), self._take)

    def _take(self, found: list[Results]) -> None:
        self._found = self._join(found)

    @property
    def results(self) -> Results:
        """What came of it, joined over the passes."""
        self.job.settle()
        assert self._found is not None
        return self._found

    def __await__(self) -> Generator[Any, None, Results]:
        """`await model.run(..., wait=False)`: as `results`."""
        return self._awaited().__await__()

    async def _awaited(self) -> Results:
        await self.job.settle_async()
        return self.results

    def __getitem__(self, name: str) -> Any:
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __repr__(self) -> str:
        return f"<results of {self.job!r}>" if self._found is None else repr(self._found)
