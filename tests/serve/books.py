"""What must be true of a service's state once nothing is under way, read from its database beside the service.

Whatever was killed meanwhile: no job is lost, each has ended once, and the numbers of its events and runs add up.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from glassworks.graph.jobs import ENDED
from glassworks.serve.entries import read
from glassworks.serve.records import Event
from glassworks.serve.schema import jobs, payloads
from glassworks.serve.state import State


@dataclass
class Books:
    """All jobs of a state, by id: how each stands, what happened to it, and how many results it has."""

    status: dict[str, str] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    compute_s: dict[str, float] = field(default_factory=dict)
    events: dict[str, list[Event]] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=dict)

    def kinds(self, id: str) -> list[str]:
        return [event.kind for event in self.events[id]]

    def at_s(self, id: str, kind: str) -> float:
        """When something happened to a job for the last time."""
        return [event.at_s for event in self.events[id] if event.kind == kind][-1]

    def retried(self) -> int:
        """How many jobs went back at least once."""
        return sum("retried" in self.kinds(id) for id in self.events)


def books_of(folder: Path) -> Books:
    """What the database says now."""
    found = Books()
    with State.visit(folder) as state:

        def look(connection):  # type: ignore[no-untyped-def]
            for row in connection.execute(select(jobs)):
                inline = connection.execute(select(payloads.c.result).where(payloads.c.job == row.number)).all()
                found.status[row.id], found.owner[row.id], found.attempts[row.id] = row.status, row.owner, row.attempts
                found.compute_s[row.id] = row.compute_s
                found.events[row.id] = read(connection, row.id, row.owner, after=0, limit=10**6)
                found.results[row.id] = sum(own.result is not None for own in inline) + (row.result_file is not None)

        state.database.read(look)
    return found


def check_books(found: Books, *, made: Iterable[str] | None = None) -> None:
    """That all have ended, once, whatever came in between. `made`: the jobs that there must be, and no others."""
    if made is not None:
        assert sorted(found.status) == sorted(made)
    for id, status in found.status.items():
        kinds = found.kinds(id)
        assert status in ENDED, (id, status)
        assert [event.number for event in found.events[id]] == list(range(1, len(kinds) + 1))
        assert [kind for kind in kinds if kind in ENDED] == [status]
        assert kinds[0] == "queued"
        assert kinds[-1] == status
        assert found.results[id] == 1
        said = [json.dumps(event.data) for event in found.events[id] if event.kind in ("log", "token")]
        assert len(said) == len(set(said)), (id, said)
        starts, retries = kinds.count("started"), kinds.count("retried")
        assert starts == found.attempts[id]
        assert starts == retries + 1 or (status == "cancelled" and starts == retries)
