"""The life of a job as its author sees it: submitted, followed, called off, its results fetched. All of it as flows.

Most jobs end within the request that submits them, which waits a little. Those that take longer are asked for their
results again and again, each time with a wait; where somebody wants to hear what a run says, its events are listened
to first. A submission may come twice, because its key tells the service that it is one: so an author who was
interrupted before he knew his job's id finds it out by submitting once more, and calls it off.
"""

from asyncio import CancelledError
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from glassworks.client.base import Answer, Request
from glassworks.client.calls import error_of, model_path
from glassworks.client.events import events, job_path
from glassworks.client.flow import Flow, Send
from glassworks.client.patience import Patience, asked
from glassworks.client.status import status_of
from glassworks.errors import QuotaExceeded, RemoteError
from glassworks.graph.messages import encode_tensor
from glassworks.graph.wire import Blob

ASK_S = 20.0
"""How long a service is asked to wait before it says that nothing has changed."""
SOON_S = 0.5
"""The same for a submission whose run has something to say meanwhile."""
_SLACK_S = 40.0
"""An answer may come so much later than asked for: there is a check to be made, and a long body to be sent."""
_LAST_WORD_S = 2.0
UNDER_WAY = 202
"""The status of an answer that says how a job stands, and not what it came to."""
_UNKNOWN, _NOT_SENT = 404, 409


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request that may be sent twice.

    Attributes:
        tensors: the large ones, by digest; sent first where the service has them not.
        key: tells the service that two are one.
        says: whether the run has something to say before it ends.
    """

    model: str
    body: bytes
    tensors: Mapping[str, Blob]
    key: str
    says: bool

    def request(self, *, wait_s: float | None = None) -> Request:
        """To be answered once the job has been let in or, with `wait_s`, has ended, if that is soon."""
        path = model_path(self.model, "jobs")
        headers = {"Idempotency-Key": self.key}
        if wait_s is None:
            return Request("POST", path, self.body, headers)
        return Request("POST", f"{path}?wait_s={wait_s:g}", self.body, headers, timeout_s=wait_s + _SLACK_S)


def run(own: Submission, patience: Patience) -> Flow[Answer]:
    """Submit, and come to the answer of the run. Whoever is interrupted meanwhile calls the job off."""
    id: str | None = None
    try:
        answer = yield from submitted(own, patience, wait_s=SOON_S if own.says else ASK_S)
        if answer.status != UNDER_WAY:
            return answer
        id = status_of(answer.body)["id"]
        return (yield from ended(id, patience, listens=own.says))
    except (KeyboardInterrupt, CancelledError):
        yield from _called_off(own, id)
        raise


def submitted(own: Submission, patience: Patience, *, wait_s: float | None = None) -> Flow[Answer]:
    """Submit, and come to what is answered."""
    for last in (False, True):
        yield from _sent(own.tensors, patience)
        answer = yield from asked(Send(own.request(wait_s=wait_s)), patience)
        if answer.status != _NOT_SENT or answer.job is not None or last:  # let go between question and request
            break
    return answer


def _sent(tensors: Mapping[str, Blob], patience: Patience) -> Flow[None]:
    for digest, blob in tensors.items():
        path = f"/v1/tensors/{digest}"
        known = yield from asked(Send(Request("GET", path)), patience)
        if known.status == _UNKNOWN:
            yield from good(Request("PUT", path, encode_tensor(blob)), patience)


def good(request: Request, patience: Patience) -> Flow[bytes]:
    """The body of a good answer; what the service raised is raised."""
    answer = yield from asked(Send(request), patience)
    if not answer.is_good:
        raise error_of(answer.status, answer.body, str(request))
    return answer.body


def ended(id: str, patience: Patience, *, listens: bool = False) -> Flow[Answer]:
    """Wait until a job has ended, and come to what `results` answers. `listens`: its events are given meanwhile."""
    if listens:
        try:
            yield from events(id, patience)
        except QuotaExceeded:  # too many are listening; the results hold all that was said
            pass
    while True:
        answer = yield from asked(Send(_results(id, ASK_S)), patience)
        if answer.status != UNDER_WAY:
            return answer


def _results(id: str, wait_s: float) -> Request:
    return Request("GET", job_path(id, f"/results?wait_s={wait_s:g}"), timeout_s=wait_s + _SLACK_S)


def status(id: str, patience: Patience, *, wait_s: float = 0.0, timeout_s: float | None = None) -> Flow[dict[str, Any]]:
    """How a job stands; of one under way, once it has ended or so long has passed."""
    query = f"?wait_s={wait_s:.3f}" if wait_s else ""
    request = Request("GET", job_path(id, query), timeout_s=timeout_s or wait_s + _SLACK_S)
    return status_of((yield from good(request, patience)))


def cancelled(id: str, patience: Patience) -> Flow[dict[str, Any]]:
    """Call a job off; how it stands then."""
    return status_of((yield from good(Request("POST", job_path(id, "/cancel")), patience)))


def _called_off(own: Submission, id: str | None) -> Flow[None]:
    """As well as it can be done in a moment."""
    try:
        if id is None:
            again: Answer = yield Send(replace(own.request(), timeout_s=_LAST_WORD_S))
            if again.status != UNDER_WAY:
                return
            id = status_of(again.body)["id"]
        yield Send(Request("POST", job_path(id, "/cancel"), timeout_s=_LAST_WORD_S))
    except RemoteError:
        pass
