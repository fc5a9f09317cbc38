"""Real processes: a worker, a web process and what watches them, on a model without torch."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from asking import ask
from glassworks.client import HTTPTransport, Lab, RemoteBackend, remote_parts
from glassworks.errors import InputError, LimitExceeded, ModelError, RemoteError, Unauthorized
from glassworks.graph import messages
from glassworks.serve.supervise import Running, running_service


@pytest.fixture(scope="module")
def running(fake: Any) -> Iterator[Running]:
    with running_service("small", keys=["gw-a", "gw-b"], limits=fake.LIMITS, worker_command=fake.FAKE) as found:
        yield found


@pytest.fixture
def transport(running: Running) -> Iterator[HTTPTransport]:
    with HTTPTransport(running.url, api_key=running.key) as found:
        yield found


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def socket_of(worker: int) -> Path:
    """The socket that a worker listens on, from its command line."""
    words = Path(f"/proc/{worker}/cmdline").read_bytes().decode().split("\0")
    return Path(words[words.index("--socket") + 1])


def test_a_client_runs_experiments(fake: Any, transport: HTTPTransport, experiment: Any) -> None:
    assert Lab(transport).models() == ["small"]
    parts = remote_parts(Lab(transport), "small")
    assert parts.table == fake.table()
    assert parts.tokenizer == {"tokenizer.json": b"{}"}
    [result] = parts.backend.run_session([experiment()])
    assert result["s"] == fake.zeros(1, 3, 8)


def test_any_of_the_keys_and_no_other(running: Running) -> None:
    assert running.key == "gw-a"
    with HTTPTransport(running.url, api_key="gw-b") as second:
        assert Lab(second).models() == ["small"]
    for key in (None, "gw-c"):
        with HTTPTransport(running.url, api_key=key) as other, pytest.raises(Unauthorized, match="key"):
            Lab(other).models()


def test_errors_come_back_with_type_and_line(transport: HTTPTransport, experiment: Any) -> None:
    backend = RemoteBackend(transport, "small")
    with pytest.raises(ZeroDivisionError) as caught:
        backend.run_session([experiment(("div", 0))])
    assert caught.value.__notes__ == ["  at work.py:11"]
    with pytest.raises(LimitExceeded, match="nodes: 121 asked for, 100 allowed"):
        backend.run_session([experiment(*[("sum",)] * 119)])
    with pytest.raises(LimitExceeded, match="result_bytes: 16000 asked for, 10000 allowed"):
        backend.run_session([experiment(tokens=500)])
    with pytest.raises(ModelError, match="it has: small"):
        RemoteBackend(transport, "large").sites()


def test_a_body_over_the_limit_is_refused_while_it_is_sent(running: Running) -> None:
    with HTTPTransport(running.url, api_key=running.key) as transport:
        status, body = ask(transport, "POST", "/v1/models/small/run", bytes(2**26))
    assert status == 413
    with pytest.raises(LimitExceeded, match="67108864 bytes or more, 1048576 allowed"):
        raise messages.decode_error(body)


def test_an_endless_body_is_refused(running: Running) -> None:
    sent = 0
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = "POST /v1/models/small/run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(f"{head}Authorization: Bearer {running.key}\r\n\r\n".encode())
        chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
        answer = b""
        try:
            while sent < 2**28:
                connection.sendall(chunk)
                sent += 2**16
        except OSError:
            pass
        try:
            answer = connection.recv(2**16)
        except ConnectionResetError:
            pass
    assert sent < 2**27
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")


def test_one_experiment_at_a_time_and_health_beside_it(
    running: Running, transport: HTTPTransport, experiment: Any
) -> None:
    backend = RemoteBackend(transport, "small")
    slow = [experiment(("mul", 1.5))]
    threads = [threading.Thread(target=backend.run_session, args=(slow,)) for _ in range(2)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert httpx.get(f"{running.url}/healthz", trust_env=False).status_code == 200
    assert time.monotonic() - start < 1.5
    for thread in threads:
        thread.join()
    assert time.monotonic() - start > 3.0


def test_the_web_process_holds_no_torch(running: Running) -> None:
    maps = Path(f"/proc/{running.web}/maps").read_text()
    assert "libtorch" not in maps
    assert "libpython" in maps or "python" in maps


def test_keys_are_in_no_command_line(running: Running) -> None:
    for pid in (running.web, running.worker):
        assert b"gw-a" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_the_workers_socket_is_the_owners_alone(running: Running) -> None:
    path = socket_of(running.worker)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def health(running: Running) -> httpx.Response:
    return httpx.get(f"{running.url}/healthz", trust_env=False)


def test_a_worker_that_died_is_503_and_comes_back(fake: Any, experiment: Any) -> None:
    """What it was doing runs again, and nobody need know."""
    with (
        running_service("small", limits=fake.LIMITS, worker_command=fake.FAKE) as running,
        HTTPTransport(running.url, api_key=running.key) as transport,
    ):
        backend = RemoteBackend(transport, "small")
        job = backend.submit([experiment(("mul", 0.5))])
        wait_for(lambda: job.status == "running")
        first = running.worker
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: health(running).status_code == 503)
        assert health(running).headers["Retry-After"] == "5"
        assert health(running).json()["models"]["small"]["state"] == "absent"
        assert job.each()[0]["s"] == fake.zeros(1, 3, 8)
        kinds = [event.kind for event in job.events()]
        assert (kinds.count("started"), kinds.count("retried"), kinds[-1]) == (2, 1, "done")
        wait_for(lambda: health(running).status_code == 200)
        assert running.worker != first


@pytest.mark.slow
def test_whoever_ends_the_worker_is_told_how_it_ended_and_others_are_not_held_up(fake: Any, experiment: Any) -> None:
    with (
        running_service("small", limits=fake.LIMITS, worker_command=fake.FAKE) as running,
        HTTPTransport(running.url, api_key=running.key) as transport,
    ):
        backend = RemoteBackend(transport, "small")
        bad, good = backend.submit([experiment(("log",))]), backend.submit([experiment()])
        with pytest.raises(RemoteError, match=r"alone in it, it exited with code 9, and held .* MiB at most"):
            bad.results()
        assert good.each()[0]["s"] == fake.zeros(1, 3, 8)


def test_the_end_of_the_block_ends_both(fake: Any) -> None:
    with running_service("small", worker_command=fake.FAKE) as running:
        pids = [running.worker, running.web]
        assert running.key.startswith("gw-")
    assert not any(map(is_alive, pids))
    with HTTPTransport(running.url) as transport, pytest.raises(RemoteError, match="no service answers at"):
        ask(transport, "GET", "/healthz")


def test_a_worker_that_cannot_start_is_named(fake: Any) -> None:
    starting = running_service("broken", worker_command=fake.FAKE)
    with pytest.raises(ModelError, match="the worker for 'broken' ended with code 3"), starting:
        pass


def test_an_address_that_is_taken_is_named(running: Running) -> None:
    port = int(running.url.rpartition(":")[2])
    starting = running_service("small", port=port)
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}"), starting:
        pass


SUPERVISOR = """
import json, sys
from glassworks.serve.supervise import serve

def ready(running):
    print(json.dumps([running.url, running.key, running.worker, running.web]), flush=True)

print("starting", flush=True)
serve({model!r}, port=0, worker_command=[sys.executable, {worker!r}], on_ready=ready)
print("ended", flush=True)
"""


def start_supervisor(fake: Any, model: str) -> subprocess.Popen[str]:
    """The process, once it is about to start its children."""
    code = SUPERVISOR.format(worker=fake.FAKE[1], model=model)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    return process


@pytest.fixture
def supervisor(fake: Any) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    process = start_supervisor(fake, "small")
    assert process.stdout is not None
    url, _, worker, web = json.loads(process.stdout.readline())
    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    folder = socket_of(worker).parent
    yield process, [worker, web]
    process.kill()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)  # a supervisor that is killed leaves its folder
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_cleanly(supervisor: Any, number: signal.Signals) -> None:
    process, children = supervisor
    process.send_signal(number)
    assert process.wait(20) == 0
    assert process.stdout.read() == "ended\n"
    assert not any(map(is_alive, children))


def test_children_end_when_the_supervisor_is_killed(supervisor: Any) -> None:
    process, children = supervisor
    assert all(map(is_alive, children))
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, children)))


def test_a_signal_while_the_model_loads_stops_at_once(fake: Any) -> None:
    process = start_supervisor(fake, "slow")
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "ended\n")
