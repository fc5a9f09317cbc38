"""What nobody is told: keys, names and what people wrote are in no log, no metric, no error and no command line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from glassworks.graph import messages
from services import eventually

KEY, OTHER = "gw-the-first-secret", "gw-the-second-secret"
WRITTEN = ("prompt-of-somebody", "tensor-of-somebody", "word-of-somebody")
SERVED = """
import json, sys
from glassworks.graph.limits import Limits
from glassworks.serve.supervise import serve

def ready(running):
    print(json.dumps([running.url, running.worker, running.web]), flush=True)

serve(
    "small", port=0, state=sys.argv[1], keys=sys.argv[3].split(","), worker_command=[sys.executable, sys.argv[2]],
    limits=Limits(body_bytes=2**20, check_s=2), on_ready=ready,
)
"""


class Logged:
    """A service whose output is kept."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.log, self.state = folder / "log", folder / "state"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVED, str(self.state), worker, f"{KEY},{OTHER}"],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        self.url, self.worker, self.web = json.loads(self.process.stdout.readline())
        self.told: list[str] = []

    def ask(self, method: str, path: str, *, key: str = KEY, **options: Any) -> int:
        headers = {"Authorization": f"Bearer {key}", **options.pop("headers", {})}
        with suppress(httpx.TransportError):
            answer = httpx.request(method, self.url + path, headers=headers, trust_env=False, timeout=30, **options)
            if answer.status_code >= 400:
                self.told.append(answer.text)
            return answer.status_code
        return 0

    def close(self) -> str:
        """All that it has written."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.log.read_text()


@pytest.fixture
def logged(fake: Any, tmp_path: Path) -> Iterator[Logged]:
    found = Logged(tmp_path, fake.FAKE[1])
    yield found
    if found.process.poll() is None:
        found.close()


def provoke(logged: Logged, experiment: Any) -> None:
    """Everything that goes wrong, with what people wrote in it."""
    run, written = "/v1/models/small/run", json.dumps(WRITTEN)
    for calls in ((), (("div", 0),), (("exp",),), ((WRITTEN[2],),), (("getitem", WRITTEN[1]),)):
        logged.ask("POST", run, content=messages.encode_request("small", [experiment(*calls)]))
    for path in (run, "/v1/models/small/jobs", "/v1/models/small/sites", f"/v1/tensors/{'0' * 64}"):
        for body in (b"", written.encode(), bytes(2**21), b"\x80\x04" + written.encode()):
            logged.ask("PUT" if "tensors" in path else "POST", path, content=body)
    for path in ("/v1/completions", "/v1/chat/completions"):
        said = [{"role": "user", "content": WRITTEN[0]}]
        for body in ({"prompt": WRITTEN[0]}, {"messages": said}, {"prompt": WRITTEN[0], "stop": 1}):
            logged.ask("POST", path, json={"model": "small", **body})
    for path in ("/v1/jobs/x", "/v1/jobs/x/events?after=x", "/nowhere", "/v1/models/none/sites", "/v1/jobs?limit=0"):
        logged.ask("GET", path)
    for key in (KEY + "x", f"{KEY} {OTHER}", KEY.upper(), f'"{KEY}"'):
        logged.ask("GET", "/v1/models", key=key)
    logged.ask("GET", "/v1/models", headers={"Authorization": f"Basic {KEY}"})
    logged.ask("GET", f"/v1/jobs/x?wait_s={WRITTEN[0]}", headers={"Last-Event-ID": WRITTEN[1]})


def test_no_key_and_nothing_that_anybody_wrote_is_in_a_log_or_a_metric(logged: Logged, experiment: Any) -> None:
    provoke(logged, experiment)
    os.kill(logged.worker, signal.SIGKILL)
    eventually(lambda: logged.ask("GET", "/healthz") == 503)
    logged.ask("POST", "/v1/models/small/jobs", content=messages.encode_request("small", [experiment()]))
    eventually(lambda: logged.ask("GET", "/healthz") == 200, timeout_s=60)
    with httpx.Client(base_url=logged.url, trust_env=False) as client:
        shown = client.get("/metrics").text + client.get("/healthz").text + client.get("/openapi.json").text
    words = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (logged.web, logged.process.pid)]
    assert KEY.encode() not in words[0]
    assert len(logged.told) > 30
    log = logged.close()
    assert "glassworks" in log or "worker" in log, "something was logged"
    assert [key for key in (KEY, OTHER) if key in "".join(logged.told)] == []
    for secret in (KEY, OTHER, "given-", *WRITTEN):
        assert secret not in log, [line for line in log.splitlines() if secret in line][:3]
        assert secret not in shown


def test_a_fault_of_the_service_is_logged_without_the_key(
    here: Any, body: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With where it happened, which the answer does not have."""
    from services import ANN, BOB

    def broken(*given: Any, **named: Any) -> Any:
        raise OSError("a broken disk")

    monkeypatch.setattr("glassworks.serve.jobs.Jobs.list", broken)
    answer = here.ask("GET", "/v1/jobs")
    assert "its log says why" in here.error(answer, 500)
    assert "a broken disk" in caplog.text
    assert [key for key in (ANN, BOB) if key in caplog.text + answer.text] == []
