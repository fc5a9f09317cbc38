"""How a body comes in: to a spool, up to the limit, within a time, and as it is.

A body is refused by its announced size before it is read, by its true size once so much has come, and by the clock if
it stands still or takes too long. Encodings are refused: a small body could be a large one.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from anyio import current_time, fail_after
from starlette.requests import ClientDisconnect, Request

from glassworks.errors import InputError, LimitExceeded, RemoteError, WireError
from glassworks.graph.limits import Limits
from glassworks.serve.answers import Refused, status_of, too_large
from glassworks.serve.spool import Spool, Spooled

_CUT_OFF = {"Connection": "close"}
"""What is still to come is not read either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyTimes:
    """How long a body may stand still, and how long it may take."""

    pause_s: float = 30.0
    whole_s: float = 600.0


async def received(request: Request, spool: Spool, limits: Limits, times: BodyTimes) -> Spooled:
    """The body of a request.

    What was announced and is too large is let run out unkept, so that the answer is sure to be read; what was not
    announced is cut off.

    Raises:
        Refused: with the answer to give.
    """
    _check_headers(request, limits)
    body = spool.new()
    try:
        async for chunk in _chunks(request, times):
            if body.size_bytes + len(chunk) > limits.body_bytes:
                raise Refused(413, too_large(body.size_bytes + len(chunk), limits), headers=_CUT_OFF)
            body.write(chunk)
    except ClientDisconnect:
        raise Refused(400, InputError("the connection ended before the body did")) from None
    except TimeoutError:
        message = (
            f"the body: {body.size_bytes} bytes came; it may stand still for {times.pause_s:g} s and take "
            f"{times.whole_s:g} s in all"
        )
        raise Refused(408, LimitExceeded(message), headers=_CUT_OFF) from None
    except RemoteError as error:
        raise Refused(status_of(error), error, headers=_CUT_OFF) from None
    return body


def _check_headers(request: Request, limits: Limits) -> None:
    headers = request.headers
    for encoding in (text for text in headers.getlist("content-encoding") if text.lower() != "identity"):
        raise Refused(415, WireError(f"header field Content-Encoding: {encoding[:40]!r}; send the body as it is"))
    announced = headers.get("content-length", "")
    if announced and "transfer-encoding" in headers:
        raise Refused(400, WireError("header field Content-Length: not beside Transfer-Encoding"), headers=_CUT_OFF)
    if announced.isdecimal() and int(announced) > limits.body_bytes:
        far = int(announced) > 4 * limits.body_bytes
        raise Refused(413, too_large(int(announced), limits), headers=_CUT_OFF if far else None)


async def _chunks(request: Request, times: BodyTimes) -> AsyncIterator[bytes]:
    end = current_time() + times.whole_s
    stream = request.stream().__aiter__()
    while True:
        try:
            with fail_after(min(times.pause_s, max(0.0, end - current_time()))):
                chunk = await stream.__anext__()
        except StopAsyncIteration:
            return
        yield chunk
