"""A service over HTTP, on a network or on a Unix socket of this machine.

A service on this machine is never asked through a proxy of the environment. Answers that say no are not
errors here.
"""

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from glassworks.client.content import Body, Content, Whole, size_of
from glassworks.errors import InputError, RemoteError

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Kept(Content, Protocol):
    """A body that is written as it comes."""

    def write(self, chunk: bytes) -> None: ...


class HTTPTransport:
    """One connection pool to one service; safe to use from several threads.

    Args:
        url: of the service, such as `http://localhost:8000`; with `uds` only its path counts.
        api_key: sent as a bearer token.
        uds: path of a Unix socket.
        timeout_s: how long to wait for an answer once connected; a run may take long.
        connect_timeout_s: how long to wait for the connection.
        keep: where bodies of answers go, for a process that must stay small; None: memory.
    """

    def __init__(
        self,
        url: str = "http://localhost",
        *,
        api_key: str | None = None,
        uds: str | None = None,
        timeout_s: float = 600.0,
        connect_timeout_s: float = 5.0,
        keep: Callable[[], Kept] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"expected the URL of a service such as 'http://localhost:8000', got {url!r}")
        if api_key is not None and not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
            raise InputError("an api_key is plain ASCII text, as `glassworks serve` prints it; the one given is not")
        self._where = uds or url
        self._timeout_s = timeout_s
        self._keep = keep
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s),
            transport=httpx.HTTPTransport(uds=uds) if uds else None,
            trust_env=uds is None and parts.hostname not in _LOOPBACK,
        )
        # People hold models, not connections: these close with the transport when nothing holds it any more.
        self._closing = weakref.finalize(self, self._client.close)

    def request(self, method: str, path: str, body: Body | None = None) -> tuple[int, Body]:
        content = bytes(body) if isinstance(body, Whole) else body
        headers = {} if body is None else {"Content-Length": str(size_of(body))}
        try:
            with self._client.stream(method, path, content=content, headers=headers) as answer:  # type: ignore[arg-type]
                return answer.status_code, self._body(answer)
        except httpx.ConnectError as error:
            raise RemoteError(
                f"no service answers at {self._where} ({error}); check the address, or start one: glassworks serve toy"
            ) from None
        except httpx.TimeoutException:
            raise RemoteError(
                f"{self._where} gave no answer to {method} {path} within {self._timeout_s} s; ask for "
                "less at once, or give a larger timeout_s"
            ) from None
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise RemoteError(
                f"the connection to {self._where} broke during {method} {path} ({reason}); the run may or "
                "may not have finished: try again"
            ) from None

    def _body(self, answer: httpx.Response) -> Body:
        if self._keep is None:
            return answer.read()
        kept = self._keep()
        for chunk in answer.iter_raw():
            kept.write(chunk)
        return kept

    def close(self) -> None:
        """Let go of the connections."""
        self._closing()

    def __enter__(self) -> "HTTPTransport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"HTTPTransport({self._where!r})"
