"""A whole service from one process: starts the worker and the web process, watches both, stops both.

The address is bound here, so that a port of 0 is known before anything starts and a restarted web process keeps it. A
child that ends is started again: at once if it had run for a while, else after a pause that grows while it keeps
ending. Both children end with this process, however it ends (see `lifeline`). How a worker ended is written down for
the web process (see `deaths`), since only a parent is told.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glassworks.client.base import Request
from glassworks.client.http import HTTPTransport
from glassworks.errors import InputError, ModelError, RemoteError
from glassworks.graph.limits import Limits
from glassworks.serve.deaths import Death, memory_kills, record
from glassworks.serve.keys import Keys, digest_of
from glassworks.serve.quotas import Quotas
from glassworks.serve.state import State

_LOG = logging.getLogger("glassworks.serve")
WORKER = (sys.executable, "-m", "glassworks.serve.worker")
_WEB = (sys.executable, "-m", "glassworks.serve.web")
_POLL_S = 0.1
_STOP_S = 10.0
_PAUSES_S = (0.5, 30.0)
"""Before a child is started again that ended soon: the second time in a row, and at most."""
_SETTLED_S = 10.0
"""What ran for longer did not end soon."""


@dataclass(kw_only=True)
class _Child:
    """A process that should be running.

    Attributes:
        deaths: where it is written down how it ended. started_s: when it was started last, by `time.monotonic()`.
        pause_s: how long it is to wait when it ends soon. due_s: when one that has ended is started again.
        kills: how many processes the kernel had ended for want of memory when it was started.
    """

    name: str
    command: Sequence[str]
    fds: Sequence[int]
    deaths: Path | None = None
    process: subprocess.Popen[bytes] = field(init=False)
    started_s: float = 0.0
    pause_s: float = 0.0
    due_s: float | None = None
    kills: int | None = None

    def start(self) -> None:
        self.kills = memory_kills()
        # A session of its own: a Ctrl-C is the supervisor's, which stops the children in order.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, pass_fds=tuple(self.fds), start_new_session=True
        )
        self.started_s, self.due_s = time.monotonic(), None

    def poll(self) -> int | None:
        """The exit code of a child that has ended, negative for a signal; None while it runs."""
        if self.process.returncode is None:
            pid, status, used = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self._write_down(self.process.returncode, used.ru_maxrss * 1024)
        return self.process.returncode

    def revive(self, now_s: float) -> None:
        """Start it again if it has ended, once its pause is over."""
        code = self.poll()
        if code is None:
            return
        if self.due_s is None:
            if now_s - self.started_s > _SETTLED_S:
                self.pause_s = 0.0
            self.due_s = now_s + self.pause_s
            _LOG.warning("the %s has ended (%s); it is started again", self.name, _how(code))
            self.pause_s = min(max(2 * self.pause_s, _PAUSES_S[0]), _PAUSES_S[1])
        if now_s >= self.due_s:
            self.start()

    def _write_down(self, code: int, peak_bytes: int) -> None:
        if self.deaths is not None:
            number = -code if code < 0 else None
            from_outside = number == signal.SIGKILL and self.kills is not None and self.kills == memory_kills()
            record(
                self.deaths, Death(self.process.pid, code if number is None else None, number, peak_bytes, from_outside)
            )

    def stop(self) -> None:
        if self.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service that is up.

    Attributes:
        url: where it answers.
        key: one that it knows, if one was given or made; else empty: keys are not kept, and cannot be told again.
        state: its folder.
        children: the worker and the web process.
    """

    url: str
    key: str
    state: Path
    children: tuple[_Child, _Child]

    @property
    def worker(self) -> int:
        """Its process id now: a child that ended gets another."""
        return self.children[0].process.pid

    @property
    def web(self) -> int:
        """Its process id now."""
        return self.children[1].process.pid


@contextmanager
def running_service(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    state: str | Path | None = None,
    keys: Sequence[str] = (),
    limits: Limits | None = None,
    quotas: Quotas | None = None,
    worker_command: Sequence[str] = WORKER,
    worker_options: Sequence[str] = (),
    start_timeout_s: float = 600.0,
) -> Iterator[Running]:
    """A service for one model, for as long as the block lasts.

    Args: model: what `gw.load` takes. host: address to listen on. port: 0 for any that is free. state: the folder that
    it keeps jobs, results and keys in; None: one that goes with the block. keys: who is let in besides those whom the
    state knows; where it knows none, one is made. limits: what one request may ask for. quotas: what a key may have at
    once, and in a day. worker_options: of the worker besides those made here. worker_command: what starts a worker,
    before the worker's options: for a launcher, or another interpreter. start_timeout_s: how long the model may take to
    load.

    Raises:
        InputError: the address cannot be had.
        ModelError: the worker ended before it was ready; its output says why.
    """
    limits, quotas = limits or Limits(), quotas or Quotas()
    with ExitStack() as stack:  # undone in reverse: the watcher first, then the web process, then the worker
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="glassworks-"))
        kept_in = Path(folder) / "state" if state is None else Path(state).absolute()
        made = _let_in(kept_in, keys)
        listening = stack.enter_context(_bound(host, port))
        lifeline, kept = os.pipe()
        for end in (lifeline, kept):
            stack.callback(os.close, end)
        settings = _Settings(model, folder, kept_in, limits, quotas, (*worker_command,), (*worker_options,))
        children = _children(settings, lifeline, listening.fileno())
        for child in children:
            child.start()
            stack.callback(child.stop)
        url = _url(host, listening.getsockname()[1])
        _wait_until_healthy(url, model, children, start_timeout_s)
        stopping = threading.Event()
        watcher = threading.Thread(target=_watch, args=(children, stopping), name="glassworks-watch", daemon=True)
        watcher.start()
        stack.callback(watcher.join)
        stack.callback(stopping.set)
        yield Running(url=url, key=made, state=kept_in, children=children)


class _Stop(BaseException):
    """A signal came."""


def serve(model: str, *, on_ready: Callable[[Running], None] = lambda running: None, **options: Any) -> None:
    """Serve a model until SIGINT or SIGTERM; for the main thread.

    Args:
        on_ready: is called once it answers. options: as of `running_service`.

    Raises: as `running_service`.
    """

    def stop(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise _Stop

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, stop)
        with running_service(model, **options) as running:
            on_ready(running)
            threading.Event().wait()
    except _Stop:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the children are started with."""

    model: str
    folder: str
    state: Path
    limits: Limits
    quotas: Quotas
    worker_command: tuple[str, ...]
    worker_options: tuple[str, ...]


def _let_in(folder: Path, keys: Sequence[str]) -> str:
    """See that a state knows these keys, and one at least; gives one, if it can be told."""
    with State.visit(folder, make=True) as state:
        known = Keys(state)
        for key in keys:
            if known.owner(key) is None:
                known.add(f"given-{digest_of(key)[:8]}", key=key)
        if keys:
            return keys[0]
        return "" if any(row.revoked_s is None for row in known.list()) else known.add("first")


def _children(settings: _Settings, lifeline: int, listening: int) -> tuple[_Child, _Child]:
    path = str(Path(settings.folder) / "worker.sock")
    limits, alive = json.dumps(asdict(settings.limits)), ["--while-open", str(lifeline)]
    worker = ["--model", settings.model, "--socket", path, "--limits", limits, *alive, *settings.worker_options]
    web = ["--model", settings.model, path, "--state", str(settings.state), "--folder", settings.folder]
    web += ["--limits", limits, "--quotas", json.dumps(asdict(settings.quotas)), *alive, "--fd", str(listening)]
    return (
        _Child(
            name="worker", command=[*settings.worker_command, *worker], fds=[lifeline],
            deaths=settings.state / "deaths.jsonl",
        ),
        _Child(name="web process", command=[*_WEB, *web], fds=[lifeline, listening]),
    )  # fmt: skip


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error}; choose another port, or 0 for any free one"
        ) from None


def _url(host: str, port: int) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _wait_until_healthy(url: str, model: str, children: Sequence[_Child], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with HTTPTransport(url, timeout_s=5.0, connect_timeout_s=1.0) as transport:
        while time.monotonic() < deadline:
            for child in children:
                code = child.poll()
                if code is not None:
                    raise ModelError(
                        f"the {child.name} for {model!r} ended with code {code} before it was ready; its "
                        "output says why"
                    )
            if _is_healthy(transport):
                return
            time.sleep(_POLL_S)
    raise ModelError(f"{model!r} was not ready within {timeout_s} s; give a larger start_timeout_s")


def _is_healthy(transport: HTTPTransport) -> bool:
    try:
        return transport.send(Request("GET", "/healthz")).status == 200
    except RemoteError:
        return False


def _watch(children: Sequence[_Child], stopping: threading.Event) -> None:
    """Start again what ended; none waits for another's pause."""
    while not stopping.wait(_POLL_S):
        for child in children:
            child.revive(time.monotonic())
