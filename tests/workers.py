"""A worker process as tests see it: messages over its socket, and a model whose blocks run there."""

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glassworks.client.backend import table_from_bytes
from glassworks.client.content import framed
from glassworks.graph.backend import Experiment, Generation, Inputs, Results
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.messages import (
    decode_error,
    decode_results,
    encode_inputs,
    encode_request,
    encode_tensor,
)
from glassworks.graph.sites import SiteTable
from glassworks.serve import pipe
from glassworks.serve.checks import Checks

WORKER = (sys.executable, "-m", "glassworks.serve.worker")
WAIT_S = 60.0


@dataclass(frozen=True)
class Ended:
    """What a worker said of a job at its end."""

    head: dict[str, Any]
    body: bytes

    @property
    def status(self) -> int:
        return self.head["status"]

    @property
    def error(self) -> Exception:
        return decode_error(self.body)


@dataclass(eq=False)
class Given:
    """A job that a worker was given."""

    job: str
    fence: int
    events: list[list[Any]] = field(default_factory=list)
    future: "Future[Ended]" = field(default_factory=Future)

    def ended(self, timeout_s: float = WAIT_S) -> Ended:
        return self.future.result(timeout_s)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [data for _, _, _, own, data in self.events if own == kind]


class Connection:
    """One connection to a worker. `stats`: what it has said of itself, newest last."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(path)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.given: dict[tuple[str, int], Given] = {}
        self._answers: dict[int, Future[tuple[int, bytes]]] = {}
        self.stats: list[dict[str, Any]] = []
        self.ready, _ = pipe.receive(self._sock)
        self.gone = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                head, body = pipe.receive(self._sock)
                self._told(head, bytes(body))
        except (EOFError, OSError):
            self.gone.set()
            for given in self.given.values():
                if not given.future.done():
                    given.future.set_exception(EOFError("the worker has gone"))

    def _told(self, head: dict[str, Any], body: bytes) -> None:
        match head["is"]:
            case "events":
                for event in json.loads(body):
                    self.given[event[0], event[1]].events.append(event)
            case "done":
                self.given[head["job"], head["fence"]].future.set_result(Ended(head, body))
            case "answer":
                self._answers.pop(head["n"]).set_result((head["status"], body))
            case "stats":
                self.stats.append(head)

    def send(self, head: dict[str, Any], body: Any = b"") -> None:
        with self._lock:
            pipe.send(self._sock, head, body)

    def run(self, parts: Sequence[bytes], *, user: str = "ann", kind: str = "experiments", streams: bool = False,
            seed: int = 0, job: str | None = None, fence: int = 1) -> Given:  # fmt: skip
        given = Given(f"job-{next(self._numbers)}" if job is None else job, fence)
        self.given[given.job, fence] = given
        head = {"do": "run", "job": given.job, "fence": fence, "user": user, "weight": 1.0, "kind": kind}
        head = {**head, "streams": streams, "seed": seed}
        self.send(head, framed(parts))
        return given

    def cancel(self, given: Given) -> None:
        self.send({"do": "cancel", "job": given.job, "fence": given.fence})

    def question(self, head: dict[str, Any], body: bytes = b"") -> tuple[int, bytes]:
        n = next(self._numbers)
        answer = self._answers[n] = Future()
        self.send({**head, "n": n}, body)
        return answer.result(WAIT_S)

    def ask(self, what: str, body: bytes = b"") -> tuple[int, bytes]:
        return self.question({"do": "ask", "what": what}, body)

    def selftest(self) -> tuple[int, bytes]:
        return self.question({"do": "selftest"})

    def later_stats(self) -> dict[str, Any]:
        """What the worker says of itself from now on."""
        seen = len(self.stats)
        wait_for(lambda: len(self.stats) > seen + 1)
        return self.stats[-1]

    def close(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class WorkerBackend:
    """A model of a worker's as a backend: what a service does on the way there, without one."""

    def __init__(self, connection: Connection, *, limits: Limits | None = None, user: str = "ann") -> None:
        from glassworks.trace.tensors import as_leaf, from_blob

        self.connection, self.user = connection, user
        self._as_leaf, self._from_blob = as_leaf, from_blob
        _, table = connection.ask("sites")
        self._checks = Checks(limits or Limits())
        self._checks.learn("model", table)
        self._table = table_from_bytes(table)

    def sites(self, inputs: Inputs | None = None, *, within: frozenset[str] = frozenset()) -> SiteTable:
        if within <= set(self._table.within) and (inputs is None or not self._table.plain):
            return self._table
        own = inputs if inputs is not None and self._table.plain else Inputs(())
        status, table = self.connection.ask("sites", encode_inputs(own, within=within, as_leaf=self._as_leaf))
        if status != 200:
            raise decode_error(table)
        return table_from_bytes(table)

    def parts(self, experiments: Sequence[Experiment]) -> list[bytes]:
        """A verdict, a request and its large tensors, as a worker is given them."""
        aside: dict[str, Any] = {}
        body = encode_request("model", experiments, as_leaf=self._as_leaf, aside=aside)
        forms = {digest: [blob.dtype, list(blob.shape)] for digest, blob in aside.items()}

        def ask(what: str, about: bytes) -> bytes:
            return json.dumps(forms).encode() if what == "tensors" else self.connection.ask("sites", about)[1]

        status, verdict = self._checks.check("run", "model", body, ask)
        if status != 200:
            raise decode_error(bytes(verdict))
        return [bytes(verdict), body, *[encode_tensor(aside[digest]) for digest in json.loads(verdict)["tensors"]]]

    def give(self, experiments: Sequence[Experiment], **more: Any) -> Given:
        """Hand experiments over; they pass the checks first."""
        return self.connection.run(self.parts(experiments), **{"user": self.user, **more})

    def read(self, ended: Ended) -> list[Results]:
        if ended.status != 200:
            raise ended.error
        return decode_results(ended.body, from_blob=self._from_blob)

    def run(self, graph: Graph, inputs: Inputs, generation: Generation | None = None) -> Results:
        return self.run_session([Experiment(graph, inputs, generation)])[0]

    def run_session(self, experiments: Sequence[Experiment]) -> list[Results]:
        return self.read(self.give(experiments).ended())


class _Stop(Exception):
    """Ends a block whose run is not wanted."""


class Recording:
    """A backend that remembers what it was asked to run, and runs it elsewhere or not at all."""

    def __init__(self, backend: Any, *, run: bool) -> None:
        self.backend, self._run = backend, run
        self.seen: list[Experiment] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def run(self, graph: Graph, inputs: Inputs, generation: Generation | None = None) -> Results:
        return self.run_session([Experiment(graph, inputs, generation)])[0]

    def run_session(self, experiments: Sequence[Experiment]) -> list[Results]:
        self.seen += experiments
        if not self._run:
            raise _Stop
        return self.backend.run_session(experiments)


def over(backend: Any, like: Any) -> Any:
    """A model like another, whose blocks run on a backend."""
    from glassworks.trace.facade import Model
    from glassworks.trace.parts import Core

    return Model(Core(backend, text=like._core.text, table=backend.sites(), name="model"))


def experiments_of(model: Any, write: Callable[[Any], Any], *, run: bool = False) -> list[Experiment]:
    """What blocks on a model come to, as `write` writes them. Without `run` it ends at the first."""
    recording = Recording(model.backend, run=run)
    with suppress(_Stop):
        write(over(recording, model))
    return recording.seen


@dataclass(frozen=True)
class Process:
    """A worker that runs."""

    path: str
    process: "subprocess.Popen[bytes]"

    def connect(self) -> Connection:
        return Connection(self.path)


@contextmanager
def worker(
    model: str = "toy", *options: str, limits: Limits | None = None, command: Sequence[str] = WORKER
) -> Iterator[Process]:
    """A worker process, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        path = str(Path(folder) / "worker.sock")
        alive, ours = os.pipe()
        words = [*command, "--model", model, "--socket", path, "--limits", json.dumps(asdict(limits or Limits()))]
        process = subprocess.Popen([*words, "--while-open", str(alive), *options], pass_fds=(alive,))
        os.close(alive)
        try:
            wait_for(lambda: _accepts(path) or process.poll() is not None, WAIT_S)
            assert process.poll() is None, "the worker ended before it was ready"
            yield Process(path, process)
        finally:
            os.close(ours)
            process.wait(WAIT_S)


def _accepts(path: str) -> bool:
    return os.path.exists(path)


def wait_for(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
