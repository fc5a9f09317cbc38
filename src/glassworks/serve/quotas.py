"""What one key may have of a service at once, and in a day; and the refusals, which say when to come again."""

import math
import time
from dataclasses import dataclass, fields

from glassworks.errors import InputError, QuotaExceeded
from glassworks.serve.answers import RETRY_AFTER_S, Refused
from glassworks.units import spelled

_DAY_S = 24 * 3600
_STORED_RETRY_S = 600


@dataclass(frozen=True, slots=True)
class Used:
    """What a key has used: seconds of compute today, and bytes that are stored for it."""

    compute_s: float
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """Of each key.

    Attributes:
        unfinished_jobs: that wait or run.
        compute_s: seconds of compute in a day (UTC).
        stored_bytes: of requests that wait, results and large tensors; of results half as much, the oldest go first.
        streams: of events, open at once.
        events: that one job may have; what it says beyond them is not kept.
    """

    unfinished_jobs: int = 4096
    compute_s: int = _DAY_S
    stored_bytes: int = 4 * 2**30
    streams: int = 64
    events: int = 20_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise InputError(f"the quota {field.name} is an int of at least 1, got {value!r}")

    def check(self, unfinished: int, used: Used) -> None:
        """Before a request of a key is looked at. Refused, 429: it has too much already; says until when."""
        if unfinished >= self.unfinished_jobs:
            raise _refused(
                f"unfinished_jobs: {unfinished + 1} asked for, {self.unfinished_jobs} allowed; wait for some, or "
                f"cancel some",
                RETRY_AFTER_S,
            )
        if used.compute_s >= self.compute_s:
            left_s = _DAY_S - time.time() % _DAY_S
            raise _refused(
                f"compute_s: {used.compute_s:.0f} s of compute were used today, {self.compute_s} allowed; the day ends "
                f"in {left_s / 3600:.1f} hours (UTC)",
                math.ceil(left_s),
            )
        if used.stored_bytes >= self.stored_bytes:
            raise _refused(
                f"stored_bytes: requests, results and tensors hold {spelled(used.stored_bytes)}, "
                f"{spelled(self.stored_bytes)} allowed; results are kept for a day, or until DELETE /v1/jobs/ID",
                _STORED_RETRY_S,
            )

    def check_streams(self, count: int) -> None:
        """Before another stream is opened. Refused, 429."""
        if count >= self.streams:
            raise _refused(f"streams: {count + 1} asked for, {self.streams} allowed; close some", RETRY_AFTER_S)


def _refused(message: str, retry_after_s: int) -> Refused:
    return Refused(429, QuotaExceeded(message), headers={"Retry-After": str(retry_after_s)})
