"""Events of jobs: how they get their numbers.

A job's row counts its events, so the number of the next one is found by the statement that changes the row. What a
run repeats when it is done again carries a place in the run, and the row counts those too: an entry whose place was
stored before is a repetition, and is left out.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, select

from glassworks.graph.jobs import ENDED, RUNNING
from glassworks.serve.records import Event
from glassworks.serve.schema import events, jobs

TRUNCATED = "truncated"
"""The event that says that a job had too many, and that those that came later were left out."""

_STAND = select(jobs.c.id, jobs.c.number, jobs.c.events, jobs.c.sources, jobs.c.fence).where(
    jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.status == RUNNING
)
_COUNT = jobs.update().where(jobs.c.number == bindparam("job")).values(events=bindparam("n"), sources=bindparam("m"))
_READ = (
    select(events.c.number, events.c.kind, events.c.data, events.c.at_s)
    .join(jobs, jobs.c.number == events.c.job)
    .where(jobs.c.id == bindparam("id"), jobs.c.owner == bindparam("owner"), events.c.number > bindparam("after"))
    .order_by(events.c.number)
    .limit(bindparam("most"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something that a worker says of a job.

    Attributes:
        fence: with which it runs; what an older run says is left out.
        source: its place among what the run says every time, from 0; None: it is said once.
        data: JSON.
    """

    job: str
    fence: int
    source: int | None
    kind: str
    data: str


@dataclass(slots=True)
class Turn:
    """One write under way, and what is to follow it once it is on the disk.

    Attributes:
        grew: ids of jobs that have new events. ended: of those that have ended.
        gone: files that no row names any more, each with its folder.
    """

    connection: Connection
    now_s: float
    grew: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    gone: list[tuple[str, str]] = field(default_factory=list)

    def add(self, id: str, job: int, number: int, kind: str, data: dict[str, Any]) -> None:
        """Store an event under a number that the job's row has counted."""
        row = {"job": job, "number": number, "kind": kind, "data": spelled(data), "at_s": self.now_s}
        self.connection.execute(_INSERT, row)
        self.grew.add(id)
        if kind in ENDED:
            self.ended.add(id)


_INSERT = events.insert()


@dataclass(slots=True)
class _Standing:
    number: int
    events: int
    sources: int
    fence: int


def spelled(data: dict[str, Any]) -> str:
    """An event's data as it is kept."""
    return json.dumps(data, separators=(",", ":"))


def read(connection: Connection, id: str, owner: str, *, after: int, limit: int) -> list[Event]:
    """The events of a job of this owner from number `after` + 1 on."""
    rows = connection.execute(_READ, {"id": id, "owner": owner, "after": after, "most": limit})
    return [Event(number, kind, json.loads(data), at_s) for number, kind, data, at_s in rows]


def note(turn: Turn, entries: Sequence[Entry], *, most: int) -> None:
    """Store what workers say, except what is stale or repeated, and no more than `most` events a job."""
    ids = list({entry.job for entry in entries})
    found = {row.id: _Standing(*row[1:]) for row in turn.connection.execute(_STAND, {"ids": ids})}
    rows: list[dict[str, Any]] = []
    for entry in entries:
        job = found.get(entry.job)
        if job is not None and _counts(entry, job):
            rows += _rows(entry, job, turn.now_s, most)
    _store(turn, rows, found)


def _counts(entry: Entry, job: _Standing) -> bool:
    """Whether an entry is news; it is then counted."""
    if entry.fence != job.fence:
        return False
    if entry.source is not None:
        if entry.source < job.sources:
            return False
        job.sources = entry.source + 1
    return True


def _rows(entry: Entry, job: _Standing, now_s: float, most: int) -> Iterable[dict[str, Any]]:
    if job.events > most:
        return ()
    job.events += 1
    kind, data = (TRUNCATED, spelled({"kept": most})) if job.events > most else (entry.kind, entry.data)
    return ({"job": job.number, "number": job.events, "kind": kind, "data": data, "at_s": now_s},)


def _store(turn: Turn, rows: list[dict[str, Any]], found: dict[str, _Standing]) -> None:
    if rows:
        turn.connection.execute(_INSERT, rows)
    grew = {row["job"] for row in rows}
    counts = [{"job": job.number, "n": job.events, "m": job.sources} for job in found.values()]
    if counts:
        turn.connection.execute(_COUNT, counts)
    turn.grew.update(id for id, job in found.items() if job.number in grew)
