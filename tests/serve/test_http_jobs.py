"""Jobs over HTTP: whose they are, how they stand, and what is asked of them."""

import re
import socket
import time
from typing import Any

import httpx
import pytest

from glassworks.graph import messages
from services import ANN, BOB, Here, eventually

JOBS, RUN = "/v1/models/small/jobs", "/v1/models/small/run"


def submit(here: Here, body: bytes, *, key: str = ANN, **headers: str) -> dict[str, Any]:
    answer = here.ask("POST", JOBS, key=key, content=body, headers=headers)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["Glassworks-Job"] == found["id"]
    return found


def status(here: Here, id: str, query: str = "") -> dict[str, Any]:
    found: dict[str, Any] = here.ask("GET", f"/v1/jobs/{id}{query}").json()
    return found


# Whose they are.


def test_ids_are_the_servers_and_cannot_be_guessed(here: Here, body: bytes) -> None:
    given = {"id": "job-mine", "Glassworks-Job": "job-mine", "X-Request-Id": "job-mine"}
    ids = [submit(here, body, **given)["id"] for _ in range(10)]
    assert len(set(ids)) == 10
    assert all(re.fullmatch(r"job-[\w-]{24}", id) for id in ids)


@pytest.mark.parametrize(
    ("method", "what"),
    [("GET", ""), ("GET", "?wait_s=5"), ("GET", "/results"), ("GET", "/results?wait_s=5"), ("GET", "/events"),
     ("POST", "/cancel"), ("DELETE", "")],
)  # fmt: skip
def test_a_job_is_its_keys_alone_and_to_others_its_id_is_unknown(
    here: Here, body: bytes, method: str, what: str
) -> None:
    id = submit(here, body)["id"]
    assert here.ask("GET", f"/v1/jobs/{id}?wait_s=10").json()["status"] == "done"
    start, unknown = time.monotonic(), "job-" + "x" * 24
    others = here.error(here.ask(method, f"/v1/jobs/{id}{what}", key=BOB), 404)
    nobodys = here.error(here.ask(method, f"/v1/jobs/{unknown}{what}", key=BOB), 404)
    assert others == nobodys.replace(unknown, id)
    assert time.monotonic() - start < 4, "nobody waits for a job that he does not have"
    assert here.ask("GET", f"/v1/jobs/{id}/results").status_code == 200, "and nothing has happened to it"


def test_a_list_is_of_ones_own_the_newest_first(here: Here, body: bytes, experiment: Any) -> None:
    failing = messages.encode_request("small", [experiment(("div", 0))])
    ids = [submit(here, body)["id"], submit(here, failing)["id"], submit(here, body)["id"]]
    other = submit(here, body, key=BOB)["id"]
    assert status(here, ids[-1], "?wait_s=10")["status"] == "done"

    def listed(query: str, key: str = ANN) -> list[str]:
        return [job["id"] for job in here.ask("GET", f"/v1/jobs{query}", key=key).json()["jobs"]]

    assert listed("")[:3] == ids[::-1]
    assert listed("?limit=2") == ids[:0:-1]
    assert listed("?status=failed")[:1] == [ids[1]]
    assert ids[1] not in listed("?status=done&limit=1000")
    assert listed("?status=nothing") == []
    assert other not in listed("?limit=1000")
    assert listed("", BOB)[:1] == [other]
    for query in ("?limit=0", "?limit=1001", "?limit=x"):
        assert here.error(here.ask("GET", f"/v1/jobs{query}"), 422)


# The same twice.


def test_the_same_words_from_the_same_key_are_the_same_job(here: Here, body: bytes, experiment: Any) -> None:
    first = submit(here, body, **{"Idempotency-Key": "once"})
    assert submit(here, body, **{"Idempotency-Key": "once"})["id"] == first["id"]
    ended = here.ask("POST", RUN, content=body, headers={"Idempotency-Key": "once"})
    assert (ended.status_code, ended.headers["Glassworks-Job"]) == (200, first["id"])
    assert status(here, first["id"])["attempts"] == 1
    other = messages.encode_request("small", [experiment(tokens=4)])
    answer = here.ask("POST", JOBS, content=other, headers={"Idempotency-Key": "once"})
    assert "belongs to the job" in here.error(answer, 422)
    assert submit(here, body, key=BOB, **{"Idempotency-Key": "once"})["id"] != first["id"]
    assert submit(here, body)["id"] != submit(here, body)["id"], "who says nothing has two"
    for name in ("", "x" * 201):
        assert here.error(here.ask("POST", JOBS, content=body, headers={"Idempotency-Key": name}), 422)


# How they stand.


def test_results_are_there_at_the_end_and_not_before(stage: Any, body: bytes) -> None:
    here, worker = stage()
    id = submit(here, body)["id"]
    eventually(lambda: id in worker.got)
    assert "has not ended" in here.error(here.ask("GET", f"/v1/jobs/{id}/results"), 409)
    for under_way in (
        here.ask("GET", f"/v1/jobs/{id}/results?wait_s=0.1"),
        here.ask("POST", f"{JOBS}?wait_s=0.1", content=body, headers={"Idempotency-Key": "new"}),
    ):
        assert under_way.status_code == 202
        assert under_way.json()["status"] in ("queued", "running")
        assert under_way.headers["Glassworks-Job"] == under_way.json()["id"]
    worker.done(id)
    found = here.ask("GET", f"/v1/jobs/{id}/results?wait_s=20")
    assert (found.status_code, found.headers["Content-Type"], found.content) == (200, "a/b", b"saves")
    assert found.headers["Glassworks-Job"] == id
    assert here.ask("GET", f"/v1/jobs/{id}/results").content == found.content, "as often as one likes"


def test_a_submission_that_waits_is_answered_with_what_it_came_to(
    here: Here, fake: Any, body: bytes, experiment: Any
) -> None:
    found = here.ask("POST", f"{JOBS}?wait_s=20", content=body)
    assert (found.status_code, found.headers["Content-Type"]) == (200, "application/octet-stream")
    assert messages.decode_results(found.content)[0]["s"] == fake.zeros(1, 3, 8)
    assert status(here, found.headers["Glassworks-Job"])["status"] == "done"
    failed = here.ask("POST", f"{JOBS}?wait_s=20", content=messages.encode_request("small", [experiment(("div", 0))]))
    assert "division by zero" in here.error(failed, 422)
    assert status(here, failed.headers["Glassworks-Job"])["status"] == "failed"


def test_a_status_says_where_a_job_stands(stage: Any, body: bytes) -> None:
    here, worker = stage()
    before = time.time()
    first = submit(here, body)
    assert set(first) == {
        "id", "model", "kind", "status", "position", "expected_start_s", "progress", "created_s", "started_s",
        "ended_s", "attempts", "priority", "seed", "compute_s",
    }  # fmt: skip
    assert (first["model"], first["kind"], first["ended_s"]) == ("small", "experiments", None)
    assert before - 1 < first["created_s"] < time.time() + 1
    eventually(lambda: first["id"] in worker.got)
    running = status(here, first["id"])
    assert (running["status"], running["position"], running["expected_start_s"]) == ("running", 0, 0.0)
    assert running["attempts"] == 1
    assert running["started_s"] >= running["created_s"]
    worker.events((first["id"], None, "progress", {"progress": 0.25}))
    eventually(lambda: status(here, first["id"])["progress"] == 0.25)
    worker.done(first["id"])
    done = status(here, first["id"], "?wait_s=10")
    assert (done["status"], done["position"], done["expected_start_s"], done["progress"]) == ("done", None, None, 1.0)
    assert (done["compute_s"], done["ended_s"] >= done["started_s"]) == (0.5, True)


def test_who_waits_knows_how_many_are_before_him_and_about_how_long(stage: Any, body: bytes) -> None:
    here, worker = stage()
    ids = [submit(here, body)["id"] for _ in range(36)]
    eventually(lambda: len(worker.got) == 32)
    positions = [status(here, id)["position"] for id in ids[32:]]
    assert positions == [32, 33, 34, 35]
    assert status(here, ids[-1])["expected_start_s"] is None, "nothing has ended yet: nobody can tell"
    other = submit(here, body, key=BOB)
    eventually(lambda: other["id"] in worker.got)
    for id in ids[:2]:
        worker.done(id)
    eventually(lambda: len(worker.got) == 35)
    last = status(here, ids[-1])
    assert last["position"] == 33 + 1
    assert 0 < last["expected_start_s"] < 3600


def test_a_priority_decides_among_ones_own(stage: Any, body: bytes) -> None:
    here, worker = stage()
    full = [submit(here, body)["id"] for _ in range(32)]
    eventually(lambda: len(worker.got) == 32)
    later = [submit(here, body, **{"Glassworks-Priority": str(priority)}) for priority in (-10, 0, 10)]
    assert [job["priority"] for job in later] == [-10, 0, 10]
    for k, wanted in enumerate(later[::-1]):
        worker.done(full[k])
        eventually(lambda wanted=wanted: wanted["id"] in worker.got)
        assert len(worker.got) == 33 + k
    for priority in ("11", "-11", "1.5", "high"):
        assert here.error(here.ask("POST", JOBS, content=body, headers={"Glassworks-Priority": priority}), 422)


# Ending them.


def test_a_job_is_called_off_at_each_stage(stage: Any, body: bytes) -> None:
    here, worker = stage()
    running = submit(here, body)["id"]
    eventually(lambda: running in worker.got)
    assert here.ask("POST", f"/v1/jobs/{running}/cancel").json()["status"] == "running"
    eventually(lambda: running in worker.cancels)
    worker.done(running, status=409)
    assert status(here, running, "?wait_s=10")["status"] == "cancelled"
    assert "was cancelled" in here.error(here.ask("GET", f"/v1/jobs/{running}/results"), 409)
    worker.die()
    waiting = submit(here, body)["id"]
    assert here.ask("POST", f"/v1/jobs/{waiting}/cancel").json()["status"] == "cancelled"
    assert here.ask("POST", f"/v1/jobs/{waiting}/cancel").json()["status"] == "cancelled", "twice is as good as once"
    worker.appear()
    done = submit(here, body)["id"]
    eventually(lambda: done in worker.got)
    assert waiting not in worker.got
    worker.done(done)
    assert status(here, done, "?wait_s=10")["status"] == "done"
    assert here.ask("POST", f"/v1/jobs/{done}/cancel").json()["status"] == "done"


def test_what_has_ended_can_be_let_go_of(stage: Any, body: bytes) -> None:
    here, worker = stage()
    id = submit(here, body)["id"]
    eventually(lambda: id in worker.got)
    assert "cancel it first" in here.error(here.ask("DELETE", f"/v1/jobs/{id}"), 409)
    worker.done(id)
    assert status(here, id, "?wait_s=10")["status"] == "done"
    gone = here.ask("DELETE", f"/v1/jobs/{id}")
    assert (gone.status_code, gone.content) == (204, b"")
    for what in ("", "/results", "/events"):
        assert here.error(here.ask("GET", f"/v1/jobs/{id}{what}"), 404)
    assert here.error(here.ask("DELETE", f"/v1/jobs/{id}"), 404)


@pytest.mark.parametrize("key", [None, "stays"])
def test_who_hangs_up_on_a_run_calls_it_off_unless_he_can_ask_again(stage: Any, body: bytes, key: str | None) -> None:
    here, worker = stage()
    headers = {} if key is None else {"Idempotency-Key": key}
    with pytest.raises(httpx.ReadTimeout):
        here.ask("POST", RUN, content=body, headers=headers, timeout=0.5)
    eventually(lambda: worker.got)
    [id] = worker.got
    if key is None:
        eventually(lambda: id in worker.cancels)
        return
    time.sleep(1.2)
    assert worker.cancels == []
    worker.done(id)
    again = here.ask("POST", RUN, content=body, headers=headers)
    assert (again.status_code, again.content, again.headers["Glassworks-Job"]) == (200, b"saves", id)


# What is refused before it is kept.


@pytest.mark.parametrize("path", [JOBS, RUN, "/v1/models/small/sites", "/v1/completions", "/v1/chat/completions"])
def test_compressed_and_oversize_bodies_are_refused_on_every_path(here: Here, fake: Any, path: str) -> None:
    over = fake.LIMITS.body_bytes + 1
    answer = here.ask("POST", path, content=b"12345", headers={"Content-Encoding": "gzip"})
    assert "Content-Encoding" in here.error(answer, 415)
    assert "body_bytes" in here.error(here.ask("POST", path, content=bytes(over)), 413)
    sent = 0

    def endless() -> Any:
        nonlocal sent
        while sent < 2**26:
            sent += 2**16
            yield bytes(2**16)

    try:
        answer = here.ask("POST", path, content=endless())
        assert "body_bytes" in here.error(answer, 413)
    except (httpx.WriteError, httpx.ReadError):
        pass  # it was cut off
    assert sent < 2**26, "most of it was never taken"


def test_a_tensor_is_refused_likewise(here: Here, fake: Any) -> None:
    path = f"/v1/tensors/{'0' * 64}"
    assert here.error(here.ask("PUT", path, content=b"1", headers={"Content-Encoding": "br"}), 415)
    assert here.error(here.ask("PUT", path, content=bytes(fake.LIMITS.body_bytes + 1)), 413)


def test_what_was_announced_is_refused_before_a_byte_of_it_came(here: Here, fake: Any) -> None:
    host, port = here.url.removeprefix("http://").split(":")
    head = f"POST {JOBS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ANN}\r\n"
    head += f"Content-Length: {fake.LIMITS.body_bytes + 1}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(2**16).startswith(b"HTTP/1.1 413")
