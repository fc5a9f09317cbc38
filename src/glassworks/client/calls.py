"""One call of a service: a path, and an answer that is either bytes or the error to raise here."""

from urllib.parse import quote

from glassworks.client.base import Request, Transport
from glassworks.client.content import Body
from glassworks.errors import RemoteError, WireError
from glassworks.graph.messages import decode_error


def model_path(name: str, what: str) -> str:
    """`("facebook/opt-125m", "run")` -> `/v1/models/facebook/opt-125m/run`."""
    return f"/v1/models/{quote(name, safe='/')}/{what}"


def call(transport: Transport, method: str, path: str, body: Body | None = None) -> bytes:
    """The body of a good answer.

    Raises:
        Exception: what the service raised, of its own type, with its notes; RemoteError where the answer is
            no message of ours.
    """
    request = Request(method, path, body)
    answer = transport.send(request)
    if answer.is_good:
        return answer.body
    raise error_of(answer.status, answer.body, f"{method} {path}")


def error_of(status: int, answer: bytes, asked: str) -> Exception:
    """What the service raised, from an answer that says no to `asked`."""
    try:
        return decode_error(answer)
    except WireError:
        text = answer[:200].decode(errors="replace")
        return RemoteError(
            f"{asked} was answered with status {status} and no message of ours: {text!r}; is it our service?"
        )
