"""Jobs of a service: how they stand and look, what they say, and states that nobody here knows."""

import time
from typing import Any

import pytest
import torch

import glassworks as gw
from client.conftest import PROMPT
from client.fake_service import FakeService, not_there
from glassworks.client import shown
from glassworks.graph.jobs import Event


@pytest.fixture
def waiting(model: Any, service: FakeService) -> Any:
    """A block that is a job, which nobody has run yet."""
    service.at_once = False
    with model.trace(PROMPT, wait=False) as t:
        model.logits.save("logits")
    return t


def looked_at(job: Any, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> str:
    """The job in print, when it may ask again."""
    monkeypatch.setattr("glassworks.client.job._LOOK_S", 0.0)
    return repr(job)


def test_how_a_job_stands(waiting: Any, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    job, own = waiting.job, service.only()
    assert (job.id, job.status, job.position, job.progress, job.expected_start_s) == ("job-0", "queued", 2, 0.0, 12.5)
    assert looked_at(job, service, monkeypatch) == "<job job-0 queued, 2 before it, in about 12 s>"
    own.status, own.progress = "running", 0.4
    assert (job.status, job.position, job.progress, job.expected_start_s) == ("running", 0, 0.4, None)
    assert looked_at(job, service, monkeypatch) == "<job job-0 running, 40 %>"
    service.finish(own)
    assert looked_at(job, service, monkeypatch) == "<job job-0 done>"
    assert (job.status, job.position, job.progress, job.expected_start_s) == ("done", None, 1.0, None)
    assert job.results()["logits"].shape[-1] == 991


def test_printing_a_job_asks_seldom_and_never_raises(waiting: Any, service: FakeService) -> None:
    job = waiting.job
    service.trouble("GET /v1/jobs/job-0", not_there(), "hang up", not_there(404))
    assert [repr(job) for _ in range(5)] == ["<job job-0 queued, 2 before it, in about 12 s>"] * 5
    assert service.count("GET /v1/jobs/job-0") == 1


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"status": 3},
        {"status": "queued", "position": "x"},
        {"status": "x", "progress": []},
        {"status": "running", "progress": float("nan"), "expected_start_s": {}},
    ],
)
def test_a_line_about_a_job_is_made_of_whatever_is_known(told: Any) -> None:
    assert shown.job_line("job-x", told).startswith("<job job-x")


def test_a_state_that_is_not_known_is_for_reading(
    waiting: Any, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, own = waiting.job, service.only()
    own.status, own.progress = "moving-house", 0.25
    service.say(own, "moved", {"to": "elsewhere"})
    assert job.status == "moving-house"
    assert looked_at(job, service, monkeypatch) == "<job job-0 moving-house, 25 %>"
    with pytest.raises(TimeoutError, match=r"job-0 has not ended after 0\.1 s: it is moving-house"):
        job.wait(timeout_s=0.1)
    service.finish(own)
    assert [event.kind for event in job.events()] == ["queued", "moved", "done"]
    job.wait()
    assert job.status == "done"


def test_cancelled_and_failed_jobs_raise_where_results_are_asked_for(waiting: Any, service: FakeService) -> None:
    waiting.job.cancel()
    assert service.only().status == waiting.job.status == "cancelled"
    waiting.job.wait()
    for _ in range(2):
        with pytest.raises(gw.Cancelled, match="job-0 was cancelled"):
            waiting.job.results()


def test_a_failed_job_raises_what_its_run_raised(model: Any, service: FakeService) -> None:
    service.at_once = False
    with model.trace(PROMPT, wait=False) as t:
        value = model.logits[:, 10_000].save()
    service.finish(service.only())
    t.job.wait()
    assert t.job.status == "failed"
    for use in (t.job.results, lambda: value + 1):
        with pytest.raises(IndexError) as caught:
            use()
        assert any(f"  at {__file__}:" in note for note in caught.value.__notes__)


def test_what_is_said_of_the_asking_is_no_end_of_the_job(waiting: Any, service: FakeService) -> None:
    service.trouble("results", not_there(500))
    with pytest.raises(gw.RemoteError, match="status 500"):
        waiting.job.results()
    service.finish(service.only())
    assert "logits" in waiting.job.results()


# Events.


def test_events_come_once_and_in_order_also_where_streams_break(waiting: Any, service: FakeService) -> None:
    own = service.only()
    service.start(own)
    for k in range(5):
        service.say(own, "token", {"id": k})
    service.finish(own)
    service.cuts.extend([1, 0, 3, 2])
    service.trouble("/events", not_there())
    found = list(waiting.job.events())
    assert [event.number for event in found] == list(range(1, 9))
    assert [event.data["id"] for event in found if event.kind == "token"] == [0, 1, 2, 3, 4]
    assert found[-1] == Event(8, "done", {})
    assert [event.number for event in waiting.job.events(after=6)] == [7, 8]


def test_who_stops_listening_lets_go_of_the_stream(waiting: Any, service: FakeService) -> None:
    own = service.only()
    listening = waiting.job.events()
    assert next(listening) == Event(1, "queued", {})
    listening.close()
    service.finish(own)
    assert waiting.job.status == "done"


def test_an_event_that_cannot_be_read_is_said(waiting: Any, service: FakeService) -> None:
    service.stream = lambda job, after: iter([b"id: x\nevent: y\n\n"])  # type: ignore[method-assign]
    with pytest.raises(gw.WireError, match="an event of the service cannot be read"):
        list(waiting.job.events())


def test_events_of_a_job_that_nobody_knows(lab: Any, waiting: Any, service: FakeService) -> None:
    service.jobs.clear()
    with pytest.raises(gw.RemoteError, match="no job 'job-0'"):
        list(waiting.job.events())
    with pytest.raises(gw.RemoteError, match="no job 'job-0'"):
        lab.job("job-0")


def test_a_job_of_a_model_at_hand_has_events_too(local: Any) -> None:
    with local.trace(PROMPT, wait=False) as t:
        local.logits.save()
    assert list(t.job.events()) == [Event(1, "done")]
    assert list(t.job.events(after=1)) == []
    assert (repr(t.job), t.job.expected_start_s) == (f"<job {t.job.id} done>", None)


# The service.

STATUS = {
    "version": "0.2.0",
    "models": {
        "toy": {"state": "ready", "queued": 12, "running": 3, "rows_per_pass": 9.26, "passes": 100},
        "org/large": {"state": "moving-house", "queued": 0, "running": 0, "rows_per_pass": None},
    },
    "you": {
        "name": "ada", "queued": 2, "running": 1, "compute_s_today": 71.25, "stored_bytes": 3 * 2**20,
        "limits": {"queued": 100, "compute_s_a_day": 3600, "stored_bytes": 2**30, "streams": None},
    },
}  # fmt: skip


def test_the_status_of_a_service_prints_as_a_table(lab: Any, service: FakeService) -> None:
    service.status = STATUS
    status = lab.status()
    assert str(status) == "\n".join([
        "glassworks 0.2.0",
        "",
        "model      state         queued  running  rows a pass",
        "toy        ready         12      3        9.3",
        "org/large  moving-house  0       0",
        "",
        "you: ada, 2 queued, 1 running",
        "     71.2 s of compute today, 3.0 MiB stored",
        "     limits: queued 100, compute_s_a_day 3600, stored_bytes 1.0 GiB",
    ])  # fmt: skip
    assert status.models[0].more == {"passes": 100}
    assert status.you.limits["queued"] == 100
    with pytest.raises(AttributeError):
        status.version = "x"


@pytest.mark.parametrize("body", [{}, [], {"version": "1", "models": {}, "you": None},
                                  {**STATUS, "models": {"toy": {"state": "ready"}}}])  # fmt: skip
def test_a_status_that_is_none_is_said(lab: Any, service: FakeService, body: Any) -> None:
    service.status = body
    with pytest.raises(gw.WireError, match="the status of the service cannot be read"):
        lab.status()


def test_the_jobs_of_a_key_print_as_a_table(lab: Any, model: Any, service: FakeService) -> None:
    service.at_once = False
    for _ in range(3):
        with model.trace(PROMPT, wait=False):
            model.logits.save("logits")
    first, second, third = service.jobs.values()
    service.finish(first)
    second.status, second.progress = "running", 0.4
    for job, age_s in ((first, 7200), (second, 90), (third, 3)):
        job.created_s = time.time() - age_s
    found = lab.jobs()
    assert repr(found).splitlines() == [
        "job    model  status                progress  begun",
        "job-2  toy    queued (2 before it)  0 %       3 s ago",
        "job-1  toy    running               40 %      90 s ago",
        "job-0  toy    done                  100 %     2 h ago",
    ]
    assert len(found) == 3
    assert [job.id for job in found] == ["job-2", "job-1", "job-0"]
    assert torch.is_tensor(found[-1].results()["logits"])
    assert [job.id for job in lab.jobs("done")] == ["job-0"]
    assert [job.id for job in lab.jobs(limit=2)] == ["job-2", "job-1"]
    assert [job.id for job in found[:1]] == ["job-2"]
    assert repr(lab.jobs("failed")) == "no jobs"


def test_a_job_in_a_list_is_asked_about_where_it_is_not_known_to_have_ended(
    lab: Any, waiting: Any, service: FakeService
) -> None:
    [job] = lab.jobs()
    service.finish(service.only())
    assert job.status == "done"
    asked = len(service.asked)
    [again] = lab.jobs()
    assert (again.status, again.progress, repr(again)) == ("done", 1.0, "<job job-0 done>")
    assert len(service.asked) == asked + 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (5999, "100 min"), (7200, "2 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert shown.duration(seconds) == text
