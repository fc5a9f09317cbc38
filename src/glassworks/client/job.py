"""A job of a service, found by its id: asked about, waited for, listened to, called off, its results fetched.

Whoever has the id and the key that made the job may ask, from any process, in a thread or in a task (what ends in
`_async`). What the service raises is raised where the results are asked for.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glassworks.client import following, shown
from glassworks.client.base import Answer, Transport
from glassworks.client.calls import error_of
from glassworks.client.events import events
from glassworks.client.flow import Flow, carry, carry_async, given, given_async
from glassworks.client.patience import Patience
from glassworks.errors import Cancelled
from glassworks.graph import jobs, messages, tree
from glassworks.graph.backend import Results
from glassworks.graph.jobs import CANCELLED, DONE, ENDED, FAILED, Event

_LOOK_S = 1.0
"""Printing a job asks the service at most so often, and waits at most so long."""
_NOT_THE_RUNS = frozenset({401, 403, 404, 429})


class RemoteJob:
    """A job of a service.

    Args:
        transport: the way to the service.
        id: as the service gave it.
        told: what the service has said of it already.
        answer: what its run answered, where it has ended already.
        patience_s: how long a service that is not there is asked again.
        says: whether its run has something to say, to be heard while its results are waited for.
        in_tasks: whether tasks of an event loop hold it, which printing it must not hold up.
        as_leaf: a tensor of the caller's as a constant.
        read: the answer as results.
        understood: an error of the run as it is to be raised.
        hear: is given its events while its results are waited for.
    """

    def __init__(
        self,
        transport: Transport,
        id: str,
        *,
        told: Mapping[str, Any] | None = None,
        answer: Answer | None = None,
        patience_s: float = 0.0,
        says: bool = False,
        in_tasks: bool = False,
        as_leaf: tree.AsLeaf = tree.own_leaf,
        read: Callable[[bytes], list[Results]] = messages.decode_results,
        understood: Callable[[Exception], Exception] = lambda error: error,
        hear: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.id, self._transport = id, transport
        self._patience_s, self._says, self._hear = patience_s, says, hear
        self._as_leaf, self._read, self._understood = as_leaf, read, understood
        self._last: dict[str, Any] = dict(told or {})
        self._in_tasks, self._looked_s = in_tasks, -_LOOK_S
        self._found: list[Results] | Exception | None = None
        if answer is not None:
            self._take(answer)

    # How it stands.

    @property
    def status(self) -> str:
        """`queued`, `running`, `done`, `failed`, `cancelled`, or another word of the service's."""
        return str(self._asked()["status"])

    @property
    def position(self) -> int | None:
        """How many jobs are before it; 0 while it runs, None once it has ended."""
        return self._asked().get("position")

    @property
    def progress(self) -> float:
        """How far it is, from 0 to 1."""
        return float(self._asked()["progress"])

    @property
    def expected_start_s(self) -> float | None:
        """In how many seconds it may begin, as things stand; None: it has begun, or nobody can tell."""
        found = self._asked().get("expected_start_s")
        return None if found is None else float(found)

    def wait(self, *, timeout_s: float | None = None) -> None:
        """Until it has ended, however it ends. TimeoutError: it has not, within that time."""
        self._carry(self._waiting(timeout_s))

    async def wait_async(self, *, timeout_s: float | None = None) -> None:
        """As `wait`."""
        await self._carry_async(self._waiting(timeout_s))

    async def status_async(self) -> str:
        """As `status`."""
        if not self._has_ended():
            self._last = await self._carry_async(following.status(self.id, self._patience()))
        return str(self._last["status"])

    def cancel(self) -> None:
        """Call it off: at once if it waits, before its next forward pass if it runs; nothing if it has ended."""
        if not self._has_ended():
            self._last = self._carry(following.cancelled(self.id, self._patience()))

    async def cancel_async(self) -> None:
        """As `cancel`."""
        if not self._has_ended():
            self._last = await self._carry_async(following.cancelled(self.id, self._patience()))

    # What it says, and what comes of it.

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """What happens to it, as it happens, to its end: each event once and in order, also where connections break.

        Args:
            after: the number of the last event that is known already.
        """
        return given(events(self.id, self._patience(), after=after), self._transport)

    def events_async(self, *, after: int = 0) -> AsyncIterator[Event]:
        """As `events`: `async for event in job.events_async():`."""
        return given_async(events(self.id, self._patience(), after=after), self._transport.asynchronous())

    def each(self) -> list[Results]:
        """Wait, and give the results of each experiment. What the run raised is raised here."""
        if self._found is None:
            self._take(self._carry(self._ended()))
        return self._given()

    async def each_async(self) -> list[Results]:
        """As `each`."""
        if self._found is None:
            answer = await self._carry_async(self._ended())
            if self._found is None:
                self._take(answer)
        return self._given()

    def results(self, to: str | Path | None = None) -> Results | list[Results]:
        """Wait, and give the results: of several experiments a list. What the run raised is raised here.

        Args:
            to: a folder, or the name of a `.safetensors` file, that they are written to as well.
        """
        return jobs.given(self.each(), to, as_leaf=self._as_leaf)

    # How.

    def _waiting(self, timeout_s: float | None) -> Flow[None]:
        patience = self._patience()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._has_ended():
            left_s = following.ASK_S if deadline is None else min(deadline - time.monotonic(), following.ASK_S)
            if left_s <= 0:
                raise TimeoutError(f"the job {self.id} has not ended after {timeout_s} s: it is {self._word()}")
            self._last = yield from following.status(self.id, patience, wait_s=left_s)

    def _word(self) -> str:
        return str(self._last.get("status", "not known"))

    def _ended(self) -> Flow[Answer]:
        return following.ended(self.id, self._patience(), listens=self._says)

    def _take(self, answer: Answer) -> None:
        """What the run answered. What is said of the asking, and not of the run, is raised and not kept."""
        if answer.status in _NOT_THE_RUNS or answer.status >= 500:
            raise error_of(answer.status, answer.body, f"the results of {self.id}")
        if answer.is_good:
            self._found = self._read(answer.body)
            word = DONE
        else:
            error = error_of(answer.status, answer.body, f"the results of {self.id}")
            self._found = self._understood(error)
            word = CANCELLED if isinstance(error, Cancelled) else FAILED
        if not self._has_ended():
            self._last = {**self._last, "id": self.id, "status": word, "position": None, "progress": 1.0}

    def _given(self) -> list[Results]:
        if isinstance(self._found, Exception):
            raise self._found
        assert self._found is not None
        return self._found

    def _has_ended(self) -> bool:
        return self._last.get("status") in ENDED

    def _asked(self) -> dict[str, Any]:
        """What is known of it now; what has ended stays as it is."""
        if not self._has_ended():
            self._last = self._carry(following.status(self.id, self._patience()))
        return self._last

    def _patience(self) -> Patience:
        return Patience(self._patience_s)

    def _carry(self, flow: Flow[Any]) -> Any:
        return carry(flow, self._transport, hear=self._hear)

    async def _carry_async(self, flow: Flow[Any]) -> Any:
        self._in_tasks = True
        return await carry_async(flow, self._transport.asynchronous(), hear=self._hear)

    def __repr__(self) -> str:
        """Asks, but not too often; whatever goes wrong then is not said here."""
        now_s = time.monotonic()
        if not self._has_ended() and not self._in_tasks and now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            try:
                self._last = self._carry(following.status(self.id, Patience(0), timeout_s=_LOOK_S))
            except Exception:  # noqa: BLE001 - a repr never raises
                pass
        return shown.job_line(self.id, self._last)
