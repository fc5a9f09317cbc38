"""A service in threads of the test's own process: real HTTP, a real ledger, and a worker of the test's choice."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from glassworks.graph.limits import Limits
from glassworks.graph.messages import decode_error
from glassworks.serve import dispatch, worker
from glassworks.serve.bodies import BodyTimes
from glassworks.serve.checks import Checks
from glassworks.serve.host import ModelHost
from glassworks.serve.keys import Keys
from glassworks.serve.one_by_one import OneByOne
from glassworks.serve.quotas import Quotas
from glassworks.serve.running import serve
from glassworks.serve.spool import Spool
from glassworks.serve.state import State
from glassworks.serve.web import running_app, server_of

KEYS = ("gw-ann-secret", "gw-bob-secret")
ANN, BOB = KEYS
NAMES = ("ann of the second floor", "bob of the third floor")


@dataclass(frozen=True)
class Here:
    """A service; two keys are let in, `ANN` and `BOB`."""

    url: str
    folder: Path
    app: Any

    def client(self, key: str | None = ANN) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=120)

    def ask(self, method: str, path: str, *, key: str | None = ANN, **options: Any) -> httpx.Response:
        with self.client(key) as client:
            return client.request(method, path, **options)

    def error(self, answer: httpx.Response, status: int) -> str:
        """What a refusal says, which must be one of that status."""
        assert answer.status_code == status, (answer.status_code, answer.content[:500])
        assert answer.headers["Content-Type"] == "application/json"
        return str(decode_error(answer.content))

    @contextmanager
    def keys(self) -> Iterator[Keys]:
        """As the command changes them."""
        with State.visit(self.folder) as state:
            yield Keys(state)

    def add(self, name: str, **options: Any) -> str:
        with self.keys() as keys:
            return keys.add(name, **options)

    def revoke(self, name: str) -> None:
        with self.keys() as keys:
            keys.revoke(name)


@contextmanager
def service_here(
    folder: Path, sockets: dict[str, str], *, limits: Limits, quotas: Quotas | None = None,
    times: BodyTimes | None = None,
) -> Iterator[Here]:  # fmt: skip
    """The web process's part, in threads.

    Args:
        sockets: where workers listen, by the names of models.
    """
    state_folder = folder / "state"
    patch = pytest.MonkeyPatch()
    patch.setattr(dispatch, "_kill", lambda pid: None)  # it would be this process
    with State.hold(state_folder) as state:
        if not Keys(state).list():
            for name, key in zip(NAMES, KEYS, strict=True):
                Keys(state).add(name, key=key)
        running = running_app(
            state, sockets, limits=limits, quotas=quotas or Quotas(), checker=Checks(limits),
            spool=Spool(str(folder)), times=times,
        )  # fmt: skip
        with running as app, _served(server_of(app)) as url:
            yield Here(url, state_folder, app)
    patch.undo()


@contextmanager
def _served(server: Any) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


@contextmanager
def worker_here(path: Path, backend: Any, limits: Limits) -> Iterator[str]:
    """A worker that runs one job after the other, in a thread; gives where it listens."""
    host = ModelHost(backend, tokenizer={"tokenizer.json": b"{}"}, result_bytes=limits.result_bytes)
    listening = worker.bind(str(path))
    listening.listen(1)

    def work() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                serve(OneByOne(host), connection)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield str(path)
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(10)


def answers(fake: Any) -> Callable[[dict[str, Any]], tuple[int, bytes]]:
    """What a played worker with the fake model says of it."""
    from glassworks.graph import messages, sites

    table = json.dumps(sites.to_json(fake.table())).encode()
    files = messages.encode_files({"tokenizer.json": b"{}"})
    found = {"sites": table, "tokenizer": files, None: b"{}"}
    return lambda head: (200, found[head.get("what")])


def eventually(what: Callable[[], Any], *, timeout_s: float = 60.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)
    return found
