"""A service in this process: the same handlers, the same codec and the same limits, without a network.

The handler is given, because services lie above clients. It answers at once, so nothing here streams.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from glassworks.client.base import Answer, AsyncStream, AsyncTransport, Request, Stream

Handle = Callable[[Request], Answer]


@dataclass(frozen=True, slots=True)
class InProcessTransport:
    """Calls `handle` for each request."""

    handle: Handle

    def send(self, request: Request) -> Answer:
        return self.handle(request)

    def open(self, request: Request) -> Stream:
        return _Held(self.handle(request))

    def asynchronous(self) -> AsyncTransport:
        return _InAThread(self.handle)


@dataclass(frozen=True, slots=True)
class _InAThread:
    """The same for tasks: a model that runs would hold up their loop."""

    handle: Handle

    async def send(self, request: Request) -> Answer:
        return await asyncio.to_thread(self.handle, request)

    async def open(self, request: Request) -> AsyncStream:
        return _AsyncHeld(await self.send(request))


class _Held:
    """An answer that has come whole."""

    def __init__(self, answer: Answer) -> None:
        self.status: int = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self._body, self._lines = answer.body, iter(answer.body.decode(errors="replace").splitlines())

    def read(self) -> bytes:
        return self._body

    def next_line(self) -> str | None:
        return next(self._lines, None)

    def close(self) -> None:
        pass


class _AsyncHeld:
    def __init__(self, answer: Answer) -> None:
        self._held = _Held(answer)
        self.status, self.headers = self._held.status, self._held.headers

    async def read(self) -> bytes:
        return self._held.read()

    async def next_line(self) -> str | None:
        return self._held.next_line()

    async def close(self) -> None:
        pass
