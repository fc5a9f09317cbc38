"""What a service says about itself and its jobs, as values. How they look in print is `shown`'s.

A service may say more than is known here, and name states that are not: they are kept as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glassworks.client import shown
from glassworks.errors import WireError
from glassworks.graph.wire import json_of


def status_of(answer: bytes) -> dict[str, Any]:
    """What a service says of a job. WireError: something else."""
    return checked(json_of(answer, "the answer"))


def checked(body: Any) -> dict[str, Any]:
    """The same, of JSON that was read."""
    good = isinstance(body, dict) and isinstance(body.get("id"), str) and isinstance(body.get("status"), str)
    if not good or not all(_is(body.get(name), *kinds) for name, kinds in _NUMBERS.items()):
        raise WireError("the answer is no status of a job: id, status, position and progress")
    return body  # type: ignore[no-any-return]


_NONE = type(None)
_NUMBERS: dict[str, tuple[type, ...]] = {
    "progress": (int, float),
    "position": (int, _NONE),
    "expected_start_s": (int, float, _NONE),
    "created_s": (int, float, _NONE),
}


def _is(value: Any, *kinds: type) -> bool:
    return type(value) in kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model of a service.

    Attributes:
        state: a word such as `ready`, `starting` or `failing`.
        queued, running: jobs of everybody.
        rows_per_pass: how many share a forward pass, on average; None: nothing has run lately.
        more: what else the service says.
    """

    name: str
    state: str
    queued: int
    running: int
    rows_per_pass: float | None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What this key has under way and has used, and the limits of it, by name."""

    name: str
    queued: int
    running: int
    compute_s_today: float
    stored_bytes: int
    limits: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabStatus:
    """A service as it stands. It prints as a table."""

    version: str
    models: tuple[ModelStatus, ...]
    you: Usage

    def __str__(self) -> str:
        return shown.status_table(self)


def lab_status(answer: bytes) -> LabStatus:
    """From what a service answers. WireError: it cannot be read."""
    body = json_of(answer, "the answer")
    try:
        models = tuple(_model(name, dict(own)) for name, own in body["models"].items())
        return LabStatus(version=str(body["version"]), models=models, you=_usage(body["you"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"the status of the service cannot be read ({type(error).__name__}: {error})") from None


def _model(name: str, own: dict[str, Any]) -> ModelStatus:
    rows = own.pop("rows_per_pass", None)
    return ModelStatus(
        name=name, state=str(own.pop("state")), queued=int(own.pop("queued")), running=int(own.pop("running")),
        rows_per_pass=None if rows is None else float(rows), more=own,
    )  # fmt: skip


def _usage(own: Mapping[str, Any]) -> Usage:
    return Usage(
        name=str(own["name"]), queued=int(own["queued"]), running=int(own["running"]),
        compute_s_today=float(own["compute_s_today"]), stored_bytes=int(own["stored_bytes"]),
        limits={str(name): float(limit) for name, limit in own["limits"].items() if limit is not None},
    )  # fmt: skip


class JobList(Sequence[Any]):
    """Jobs of a service, the newest first. It prints as a table of what was known when it was asked for."""

    def __init__(self, jobs: Sequence[Any], told: Sequence[Mapping[str, Any]]) -> None:
        self._jobs, self.told = tuple(jobs), tuple(told)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return JobList(self._jobs[which], self.told[which])
        return self._jobs[which]

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._jobs)

    def __repr__(self) -> str:
        return shown.job_table(self.told)
