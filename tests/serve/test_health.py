"""Health: red within ten seconds of what is wrong, and green again after; and what the metrics say."""

import json
import os
import signal
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from glassworks.graph.messages import encode_error
from glassworks.serve import health
from glassworks.serve.supervise import running_service
from services import ANN, BOB, KEYS, NAMES, Here, answers, eventually

WITHIN_S = 10.0


def state(here: Here) -> tuple[int, str]:
    answer = here.ask("GET", "/healthz", key=None)
    found = answer.json()
    assert found["status"] == ("ok" if answer.status_code == 200 else "red")
    return answer.status_code, found["models"]["small"]["state"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of health that come more often."""
    monkeypatch.setattr(health, "_EVERY_S", 0.2)
    monkeypatch.setattr(health, "_ANSWER_S", 0.7)
    monkeypatch.setattr(health, "_SILENT_S", 1.5)


@pytest.mark.usefixtures("quick")
def test_a_test_that_fails_is_red_and_one_that_holds_is_green_again(stage: Any, fake: Any) -> None:
    here, worker = stage()
    beat(worker)
    eventually(lambda: state(here) == (200, "ok"))
    good = answers(fake)

    def wrong(head: dict[str, Any]) -> tuple[int, bytes]:
        return (500, encode_error(RuntimeError("not finite"))) if head["do"] == "selftest" else good(head)

    worker.answer = wrong
    eventually(lambda: state(here) == (503, "failed"))
    assert "not finite" in here.ask("GET", "/healthz", key=None).json()["models"]["small"]["why"]
    worker.answer = good
    eventually(lambda: beat(worker) or state(here) == (200, "ok"))
    worker.answer = lambda head: None if head["do"] == "selftest" else good(head)
    eventually(lambda: beat(worker) or state(here) == (503, "failed"))
    assert "no answer within" in here.ask("GET", "/healthz", key=None).json()["models"]["small"]["why"]


@pytest.mark.usefixtures("quick")
def test_a_worker_that_is_not_there_or_says_nothing_is_red(stage: Any) -> None:
    here, worker = stage()
    eventually(lambda: beat(worker) or state(here) == (200, "ok"))
    worker.die()
    eventually(lambda: state(here) == (503, "absent"))
    worker.appear()
    eventually(lambda: beat(worker) or state(here) == (200, "ok"))
    worker.answer = lambda head: None  # and no word more
    eventually(lambda: state(here) == (503, "failed"))
    eventually(lambda: "said nothing" in here.ask("GET", "/healthz", key=None).text)


@pytest.mark.usefixtures("quick")
def test_one_long_pass_is_busy_and_not_red(stage: Any, fake: Any) -> None:
    here, worker = stage()
    good = answers(fake)
    worker.answer = lambda head: None if head["do"] == "selftest" else good(head)
    eventually(lambda: beat(worker, pass_s=3.0) or state(here) == (200, "busy"))


def beat(worker: Any, *, pass_s: float = 0.0) -> None:
    """What a worker says twice a second."""
    worker.say({"is": "stats", "pass_s": pass_s, "at": [], "node_of": None})


def test_the_times_of_health_add_up_to_less_than_ten_seconds() -> None:
    assert health._EVERY_S + health._ANSWER_S < WITHIN_S
    assert health._SILENT_S < WITHIN_S


@pytest.mark.slow
def test_a_worker_process_that_hangs_is_red_in_time_and_another_comes(fake: Any) -> None:
    import httpx

    with running_service("small", limits=fake.LIMITS, worker_command=fake.FAKE) as running:

        def status() -> int:
            return httpx.get(f"{running.url}/healthz", trust_env=False).status_code

        first = running.worker
        os.kill(first, signal.SIGSTOP)
        began_s = time.monotonic()
        eventually(lambda: status() == 503, timeout_s=WITHIN_S)
        assert time.monotonic() - began_s < WITHIN_S
        eventually(lambda: status() == 200, timeout_s=60)
        assert running.worker != first


# Metrics.


def metrics(here: Here) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and labels."""
    text = here.ask("GET", "/metrics", key=None).text
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_prometheus_own_and_count_what_happens(stage: Any, body: bytes) -> None:
    here, worker = stage()
    ids = [here.ask("POST", "/v1/models/small/jobs", content=body, key=key).json()["id"] for key in (ANN, ANN, BOB)]
    eventually(lambda: len(worker.got) == 3)
    assert metrics(here)["glassworks_jobs_running", "small"] == 3
    worker.say(
        {
            "is": "stats", "pass_s": 0.0, "at": [], "node_of": None, "passes": 4, "rows": 10, "cpu_s": 1.5,
            "resident_bytes": 7, "engine": {"new_tokens": 3, "bytes": {"device": [1, 2]}},
        }
    )  # fmt: skip
    worker.done(ids[0])
    worker.done(ids[1], status=422, body=encode_error(ZeroDivisionError("x")))
    eventually(lambda: metrics(here).get(("glassworks_jobs_ended_total", "small", "failed")) == 1)
    found = metrics(here)
    assert found["glassworks_jobs_admitted_total", "small"] == 3
    assert found["glassworks_jobs_ended_total", "small", "done"] == 1
    assert (found["glassworks_jobs_running", "small"], found["glassworks_jobs_queued", "small"]) == (1, 0)
    assert found["glassworks_worker_up", "small"] == 1
    assert (found["glassworks_worker_passes_total", "small"], found["glassworks_worker_rows_total", "small"]) == (4, 10)
    assert found["glassworks_worker_cpu_seconds_total", "small"] == 1.5
    assert found["glassworks_worker_new_tokens_total", "small"] == 3
    assert found["glassworks_worker_kv_bytes", "small", "device", "used"] == 1
    assert found["glassworks_job_wait_seconds_count", "small"] == 3
    assert found["glassworks_job_run_seconds_count", "small"] == 2
    worker.die()
    eventually(lambda: metrics(here)["glassworks_worker_up", "small"] == 0)


def test_metrics_and_health_name_nobody(here: Here, body: bytes) -> None:
    id = here.ask("POST", "/v1/models/small/run", content=body).headers["Glassworks-Job"]
    text = here.ask("GET", "/metrics", key=None).text + here.ask("GET", "/healthz", key=None).text
    with here.keys() as keys:
        owners = [row.id for row in keys.list()]
    assert [word for word in (*KEYS, *NAMES, *owners, id, "work.py", json.dumps("a.output")) if word in text] == []
