"""A service over HTTP, for threads and for tasks: two types that share what is said and what errors mean.

A service on this machine is never asked through a proxy of the environment. Answers that say no are not
errors here.

Surprises this file settles:
- A client of httpx's belongs to one event loop. The asynchronous transport has one for each loop, and closes it when
  the loop ends: an asynchronous generator that is open then is closed by the loop itself, which is the one hook there
  is.
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from glassworks.client.base import Answer, AsyncStream, AsyncTransport, Request, Stream
from glassworks.client.content import Whole, size_of
from glassworks.errors import InputError, RemoteError

_Clients = dict[asyncio.AbstractEventLoop, tuple[httpx.AsyncClient, AsyncGenerator[None, None]]]
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Address:
    """Where a service is, and how it is spoken to."""

    url: str
    api_key: str | None
    timeout_s: float
    connect_timeout_s: float

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        key = self.api_key
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"expected the URL of a service such as 'http://localhost:8000', got {self.url!r}")
        if key is not None and not (isinstance(key, str) and key.isascii() and key.isprintable()):
            raise InputError("an api_key is plain ASCII text, as `glassworks serve` prints it; the one given is not")

    def settings(self) -> dict[str, Any]:
        """What a client of httpx's is made with."""
        return {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            "timeout": self._timeout(self.timeout_s),
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),
            "trust_env": urlsplit(self.url).hostname not in _LOOPBACK,
        }

    def words(self, request: Request) -> dict[str, Any]:
        """A request as httpx takes it."""
        own = {"Accept-Encoding": "identity", **request.headers}
        if request.body is not None:
            own["Content-Length"] = str(size_of(request.body))
        return {
            "method": request.method,
            "url": request.path,
            "headers": own,
            "timeout": self._timeout(request.timeout_s or self.timeout_s),
        }

    def _timeout(self, timeout_s: float) -> httpx.Timeout:
        return httpx.Timeout(timeout_s, connect=min(timeout_s, self.connect_timeout_s))

    @contextmanager
    def explained(self, request: Request) -> Iterator[None]:
        """What goes wrong on the way, as a RemoteError."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise RemoteError(
                f"no service answers at {self.url} ({error}); check the address, or start one: glassworks serve toy"
            ) from None
        except httpx.TimeoutException:
            raise RemoteError(
                f"{self.url} gave no answer to {request} within {request.timeout_s or self.timeout_s} s; ask for less "
                "at once, or give a larger timeout_s"
            ) from None
        except (httpx.TransportError, httpx.StreamError) as error:
            reason = str(error) or type(error).__name__
            raise RemoteError(
                f"the connection to {self.url} broke during {request} ({reason}); the run may or "
                "may not have finished: try again"
            ) from None


class HTTPTransport:
    """One connection pool to one service; safe to use from several threads.

    Args:
        url: of the service, such as `http://localhost:8000`.
        api_key: sent as a bearer token.
        timeout_s: how long to wait for an answer once connected; a run may take long.
        connect_timeout_s: how long to wait for the connection.
        over: what carries bytes instead of a network (httpx's own seam: a mock, an application in this process).
    """

    def __init__(
        self,
        url: str = "http://localhost",
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        connect_timeout_s: float = 5.0,
        over: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = _Address(url=url, api_key=api_key, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s)
        self._client = httpx.Client(**self._address.settings(), transport=over)
        self._asynchronous: AsyncHTTPTransport | None = None
        # People hold models, not connections: these close with the transport when nothing holds it any more.
        self._closing = weakref.finalize(self, self._client.close)

    def send(self, request: Request) -> Answer:
        with self._address.explained(request):
            found = self._client.request(**self._address.words(request), content=_content(request))
            return Answer(found.status_code, found.content, dict(found.headers))

    def open(self, request: Request) -> Stream:
        with self._address.explained(request):
            asked = self._client.build_request(**self._address.words(request), content=_content(request))
            return _Stream(self._client.send(asked, stream=True), self._address, request)

    def asynchronous(self) -> AsyncTransport:
        if self._asynchronous is None:
            own = self._address
            self._asynchronous = AsyncHTTPTransport(
                own.url, api_key=own.api_key, timeout_s=own.timeout_s, connect_timeout_s=own.connect_timeout_s
            )
        return self._asynchronous

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
        return f"HTTPTransport({self._address.url!r})"


class AsyncHTTPTransport:
    """As `HTTPTransport`, for tasks: one connection pool for each event loop, closed with it."""

    def __init__(
        self,
        url: str = "http://localhost",
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        connect_timeout_s: float = 5.0,
        over: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._address = _Address(url=url, api_key=api_key, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s)
        self._over = over
        self._clients: _Clients = {}

    async def send(self, request: Request) -> Answer:
        client = await self._client()
        with self._address.explained(request):
            found = await client.request(**self._address.words(request), content=_async_content(request))
            return Answer(found.status_code, found.content, dict(found.headers))

    async def open(self, request: Request) -> AsyncStream:
        client = await self._client()
        with self._address.explained(request):
            asked = client.build_request(**self._address.words(request), content=_async_content(request))
            return _AsyncStream(await client.send(asked, stream=True), self._address, request)

    async def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            client = httpx.AsyncClient(**self._address.settings(), transport=self._over)
            held = _held(client, loop, self._clients)
            self._clients[loop] = client, held
            await anext(held)
        return self._clients[loop][0]

    def __repr__(self) -> str:
        return f"AsyncHTTPTransport({self._address.url!r})"


async def _held(
    client: httpx.AsyncClient, loop: asyncio.AbstractEventLoop, clients: _Clients
) -> AsyncGenerator[None, None]:
    """Open until its loop ends."""
    try:
        async with client:
            yield
    finally:
        clients.pop(loop, None)


def _content(request: Request) -> Any:
    return bytes(request.body) if isinstance(request.body, Whole) else request.body


def _async_content(request: Request) -> Any:
    if request.body is None or isinstance(request.body, Whole):
        return _content(request)
    parts = request.body

    async def pieces() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return pieces()


class _Stream:
    def __init__(self, response: httpx.Response, address: _Address, request: Request) -> None:
        self.status, self.headers = response.status_code, _headers(response)
        self._response, self._address, self._request = response, address, request
        self._lines = response.iter_lines()

    def read(self) -> bytes:
        with self._address.explained(self._request):
            return self._response.read()

    def next_line(self) -> str | None:
        with self._address.explained(self._request):
            return next(self._lines, None)

    def close(self) -> None:
        self._response.close()


class _AsyncStream:
    def __init__(self, response: httpx.Response, address: _Address, request: Request) -> None:
        self.status, self.headers = response.status_code, _headers(response)
        self._response, self._address, self._request = response, address, request
        self._lines = response.aiter_lines()

    async def read(self) -> bytes:
        with self._address.explained(self._request):
            return await self._response.aread()

    async def next_line(self) -> str | None:
        with self._address.explained(self._request):
            return await anext(self._lines, None)

    async def close(self) -> None:
        await self._response.aclose()


def _headers(response: httpx.Response) -> Mapping[str, str]:
    return dict(response.headers)
