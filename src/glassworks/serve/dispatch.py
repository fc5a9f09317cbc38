"""Jobs of one model on their way to its worker and back: who goes next, what came of it, what happens when it dies.

Every decision that must survive is the ledger's; what is here can be made again from it. Four threads: one sends jobs,
one watches the clock, one listens to the worker (`link`), one brings what it said into the ledger, in order, as much
at once as there is.

Surprises: a job is claimed in the ledger before it is sent, so that whatever happens afterwards it is known where it
was. While a suspect runs, nothing else does.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from glassworks.client.content import framed
from glassworks.errors import GlassworksError, LimitExceeded, RemoteError
from glassworks.graph.jobs import CANCELLED, DONE, FAILED, QUEUED
from glassworks.graph.limits import Limits
from glassworks.graph.messages import encode_error
from glassworks.serve.deaths import Death
from glassworks.serve.fairqueue import FairQueue
from glassworks.serve.flights import Flight, Flights
from glassworks.serve.ledger import Ledger
from glassworks.serve.link import Gone, WorkerLink
from glassworks.serve.metrics import Metrics
from glassworks.serve.records import JobRow

_LOG = logging.getLogger("glassworks.serve")
LEASE_S = 30.0
EACH, ALL = 32, 256
"""Jobs of one key, and of all, in the worker at once."""
_TICK_S = 0.1
_SILENT_S = 10.0
"""A worker that says nothing for so long hangs."""
_OVER_S = 0.5
"""So much later than a job's limit its worker is killed, if it could not end the job by itself."""
_DEATH_S = 3.0
_DISK_S = 1.0
"""What a full disk has no room for is tried again after so long."""
_STATUS = {200: DONE, 409: CANCELLED}
T = TypeVar("T")


class Dispatcher:
    """The jobs of one model (a `link.Listener`).

    Args:
        weight_of: of a key's id. death_of: how a worker ended, by its process id, once that is known.
    """

    def __init__(
        self, model: str, ledger: Ledger, path: str, *, limits: Limits, weight_of: Callable[[str], float],
        death_of: Callable[[int], Death | None], metrics: Metrics,
    ) -> None:  # fmt: skip
        self.model, self._ledger, self._limits, self._death_of = model, ledger, limits, death_of
        self._weight_of = weight_of
        self._metrics = metrics
        self.link = WorkerLink(model, path, self)
        self.about: dict[str, Any] = {}
        self.stats: dict[str, Any] = {}
        self._heard_s = time.monotonic()
        self._changed = threading.Condition()
        self._queue: FairQueue[JobRow] = FairQueue(weight_of)
        self._suspects: dict[str, JobRow] = {}
        self._flights = Flights(each=EACH, all=ALL)
        self._is_up = self._stopping = self._killed = False
        self._unsettled = 0
        """Workers that have gone, of which it is not settled yet what becomes of their jobs."""
        self._rate = 0.0
        self._finished: list[tuple[float, int]] = []
        self._said: SimpleQueue[tuple[str, Any, Any] | None] = SimpleQueue()
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="glassworks-ledger")
        self._threads = [
            threading.Thread(target=work, name=f"glassworks-{work.__name__[1:]}", daemon=True)
            for work in (self._send_jobs, self._watch_worker, self._settle)
        ]

    def start(self, waiting: Sequence[JobRow] = ()) -> None:
        """Begin, with what an earlier process left unfinished."""
        for row in waiting:
            self.submit(row)
        for thread in self._threads:
            thread.start()
        self.link.start()

    def close(self) -> None:
        """Leave everything as it stands in the ledger."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.link.close()
        self._said.put(None)
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()

    # What the service asks for.

    def submit(self, row: JobRow) -> None:
        """A job that was admitted waits for its turn."""
        with self._changed:
            if row.suspect:
                self._suspects[row.id] = row
            else:
                self._queue.add(row)
            self._changed.notify_all()

    def cancel(self, row: JobRow) -> None:
        """Call a job off, whatever its stage."""
        self._ledger.cancel(row.id, row.owner)
        self.called_off(row)

    def called_off(self, row: JobRow) -> None:
        """A job was called off in the ledger: it waits no more, and the worker is told if it has it."""
        with self._changed:
            flight = self._flights.get(row.id)
            if flight is None:
                self._suspects.pop(row.id, None)
                self._queue.remove(row)
                return
            flight.cancelled = True
        if flight.sent:
            with suppress(Gone):  # and the job with it
                self._send_cancel(flight)

    def has(self, row: JobRow) -> bool:
        """Whether the worker has a job, as far as is known here."""
        return self._flights.get(row.id) is not None

    def standing(self, row: JobRow) -> dict[str, Any]:
        """Where an unfinished job stands: position, expected start in seconds from now, progress."""
        with self._changed:
            flight = self._flights.get(row.id)
            if flight is not None:
                return {"position": 0, "expected_start_s": 0.0, "progress": flight.progress}
            before = self._queue.position(row)
            position = len(self._flights) + len(self._suspects) + (before or 0)
            free = self._is_up and self._flights.allows(row.owner) and not before and not self._suspects
            expected_s = 0.0 if free else position / self._rate if self._rate else None
            return {"position": position, "expected_start_s": expected_s, "progress": 0.0}

    def unfinished(self, owner: str) -> int:
        """Jobs of a key that wait or are in the worker."""
        with self._changed:
            suspects = sum(row.owner == owner for row in self._suspects.values())
            return self._queue.count(owner) + suspects + self._flights.count(owner)

    @property
    def counts(self) -> dict[str, int]:
        """Jobs that wait, and jobs in the worker."""
        with self._changed:
            return {"queued": len(self._queue) + len(self._suspects), "running": len(self._flights)}

    @property
    def silent_s(self) -> float:
        """How long ago the worker said anything; one that works says something twice a second."""
        return time.monotonic() - self._heard_s if self._is_up else 0.0

    @property
    def is_in_a_pass(self) -> bool:
        """Whether the worker is in a pass that has taken a while, and no longer than a job may."""
        return 0.0 < self._pass_s() <= self._limits.run_s + _OVER_S

    def _pass_s(self) -> float:
        """How long the pass under way has taken, as far as is known; 0: there is none."""
        said_s = float(self.stats.get("pass_s", 0.0))
        return said_s + time.monotonic() - self._heard_s if said_s else 0.0

    # To the worker.

    def _send_jobs(self) -> None:
        while True:
            with self._changed:
                chosen = self._choose()
                while not chosen and not self._stopping:
                    self._changed.wait()
                    chosen = self._choose()
                if self._stopping:
                    return
            self._launch(chosen)

    def _choose(self) -> list[Flight]:
        """Who goes to the worker now; with the lock held. A suspect waits until it is alone."""
        ready = self._is_up and not self._stopping and not self._unsettled and not self._flights.is_exclusive
        if not ready or (self._suspects and len(self._flights)):
            return []
        chosen = []
        if self._suspects:
            id = next(iter(self._suspects))
            chosen.append(Flight(self._suspects.pop(id), self.link.count, alone=True))
            self._flights.add(chosen[0])
        else:
            while (row := self._queue.take(self._flights.allows)) is not None:
                chosen.append(Flight(row, self.link.count, alone=False))
                self._flights.add(chosen[-1])
        return chosen

    def _launch(self, flights: Sequence[Flight]) -> None:
        """Claim jobs, together, and send them."""
        try:
            ids = [flight.row.id for flight in flights]
            fences = self._kept(lambda: self._ledger.claim_many(ids, lease_s=LEASE_S))
        except RemoteError:  # this ends, and they wait still
            return
        for flight in flights:
            if flight.row.id not in fences:  # called off meanwhile
                self._land(flight.row.id)
                continue
            with self._changed:
                flight.fence, flight.sent_s = fences[flight.row.id], time.monotonic()
                flight.sent = self._is_up and self.link.count == flight.worker
            if not flight.sent:
                self._said.put(("lost", flight, None))
                continue
            try:
                self._send(flight)
            except Exception as error:  # noqa: BLE001 - a fault of ours, or of the disk: it is this job's
                _LOG.exception("a job could not be sent to its worker")
                self._fail(flight, RemoteError(f"the service could not run this job ({type(error).__name__})"))

    def _send(self, flight: Flight) -> None:
        row = flight.row
        self._metrics.waited.labels(self.model).observe(max(time.time() - row.created_s, 0.0))
        tensors = [self._ledger.tensor(row.owner, digest) for digest in row.tensors]
        parts = framed([row.verdict, self._ledger.body(row.id), *[own.body for own in tensors if own is not None]])
        with suppress(Gone):  # since: `down` has this job among the others
            self.link.send(self._head(flight), parts, to=flight.worker)
            if flight.cancelled:
                self._send_cancel(flight)

    def _head(self, flight: Flight) -> dict[str, Any]:
        row = flight.row
        return {
            "do": "run", "job": row.id, "fence": flight.fence, "user": row.owner, "kind": row.kind,
            "weight": self._weight_of(row.owner), "streams": row.streams, "seed": row.seed,
        }  # fmt: skip

    def _send_cancel(self, flight: Flight) -> None:
        self.link.send({"do": "cancel", "job": flight.row.id, "fence": flight.fence})

    # From the worker: called by the link's thread.

    def up(self, about: dict[str, Any]) -> None:
        with self._changed:
            self.about, self.stats = about, {}
            self._heard_s, self._is_up, self._killed = time.monotonic(), True, False
            self._changed.notify_all()

    def said(self, head: dict[str, Any], body: bytearray) -> None:
        self._heard_s = time.monotonic()
        if head["is"] == "stats":
            self.stats = head
        else:
            self._said.put((head["is"], head, body))

    def down(self) -> None:
        with self._changed:
            self._is_up, self._unsettled = False, self._unsettled + 1
            had = [flight for flight in self._flights.values() if flight.sent]
        self._said.put(("down", self.about.get("pid"), had))

    # Into the ledger: one thread, in the order in which it came.

    def _settle(self) -> None:
        while True:
            batch = [self._said.get()]
            while not self._said.empty():
                batch.append(self._said.get())
            self._settle_all([item for item in batch if item is not None])
            if None in batch:
                return

    def _settle_all(self, batch: Sequence[tuple[str, Any, Any]]) -> None:
        """Events first: those of a job come before its end. A worker that has gone says nothing more. What cannot be
        kept of it keeps back nothing else."""
        events = [body for kind, _, body in batch if kind == "events"]
        if events:
            _guarded(lambda: self._note([entry for body in events for entry in json.loads(bytes(body))]))
        ended = [self._pool.submit(self._finish, head, body) for kind, head, body in batch if kind == "done"]
        for future in ended:
            _guarded(future.result)
        for kind, what, had in batch:
            if kind == "down":
                _guarded(partial(self._died, what, had))
                with self._changed:
                    self._unsettled -= 1
                    self._changed.notify_all()
            elif kind == "lost":
                why = "the worker had gone before the job came to it"
                _guarded(partial(self._requeue, what, why, suspect=False))

    def _note(self, entries: Sequence[Sequence[Any]]) -> None:
        with self._changed:
            for id, fence, _, kind, data in entries:
                flight = self._flights.get(id)
                if kind == "progress" and flight is not None and flight.fence == fence:
                    flight.progress = float(data["progress"])
        said = [(i, f, s, k, d) for i, f, s, k, d in entries if k != "progress"]
        self._kept(lambda: self._ledger.note(said))

    def _finish(self, head: dict[str, Any], body: bytearray) -> None:
        id, fence, status = head["job"], head["fence"], _STATUS.get(head["status"], FAILED)
        try:
            ended = self._kept(lambda: self._ledger.finish(
                id, fence, status=status, answer=head["status"], result=body, media=head["media"],
                compute_s=head["compute_s"], data={},
            ))  # fmt: skip
        except RemoteError:  # this ends, and it is done once more by who comes after
            raise
        except Exception as error:
            flight = self._flights.get(id)
            if flight is not None and flight.fence == fence:
                self._fail(
                    flight, RemoteError(f"the service could not keep what this job came to ({type(error).__name__})")
                )
            raise
        if ended:
            self._metrics.has_ended(self.model, status)
        self._land(id, fence=fence)

    def _land(self, id: str, *, fence: int | None = None) -> None:
        """A job has ended."""
        now_s = time.monotonic()
        with self._changed:
            flight = self._flights.get(id)
            if flight is None or (fence is not None and flight.fence != fence):
                return
            self._flights.remove(id, ended=True)
            self._queue.end(id)
            if flight.sent:
                self._metrics.took.labels(self.model).observe(now_s - flight.sent_s)
            self._finished = [each for each in self._finished if now_s - each[0] < 30.0]
            self._finished.append((now_s, 1))
            self._rate = len(self._finished) / max(now_s - self._finished[0][0], 1.0)
            self._changed.notify_all()

    def _kept(self, write: Callable[[], T]) -> T:
        """What a write to the ledger gives. One that a full disk has no room for waits until there is some: what it
        says must not be lost, and jobs cannot go on without it. RemoteError: this ends meanwhile."""
        while True:
            try:
                return write()
            except RemoteError:
                with self._changed:
                    if self._changed.wait_for(lambda: self._stopping, timeout=_DISK_S):
                        raise

    # Deaths.

    def _died(self, pid: int | None, had: Sequence[Flight]) -> None:
        """The worker has gone: what it had is suspect, unless somebody is known to be to blame."""
        flights = [flight for flight in had if self._flights.get(flight.row.id) is flight]
        if not flights or self._stopping:  # it has not gone: it was left
            return
        over = [flight for flight in flights if flight.over_s is not None]
        for flight in over:  # first: how the worker ended takes a moment to be known, and theirs is known
            _guarded(partial(self._fail, flight, _over(flight, self._limits)))
        left = [flight for flight in flights if flight.over_s is None]
        death = self._death(pid) if left else None
        for flight in left:
            if not over and self._flights.died(flight, from_outside=death is not None and death.from_outside):
                _guarded(partial(self._fail, flight, _blamed(death)))
            else:
                why = f"the worker ended: {death or 'nobody saw how'}"
                _guarded(partial(self._requeue, flight, why, suspect=not over))

    def _death(self, pid: int | None) -> Death | None:
        end = time.monotonic() + _DEATH_S
        while pid is not None and time.monotonic() < end and not self._stopping:
            found = self._death_of(pid)
            if found is not None:
                return found
            time.sleep(_TICK_S / 2)
        return None

    def _requeue(self, flight: Flight, why: str, *, suspect: bool) -> None:
        row = flight.row
        now = self._kept(lambda: self._ledger.requeue(row.id, flight.fence, why=why, suspect=suspect))
        kept = now == QUEUED
        with self._changed:
            self._flights.remove(row.id, ended=not kept)
            if not kept:
                self._queue.end(row.id)
                self._changed.notify_all()
        if kept:
            self._metrics.retried.labels(self.model).inc()
            self.submit(replace(row, suspect=suspect))

    def _fail(self, flight: Flight, error: GlassworksError) -> None:
        self._kept(lambda: self._ledger.finish(
            flight.row.id, flight.fence, status=FAILED, answer=422, result=encode_error(error),
            media="application/json", compute_s=flight.over_s or 0.0, data={},
        ))  # fmt: skip
        self._metrics.has_ended(self.model, FAILED)
        self._land(flight.row.id)

    # The clock.

    def _watch_worker(self) -> None:
        """By itself, because who sends to a worker that hangs may hang too."""
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, timeout=_TICK_S):
                    return
            try:
                self._watch()
            except Exception:  # noqa: BLE001 - the clock must go on
                _LOG.exception("watching a worker failed")

    def _watch(self) -> None:
        """Keep leases, and end a worker that cannot end by itself what is over its limit, or that says nothing."""
        now_s = time.monotonic()
        with self._changed:
            stats, silent_s, pass_s = self.stats, self.silent_s, self._pass_s()
            is_late = bool(self._flights) and pass_s > self._limits.run_s + _OVER_S
            hangs = self._is_up and (is_late or silent_s > _SILENT_S)
            if hangs and not self._killed:
                self._killed = True
                culprit = self._flights.culprit(stats)
                if culprit is not None:
                    culprit.over_s = pass_s or silent_s
                _LOG.warning("the worker of %s hangs, and is ended", self.model)
                _kill(self.about.get("pid"))
        if now_s - self._renewed_s > LEASE_S / 3:
            self._renewed_s = now_s
            self._ledger.renew([(f.row.id, f.fence) for f in self._flights.values() if f.fence], lease_s=LEASE_S)

    _renewed_s = 0.0


def _guarded(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:  # noqa: BLE001 - whatever it is, nothing else must wait for ever
        _LOG.exception("what a worker said could not be kept")


def _kill(pid: int | None) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _over(flight: Flight, limits: Limits) -> LimitExceeded:
    return LimitExceeded(
        f"run_s: this job ran for {flight.over_s:.1f} s, {limits.run_s} s allowed, and could only be ended together "
        f"with its worker; ask for less at once"
    )


def _blamed(death: Death | None) -> RemoteError:
    return RemoteError(
        f"the worker ended while this job was alone in it, {'again' if death is None else death}; the job is not tried "
        f"once more. Ask for less at once: fewer rows, shorter prompts, smaller tensors"
    )
