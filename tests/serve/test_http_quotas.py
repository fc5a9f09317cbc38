"""What one key may have, over HTTP: refused with 429, and with when to come again; and nobody else is."""

import time
from typing import Any

import pytest

from glassworks.graph import messages, wire
from glassworks.serve import jobs
from glassworks.serve.quotas import Quotas
from services import ANN, BOB, Here, eventually

JOBS = "/v1/models/small/jobs"
TENSOR = wire.Blob("int8", (100,), bytes(100))


def submit(here: Here, body: bytes, key: str = ANN, **headers: str) -> Any:
    return here.ask("POST", JOBS, content=body, key=key, headers=headers)


def takers(here: Here, body: bytes) -> list[Any]:
    """Every path that takes work in."""
    tensor = messages.encode_tensor(TENSOR)
    return [
        submit(here, body),
        here.ask("POST", "/v1/models/small/run", content=body),
        here.ask("PUT", f"/v1/tensors/{wire.digest(TENSOR)}", content=tensor),
        here.ask("POST", "/v1/completions", json={"model": "small", "prompt": "x"}),
        here.ask("POST", "/v1/chat/completions", json={"model": "small", "messages": []}),
    ]


def test_unfinished_jobs(stage: Any, body: bytes) -> None:
    here, worker = stage(quotas=Quotas(unfinished_jobs=2))
    first = submit(here, body, **{"Idempotency-Key": "first"}).json()
    second = submit(here, body).json()
    for answer in takers(here, body):
        assert "unfinished_jobs: 3 asked for, 2 allowed" in here.error(answer, 429)
        assert answer.headers["Retry-After"] == "5"
        assert answer.json()["error"]["type"] == "QuotaExceeded"
    again = submit(here, body, **{"Idempotency-Key": "first"})
    assert (again.status_code, again.json()["id"]) == (202, first["id"]), "it was let in before"
    other = submit(here, body, BOB)
    assert other.status_code == 202
    eventually(lambda: len(worker.got) == 3)
    worker.done(second["id"])
    here.ask("GET", f"/v1/jobs/{second['id']}?wait_s=10")
    assert submit(here, body).status_code == 202
    you = here.ask("GET", "/v1/status").json()["you"]
    assert you["queued"] + you["running"] == you["limits"]["unfinished_jobs"] == 2


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a key has used is looked up at each request, and not a few times a second."""
    monkeypatch.setattr(jobs, "_LOOK_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_seconds_of_compute_in_a_day(stage: Any, body: bytes) -> None:
    here, worker = stage(quotas=Quotas(compute_s=1))
    for _ in range(2):  # half a second each
        id = submit(here, body).json()["id"]
        eventually(lambda id=id: id in worker.got)
        worker.done(id)
        assert here.ask("GET", f"/v1/jobs/{id}?wait_s=10").json()["status"] == "done"
    left_s = 24 * 3600 - time.time() % (24 * 3600)
    for answer in takers(here, body):
        assert "compute_s: 1 s of compute were used today, 1 allowed" in here.error(answer, 429)
        assert abs(int(answer.headers["Retry-After"]) - left_s) < 30
    assert submit(here, body, BOB).status_code == 202
    assert here.ask("GET", "/v1/status").json()["you"]["compute_s_today"] == 1.0


@pytest.mark.usefixtures("at_once")
def test_stored_bytes(stage: Any, body: bytes) -> None:
    here, worker = stage(quotas=Quotas(stored_bytes=len(body)))
    id = submit(here, body).json()["id"]  # its request is kept until it has ended
    eventually(lambda: id in worker.got)
    for answer in takers(here, body):
        assert "stored_bytes" in here.error(answer, 429)
        assert int(answer.headers["Retry-After"]) > 0
    assert submit(here, body, BOB).status_code == 202
    assert here.ask("GET", "/v1/status").json()["you"]["stored_bytes"] == len(body)
    worker.done(id)
    assert here.ask("GET", f"/v1/jobs/{id}?wait_s=10").json()["status"] == "done"
    assert here.ask("DELETE", f"/v1/jobs/{id}").status_code == 204
    assert submit(here, body).status_code == 202, "what was let go of leaves room"


@pytest.mark.parametrize("name", ["unfinished_jobs", "compute_s", "stored_bytes", "streams", "events"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_a_quota_that_cannot_be(name: str, value: Any) -> None:
    from glassworks.errors import InputError

    with pytest.raises(InputError, match=name):
        Quotas(**{name: value})


def test_what_a_job_says_beyond_its_events_is_not_kept_and_its_end_is(stage: Any, body: bytes) -> None:
    here, worker = stage(quotas=Quotas(events=5))
    id = submit(here, body).json()["id"]
    eventually(lambda: id in worker.got)
    worker.events(*((id, k, "log", {"text": str(k)}) for k in range(50)))
    worker.done(id)
    text = here.ask("GET", f"/v1/jobs/{id}/events").text
    assert text.count("event: log") <= 5
    assert text.count("event: done") == 1
