"""The jobs of a service as people see them: taken in, looked at, called off, listed, their results fetched.

Joins what decides (`models`, `quotas`), what remembers (`ledger`) and what moves (`dispatch`). A job belongs to the key
that made it; to any other its id is unknown, in the same words.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glassworks.client.content import Body
from glassworks.errors import Cancelled, InputError, RemoteError
from glassworks.graph.jobs import CANCELLED, ENDED, QUEUED
from glassworks.serve.answers import Answer, Refused, refusal
from glassworks.serve.dispatch import Dispatcher
from glassworks.serve.ledger import Ledger
from glassworks.serve.metrics import Metrics
from glassworks.serve.models import Models
from glassworks.serve.quotas import Quotas, Used
from glassworks.serve.records import JobRow, NewJob

EXPERIMENTS, COMPLETION = "experiments", "completion"
PRIORITIES = range(-10, 11)
_IDEMPOTENCY_CHARACTERS = 200
_LOOK_S = 0.25
NOWHERE = {"position": None, "expected_start_s": None, "progress": 0.0}
"""How a job stands whose model this service does not have: an earlier one on the same state took it in."""
_CHECKS = {EXPERIMENTS: "run", COMPLETION: "completion"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a request asks for besides its body.

    Attributes:
        idempotency: the same words from the same key are the same job. priority: -10 to 10, 0 as usual.
        streams: its tokens are to be events.

    Raises:
        InputError: one of them cannot be.
    """

    idempotency: str | None = None
    priority: int = 0
    streams: bool = False

    def __post_init__(self) -> None:
        if self.priority not in PRIORITIES:
            raise InputError(f"a priority is an int from {PRIORITIES[0]} to {PRIORITIES[-1]}, got {self.priority}")
        if self.idempotency is not None and not 0 < len(self.idempotency) <= _IDEMPOTENCY_CHARACTERS:
            raise InputError(
                f"an Idempotency-Key has 1 to {_IDEMPOTENCY_CHARACTERS} characters, got {len(self.idempotency)}"
            )


class Jobs:
    """The jobs of a service's models."""

    def __init__(
        self, models: Models, ledger: Ledger, dispatchers: Mapping[str, Dispatcher], *, quotas: Quotas, metrics: Metrics
    ) -> None:
        self.models, self.ledger, self.quotas, self._metrics = models, ledger, quotas, metrics
        self._dispatchers = dispatchers
        self._uses: dict[str, tuple[float, Used]] = {}

    def start(self) -> None:
        """Go on with what an earlier process left: what was running runs again."""
        self.ledger.release()
        waiting = self.ledger.unfinished()
        for name, dispatcher in self._dispatchers.items():
            dispatcher.start([row for row in waiting if row.model == name])

    def close(self) -> None:
        """Leave everything as it stands."""
        for dispatcher in self._dispatchers.values():
            dispatcher.close()

    # Taking in.

    def check_room(self, owner: str, idempotency: str | None = None) -> None:
        """Before a request of a key is looked at. Refused, 429: it has too much; not of what was let in before."""
        try:
            unfinished = sum(dispatcher.unfinished(owner) for dispatcher in self._dispatchers.values())
            self.quotas.check(unfinished, self._used(owner))
        except Refused:
            if idempotency is None or not self.ledger.knows(owner, idempotency):
                raise

    def _used(self, owner: str) -> Used:
        """What a key has used, as it was a moment ago: sums over all its jobs are not made for each request."""
        found = self._uses.get(owner)
        if found is None or time.monotonic() - found[0] > _LOOK_S:
            used = Used(self.ledger.compute_s_today(owner), self.ledger.stored_bytes(owner))
            found = self._uses[owner] = time.monotonic(), used
        return found[1]

    def submit(
        self, name: str, kind: str, body: Body, owner: str, wishes: Wishes, *, about: str | None = None
    ) -> JobRow:
        """Check a request, and let it wait for its turn; it is on the disk when this returns.

        Raises:
            Refused: it may not run. GlassworksError: it cannot be taken now.
        """
        let_in = self.models.let_in(_CHECKS[kind], name, body, owner, about=about)
        verdict = let_in.verdict
        asked = verdict.get("seed")
        row, fresh = self.ledger.admit(
            NewJob(
                owner=owner, model=name, kind=kind, verdict=json.dumps(verdict).encode(), body=body,
                tensors=let_in.tensors, seed=secrets.randbelow(2**31) if asked is None else asked,
                priority=wishes.priority, tokens=verdict["tokens"], forwards=verdict["forwards"],
                idempotency=wishes.idempotency, streams=wishes.streams,
            )
        )  # fmt: skip
        if fresh:
            self._metrics.admitted.labels(name).inc()
            self._dispatchers[name].submit(row)
        return row

    # Looking.

    def find(self, id: str, owner: str) -> JobRow:
        """A job of this key. Refused, 404: it has none of that id."""
        row = self.ledger.find(id, owner)
        if row is None:
            raise Refused(
                404,
                RemoteError(
                    f"no job {id[:60]!r}: it was never made with this key, or ended so long ago that it was let go"
                ),
            )
        return row

    def status(self, row: JobRow) -> dict[str, Any]:
        """What is told of a job."""
        told: dict[str, Any] = {"position": None, "expected_start_s": None, "progress": 1.0}
        if row.status not in ENDED:
            dispatcher = self._dispatchers.get(row.model)
            told = NOWHERE if dispatcher is None else dispatcher.standing(row)
        return {
            "id": row.id, "model": row.model, "kind": row.kind, "status": row.status, **told,
            "created_s": row.created_s, "started_s": row.started_s, "ended_s": row.ended_s, "attempts": row.attempts,
            "priority": row.priority, "seed": row.seed, "compute_s": row.compute_s,
        }  # fmt: skip

    def list(self, owner: str, *, status: str | None, limit: int) -> list[dict[str, Any]]:
        """The jobs of a key, the newest first."""
        return [self.status(row) for row in self.ledger.list(owner, limit=limit, status=status)]

    def results(self, row: JobRow) -> tuple[Answer, str]:
        """What a run answered, and of which media type. Refused, 409: it has not ended, or was called off."""
        if row.status == CANCELLED:
            return refusal(409, Cancelled(f"the job {row.id} was cancelled")), "application/json"
        found = self.ledger.results(row.id, row.owner)
        if found is None:
            raise Refused(409, RemoteError(f"the job {row.id} has not ended: it is {row.status}"))
        status, media, body = found
        return (status, body), media

    # Ending.

    def cancel(self, id: str, owner: str) -> JobRow:
        """Call a job off, whatever its stage; nothing if it has ended."""
        row = self.find(id, owner)
        if row.status not in ENDED:
            self.ledger.cancel(row.id, row.owner)
            self._called_off(row)
        return self.find(id, owner)

    def delete(self, id: str, owner: str) -> None:
        """Let go of a job that has ended, and of its results. Refused, 409: it has not."""
        row = self.find(id, owner)
        if row.status not in ENDED:
            raise Refused(409, RemoteError(f"the job {id} has not ended: it is {row.status}; cancel it first"))
        self.ledger.forget(row.id, row.owner)

    def take_back(self) -> None:
        """Let jobs wait again whose lease nobody has renewed: whoever had them has lost them."""
        for row in self.ledger.expired_leases():
            if self._dispatchers[row.model].has(row):
                continue
            why = "nobody has said for a while that it runs"
            if self.ledger.requeue(row.id, row.fence, why=why, suspect=False) == QUEUED:
                self._dispatchers[row.model].submit(row)

    def stop_all_of(self, owner: str) -> None:
        """Call off all jobs of a key that is let in no more."""
        for row in self.ledger.cancel_all(owner):
            self._called_off(row)

    def _called_off(self, row: JobRow) -> None:
        dispatcher = self._dispatchers.get(row.model)
        if dispatcher is not None:
            dispatcher.called_off(row)

    def account(self, owner: str) -> dict[str, Any]:
        """What a key has and may have."""
        ledger, quotas = self.ledger, self.quotas
        return {
            "queued": ledger.queued_count(owner), "running": ledger.running_count(owner),
            "compute_s_today": ledger.compute_s_today(owner), "stored_bytes": ledger.stored_bytes(owner),
            "limits": {
                "unfinished_jobs": quotas.unfinished_jobs, "compute_s": quotas.compute_s,
                "stored_bytes": quotas.stored_bytes, "streams": quotas.streams,
            },
        }  # fmt: skip
