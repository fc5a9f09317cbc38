"""Blocks on a service: one round trip where it can be, what is tried again, and what is heard meanwhile."""

import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import glassworks as gw
from client.conftest import PROMPT
from client.fake_service import QUOTA, FakeService, Job, not_there, served
from glassworks.errors import QuotaExceeded
from glassworks.graph import logs

SUBMIT = "POST /v1/models/toy/jobs"


@pytest.fixture
def expected(local: Any) -> torch.Tensor:
    with local.trace(PROMPT):
        found = local.logits[:, -1].argmax(-1).save()
    return found.value


def top(model: Any) -> torch.Tensor:
    with model.trace(PROMPT):
        found = model.logits[:, -1].argmax(-1).save()
    return found.value


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin something; gives what waits for what it comes to."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()

    def result() -> Any:
        thread.join(20)
        return found[0]

    return result


# One round trip.


def test_a_job_that_ends_soon_is_one_request(model: Any, service: FakeService, expected: torch.Tensor) -> None:
    assert torch.equal(top(model), expected)
    assert [words for words, _ in service.asked] == [f"{SUBMIT}?wait_s=20"]
    assert len(service.asked[0][1]["idempotency-key"]) > 20
    assert service.asked[0][1]["authorization"] == "Bearer gw-test"


def test_each_run_has_a_key_of_its_own(model: Any, service: FakeService) -> None:
    top(model)
    top(model)
    assert len({headers["idempotency-key"] for _, headers in service.asked}) == 2


def test_a_job_that_takes_longer_is_asked_for_until_it_has_ended(
    model: Any, service: FakeService, expected: torch.Tensor
) -> None:
    service.at_once = False
    result = in_thread(lambda: top(model))
    job = service.only()
    while service.count("GET /v1/jobs/job-0/results") < 2:
        time.sleep(0.01)
    service.finish(job)
    assert torch.equal(result(), expected)
    assert service.count(SUBMIT) == 1
    assert service.count("events") == 0


def test_what_a_run_raises_is_raised_with_the_authors_line(model: Any, service: FakeService) -> None:
    for service.at_once in (True, False):
        service.on_submit = lambda job: None if job.answer else service.finish(job)
        with pytest.raises(IndexError) as caught, model.trace(PROMPT):
            model.logits[:, 10_000].save()
        assert any(f"  at {__file__}:" in note for note in caught.value.__notes__)


def test_a_refusal_is_raised_and_no_job_is_made(model: Any, service: FakeService) -> None:
    with pytest.raises(gw.LimitExceeded, match=r"node_bytes[\s\S]*  at .*test_running.py"), model.trace(PROMPT):
        model.logits.repeat(10**6, 1, 1).sum().save()
    assert not service.jobs


# What is tried again.


@pytest.mark.parametrize("trouble", [not_there(502), not_there(503), not_there(504), "hang up"])
def test_a_service_that_is_not_there_is_asked_again_with_the_same_key(
    model: Any, service: FakeService, expected: torch.Tensor, trouble: Any
) -> None:
    service.trouble(SUBMIT, trouble, trouble)
    assert torch.equal(top(model), expected)
    assert len(service.asked) == 3
    assert len({headers["idempotency-key"] for _, headers in service.asked}) == 1


def test_an_answer_that_is_lost_runs_nothing_twice(model: Any, service: FakeService, expected: torch.Tensor) -> None:
    service.trouble(SUBMIT, "lost answer")
    assert torch.equal(top(model), expected)
    assert service.count(SUBMIT) == 2
    assert len(service.jobs) == 1


def test_waiting_is_taken_up_again(model: Any, service: FakeService, expected: torch.Tensor) -> None:
    service.at_once = False
    service.trouble("results", not_there(), "hang up", not_there(502))
    result = in_thread(lambda: top(model))
    job = service.only()
    while service.troubles:
        time.sleep(0.01)
    service.finish(job)
    assert torch.equal(result(), expected)


def test_retry_after_is_honoured(model: Any, service: FakeService) -> None:
    service.trouble(SUBMIT, not_there(after="0.7"))
    begun = time.monotonic()
    top(model)
    assert 0.7 <= time.monotonic() - begun < 3


@pytest.mark.parametrize("after", ["Wed, 21 Oct 2026 07:28:00 GMT", "nan", "-1"])
def test_a_retry_after_that_is_no_number_of_seconds_is_passed_over(
    model: Any, service: FakeService, after: str
) -> None:
    service.trouble(SUBMIT, not_there(after=after))
    begun = time.monotonic()
    top(model)
    assert time.monotonic() - begun < 3


def test_patience_ends(url: str, service: FakeService) -> None:
    model = gw.connect(url, patience_s=0.5).model("toy")
    service.trouble(SUBMIT, *[not_there()] * 100)
    begun = time.monotonic()
    with pytest.raises(gw.RemoteError, match="status 503") as caught:
        top(model)
    assert 0.3 < time.monotonic() - begun < 3
    assert caught.value.__notes__ == ["  tried again for 0.5 s (patience_s of gw.connect)"]


def test_a_service_that_asks_for_more_than_the_patience_is_not_waited_for(url: str, service: FakeService) -> None:
    model = gw.connect(url, patience_s=5.0).model("toy")
    service.trouble(SUBMIT, not_there(after="3600"))
    begun = time.monotonic()
    with pytest.raises(gw.RemoteError, match="status 503"):
        top(model)
    assert time.monotonic() - begun < 4


def test_without_patience_the_first_failure_is_raised(url: str, service: FakeService) -> None:
    model = gw.connect(url, patience_s=0).model("toy")
    service.trouble(SUBMIT, not_there())
    with pytest.raises(gw.RemoteError, match="status 503") as caught:
        top(model)
    assert not hasattr(caught.value, "__notes__")
    assert service.count(SUBMIT) == 1


@pytest.mark.parametrize("patience_s", [-1, float("inf"), float("nan"), "60", True])
def test_patience_is_a_number_of_seconds(patience_s: Any) -> None:
    with pytest.raises(gw.InputError, match="patience_s is a number of seconds"):
        gw.connect("http://localhost:1", patience_s=patience_s)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500])
def test_other_answers_are_not_asked_for_again(model: Any, service: FakeService, status: int) -> None:
    service.trouble(SUBMIT, not_there(status))
    with pytest.raises(gw.RemoteError, match=f"status {status}"):
        top(model)
    assert service.count(SUBMIT) == 1


def test_a_quota_is_raised_in_the_words_of_the_service(model: Any, service: FakeService) -> None:
    service.trouble(SUBMIT, QUOTA)
    with pytest.raises(QuotaExceeded, match="queued: 101 asked for, 100 allowed"):
        top(model)
    assert service.count(SUBMIT) == 1


def test_questions_before_a_run_are_not_asked_again(lab: Any, service: FakeService) -> None:
    for words, ask in (("models/toy/sites", lambda: lab.model("toy")), ("/v1/models$", lab.models)):
        service.trouble(words, not_there())
        with pytest.raises(gw.RemoteError, match="status 503"):
            ask()


def test_a_client_survives_a_restart(local: Any, service: FakeService, expected: torch.Tensor) -> None:
    """The service goes away while a job runs, and comes back on the same port with the job."""
    service.at_once = False
    with served(service) as url:
        model = gw.connect(url, patience_s=20).model("toy")
        result = in_thread(lambda: top(model))
        job = service.only()
    time.sleep(0.5)
    service.closing = False
    with served(service, int(url.rpartition(":")[2])):
        time.sleep(0.2)
        service.finish(job)
        assert torch.equal(result(), expected)
    assert len(service.jobs) == 1


# What is heard.


def write_log(model: Any) -> Any:
    with model.trace(PROMPT) as t:
        gw.log("norm", model.layers[0].output.norm())
        gw.log("mean", model.layers[1].output.mean())
    return t


def listened_to(service: FakeService) -> None:
    """Wait until somebody has asked for events."""
    while not service.count("/events"):
        time.sleep(0.01)


@pytest.fixture
def said(local: Any, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines as a run at hand prints them."""
    write_log(local)
    return capsys.readouterr().out.splitlines()


def log_nodes(local: Any) -> list[int]:
    return [n for n, node in enumerate(write_log(local).graph.nodes) if node.kind == "log"]


@pytest.fixture
def slow(local: Any, service: FakeService, capsys: pytest.CaptureFixture[str]) -> Callable[[], Job]:
    """Runs that say what they have to say as events before they end."""
    nodes = log_nodes(local)
    texts = [entry.text for entry in write_log(local).logs]
    capsys.readouterr()
    service.at_once = False

    def begin() -> Job:
        job = service.only()
        service.start(job)
        for node, text in zip(nodes, texts, strict=True):
            service.log(job, text, node=node)
        return job

    return begin


def test_logs_are_printed_while_the_job_runs_and_once(
    model: Any, service: FakeService, slow: Any, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    result = in_thread(lambda: write_log(model))
    job = slow()
    heard = ""
    while heard.count("\n") < 2:
        heard += capsys.readouterr().out
        time.sleep(0.01)
    assert job.status == "running"
    service.finish(job)
    t = result()
    assert heard.splitlines() == said
    assert capsys.readouterr().out == ""
    assert [entry.text for entry in t.logs] == [line.partition(": ")[2] for line in said]
    assert f"{SUBMIT}?wait_s=0.5" in service.asked[0][0]


def test_a_stream_that_breaks_is_gone_on_with_and_nothing_is_heard_twice(
    model: Any, service: FakeService, slow: Any, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    service.cuts.extend([0, 1, 2, 0, 1])
    result = in_thread(lambda: write_log(model))
    job = slow()
    listened_to(service)
    service.finish(job)
    result()
    assert capsys.readouterr().out.splitlines() == said
    streams = [headers.get("last-event-id") for words, headers in service.asked if words.endswith("/events")]
    assert streams == [None, None, "1", "3", "3", "4"]


def test_a_service_that_sends_events_again_is_heard_once(
    model: Any, service: FakeService, slow: Any, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One that does not look at Last-Event-ID."""
    stream = service.stream
    service.stream = lambda job, after: stream(job, 0)  # type: ignore[method-assign]
    service.cuts.extend([3, 4])
    result = in_thread(lambda: write_log(model))
    job = slow()
    listened_to(service)
    service.finish(job)
    result()
    assert capsys.readouterr().out.splitlines() == said


def test_what_no_event_said_is_heard_with_the_results(
    model: Any, service: FakeService, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Events that cannot be read, as of a newer service, are passed over."""
    service.at_once = False
    result = in_thread(lambda: write_log(model))
    job = service.only()
    for data in (None, [], {}, {"entry": "x"}, {"entry": ["x", 10**6, None, []]}, {"experiment": 9, "entry": []}):
        service.say(job, "log", data)
    service.say(job, "hummed", {"tune": 1})
    listened_to(service)
    service.finish(job)
    result()
    assert capsys.readouterr().out.splitlines() == said


def test_where_too_many_listen_the_results_are_waited_for(
    model: Any, service: FakeService, slow: Any, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    service.trouble("/events", QUOTA)
    result = in_thread(lambda: write_log(model))
    job = slow()
    listened_to(service)
    service.finish(job)
    result()
    assert capsys.readouterr().out.splitlines() == said


def test_streams_that_open_and_break_at_once_end_the_patience(url: str, service: FakeService) -> None:
    service.at_once = False
    model = gw.connect(url, patience_s=0.4).model("toy")
    service.stream = lambda job, after: iter([None])  # type: ignore[method-assign]
    with pytest.raises(gw.RemoteError, match=r"broke during GET /v1/jobs/job-0/events"):
        write_log(model)


# Interruptions.


def interrupt(model: Any, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """The first request of those words is interrupted, once the service has it."""
    transport = model.backend.transport
    real, interrupted = type(transport).send, []

    def send(self: Any, request: Any) -> Any:
        found = real(self, request)
        if re.search(words, f"{request.method} {request.path}") and not interrupted:
            interrupted.append(words)
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(type(transport), "send", send)


@pytest.mark.parametrize(("words", "submissions"), [(r"jobs\?wait_s", 2), ("results", 1)])
def test_an_interruption_calls_the_job_off(
    model: Any, service: FakeService, monkeypatch: pytest.MonkeyPatch, words: str, submissions: int
) -> None:
    """Before the id is known it is found out by submitting once more, with the same key."""
    service.at_once = False
    interrupt(model, monkeypatch, words)
    with pytest.raises(KeyboardInterrupt):
        top(model)
    assert service.only().status == "cancelled"
    assert service.count(SUBMIT) == submissions


def test_an_interruption_while_logs_are_heard_calls_the_job_off(
    model: Any, service: FakeService, slow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(entry: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(logs, "tell", interrupted)
    threading.Thread(target=slow).start()
    with pytest.raises(KeyboardInterrupt):
        write_log(model)
    assert service.only().status == "cancelled"


def test_an_interruption_is_raised_also_where_the_job_cannot_be_called_off(
    model: Any, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.at_once = False
    service.trouble("/cancel", "hang up")
    interrupt(model, monkeypatch, "results")
    with pytest.raises(KeyboardInterrupt):
        top(model)
    assert service.count("/cancel") == 1
    assert service.only().status == "queued"


def test_an_interruption_in_one_process_runs_nothing_twice(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there, begun = gw.connect(local), []

    def interrupted(*arguments: Any) -> Any:
        begun.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(local.backend.local), "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        top(there)
    assert len(begun) == 1


def test_a_real_ctrl_c(model: Any, service: FakeService) -> None:
    service.at_once = False
    service.on_submit = lambda job: threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,)).start()
    with pytest.raises(KeyboardInterrupt):
        top(model)
    assert service.only().status == "cancelled"
