"""The way from the web process to a worker: one connection over a Unix socket, made again whenever it breaks.

Carries messages (`pipe`) and knows nothing of jobs. Whoever listens is called from the thread that reads: `up` when a
worker is there, `said` for each message, `down` when it has gone; in this order, never two at once.
"""

import itertools
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from glassworks.client.content import Body
from glassworks.errors import RemoteError
from glassworks.serve.answers import RETRY_AFTER_S, Answer
from glassworks.serve.pipe import receive, send

_RETRY_S = 0.1
_ANSWER_S = 600.0


class Gone(RemoteError):
    """The worker is not there, or not the one that was meant."""


class Listener(Protocol):
    """Who hears what a worker says."""

    def up(self, about: dict[str, Any]) -> None:
        """A worker is there; what it says of itself."""

    def said(self, head: dict[str, Any], body: bytearray) -> None:
        """It said something."""

    def down(self) -> None:
        """It has gone, and with it all that it was doing."""


class WorkerLink:
    """One worker of a model by name, at a path.

    Attributes:
        count: how many there were so far.
    """

    def __init__(self, name: str, path: str, listener: Listener) -> None:
        self.name, self._path, self._listener = name, path, listener
        self.count = 0
        self._waiting: socket.socket | None = None
        self._socket: socket.socket | None = None
        self._sending = threading.Lock()
        self._numbers = itertools.count(1)
        self._asked: dict[int, SimpleQueue[Answer | None]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="glassworks-link", daemon=True)

    def start(self) -> None:
        """Begin to look for the worker."""
        self._thread.start()

    def close(self) -> None:
        """Leave the worker alone."""
        self._closed.set()
        self._hang_up()
        waiting = self._waiting  # for a worker that has not said yet that it is there
        if waiting is not None:
            with suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_up(self) -> bool:
        """Whether a worker is there."""
        return self._socket is not None

    def send(self, head: dict[str, Any], body: Body = b"", *, to: int | None = None) -> None:
        """Say something. Gone: no worker is there, or not the `to`-th that there was."""
        with self._sending:
            if self._socket is None or (to is not None and to != self.count):
                raise self._not_there()
            try:
                send(self._socket, head, body)
            except OSError:
                self._hang_up()
                raise self._not_there() from None

    def ask(self, what: str, body: Body = b"", *, timeout_s: float = _ANSWER_S) -> Answer:
        """Ask the worker and wait for its answer. RemoteError: it is not there, went meanwhile, or took too long."""
        number, answers = next(self._numbers), SimpleQueue[Answer | None]()
        self._asked[number] = answers
        try:
            self.send({"do": "selftest", "n": number} if what == "selftest" else _question(number, what), body)
            answer = answers.get(timeout=timeout_s)
        except Empty:
            raise RemoteError(f"the worker of {self.name!r} gave no answer within {timeout_s:g} s") from None
        finally:
            self._asked.pop(number, None)
        if answer is None:
            raise self._not_there()
        return answer

    def _not_there(self) -> Gone:
        return Gone(
            f"the worker that holds {self.name!r} is not there, or ended during this request; try again in "
            f"{RETRY_AFTER_S} s"
        )

    # Reading.

    def _work(self) -> None:
        while not self._closed.is_set():
            connection = self._connected()
            if connection is None:
                self._closed.wait(_RETRY_S)
                continue
            with connection:
                self._read(connection)

    def _connected(self) -> socket.socket | None:
        found = self._waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            found.connect(self._path)
        except OSError:
            found.close()
            return None
        if self._closed.is_set():  # before this was connected, when `close` could not hang it up
            found.close()
            return None
        return found

    def _read(self, connection: socket.socket) -> None:
        """Everything that one worker says, until it has gone."""
        try:
            about, _ = receive(connection)
        except (EOFError, OSError, ValueError):
            return
        self.count += 1
        self._socket = connection
        self._listener.up(about)
        try:
            for head, body in _messages(connection):
                if head.get("is") != "answer":
                    self._listener.said(head, body)
                elif (answers := self._asked.get(head["n"])) is not None:
                    answers.put((head["status"], bytes(body)))
        finally:
            self._hang_up()
            for answers in list(self._asked.values()):
                answers.put(None)
            self._listener.down()

    def _hang_up(self) -> None:
        found, self._socket = self._socket, None
        if found is not None:
            with suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)


def _question(number: int, what: str) -> dict[str, Any]:
    return {"do": "ask", "n": number, "what": what}


def _messages(connection: socket.socket) -> Iterable[tuple[dict[str, Any], bytearray]]:
    while True:
        try:
            yield receive(connection)
        except (EOFError, OSError, ValueError):
            return


def wait_until_up(link: WorkerLink, *, timeout_s: float) -> bool:
    """Whether a worker is there within so long."""
    end = time.monotonic() + timeout_s
    while not link.is_up and time.monotonic() < end:
        time.sleep(_RETRY_S / 5)
    return link.is_up
