"""The worker's end of its one connection: a thread takes in what comes, and any thread may send.

Messages are `pipe`'s; what they mean is not known here. What cannot be sent because the other side has gone is dropped:
the end of what comes says so too, and in order.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from glassworks.client.content import Body
from glassworks.serve import pipe

Message = tuple[dict[str, Any], bytearray]


class Line:
    """A connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._sending = sock, threading.Lock()
        self._inbox: SimpleQueue[Message | None] = SimpleQueue()

    def read(self, at_once: Callable[[dict[str, Any], bytearray], bool]) -> None:
        """Begin to take in messages. Each is shown to `at_once`, in the thread that reads; True: it is dealt with."""
        threading.Thread(target=self._read, args=(at_once,), name="glassworks-line", daemon=True).start()

    def send(self, head: dict[str, Any], body: Body = b"") -> None:
        """Send one message."""
        with self._sending, suppress(OSError):
            pipe.send(self._sock, head, body)

    @property
    def waiting(self) -> int:
        """How many messages are there."""
        return self._inbox.qsize()

    def arrived(self, *, wait_s: float | None) -> Iterator[Message | None]:
        """All messages that are there, None for the end; where none is, the first that comes within so long (None: for
        ever)."""
        try:
            yield self._inbox.get(timeout=wait_s) if wait_s != 0 else self._inbox.get_nowait()
            while True:
                yield self._inbox.get_nowait()
        except Empty:
            return

    def _read(self, at_once: Callable[[dict[str, Any], bytearray], bool]) -> None:
        try:
            while True:
                head, body = pipe.receive(self._sock)
                if not at_once(head, body):
                    self._inbox.put((head, body))
        except (EOFError, OSError):
            self._inbox.put(None)
