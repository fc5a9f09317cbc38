"""Checker processes, from the side of the process that asks them: started, watched, ended and started again.

A check that takes longer than `check_s` has its process killed; one that needs more than `check_bytes` is told so, or
takes its process with it. Either way the request is refused with the limit, and the next finds another process. What a
process knows is the limits, the site tables and the tokenizers; a body is all that a stranger can put there, and its
verdict all that comes back.
"""

import json
import logging
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from glassworks.client.content import Body, joined, size_of
from glassworks.errors import LimitExceeded, RemoteError
from glassworks.graph.limits import Limits
from glassworks.serve.answers import Answer, refusal
from glassworks.serve.pipe import receive, send

COMMAND = (sys.executable, "-m", "glassworks.serve.checker")
_LOG = logging.getLogger("glassworks.serve")
_START_S = 120.0
Ask = Callable[[str, bytes], Body]


class CheckerPool:
    """A `models.Checker` in processes of its own.

    Args:
        limits: among them `check_s` and `check_bytes`.
        processes: how many requests are checked at once; the others wait. Each starts when it is first needed.
        command: what starts one, before its options.
    """

    def __init__(self, limits: Limits, *, processes: int = 2, command: Sequence[str] = COMMAND) -> None:
        self.limits, self._command = limits, command
        self._tables: dict[str, bytes] = {}
        self._tokenizers: dict[str, bytes] = {}
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(processes):
            self._free.put(None)

    def warm_up(self) -> None:
        """Start one process now, in the background, so that the first request finds it there."""
        threading.Thread(target=self._start_one, name="glassworks-checker", daemon=True).start()

    def _start_one(self) -> None:
        place = self._free.get()
        try:
            place = place or self._started()
        except RemoteError as error:
            _LOG.error("%s", error)
        finally:
            self._free.put(place)

    def close(self) -> None:
        """End the processes that nobody uses now; the others end with this one."""
        while not self._free.empty():
            place = self._free.get()
            if place is not None:
                place.end()

    def learn(self, model: str, table: bytes, tokenizer: bytes = b"") -> None:
        """Take in the site table of a model, and the files of its tokenizer as one message."""
        self._tables[model] = table
        if tokenizer:
            self._tokenizers[model] = tokenizer

    def check(self, what: str, about: str, body: Body, ask: Ask) -> Answer:
        process = self._free.get()
        kept = None
        try:
            process = process or self._started()
            for model, table in list(self._tables.items()):
                process.learn("table", model, table)
            for model, files in list(self._tokenizers.items()) if what == "completion" else ():
                process.learn("tokenizer", model, files)
            answer, goes_on = process.check({"check": what, "about": about}, body, ask)
            kept = process if goes_on else None
        except TimeoutError:
            answer = refusal(422, _out_of_time(self.limits))
        except (EOFError, OSError):
            answer = refusal(422, _out_of_memory(self.limits, body))
        finally:
            if process is not None and kept is None:
                process.end()
            self._free.put(kept)
        return answer

    def _started(self) -> "_Process":
        return _Process(self._command, self.limits)


def _out_of_time(limits: Limits) -> LimitExceeded:
    return LimitExceeded(
        f"check_s: the check of this request was not done after {limits.check_s} s, {limits.check_s} s allowed; send "
        "a smaller graph, or several requests"
    )


def _out_of_memory(limits: Limits, body: Body) -> LimitExceeded:
    return LimitExceeded(
        f"check_bytes: checking this request of {size_of(body)} bytes ended the process that did, which may take "
        f"{limits.check_bytes} bytes; send smaller graphs, or fewer tokens"
    )


class _Process:
    """One checker."""

    def __init__(self, command: Sequence[str], limits: Limits) -> None:
        self._limits = limits
        self._knows: set[tuple[str, str]] = set()
        self._sock, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [*command, "--fd", str(other.fileno()), "--limits", json.dumps(asdict(limits))],
                stdin=subprocess.DEVNULL, pass_fds=[other.fileno()], start_new_session=True,
            )  # fmt: skip
        self._sock.settimeout(_START_S)
        try:
            receive(self._sock)
        except (EOFError, OSError) as error:
            self.end()
            raise RemoteError(
                f"the process that checks requests did not start ({error}); its output says why"
            ) from None

    def learn(self, what: str, model: str, content: bytes) -> None:
        """See that the process has a site table, or a tokenizer, which takes it seconds to read.

        Raises:
            TimeoutError, EOFError, OSError: it has not taken it.
        """
        if (what, model) not in self._knows:
            self._sock.settimeout(_START_S)
            send(self._sock, {"learn": model, "what": what}, content)
            receive(self._sock)
            self._knows.add((what, model))

    def check(self, head: dict[str, Any], body: Body, ask: Ask) -> tuple[Answer, bool]:
        """The answer, and whether the process goes on. The time that `ask` takes is not the check's.

        Raises:
            TimeoutError: over `check_s`.
            EOFError, OSError: the process has ended.
        """
        deadline = time.monotonic() + self._limits.check_s
        found = self._exchange(head, body, deadline)
        while "ask" in found[0]:
            asked = time.monotonic()
            about = joined(ask(found[0]["ask"], bytes(found[1])))
            deadline += time.monotonic() - asked
            found = self._exchange({}, about, deadline)
        return (found[0]["status"], bytes(found[1])), not found[0]["last"]

    def _exchange(self, head: dict[str, Any], body: Body, deadline: float) -> tuple[dict[str, Any], bytearray]:
        self._sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            send(self._sock, head, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have said why before it ended
        self._sock.settimeout(max(0.001, deadline - time.monotonic()))
        return receive(self._sock)

    def end(self) -> None:
        """End the process, now."""
        self._sock.close()
        self._process.kill()
        self._process.wait()
