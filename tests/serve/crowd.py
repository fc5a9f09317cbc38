"""People who use a service at once, each in a thread of its own, and ways to end its processes under them."""

import os
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

import glassworks as gw
from glassworks.serve.supervise import Running
from serve.works import Outcome, begin

KEYS = ["gw-a", "gw-b", "gw-c"]
PATIENCE_S = 600.0


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 300.0) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end_s, "it did not come to pass"
        time.sleep(0.02)
    return found


def is_up(running: Running) -> bool:
    try:
        return httpx.get(f"{running.url}/healthz", trust_env=False, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def figure(running: Running, name: str) -> float:
    """A figure of /metrics; 0 if it is not there."""
    text = httpx.get(f"{running.url}/metrics", trust_env=False, timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith(name) and not line.startswith("#")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_worker(running: Running) -> int:
    """`kill -9` of the worker; the process id of the next, which has still to load."""
    pid = running.worker
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: running.worker != pid)
    return running.worker


def kill_web(running: Running) -> None:
    """`kill -9` of the web process; the next one has been started."""
    pid = running.web
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: running.web != pid)


def person(running: Running, key: str) -> Any:
    """The toy of a service, as the owner of a key has it: whatever ends there, it is asked again."""
    return gw.connect(running.url, api_key=key, patience_s=PATIENCE_S).model("toy")


class Client(threading.Thread):
    """Gives one work after another: waits for some, and leaves others for later, five at most.

    Attributes:
        found: what became of each, by its number. broke: what ended the client before its time.
    """

    def __init__(self, running: Running, key: str, numbers: Iterator[int], enough: threading.Event) -> None:
        super().__init__(daemon=True)
        self.found: dict[int, Outcome] = {}
        self.broke: BaseException | None = None
        self._model, self._numbers, self._enough = person(running, key), numbers, enough

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised by `ended`
            self.broke = error

    def _work(self) -> None:
        left: deque[tuple[int, Callable[[], Outcome]]] = deque()
        for number in self._numbers:
            waits = random.Random(number).random() < 0.5
            _, take = begin(self._model, number, **({} if waits else {"wait": False}))
            left.append((number, take))
            while left and (waits or len(left) > 5 or self._enough.is_set()):
                number, take = left.popleft()
                self.found[number] = take()
            if self._enough.is_set():
                return


def ended(clients: list[Client], *, timeout_s: float = 600.0) -> dict[int, Outcome]:
    """What became of all works, once the clients have ended."""
    found: dict[int, Outcome] = {}
    for client in clients:
        client.join(timeout_s)
        assert not client.is_alive(), "a client waits still"
        if client.broke is not None:
            raise client.broke
        found |= client.found
    return found
