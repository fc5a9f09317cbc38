"""Keys over HTTP: on by default, and gone within a second when they are revoked, with all that they have open."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from glassworks.serve.keys import Keys
from glassworks.serve.state import State
from played import Played
from services import ANN, BOB, NAMES, Here, answers, eventually, service_here

JOBS = "/v1/models/small/jobs"
OPEN = {"/healthz", "/metrics"}
WITHIN_S = 1.0
SLACK_S = 2.0
"""For a machine that is busy with other tests."""


def submit(here: Here, body: bytes, key: str = ANN) -> str:
    return str(here.ask("POST", JOBS, content=body, key=key).json()["id"])


def test_nothing_but_health_and_metrics_is_had_without_a_key(here: Here) -> None:
    paths = here.ask("GET", "/openapi.json", key=None).json()["paths"]
    asked = 0
    for path, methods in paths.items():
        for method in methods:
            answer = here.ask(method, path.replace("{name}", "small"), key=None)
            assert (answer.status_code == 401) == (path not in OPEN), (method, path)
            asked += 1
    assert asked > 12


def test_a_key_that_was_added_while_the_service_runs_is_let_in(here: Here) -> None:
    key = here.add("carol of the roof")
    eventually(lambda: here.ask("GET", "/v1/models", key=key).status_code == 200, timeout_s=WITHIN_S + SLACK_S)
    assert here.ask("GET", "/v1/status", key=key).json()["you"]["name"] == "carol of the roof"


def open_for_long(here: Here, id: str, body: bytes) -> dict[str, Callable[[], httpx.Response]]:
    return {
        "events": lambda: here.ask("GET", f"/v1/jobs/{id}/events"),
        "a job": lambda: here.ask("GET", f"/v1/jobs/{id}?wait_s=30"),
        "results": lambda: here.ask("GET", f"/v1/jobs/{id}/results?wait_s=30"),
        "a submission": lambda: here.ask("POST", f"{JOBS}?wait_s=30", content=body),
        "a run": lambda: here.ask("POST", "/v1/models/small/run", content=body),
    }


def test_a_revoked_key_stops_within_a_second_with_all_that_it_has_open(stage: Any, body: bytes) -> None:
    here, worker = stage()
    running, other = submit(here, body), submit(here, body, BOB)
    eventually(lambda: {running, other} <= set(worker.got))
    ended: dict[str, tuple[float, httpx.Response]] = {}

    def wait(name: str, ask: Callable[[], httpx.Response]) -> None:
        answer = ask()
        ended[name] = time.monotonic(), answer

    own = open_for_long(here, running, body)
    threads = [threading.Thread(target=wait, args=pair) for pair in own.items()]
    for thread in threads:
        thread.start()
    eventually(lambda: len(worker.got) == 4, timeout_s=30)
    time.sleep(0.5)
    assert ended == {}
    ids = [job["id"] for job in here.ask("GET", "/v1/jobs").json()["jobs"]]
    here.revoke(NAMES[0])
    revoked_s = time.monotonic()
    for thread in threads:
        thread.join(20)
    assert set(ended) == set(own)
    for name, (at_s, answer) in ended.items():
        assert at_s - revoked_s < WITHIN_S + SLACK_S, name
        if name == "events":
            assert "event: done" not in answer.text
        else:
            assert "this key was revoked" in here.error(answer, 401)
    assert here.error(here.ask("GET", "/v1/models"), 401)
    eventually(lambda: set(worker.cancels) == set(ids), timeout_s=WITHIN_S + SLACK_S)
    worker.done(other)
    assert here.ask("GET", f"/v1/jobs/{other}?wait_s=10", key=BOB).json()["status"] == "done"


def test_what_a_revoked_key_has_queued_is_called_off(stage: Any, body: bytes) -> None:
    here, worker = stage()
    ids = [submit(here, body) for _ in range(40)]
    eventually(lambda: len(worker.got) == 32)
    here.revoke(NAMES[0])
    eventually(lambda: set(worker.cancels) == set(worker.got), timeout_s=WITHIN_S + SLACK_S)
    for id in list(worker.got):
        worker.done(id, status=409)
    time.sleep(0.3)
    assert len(worker.got) == 32, "none of those that waited has come"
    assert set(worker.got) < set(ids)


def test_a_key_that_was_revoked_while_the_service_was_down_leaves_no_jobs(
    fake: Any, tmp_path: Any, body: bytes
) -> None:
    worker = Played(tmp_path / "w", answers(fake))
    sockets = {"small": str(tmp_path / "w")}
    with service_here(tmp_path, sockets, limits=fake.LIMITS) as here:
        worker.appear()
        ids = [submit(here, body) for _ in range(3)]
        eventually(lambda: set(ids) == set(worker.got))
    with State.visit(tmp_path / "state") as state:
        Keys(state).revoke(NAMES[0])
    worker.close()
    with service_here(tmp_path, {"small": str(tmp_path / "gone")}, limits=fake.LIMITS) as here:
        with State.visit(tmp_path / "state") as state:
            owner = next(row.id for row in Keys(state).list() if row.name == NAMES[0])
            eventually(lambda: _unfinished(state, owner) == 0, timeout_s=WITHIN_S + SLACK_S)
        assert here.error(here.ask("GET", f"/v1/jobs/{ids[0]}"), 401)


def test_a_job_of_a_model_that_the_service_has_no_more_is_looked_at_and_called_off(
    fake: Any, tmp_path: Any, body: bytes
) -> None:
    worker = Played(tmp_path / "w", answers(fake))
    with service_here(tmp_path, {"small": str(tmp_path / "w")}, limits=fake.LIMITS) as here:
        worker.appear()
        id = submit(here, body)
    worker.close()
    with service_here(tmp_path, {"other": str(tmp_path / "gone")}, limits=fake.LIMITS) as here:
        told = here.ask("GET", f"/v1/jobs/{id}").json()
        assert (told["status"], told["position"], told["model"]) == ("queued", None, "small")
        assert here.ask("GET", "/v1/jobs").json()["jobs"] == [told]
        assert here.ask("POST", f"/v1/jobs/{id}/cancel").json()["status"] == "cancelled"


def _unfinished(state: State, owner: str) -> int:
    from glassworks.serve import views

    return state.database.read(
        lambda connection: views.count(connection, owner, "queued") + views.count(connection, owner, "running")
    )


def test_the_state_folder_holds_no_key(here: Here, body: bytes) -> None:
    submit(here, body)
    files = [path for path in here.folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not [key for key in (ANN, BOB) if key.encode() in content], path


@pytest.mark.parametrize("scheme", ["Basic", "bearer2", "Token", ""])
def test_another_scheme_is_no_key(here: Here, scheme: str) -> None:
    answer = here.ask("GET", "/v1/models", key=None, headers={"Authorization": f"{scheme} {ANN}".strip()})
    assert ANN not in here.error(answer, 401)
