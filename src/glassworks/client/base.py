"""The seam of a client: a transport carries a request to a service and brings the answer back.

Nothing above it knows whether a network lies between. A transport raises RemoteError when it gets no answer, and then
only; an answer that says no is an answer. There are two kinds, which differ in nothing but who waits: a thread, or a
task of an event loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from glassworks.client.content import Body

JOB_HEADER = "glassworks-job"
"""The header of an answer that came of a job: its id."""


@dataclass(frozen=True, slots=True)
class Request:
    """HTTP's words.

    Attributes:
        path: absolute, with its query.
        timeout_s: how long the service may be silent; None: as the transport says.
    """

    method: str
    path: str
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path.partition('?')[0]}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `headers` have names in small letters."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether it says yes."""
        return 200 <= self.status < 300

    @property
    def job(self) -> str | None:
        """The id of the job that it came of."""
        return self.headers.get(JOB_HEADER)


class Stream(Protocol):
    """An answer whose lines are read as they come. Each method raises RemoteError where the connection breaks."""

    status: int
    headers: Mapping[str, str]

    def read(self) -> bytes:
        """All of it, of an answer that ends."""

    def next_line(self) -> str | None:
        """The next line without its end; None: there are no more."""

    def close(self) -> None:
        """Stop reading."""


class Transport(Protocol):
    """One way to reach a service; whoever calls it waits."""

    def send(self, request: Request) -> Answer:
        """The answer, whole.

        Raises:
            RemoteError: no answer came, with what to do.
        """

    def open(self, request: Request) -> Stream:
        """The beginning of an answer. RemoteError: none came."""

    def asynchronous(self) -> "AsyncTransport":
        """The same way, for tasks of an event loop."""


class AsyncStream(Protocol):
    """As `Stream`."""

    status: int
    headers: Mapping[str, str]

    async def read(self) -> bytes: ...
    async def next_line(self) -> str | None: ...
    async def close(self) -> None: ...


class AsyncTransport(Protocol):
    """As `Transport`; the event loop goes on while an answer is awaited."""

    async def send(self, request: Request) -> Answer: ...
    async def open(self, request: Request) -> AsyncStream: ...
