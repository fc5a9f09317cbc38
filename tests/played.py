"""A worker that does what a test says, over a real socket."""

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glassworks.client.content import split
from glassworks.serve.pipe import receive, send


class Played:
    """A worker.

    Attributes:
        got: heads of the jobs that it was given, by id. cancels: ids of those that were called off.
        answer: to a question, by its head: (status, body). None: none, ever.
    """

    def __init__(self, path: Path, answer: Callable[[dict[str, Any]], tuple[int, bytes] | None] | None = None) -> None:
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(path))
        self.listening.listen()
        self.got: dict[str, dict[str, Any]] = {}
        self.bodies: dict[str, list[bytes]] = {}
        self.cancels: list[str] = []
        self.connection: socket.socket | None = None
        self.answer = answer or (lambda head: None)
        self.pid = 1000

    def appear(self) -> None:
        """A worker starts."""
        self.got, self.cancels = {}, []
        self.pid += 1
        connection, _ = self.listening.accept()
        self.connection = connection
        send(connection, {"is": "ready", "pid": self.pid})
        threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        try:
            while True:
                head, body = receive(connection)
                if head["do"] == "run":
                    self.bodies[head["job"]] = [bytes(part) for part in split(body)]
                    self.got[head["job"]] = head
                elif head["do"] == "cancel":
                    self.cancels.append(head["job"])
                elif (found := self.answer(head)) is not None:
                    self.say({"is": "answer", "n": head["n"], "status": found[0]}, found[1])
        except (EOFError, OSError):
            pass

    def say(self, head: dict[str, Any], body: bytes = b"") -> None:
        assert self.connection is not None
        send(self.connection, head, body)

    def done(self, id: str, *, status: int = 200, body: bytes = b"saves", fence: int | None = None) -> None:
        fence = self.got[id]["fence"] if fence is None else fence
        head = {"is": "done", "job": id, "fence": fence, "status": status, "media": "a/b", "compute_s": 0.5}
        self.say(head, body)

    def events(self, *entries: tuple[str, int | None, str, dict[str, Any]]) -> None:
        own = [[id, self.got[id]["fence"], source, kind, data] for id, source, kind, data in entries]
        self.say({"is": "events"}, json.dumps(own).encode())

    def die(self) -> None:
        assert self.connection is not None
        self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def close(self) -> None:
        """It is there no more, and starts no more."""
        self.listening.close()
        if self.connection is not None:
            self.connection.close()
