"""The events of a job, as server-sent events: read line by line, and gone on with where a stream broke.

Events are numbered, so that none is given twice and none is missed; the last one says how the job ended. Kinds that
nobody here knows are given like any other.
"""

import json
from urllib.parse import quote

from glassworks.client.base import Answer, Request
from glassworks.client.calls import error_of
from glassworks.client.flow import Flow, Give, Line, Open
from glassworks.client.patience import Patience, asked, paused
from glassworks.errors import RemoteError, WireError
from glassworks.graph.jobs import ENDED, Event

QUIET_S = 60.0
"""A service says something at least so often, if only that it is there."""


def job_path(id: str, what: str = "") -> str:
    """`("job-x", "/events")` -> `/v1/jobs/job-x/events`."""
    return f"/v1/jobs/{quote(id, safe='')}{what}"


class EventLines:
    """Lines of a stream, put together to events. Data is JSON on one line, comments are signs of life."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def take(self, line: str) -> Event | None:
        """The event that ends with this line, if one does. WireError: it cannot be read."""
        if line:
            name, _, value = line.partition(":")
            if name in ("id", "event", "data"):
                self._fields[name] = value.removeprefix(" ")
            return None
        found, self._fields = self._fields, {}
        return _event(found) if found else None


def _event(found: dict[str, str]) -> Event:
    try:
        return Event(int(found["id"]), found["event"], json.loads(found.get("data", "null")))
    except (KeyError, ValueError):
        raise WireError(f"an event of the service cannot be read: {str(found)[:200]}") from None


def events(id: str, patience: Patience, *, after: int = 0) -> Flow[None]:
    """Give each event of a job after number `after`, once and in order, to the one that ends it.

    Raises:
        Exception: what the service answered instead; RemoteError: it was not there for too long.
    """
    last = after
    while True:
        answer: Answer = yield from asked(Open(_request(id, last)), patience)
        if not answer.is_good:
            raise error_of(answer.status, answer.body, f"the events of {id}")
        lines = EventLines()
        try:
            while (line := (yield Line())) is not None:
                patience.restored()
                event = lines.take(line)
                if event is None or event.number <= last:
                    continue
                last = event.number
                yield Give(event)
                if event.kind in ENDED:
                    return
            failure = RemoteError(f"the events of {id} ended before the job did")
        except WireError:
            raise
        except RemoteError as error:
            failure = error
        yield from paused(patience, failure)


def _request(id: str, last: int) -> Request:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(last)} if last else {})
    return Request("GET", job_path(id, "/events"), headers=headers, timeout_s=QUIET_S)
