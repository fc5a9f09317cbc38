"""The ledger: every job that was let in, what happened to it and what came of it, on the disk before anyone is told.

It knows nothing of workers, of what a body says, or of who may do what; of another owner's job it says that there is
none. Small bytes are in the database; large ones are in files, which are on the disk before the row that names them
is, so that what ends in between leaves a file without a row, and the next start removes it. Every call blocks until it
is done, except those that end in `_soon`.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, update

from glassworks.client.content import Body, Whole, joined, size_of
from glassworks.errors import InputError, RemoteError
from glassworks.graph.jobs import ENDED, QUEUED, RUNNING
from glassworks.serve import entries, moves, retention, shelf, views
from glassworks.serve.entries import Entry, Turn, spelled
from glassworks.serve.files import FileBody, drop, keep, sweep
from glassworks.serve.records import Event, JobRow, NewJob
from glassworks.serve.schema import jobs
from glassworks.serve.shelf import Shelf
from glassworks.serve.state import State
from glassworks.serve.tensors import Stored

T = TypeVar("T")
Rows = list[JobRow]
Events = list[Event]
Ids = list[str]
Said = tuple[str, int, int | None, str, dict[str, Any]]
"""What a worker says of a job: (job, fence, source, kind, data). `source` is its place among what a run of the job says
every time, from 0, or None."""
_RENEW = (
    update(jobs)
    .where(jobs.c.id == bindparam("job"), jobs.c.fence == bindparam("held"), jobs.c.status == RUNNING)
    .values(lease_s=bindparam("until_s"))
)


class Ledger:
    """The jobs of a service.

    Args:
        state: the folder, held.
        now_s: seconds since 1970.
        inline_bytes: bodies and results up to here are in the database.
        kept_s: how long a job stays after its end.
        kept_bytes: results of one owner that stay, the newest first.
        kept_jobs: ended jobs of one owner that stay.
        tensor_bytes: large tensors of one owner.
        most_events: of one job, its beginning and end not counted.

    Attributes:
        shelf: the large tensors.
        on_commit: called with the ids of jobs that have new events, in the writer's thread, once these are committed.
        on_end: likewise, with those that have ended.
    """

    def __init__(
        self,
        state: State,
        *,
        now_s: Callable[[], float] = time.time,
        inline_bytes: int = 2**16,
        kept_s: float = 24 * 3600.0,
        kept_bytes: int = 4 * 2**30,
        kept_jobs: int = 4096,
        tensor_bytes: int = 2**30,
        most_events: int = 2**17,
    ) -> None:
        if state.lock is None:
            raise InputError("a ledger needs a state folder that is held for it: State.hold(folder)")
        self.on_commit: Callable[[frozenset[str]], None] = _nobody
        self.on_end: Callable[[frozenset[str]], None] = _nobody
        self._state, self._database, self._now_s = state, state.database, now_s
        self._inline_bytes, self._most_events = inline_bytes, most_events
        self._kept_s, self._kept_bytes, self._kept_jobs = kept_s, kept_bytes, kept_jobs
        self.shelf = Shelf(state, limit_bytes=tensor_bytes)
        self._grew: set[str] = set()
        self._ended: set[str] = set()
        self._database.after_commit = self._tell
        self._sweep()

    # Letting in.

    def admit(self, new: NewJob) -> tuple[JobRow, bool]:
        """Let a job in, durably; whether it is new, as its owner may have asked for the same before.

        Raises:
            InputError: the owner used this idempotency key for another request.
            RemoteError: the disk is full or broken; or a large tensor was let go in this moment.
        """
        digest, size_bytes = _digest(new.body), size_of(new.body)
        known = new.idempotency is not None and self._read(lambda connection: moves.same(connection, new, digest))
        if known:
            return known, False
        row = self._row(new, digest)
        inline = bytes(joined(new.body)) if size_bytes <= self._inline_bytes else None
        if inline is None:
            keep(self._state.bodies / row.id, new.body)

        def admit(turn: Turn) -> tuple[JobRow, bool]:
            if found := moves.same(turn.connection, new, digest):
                turn.gone += [("bodies", row.id)] if inline is None else []
                return found, False
            shelf.require(turn.connection, new.owner, new.tensors)
            return moves.admit(turn, new, row, size_bytes=size_bytes, inline=inline), True

        return self._submit(admit, file=None if inline is not None else ("bodies", row.id)).result()

    def _row(self, new: NewJob, digest: str) -> JobRow:
        return JobRow(
            number=0, id=f"job-{secrets.token_urlsafe(18)}", owner=new.owner, model=new.model, kind=new.kind,
            status=QUEUED, priority=new.priority, tokens=new.tokens, forwards=new.forwards, seed=new.seed,
            streams=new.streams, created_s=self._now_s(), body_digest=digest, verdict=new.verdict, tensors=new.tensors,
        )  # fmt: skip

    # Looking.

    def find(self, id: str, owner: str) -> JobRow | None:
        """A job of this owner."""
        return self._read(lambda connection: views.find(connection, id, owner))

    def list(self, owner: str, *, limit: int = 100, status: str | None = None) -> Rows:
        """Jobs of this owner, the newest first; all, or those of one status."""
        return self._read(lambda connection: views.newest(connection, owner, limit=limit, status=status))

    def unfinished(self) -> Rows:
        """Jobs of everyone that wait or run, in the order of admission."""
        return self._read(views.unfinished)

    def body(self, id: str) -> Body:
        """The request of a job that has not ended. RemoteError: it has, or there is none."""
        row = self._read(lambda connection: views.body(connection, id))
        try:
            if row is not None:
                return FileBody(self._state.bodies / row.body_file) if row.body_file else bytes(row.body)
        except FileNotFoundError:  # it ended between the two
            pass
        raise RemoteError(f"the job {id[:60]!r} has no body: it has ended")

    def results(self, id: str, owner: str) -> tuple[int, str, Body] | None:
        """The answer of a job of this owner: its status in HTTP, media type and body; None before its end."""
        row = self._read(lambda connection: views.result(connection, id, owner))
        if row is None:
            return None
        try:
            body = FileBody(self._state.results / row.result_file) if row.result_file else bytes(row.result)
        except FileNotFoundError:  # it expired between the two
            return None
        return row.answer, row.media, body

    def events(self, id: str, owner: str, *, after: int = 0, limit: int = 1000) -> Events:
        """What happened to a job of this owner after its event number `after`, in order."""
        return self._read(lambda connection: entries.read(connection, id, owner, after=after, limit=limit))

    # Running. Who runs a job has a fence, and can do nothing with an old one.

    def release(self) -> Rows:
        """At start: jobs that ran when the last service ended wait again, and those called off end; what waits now."""
        running = [row for row in self.unfinished() if row.status == RUNNING]

        def release(turn: Turn) -> None:
            for row in running:
                moves.requeue(turn, row.id, row.fence, why="the service was restarted", suspect=row.suspect)

        self._write(release)
        return self.unfinished()

    def claim(self, id: str, *, lease_s: float) -> int | None:
        """Start a job that waits; the fence, or None if it does not wait any more."""
        return self.claim_many([id], lease_s=lease_s).get(id)

    def claim_many(self, ids: Sequence[str], *, lease_s: float) -> dict[str, int]:
        """Start jobs that wait, in one transaction; the fences of those that did."""

        def claim(turn: Turn) -> dict[str, int]:
            fences = {id: moves.claim(turn, id, lease_s=lease_s) for id in ids}
            return {id: fence for id, fence in fences.items() if fence is not None}

        return self._write(claim)

    def renew(self, held: Iterable[tuple[str, int]], *, lease_s: float) -> None:
        """Say that these jobs, each with its fence, are under way still."""
        until_s = self._now_s() + lease_s
        values = [{"job": id, "held": fence, "until_s": until_s} for id, fence in held]
        if values:
            self._write(lambda turn: turn.connection.execute(_RENEW, values) and None)

    def expired_leases(self) -> Rows:
        """Running jobs of which nobody has said for too long that they are under way."""
        return self._read(lambda connection: views.late(connection, self._now_s()))

    def note(self, said: Sequence[Said]) -> None:
        """Store what workers say of jobs, in one transaction; what is stale or repeated is left out."""
        self.note_soon(said).result()

    def note_soon(self, said: Sequence[Said]) -> "Future[None]":
        """As `note`, without waiting."""
        own = [
            Entry(job=job, fence=fence, source=source, kind=kind, data=spelled(data))
            for job, fence, source, kind, data in said
        ]
        return self._submit(lambda turn: entries.note(turn, own, most=self._most_events))

    def finish(
        self, id: str, fence: int, *, status: str, answer: int, result: Body, media: str, compute_s: float,
        data: dict[str, Any],
    ) -> bool:  # fmt: skip
        """End a running job, in one transaction: its status, its answer, its terminal event and what it cost.

        Args:
            status: `done`, `failed` or `cancelled`; the kind of the terminal event too.
            answer: its status in HTTP.
            result: the body of the answer.
            media: its media type.
            compute_s: seconds that its owner is charged.
            data: of the event.

        Returns:
            False: the job was ended or started anew meanwhile, and nothing changed.

        Raises:
            RemoteError: the disk is full or broken, and nothing changed.
        """
        return self.finish_soon(
            id, fence, status=status, answer=answer, result=result, media=media, compute_s=compute_s, data=data
        ).result()

    def finish_soon(
        self, id: str, fence: int, *, status: str, answer: int, result: Body, media: str, compute_s: float,
        data: dict[str, Any],
    ) -> "Future[bool]":  # fmt: skip
        """As `finish`, without waiting for the row; a large result is written to its file here."""
        if status not in ENDED:
            raise InputError(f"a job ends as one of {', '.join(sorted(ENDED))}, got {status!r}")
        size = size_of(result)
        inline = bytes(joined(result)) if size <= self._inline_bytes else None
        file = None if inline is not None else f"{id}-{fence}-{secrets.token_hex(4)}"
        if file is not None:
            keep(self._state.results / file, result)
        ending = moves.ending(
            status=status,
            answer=answer,
            media=media,
            size=size,
            inline=inline,
            file=file,
            compute_s=compute_s,
            data=data,
        )
        return self._submit(
            lambda turn: moves.finish(turn, id, fence, ending), file=None if file is None else ("results", file)
        )

    def requeue(self, id: str, fence: int, *, why: str, suspect: bool) -> str | None:
        """Let a running job wait again; one that was called off ends instead.

        Returns:
            Its status; None: the job was ended or started anew meanwhile, and nothing changed.
        """
        return self._write(lambda turn: moves.requeue(turn, id, fence, why=why, suspect=suspect))

    def cancel(self, id: str, owner: str) -> JobRow | None:
        """Call a job of this owner off: one that waits ends at once, one that runs is marked, one that ended stays."""
        self._write(lambda turn: moves.cancel(turn, id, owner))
        return self.find(id, owner)

    # Letting go.

    def expire(self) -> Ids:
        """Remove what ended too long ago and what is too much of an owner's; the ids of these jobs."""
        before_s = self._now_s() - self._kept_s
        numbers = self._read(
            lambda connection: retention.over(
                connection, before_s=before_s, owner_bytes=self._kept_bytes, owner_jobs=self._kept_jobs
            )
        )
        gone: Ids = []
        for start in range(0, len(numbers), retention.AT_ONCE):
            some = numbers[start : start + retention.AT_ONCE]
            gone += self._write(partial(retention.remove, numbers=some))
        return gone

    def forget(self, id: str, owner: str) -> None:
        """Remove a job of this owner that has ended, and its results."""
        row = self.find(id, owner)
        if row is not None:
            self._write(partial(retention.remove, numbers=[row.number]))

    def cancel_all(self, owner: str) -> Rows:
        """Call off all jobs of an owner, in one transaction; those that it had under way."""
        rows = [row for row in self.unfinished() if row.owner == owner]

        def cancel(turn: Turn) -> None:
            for row in rows:
                moves.cancel(turn, row.id, owner)

        self._write(cancel)
        return rows

    # What an owner has.

    def owners(self) -> frozenset[str]:
        """Those with jobs that wait or run."""
        return self._read(views.owners)

    def knows(self, owner: str, idempotency: str) -> bool:
        """Whether an owner has a job under this name."""
        return self._read(lambda connection: views.knows(connection, owner, idempotency))

    def queued_count(self, owner: str) -> int:
        """Jobs of an owner that wait."""
        return self._read(lambda connection: views.count(connection, owner, QUEUED))

    def running_count(self, owner: str) -> int:
        """Jobs of an owner that run."""
        return self._read(lambda connection: views.count(connection, owner, RUNNING))

    def stored_bytes(self, owner: str) -> int:
        """Requests that have not ended, results and large tensors of an owner."""
        return self._read(lambda connection: views.stored_bytes(connection, owner))

    def compute_s_today(self, owner: str) -> float:
        """Seconds that an owner was charged since midnight, UTC."""
        day = int(self._now_s() // moves.DAY_S)
        return self._read(lambda connection: views.compute_s(connection, owner, day))

    # Large tensors.

    def put_tensor(self, owner: str, digest: str, dtype: str, shape: Sequence[int], body: Body) -> None:
        """See `shelf.Shelf.put`."""
        self.shelf.put(owner, digest, Stored(body, dtype, tuple(shape)))

    def tensor(self, owner: str, digest: str) -> Stored | None:
        """See `shelf.Shelf.get`."""
        return self.shelf.get(owner, digest)

    # How.

    def _read(self, what: Callable[[Connection], T]) -> T:
        return self._database.read(what)

    def _write(self, what: Callable[[Turn], T]) -> T:
        return self._submit(what).result()

    def _submit(self, what: Callable[[Turn], T], *, file: tuple[str, str] | None = None) -> "Future[T]":
        """Do a write in its turn. `file`: one that it names, with its folder, which goes if nothing is written."""
        turns: list[Turn] = []

        def write(connection: Connection) -> T:
            turns.append(Turn(connection, self._now_s()))
            return what(turns[0])

        def then(written: bool) -> None:
            if written:
                self._grew |= turns[0].grew
                self._ended |= turns[0].ended
            for folder, name in turns[0].gone if written else [file] if file else []:
                drop(self._state.folder / folder, [name])

        return self._database.submit(write, then=then)

    def _tell(self) -> None:
        grew, self._grew = frozenset(self._grew), set()
        ended, self._ended = frozenset(self._ended), set()
        if grew:
            self.on_commit(grew)
        if ended:
            self.on_end(ended)

    def _sweep(self) -> None:
        """Remove files that no row names."""
        folders = (self._state.bodies, self._state.results, self._state.tensors)
        for folder, named in zip(folders, self._read(views.files), strict=True):
            sweep(folder, named)


def _digest(body: Body) -> str:
    found = hashlib.sha256()
    for part in (body,) if isinstance(body, Whole) else body:
        found.update(part)
    return found.hexdigest()


def _nobody(ids: frozenset[str]) -> None:
    pass
