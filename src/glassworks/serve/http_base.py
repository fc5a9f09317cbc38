"""What the paths of a service share: who is let in, how bodies come, how answers and refusals look, how long to wait.

Handlers block and run in threads; whoever waits for a job waits on the event loop, and looks every half second whether
its key is still let in.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response, Security
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from glassworks.client.content import Body, Whole
from glassworks.errors import Unauthorized
from glassworks.graph.jobs import ENDED
from glassworks.serve.answers import RETRY_AFTER_S, Answer
from glassworks.serve.bodies import BodyTimes, received
from glassworks.serve.hub import Hub
from glassworks.serve.jobs import Jobs
from glassworks.serve.keys import KeyRow, Keys
from glassworks.serve.records import Event, JobRow
from glassworks.serve.spool import Spool, Spooled

JSON, BYTES, EVENTS = "application/json", "application/octet-stream", "text/event-stream"
JOB_HEADER = "Glassworks-Job"
_RUNS_AT_ONCE = 64
_LOOK_S = 0.5
"""Whoever waits looks so often whether its key is still let in."""
_BEAT_S = 15.0
BINARY = {BYTES: {"schema": {"type": "string", "format": "binary"}}}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "required": ["version", "type", "message", "notes"],
            "properties": {
                "version": {"type": "integer"},
                "type": {"type": "string", "description": "the error's type, as the client raises it"},
                "message": {"type": "string"},
                "notes": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "the lines it came from",
                },
            },
        }
    },
}
WITH_BODY = (
    (408, "the body did not come in time"),
    (413, "the body is over the limit"),
    (415, "the body is compressed"),
    (422, "refused by a check, over a limit, or failed while it ran"),
    (429, "over a quota of the key; Retry-After says when there may be room"),
)
NOT_THERE = (
    (404, "no such model"),
    (503, "the model's worker is not there; Retry-After says when to try again"),
)


def refusals(*statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    """Responses of a path in the schema."""
    content = {JSON: {"schema": _ERROR}}
    return {
        status: {"description": text, "content": content}
        for status, text in ((401, "no key, or not a known one"), *statuses)
    }


class Web:
    """What the paths share: the jobs of the service, the keys, the news, and room for bodies."""

    def __init__(self, jobs: Jobs, keys: Keys, hub: Hub, *, spool: Spool, times: BodyTimes) -> None:
        self.jobs, self.keys, self.hub = jobs, keys, hub
        self.spool, self.times = spool, times
        self.checking = CapacityLimiter(_RUNS_AT_ONCE)
        self._streams: Counter[str] = Counter()
        bearer = HTTPBearer(auto_error=False, description="a key of this service")

        async def owner(given: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]) -> KeyRow:
            if given is None:
                raise Unauthorized(
                    "this service needs a key: gw.connect(url, api_key=...), or Authorization: Bearer KEY"
                )
            found = keys.owner(given.credentials)
            if found is None:
                raise Unauthorized("the service does not know this key; ask whoever runs it for one")
            return found

        self.owner = Security(owner)

    async def body(self, request: Request) -> Spooled:
        """The body of a request. Refused: it is not taken."""
        return await received(request, self.spool, self.jobs.models.limits, self.times)

    async def do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Something that blocks."""
        return await to_thread.run_sync(lambda: work(*arguments))

    async def check(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Something that may block for long; these have threads of their own, so that others are answered."""
        return await to_thread.run_sync(lambda: work(*arguments), limiter=self.checking)

    def check_live(self, owner: str) -> None:
        """Unauthorized: the key was revoked meanwhile."""
        if not self.keys.is_live(owner):
            raise Unauthorized("this key was revoked")

    async def ended(
        self, row: JobRow, wait_s: float, *, request: Request | None = None, looks: float = _LOOK_S
    ) -> JobRow:
        """A job once it has ended, or as it is when so long has passed, or whoever asked has gone."""
        end = time.monotonic() + wait_s
        with self.hub.watch(row.id, end_only=True) as watcher:
            row = await self.do(self.jobs.find, row.id, row.owner)
            while row.status not in ENDED and (left := end - time.monotonic()) > 0:
                if await watcher.news(min(left, looks)):
                    row = await self.do(self.jobs.find, row.id, row.owner)
                elif request is not None and await request.is_disconnected():
                    return row
                self.check_live(row.owner)
        return row

    def check_streams(self, owner: str) -> None:
        """Refused, 429: too many streams of this key are open."""
        self.jobs.quotas.check_streams(self._streams[owner])

    async def events(self, row: JobRow, after: int) -> AsyncIterator[Event | None]:
        """The events of a job from there on, as they come, to its terminal one; None where nothing came for a while.

        Ends too when its key is revoked.
        """
        self._streams[row.owner] += 1
        try:
            with self.hub.watch(row.id) as watcher:
                beat_s = time.monotonic()
                while self.keys.is_live(row.owner):
                    found = await self.do(partial(self.jobs.ledger.events, row.id, row.owner, after=after))
                    for event in found:
                        yield event
                        after, beat_s = event.number, time.monotonic()
                        if event.kind in ENDED:
                            return
                    if found or await watcher.news(_LOOK_S):
                        continue
                    now = await self.do(self.jobs.ledger.find, row.id, row.owner)
                    if now is None or now.status in ENDED:
                        return  # whoever asks has seen its end
                    if time.monotonic() - beat_s > _BEAT_S:
                        beat_s = time.monotonic()
                        yield None
        finally:
            self._streams[row.owner] -= 1


def response(answer: Answer, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer as HTTP; what is long is sent in pieces."""
    status, body = answer
    own = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_AFTER_S)}}.get(status, {})
    kind = JSON if status >= 400 else media_type
    merged = {**own, **(headers or {})}
    if isinstance(body, Whole):
        return Response(bytes(body), status, merged, kind)
    return StreamingResponse(iter(body), status, {**merged, "Content-Length": str(size(body))}, kind)


def size(body: Body) -> int:
    """Of a body, in bytes."""
    return len(body) if isinstance(body, Whole) else body.size_bytes
