"""What a worker has been given and has not answered, and who is to blame when it dies or hangs. Plain data, no clock.

When a worker dies, every job that it had is a suspect and goes back; suspects run alone. Whoever is alone in a worker
that dies, twice, is to blame. A worker that hangs is killed; whose nodes it was in, or who was alone, is to blame at
once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glassworks.serve.records import JobRow

DEATHS_ALONE = 2
"""So many workers may die under a job that is alone in them."""
KILLS_ALONE = 5
"""So many, where each was ended from outside, which need not be the job's doing."""


@dataclass(eq=False, slots=True)
class Flight:
    """One job in a worker.

    Attributes:
        worker: which one, by its number. fence: of its lease. alone: nothing else is in the worker.
        sent, sent_s: the worker has it, or is about to, since then. cancelled: it is to end.
        progress: from 0 to 1. over_s: it was found to have run so long when its limit was over; the worker was killed.
    """

    row: JobRow
    worker: int
    alone: bool
    fence: int = 0
    sent: bool = False
    sent_s: float = 0.0
    cancelled: bool = False
    progress: float = 0.0
    over_s: float | None = None


class Flights:
    """The jobs in one worker, by id.

    Args:
        each: jobs of one key. all: jobs together; a key that has none may always have one.
    """

    def __init__(self, *, each: int, all: int) -> None:
        self._each, self._all = each, all
        self._flights: dict[str, Flight] = {}
        self._counts: dict[str, int] = {}
        self._deaths: dict[str, list[bool]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def get(self, id: str) -> Flight | None:
        """A job's flight, if it has one."""
        return self._flights.get(id)

    def values(self) -> list[Flight]:
        """All of them."""
        return list(self._flights.values())

    @property
    def is_exclusive(self) -> bool:
        """Whether somebody is to be alone."""
        return any(flight.alone for flight in self._flights.values())

    def count(self, owner: str) -> int:
        """Jobs of one key in the worker."""
        return self._counts.get(owner, 0)

    def allows(self, owner: str) -> bool:
        """Whether one more job of a key may go to the worker."""
        own = self._counts.get(owner, 0)
        return own == 0 or (own < self._each and len(self._flights) < self._all)

    def add(self, flight: Flight) -> None:
        """A job goes to the worker."""
        owner = flight.row.owner
        self._flights[flight.row.id] = flight
        self._counts[owner] = self._counts.get(owner, 0) + 1

    def remove(self, id: str, *, ended: bool) -> Flight | None:
        """A job has left the worker; `ended`: for good."""
        flight = self._flights.pop(id, None)
        if flight is not None:
            owner = flight.row.owner
            self._counts[owner] -= 1
            if not self._counts[owner]:
                del self._counts[owner]
        if ended:
            self._deaths.pop(id, None)
        return flight

    def died(self, flight: Flight, *, from_outside: bool) -> bool:
        """The worker died under a job; whether the job is to blame."""
        if not flight.alone:
            return False
        deaths = self._deaths.setdefault(flight.row.id, [])
        deaths.append(from_outside)
        return deaths.count(False) >= DEATHS_ALONE or len(deaths) >= KILLS_ALONE

    def culprit(self, stats: Mapping[str, Any]) -> Flight | None:
        """Whose work a worker that hangs is in, by what it last said; None: nobody knows."""
        named = self._flights.get(stats.get("node_of") or "")
        at: Sequence[str] = stats.get("at", ())
        if named is None and len(at) == 1:
            named = self._flights.get(at[0])
        return named or (next(iter(self._flights.values())) if len(self._flights) == 1 else None)
