"""A question to a service, in short: `ask(transport, "GET", "/healthz") -> (status, body)`."""

from glassworks.client import Request, Transport
from glassworks.client.content import Body


def ask(transport: Transport, method: str, path: str, body: Body | None = None) -> tuple[int, bytes]:
    answer = transport.send(Request(method, path, body))
    return answer.status, answer.body
