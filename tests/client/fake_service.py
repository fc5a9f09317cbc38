"""A service that speaks the HTTP of the real one over a loopback socket, and fails when it is told to.

Jobs are run by a handler of this process, when a test lets them: at once (`at_once`), or by `finish`. Server-sent
events are sent as they come, on connections that can be cut.
"""

import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from glassworks.client import Answer, Request
from glassworks.errors import Cancelled, QuotaExceeded, RemoteError
from glassworks.graph.messages import encode_error

ENDED = ("done", "failed", "cancelled")
LONGEST_WAIT_S = 0.2
"""Waits are cut short: a test need not take as long as a run."""


@dataclass
class Job:
    id: str
    request: Request
    status: str = "queued"
    events: list[tuple[str, Any]] = field(default_factory=list)
    answer: Answer | None = None
    created_s: float = 1.7e9
    progress: float = 0.0
    expected_start_s: float | None = 12.5

    def told(self) -> dict[str, Any]:
        ended = self.status in ENDED
        return {
            "id": self.id, "model": "toy", "kind": "experiments", "status": self.status,
            "position": None if ended else 2 if self.status == "queued" else 0,
            "progress": 1.0 if ended else self.progress,
            "expected_start_s": self.expected_start_s if self.status == "queued" else None,
            "created_s": self.created_s, "started_s": None, "ended_s": None, "attempts": 1, "priority": 0, "seed": 7,
        }  # fmt: skip


class FakeService:
    """What a test sees of it.

    Attributes:
        at_once: whether jobs end as they come.
        asked: `POST /v1/...` of every request, with its headers.
        troubles: for the next requests whose words match: a status with headers and an error, `hang up`, or `stall`.
        cuts: after how many events the next event streams break off.
        on_submit: called with each new job.
    """

    def __init__(self, handle: Callable[[Request], Answer]) -> None:
        self._handle = handle
        self.at_once = True
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.troubles: deque[tuple[str, Any]] = deque()
        self.cuts: deque[int] = deque()
        self.on_submit: Callable[[Job], None] = lambda job: None
        self.jobs: dict[str, Job] = {}
        self.keys: dict[str, str] = {}
        self.status: dict[str, Any] = {}
        self.changed = threading.Condition()
        self.closing = False

    # What a test does.

    def trouble(self, words: str, *what: Any) -> None:
        """The next requests that match fail, one after the other."""
        self.troubles.extend((words, each) for each in what)

    def say(self, job: Job, kind: str, data: Any = None) -> None:
        with self.changed:
            job.events.append((kind, data))
            self.changed.notify_all()

    def log(self, job: Job, text: str, *, node: int, experiment: int = 0) -> None:
        self.say(job, "log", {"experiment": experiment, "entry": [text, node, None, []]})

    def start(self, job: Job) -> None:
        job.status = "running"
        self.say(job, "started")

    def finish(self, job: Job, answer: Answer | None = None) -> None:
        """Run a job, and end it."""
        found = answer or self._handle(job.request)
        with self.changed:
            if job.status not in ENDED:
                job.answer, job.status = found, "done" if found.is_good else "failed"
                job.events.append((job.status, {}))
            self.changed.notify_all()

    def only(self) -> Job:
        """The one job there is, once there is one."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.jobs) == 1, 10)
            return next(iter(self.jobs.values()))

    def count(self, words: str) -> int:
        return sum(bool(re.search(words, each)) for each, _ in self.asked)

    # What a client sees.

    def submit(self, request: Request, wait_s: float | None) -> Answer:
        key = request.headers["idempotency-key"]
        with self.changed:
            known = self.jobs.get(self.keys.get(key, ""))
        if known is None:
            known = Job(f"job-{len(self.jobs)}", request, events=[("queued", {})])
            if self.at_once:
                found = self._handle(request)
                if not found.is_good and found.job is None:
                    return found
                known.answer, known.status = found, "done" if found.is_good else "failed"
                known.events.append((known.status, {}))
            with self.changed:
                self.jobs[known.id], self.keys[key] = known, known.id
                self.changed.notify_all()
            self.on_submit(known)
        return self.results(known, wait_s) if wait_s is not None else self._told(known, 202)

    def results(self, job: Job, wait_s: float) -> Answer:
        self._wait(job, wait_s)
        if job.answer is None:
            return self._told(job, 202) if wait_s else _refusal(409, RemoteError("not ended"))
        return Answer(job.answer.status, job.answer.body, {"glassworks-job": job.id})

    def cancel(self, job: Job) -> Answer:
        with self.changed:
            if job.status not in ENDED:
                job.status, job.answer = "cancelled", _refusal(409, Cancelled(f"the job {job.id} was cancelled"))
                job.events.append(("cancelled", {}))
            self.changed.notify_all()
        return self._told(job)

    def _told(self, job: Job, status: int = 200) -> Answer:
        return Answer(status, json.dumps(job.told()).encode())

    def _wait(self, job: Job, wait_s: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: job.status in ENDED or self.closing, min(wait_s, LONGEST_WAIT_S))

    def answer(self, request: Request) -> Answer:
        parts = urlsplit(request.path)
        path, query = unquote(parts.path), {name: found[0] for name, found in parse_qs(parts.query).items()}
        wait_s = float(query["wait_s"]) if "wait_s" in query else None
        if request.method == "POST" and path.endswith("/jobs"):
            return self.submit(request, wait_s)
        if path == "/v1/status":
            return Answer(200, json.dumps(self.status).encode())
        if path == "/v1/jobs":
            found = [job for job in reversed(self.jobs.values()) if query.get("status") in (None, job.status)]
            told = [job.told() for job in found[: int(query["limit"])]]
            return Answer(200, json.dumps({"jobs": told}).encode())
        if path.startswith("/v1/jobs/"):
            return self._about(request.method, *path.removeprefix("/v1/jobs/").partition("/")[::2], wait_s or 0.0)
        return self._handle(request)

    def _about(self, method: str, id: str, what: str, wait_s: float) -> Answer:
        job = self.jobs.get(id)
        if job is None:
            return _refusal(404, RemoteError(f"no job {id!r}"))
        if (method, what) == ("POST", "cancel"):
            return self.cancel(job)
        if what == "results":
            return self.results(job, wait_s)
        self._wait(job, wait_s)
        return self._told(job)

    def _new(self, job: Job, after: int) -> list[tuple[int, tuple[str, Any]]]:
        with self.changed:
            self.changed.wait_for(lambda: len(job.events) > after or self.closing, 10)
            return list(enumerate(job.events, 1))[after:]

    def stream(self, job: Job, after: int) -> Iterator[bytes | None]:
        """The lines of an event stream; None: the connection breaks."""
        cut = self.cuts.popleft() if self.cuts else None
        yield b": still here\n\n"
        sent = 0
        while True:
            for number, (kind, data) in self._new(job, after):
                if sent == cut:
                    yield None
                yield f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()
                after, sent = number, sent + 1
                if kind in ENDED:
                    return
            if self.closing or sent == cut:
                yield None


def _refusal(status: int, error: Exception) -> Answer:
    return Answer(status, encode_error(error))


QUOTA = Answer(
    429,
    encode_error(QuotaExceeded("queued: 101 asked for, 100 allowed; wait for some, or cancel some")),
    {"retry-after": "7"},
)


def not_there(status: int = 503, *, after: str | None = None) -> Answer:
    """What stands before a service that starts again."""
    return Answer(status, b"<html>starting</html>", {} if after is None else {"retry-after": after})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: FakeService

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, body, headers)
        words = f"{self.command} {self.path}"
        self.service.asked.append((words, headers))
        what = self._trouble(words)
        if what == "hang up":
            return self._cut()
        if what == "stall":
            time.sleep(1.0)
        if isinstance(what, Answer):
            return self._send(what)
        if what == "lost answer":  # it is done, and nobody hears of it
            self.service.answer(request)
            return self._cut()
        id = re.fullmatch(r"/v1/jobs/([^/]+)/events", self.path)
        if id and id[1] in self.service.jobs:
            return self._stream(self.service.jobs[id[1]], int(headers.get("last-event-id", "0")))
        return self._send(self.service.answer(request))

    def _trouble(self, words: str) -> Any:
        for own in self.service.troubles:
            if re.search(own[0], words):
                self.service.troubles.remove(own)
                return own[1]
        return None

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def _stream(self, job: Job, after: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in self.service.stream(job, after):
            if part is None:
                return self._cut()
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_PUT = _any

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has gone, which it may
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@contextmanager
def served(service: FakeService, port: int = 0) -> Iterator[str]:
    """The service on a port of this machine; gives its URL."""
    handler = type("Handler", (_Handler,), {"service": service})
    server = _Server(("127.0.0.1", port), handler)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        with service.changed:
            service.closing = True
            service.changed.notify_all()
        server.shutdown()
        thread.join()
        server.server_close()
