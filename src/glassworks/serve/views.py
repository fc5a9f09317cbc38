"""What is asked of the ledger and changes nothing, as queries; each is one look at all that was committed."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select

from glassworks.graph.jobs import RUNNING
from glassworks.serve.moves import COLUMNS, UNFINISHED, job_row
from glassworks.serve.records import JobRow
from glassworks.serve.schema import jobs, payloads, tensors, usage

_OF = jobs.c.owner == bindparam("of")
_ID = jobs.c.id == bindparam("job")

_FIND = select(*COLUMNS).where(_ID, _OF)
_NEWEST = select(*COLUMNS).where(_OF).order_by(jobs.c.number.desc()).limit(bindparam("most"))
_NEWEST_THAT = _NEWEST.where(jobs.c.status == bindparam("now"))
_UNFINISHED = select(*COLUMNS).where(jobs.c.status.in_(UNFINISHED)).order_by(jobs.c.number)
_OWNERS = select(jobs.c.owner).where(jobs.c.status.in_(UNFINISHED)).distinct()
_KNOWS = select(func.count()).where(_OF, jobs.c.idempotency == bindparam("known_as"))
_LATE = _UNFINISHED.where(jobs.c.status == RUNNING, jobs.c.lease_s < bindparam("now_s"))
_BODY = select(jobs.c.body_file, payloads.c.body).join(payloads).where(_ID, jobs.c.status.in_(UNFINISHED))
_RESULT = (
    select(jobs.c.answer, jobs.c.media, jobs.c.result_file, payloads.c.result)
    .join(payloads)
    .where(_ID, _OF, jobs.c.answer.is_not(None))
)
_COUNT = select(func.count()).where(_OF, jobs.c.status == bindparam("now"))
_JOB_BYTES = select(func.sum(jobs.c.body_bytes + jobs.c.result_bytes)).where(_OF)
_TENSOR_BYTES = select(func.sum(tensors.c.size_bytes)).where(tensors.c.owner == bindparam("of"))
_COMPUTE = select(usage.c.compute_s).where(usage.c.owner == bindparam("of"), usage.c.day == bindparam("on"))
_BODY_FILES = select(jobs.c.body_file).where(jobs.c.status.in_(UNFINISHED), jobs.c.body_file.is_not(None))
_RESULT_FILES = select(jobs.c.result_file).where(jobs.c.result_file.is_not(None))
_TENSOR_FILES = select(tensors.c.file)


def find(connection: Connection, id: str, owner: str) -> JobRow | None:
    """A job of this owner."""
    row = connection.execute(_FIND, {"job": id, "of": owner}).one_or_none()
    return None if row is None else job_row(row)


def newest(connection: Connection, owner: str, *, limit: int, status: str | None) -> list[JobRow]:
    """Jobs of this owner, the newest first; all, or those of one status."""
    values = {"of": owner, "most": limit}
    if status is None:
        return _rows(connection.execute(_NEWEST, values))
    return _rows(connection.execute(_NEWEST_THAT, {**values, "now": status}))


def unfinished(connection: Connection) -> list[JobRow]:
    """Jobs of everyone that wait or run, in the order of admission."""
    return _rows(connection.execute(_UNFINISHED))


def owners(connection: Connection) -> frozenset[str]:
    """Those with jobs that wait or run."""
    return frozenset(connection.execute(_OWNERS).scalars())


def knows(connection: Connection, owner: str, idempotency: str) -> bool:
    """Whether an owner has a job under this name."""
    return bool(connection.execute(_KNOWS, {"of": owner, "known_as": idempotency}).scalar_one())


def late(connection: Connection, now_s: float) -> list[JobRow]:
    """Running jobs whose lease has run out."""
    return _rows(connection.execute(_LATE, {"now_s": now_s}))


def body(connection: Connection, id: str) -> Row[Any] | None:
    """Where the body of an unfinished job is: `body_file`, or the `body` itself."""
    return _one(connection.execute(_BODY, {"job": id}))


def result(connection: Connection, id: str, owner: str) -> Row[Any] | None:
    """The answer of an ended job: `answer`, `media`, and `result_file` or the `result` itself."""
    return _one(connection.execute(_RESULT, {"job": id, "of": owner}))


def count(connection: Connection, owner: str, status: str) -> int:
    """Jobs of an owner in a status."""
    return int(connection.execute(_COUNT, {"of": owner, "now": status}).scalar_one())


def stored_bytes(connection: Connection, owner: str) -> int:
    """Requests of unfinished jobs, results and large tensors of an owner."""
    return sum(int(connection.execute(each, {"of": owner}).scalar_one() or 0) for each in (_JOB_BYTES, _TENSOR_BYTES))


def compute_s(connection: Connection, owner: str, day: int) -> float:
    """Seconds that an owner was charged on a day, counted from 1970."""
    return float(connection.execute(_COMPUTE, {"of": owner, "on": day}).scalar_one_or_none() or 0.0)


def files(connection: Connection) -> tuple[set[str], set[str], set[str]]:
    """Names of the files that rows name: bodies, results, tensors."""
    bodies, results, kept = (
        set(connection.execute(each).scalars()) for each in (_BODY_FILES, _RESULT_FILES, _TENSOR_FILES)
    )
    return bodies, results, kept


def _rows(found: Any) -> list[JobRow]:
    rows: Sequence[Row[Any]] = found.all()
    return [job_row(row) for row in rows]


def _one(found: Any) -> Row[Any] | None:
    row: Row[Any] | None = found.one_or_none()
    return row
