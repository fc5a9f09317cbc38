"""What is asked of a service, step by step, apart from who waits meanwhile.

A flow is a generator of steps that is sent what came of each; a thread carries it (`carry`, `given`) or a task does
(`carry_async`, `given_async`), so that every rule about asking is written once. Whatever happens to the carrier, an
interruption among it, happens to the flow at its step, and the flow may take further steps before it lets it go.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from glassworks.client.base import Answer, AsyncStream, AsyncTransport, Request, Stream, Transport
from glassworks.graph.jobs import Event


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; comes to its answer. RemoteError: there was none."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request; comes to its answer, of a good one without the body, whose lines are next."""

    request: Request


@dataclass(frozen=True, slots=True)
class Line:
    """Comes to the next line of what was opened last; None: there are no more."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Give:
    """Hand an event to whoever listens."""

    event: Event


Step = Send | Open | Line | Pause | Give
T = TypeVar("T")
Flow = Generator[Step, Any, T]


def carry(flow: Flow[T], transport: Transport, *, hear: Callable[[Event], None] = lambda event: None) -> T:
    """Take the steps of a flow in this thread; gives what it comes to. `hear` is given its events."""
    carrier = _Carrier(transport)
    turn = _Turn(flow)
    try:
        while (step := turn.next()) is not None:
            try:
                if isinstance(step, Give):
                    hear(step.event)
                else:
                    turn.came = carrier.take(step)
            except BaseException as error:  # noqa: BLE001 - the flow decides
                turn.failed = error
        return cast(T, turn.value)
    finally:
        carrier.close()


def given(flow: Flow[None], transport: Transport) -> Iterator[Event]:
    """The events of a flow, whose steps are taken in the thread that asks for them."""
    carrier = _Carrier(transport)
    turn = _Turn(flow)
    try:
        while (step := turn.next()) is not None:
            if isinstance(step, Give):
                yield step.event
                continue
            try:
                turn.came = carrier.take(step)
            except BaseException as error:  # noqa: BLE001 - the flow decides
                turn.failed = error
    finally:
        carrier.close()


async def carry_async(
    flow: Flow[T], transport: AsyncTransport, *, hear: Callable[[Event], None] = lambda event: None
) -> T:
    """As `carry`, in a task."""
    carrier = _AsyncCarrier(transport)
    turn = _Turn(flow)
    try:
        while (step := turn.next()) is not None:
            try:
                if isinstance(step, Give):
                    hear(step.event)
                else:
                    turn.came = await carrier.take(step)
            except BaseException as error:  # noqa: BLE001 - the flow decides
                turn.failed = error
        return cast(T, turn.value)
    finally:
        await carrier.close()


async def given_async(flow: Flow[None], transport: AsyncTransport) -> AsyncIterator[Event]:
    """As `given`, in a task."""
    carrier = _AsyncCarrier(transport)
    turn = _Turn(flow)
    try:
        while (step := turn.next()) is not None:
            if isinstance(step, Give):
                yield step.event
                continue
            try:
                turn.came = await carrier.take(step)
            except BaseException as error:  # noqa: BLE001 - the flow decides
                turn.failed = error
    finally:
        await carrier.close()


class _Turn:
    """Where a flow is: `came` or `failed` is what came of its last step, `value` what it came to in the end."""

    def __init__(self, flow: Flow[Any]) -> None:
        self._flow = flow
        self.came: Any = None
        self.failed: BaseException | None = None
        self.value: Any = None

    def next(self) -> Step | None:
        came, failed = self.came, self.failed
        self.came = self.failed = None
        try:
            return self._flow.send(came) if failed is None else self._flow.throw(failed)
        except StopIteration as ended:
            self.value = ended.value
            return None


class _Carrier:
    """Takes steps; at most one answer is open."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stream: Stream | None = None

    def take(self, step: Send | Open | Line | Pause) -> Any:
        match step:
            case Send(request):
                return self._transport.send(request)
            case Open(request):
                return self._open(request)
            case Line():
                assert self._stream is not None
                return self._stream.next_line()
            case Pause(seconds):
                time.sleep(seconds)

    def _open(self, request: Request) -> Answer:
        self.close()
        self._stream = stream = self._transport.open(request)
        good = 200 <= stream.status < 300
        return Answer(stream.status, b"" if good else stream.read(), stream.headers)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class _AsyncCarrier:
    """As `_Carrier`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._stream: AsyncStream | None = None

    async def take(self, step: Send | Open | Line | Pause) -> Any:
        match step:
            case Send(request):
                return await self._transport.send(request)
            case Open(request):
                return await self._open(request)
            case Line():
                assert self._stream is not None
                return await self._stream.next_line()
            case Pause(seconds):
                await asyncio.sleep(seconds)

    async def _open(self, request: Request) -> Answer:
        await self.close()
        self._stream = stream = await self._transport.open(request)
        good = 200 <= stream.status < 300
        return Answer(stream.status, b"" if good else await stream.read(), stream.headers)

    async def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.close()
