"""How a job goes from one state to the next: each move is one transaction, and happens or does not.

    admitted -> queued -> running -> done | failed | cancelled
                  ^          |
                  +- retried-+

A move is a statement that changes the job's row only where the row is as the move needs it, and says whether it did.
So of a result and a cancellation that race one comes first and the other finds nothing to change. A running job is
moved only by who holds its newest fence. Each move adds the event that tells of it.
"""

import json
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from glassworks.errors import Cancelled, InputError
from glassworks.graph.jobs import CANCELLED, QUEUED, RUNNING
from glassworks.graph.messages import encode_error
from glassworks.serve.entries import Turn
from glassworks.serve.records import JobRow, NewJob
from glassworks.serve.schema import jobs, payloads, usage

UNFINISHED = (QUEUED, RUNNING)
DAY_S = 24 * 3600
JSON = "application/json"

COLUMNS = [jobs.c[own.name] for own in fields(JobRow)]
_ID, _FENCE = jobs.c.id == bindparam("job"), jobs.c.fence == bindparam("held")
_TURNED = (jobs.c.number, jobs.c.events, jobs.c.owner, jobs.c.fence, jobs.c.attempts, jobs.c.body_file)

_SAME = select(*COLUMNS).where(jobs.c.owner == bindparam("of"), jobs.c.idempotency == bindparam("known_as"))
_ADMIT = insert(jobs).returning(jobs.c.number)
_ADMIT_BODY = insert(payloads)
_CLAIM = (
    update(jobs)
    .where(_ID, jobs.c.status == QUEUED)
    .values(
        status=RUNNING, events=jobs.c.events + 1, fence=jobs.c.fence + 1, attempts=jobs.c.attempts + 1,
        started_s=bindparam("now_s"), lease_s=bindparam("until_s"),
    )
    .returning(*_TURNED)
)  # fmt: skip
_REQUEUE = (
    update(jobs)
    .where(_ID, _FENCE, jobs.c.status == RUNNING, jobs.c.cancelled.is_(False))
    .values(status=QUEUED, events=jobs.c.events + 1, lease_s=None, suspect=bindparam("suspected"))
    .returning(*_TURNED)
)
_END = update(jobs).values(
    status=bindparam("ends"), events=jobs.c.events + 1, ended_s=bindparam("now_s"), lease_s=None, verdict=b"",
    body_bytes=0, answer=bindparam("code"), media=bindparam("type"), result_bytes=bindparam("size"),
    result_file=bindparam("file"), compute_s=bindparam("took_s"),
).returning(*_TURNED)  # fmt: skip
_FINISH = _END.where(_ID, _FENCE, jobs.c.status == RUNNING)
_CANCEL_QUEUED = _END.values(cancelled=True).where(_ID, jobs.c.owner == bindparam("of"), jobs.c.status == QUEUED)
_CANCEL_RETRIED = _FINISH.where(jobs.c.cancelled.is_(True))
_CANCEL_RUNNING = (
    update(jobs).where(_ID, jobs.c.owner == bindparam("of"), jobs.c.status == RUNNING).values(cancelled=True)
)
_PAY = update(payloads).where(payloads.c.job == bindparam("of")).values(body=None, result=bindparam("bytes"))
_CHARGE = (
    update(usage)
    .where(usage.c.owner == bindparam("of"), usage.c.day == bindparam("on"))
    .values(compute_s=usage.c.compute_s + bindparam("took_s"))
)
_CHARGE_FIRST = insert(usage)


def job_row(row: Row[Any]) -> JobRow:
    """A row of `COLUMNS`."""
    values = dict(row._mapping)
    return JobRow(**{**values, "tensors": tuple(json.loads(values["tensors"]))})


def same(connection: Connection, new: NewJob, digest: str) -> JobRow | None:
    """The job that this owner made before under this name.

    Raises:
        InputError: that was another one.
    """
    if new.idempotency is None:
        return None
    row = connection.execute(_SAME, {"of": new.owner, "known_as": new.idempotency}).one_or_none()
    if row is None:
        return None
    found = job_row(row)
    if (found.body_digest, found.model, found.kind) != (digest, new.model, new.kind):
        raise InputError(
            f"the idempotency key {new.idempotency[:80]!r} belongs to the job {found.id}, which is another one: give "
            "each request its own, and the same one only to the same request"
        )
    return found


def admit(turn: Turn, new: NewJob, row: JobRow, *, size_bytes: int, inline: bytes | None) -> JobRow:
    """Let a job in. `row.number` is found here; without `inline` the body is in a file that has the job's id."""
    values = {own.name: getattr(row, own.name) for own in fields(row) if own.name != "number"}
    values |= {"tensors": json.dumps(row.tensors), "body_bytes": size_bytes, "idempotency": new.idempotency}
    values["body_file"] = row.id if inline is None else None
    number = turn.connection.execute(_ADMIT, values).scalar_one()
    turn.connection.execute(_ADMIT_BODY, {"job": number, "body": inline})
    turn.add(row.id, number, 1, QUEUED, {})
    return replace(row, number=number)


def claim(turn: Turn, id: str, *, lease_s: float) -> int | None:
    """Give a queued job to a worker; the fence to end it with."""
    row = _moved(turn, _CLAIM, {"job": id, "now_s": turn.now_s, "until_s": turn.now_s + lease_s})
    if row is None:
        return None
    turn.add(id, row.number, row.events, "started", {"attempt": row.attempts})
    return int(row.fence)


def requeue(turn: Turn, id: str, fence: int, *, why: str, suspect: bool) -> str | None:
    """Let a running job wait again, or end if it was called off; its status, None if the fence is not the newest."""
    row = _moved(turn, _REQUEUE, {"job": id, "held": fence, "suspected": suspect})
    if row is None:
        return CANCELLED if _end(turn, _CANCEL_RETRIED, {"job": id, "held": fence, **called_off(id)}) else None
    turn.add(id, row.number, row.events, "retried", {"why": why})
    return QUEUED


def finish(turn: Turn, id: str, fence: int, ending: dict[str, Any]) -> bool:
    """End a running job with an `ending`; False if the fence is not the newest."""
    ended = _end(turn, _FINISH, {"job": id, "held": fence, **ending})
    if not ended and ending["file"] is not None:
        turn.gone.append(("results", ending["file"]))
    return ended


def cancel(turn: Turn, id: str, owner: str) -> None:
    """Call a job off: one that waits ends, one that runs is marked."""
    if not _end(turn, _CANCEL_QUEUED, {"job": id, "of": owner, **called_off(id)}):
        turn.connection.execute(_CANCEL_RUNNING, {"job": id, "of": owner})


def ending(
    *, status: str, answer: int, media: str, size: int, inline: bytes | None, file: str | None, compute_s: float,
    data: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """How a job ends: what `finish` writes."""
    return {
        "ends": status, "code": answer, "type": media, "size": size, "file": file, "took_s": compute_s, "bytes": inline,
        "data": data,
    }  # fmt: skip


def called_off(id: str) -> dict[str, Any]:
    """The end of a job that was cancelled before it could say anything."""
    body = encode_error(Cancelled(f"the job {id} was cancelled"))
    return ending(
        status=CANCELLED, answer=409, media=JSON, size=len(body), inline=body, file=None, compute_s=0.0, data={}
    )


def _end(turn: Turn, statement: Any, values: dict[str, Any]) -> bool:
    """One transaction: the row, the result in the place of the body, the terminal event, what it cost."""
    columns = {name: value for name, value in values.items() if name not in ("bytes", "data")}
    row = _moved(turn, statement, {**columns, "now_s": turn.now_s})
    if row is None:
        return False
    turn.connection.execute(_PAY, {"of": row.number, "bytes": values["bytes"]})
    turn.add(values["job"], row.number, row.events, values["ends"], values["data"])
    if row.body_file is not None:
        turn.gone.append(("bodies", row.body_file))
    if values["took_s"]:
        _charge(turn, row.owner, values["took_s"])
    return True


def _charge(turn: Turn, owner: str, took_s: float) -> None:
    day = int(turn.now_s // DAY_S)
    if turn.connection.execute(_CHARGE, {"of": owner, "on": day, "took_s": took_s}).rowcount == 0:
        turn.connection.execute(_CHARGE_FIRST, {"owner": owner, "day": day, "compute_s": took_s})


def _moved(turn: Turn, statement: Any, values: dict[str, Any]) -> Row[Any] | None:
    found: Row[Any] | None = turn.connection.execute(statement, values).one_or_none()
    return found
