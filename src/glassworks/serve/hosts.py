"""How a service reaches the hosts of its models: in this process, or through the Unix socket of a worker."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import httpx

from glassworks.client.content import Body, Content, Whole, size_of
from glassworks.errors import RemoteError
from glassworks.serve.answers import Answer


class Host(Protocol):
    """What answers for a model. RemoteError: it did not."""

    def request(self, method: str, path: str, body: Body | None = None) -> Answer: ...


@dataclass(frozen=True, slots=True)
class HostHere:
    """A host of this process."""

    handle: Callable[[str, str, Body | None], Answer]

    def request(self, method: str, path: str, body: Body | None = None) -> Answer:
        return self.handle(method, path, body)


class Kept(Content, Protocol):
    """A body that is written as it comes."""

    def write(self, chunk: bytes) -> None: ...


class WorkerHost:
    """A host behind a Unix socket. `keep` makes what bodies of answers go into, so that this process stays small."""

    def __init__(self, socket: str, *, timeout_s: float, keep: Callable[[], Kept]) -> None:
        self._socket, self._keep = socket, keep
        self._client = httpx.Client(
            base_url="http://worker", timeout=httpx.Timeout(timeout_s, connect=5.0),
            transport=httpx.HTTPTransport(uds=socket), trust_env=False,
        )  # fmt: skip
        weakref.finalize(self, self._client.close)

    def request(self, method: str, path: str, body: Body | None = None) -> Answer:
        content = bytes(body) if isinstance(body, Whole) else body
        headers = {} if body is None else {"Content-Length": str(size_of(body))}
        try:
            with self._client.stream(method, path, content=content, headers=headers) as answer:  # type: ignore[arg-type]
                kept = self._keep()
                for chunk in answer.iter_raw():
                    kept.write(chunk)
                return answer.status_code, kept
        except httpx.TransportError as error:
            raise RemoteError(f"no answer from {self._socket} to {method} {path}: {error}") from None
