"""What the ledger takes and gives: a job to be admitted, a job as it stands, an event of one."""

from dataclasses import dataclass
from typing import Any

from glassworks.client.content import Body


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job that was checked and may be let in.

    Attributes:
        owner: the id of the key that it belongs to.
        kind: `experiments` or `completion`.
        verdict: what the check found; kept until the job has ended.
        body: the request; kept until the job has ended.
        tensors: digests of the owner's large tensors that it needs; they stay until it has ended.
        seed: below 2 ** 63.
        tokens: its price, for fair shares.
        forwards: how many forward passes it may take.
        idempotency: by which its owner knows it, so that asking twice makes one job.
        streams: whether its tokens are to be events.
    """

    owner: str
    model: str
    kind: str
    verdict: bytes
    body: Body
    tensors: tuple[str, ...] = ()
    seed: int
    priority: int = 0
    tokens: int
    forwards: int
    idempotency: str | None = None
    streams: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job as it stood when it was looked at. Its names are columns of `schema.jobs`.

    Attributes:
        number: its place in the order of admission.
        started_s: when it was last given to a worker.
        fence: goes up whenever it is given to a worker; only who holds the newest may end it.
        attempts: how often it was given to a worker.
        suspect: a worker died with it, among others.
        cancelled: it was called off; a running one still has to be told.
        compute_s: of the attempt that ended it.
        result_bytes: of its answer; 0 until it has ended.
        body_digest: SHA-256 of the request.
        verdict: empty once it has ended.
    """

    number: int
    id: str
    owner: str
    model: str
    kind: str
    status: str
    priority: int
    tokens: int
    forwards: int
    seed: int
    streams: bool
    created_s: float
    started_s: float | None = None
    ended_s: float | None = None
    fence: int = 0
    attempts: int = 0
    suspect: bool = False
    cancelled: bool = False
    compute_s: float = 0.0
    result_bytes: int = 0
    body_digest: str
    verdict: bytes
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job. The events of a job are numbered 1, 2, 3 ... without gaps."""

    number: int
    kind: str
    data: dict[str, Any]
    at_s: float
