"""What the ledger lets go of: jobs that ended long ago, and the oldest of who has too many or too much.

A job goes as a whole: its row, with it by the database its events and its small bytes, and then its file.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, or_, select

from glassworks.graph.jobs import ENDED
from glassworks.serve.entries import Turn
from glassworks.serve.schema import jobs

AT_ONCE = 100
"""Jobs that go in one transaction, so that who writes meanwhile need not wait long."""

_ENDED = jobs.c.status.in_(sorted(ENDED))
_NEWEST: Any = {"partition_by": jobs.c.owner, "order_by": (jobs.c.ended_s.desc(), jobs.c.number.desc())}
_RANKED = (
    select(
        jobs.c.number,
        jobs.c.ended_s,
        func.sum(jobs.c.result_bytes).over(**_NEWEST, rows=(None, 0)).label("held_bytes"),
        func.row_number().over(**_NEWEST).label("place"),
    )
    .where(_ENDED)
    .subquery()
)
_OVER = select(_RANKED.c.number).where(
    or_(
        _RANKED.c.ended_s < bindparam("before_s"),
        _RANKED.c.held_bytes > bindparam("bytes"),
        _RANKED.c.place > bindparam("count"),
    )
)
_GO = (
    delete(jobs)
    .where(jobs.c.number.in_(bindparam("numbers", expanding=True)), _ENDED)
    .returning(jobs.c.id, jobs.c.result_file)
)


def over(connection: Connection, *, before_s: float, owner_bytes: int, owner_jobs: int) -> list[int]:
    """Numbers of the jobs that are to go.

    Args:
        before_s: what ended before then.
        owner_bytes: results of one owner that stay, the newest first.
        owner_jobs: ended jobs of one owner that stay.
    """
    found = connection.execute(_OVER, {"before_s": before_s, "bytes": owner_bytes, "count": owner_jobs})
    return list(found.scalars())


def remove(turn: Turn, numbers: Sequence[int]) -> list[str]:
    """Remove ended jobs; their ids."""
    rows = turn.connection.execute(_GO, {"numbers": list(numbers)}).all()
    turn.gone += [("results", file) for _, file in rows if file is not None]
    return [id for id, _ in rows]
