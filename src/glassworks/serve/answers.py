"""Answers of a service, and which status says what.

400  bytes that are not a message of ours        415  a body that is compressed
401  no key, or one that is not known            422  refused by a check, over another limit, or failed while it ran
404  no such model, path or job                  429  over what a key may have at once or a day; Retry-After says when
408  a body that did not come in time                 there may be room
409  not yet: the job is under way, a tensor     500  a fault of the service; its log has the rest
     was not sent; or no more: it was cancelled  503  the worker is not there, or no room; Retry-After says when
413  a body over the limit (found as it comes)        to try again
"""

from collections.abc import Callable, Mapping

from glassworks.client.content import Body
from glassworks.errors import (
    Cancelled,
    GlassworksError,
    GraphError,
    InputError,
    LimitExceeded,
    ModelError,
    QuotaExceeded,
    RemoteError,
    Unauthorized,
    WireError,
)
from glassworks.graph.limits import Limits
from glassworks.graph.messages import encode_error

Answer = tuple[int, Body]
"""(status, body); the body of a refusal is an encoded error."""

RETRY_AFTER_S = 5

_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (WireError, 400),
    (Unauthorized, 401),
    (Cancelled, 409),
    (QuotaExceeded, 429),
    (LimitExceeded, 422),
    (RemoteError, 503),
    (GraphError, 422),
    (InputError, 422),
    (ModelError, 422),
)


def status_of(error: Exception) -> int:
    """The status of an error that a handler raised, before any experiment ran."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def refusal(status: int, error: BaseException) -> Answer:
    """An error as an answer."""
    return status, encode_error(error)


def too_large(size_bytes: int, limits: Limits) -> LimitExceeded:
    """The refusal of a body, by its announced or counted size."""
    return LimitExceeded(
        f"body_bytes: a request of {size_bytes} bytes or more, {limits.body_bytes} allowed; "
        f"send smaller tensors, or several requests"
    )


class Refused(Exception):
    """A request that is not granted, with the answer to give. `headers`: to go with it."""

    def __init__(self, status: int, error: Exception, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(error))
        self.answer: Answer = refusal(status, error)
        self.headers = headers or {}

    @classmethod
    def with_answer(cls, status: int, body: Body) -> "Refused":
        """Of somebody who refused already."""
        made = cls(status, RemoteError(f"refused with status {status}"))
        made.answer = status, body
        return made


def answered(make: Callable[[], Answer]) -> Answer:
    """What is made, or the refusal of what is raised. What is no error of ours is a fault, and is raised."""
    try:
        return make()
    except Refused as refused:
        return refused.answer
    except GlassworksError as error:
        return refusal(status_of(error), error)
