"""Jobs on their way to a worker and back, against a real ledger and a worker that the test plays over a real socket."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glassworks.client.content import joined
from glassworks.errors import RemoteError
from glassworks.graph.limits import Limits
from glassworks.graph.messages import decode_error
from glassworks.serve import dispatch
from glassworks.serve.deaths import Death
from glassworks.serve.dispatch import Dispatcher
from glassworks.serve.flights import KILLS_ALONE
from glassworks.serve.ledger import Ledger
from glassworks.serve.metrics import Metrics
from glassworks.serve.records import JobRow, NewJob
from glassworks.serve.state import State
from played import Played


@pytest.fixture(autouse=True)
def _nobody_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_DEATH_S", 0.1)


def eventually(what: Callable[[], Any], *, timeout_s: float = 10.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)
    return found


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.hold(tmp_path / "state") as state:
        yield state


@pytest.fixture
def ledger(state: State) -> Ledger:
    return Ledger(state)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Played]:
    played = Played(tmp_path / "w")
    yield played
    played.close()


@pytest.fixture
def deaths() -> dict[int, Death]:
    return {}


@pytest.fixture
def dispatcher(ledger: Ledger, tmp_path: Path, deaths: dict[int, Death], worker: Played) -> Iterator[Dispatcher]:
    found = Dispatcher(
        "m", ledger, str(tmp_path / "w"), limits=Limits(run_s=2), weight_of=lambda owner: 1.0, death_of=deaths.get,
        metrics=Metrics(),
    )  # fmt: skip
    yield found
    found.close()


@pytest.fixture
def admit(ledger: Ledger) -> Callable[..., JobRow]:
    def admit(owner: str = "a", body: bytes = b"body", **changes: Any) -> JobRow:
        job = NewJob(
            owner=owner,
            model="m",
            kind="experiments",
            verdict=b"{}",
            body=body,
            seed=7,
            tokens=10,
            forwards=1,
            **changes,
        )
        return ledger.admit(job)[0]

    return admit


@pytest.fixture
def run(dispatcher: Dispatcher, admit: Callable[..., JobRow]) -> Callable[..., JobRow]:
    def run(owner: str = "a", **changes: Any) -> JobRow:
        row = admit(owner, **changes)
        dispatcher.submit(row)
        return row

    return run


def status(ledger: Ledger, row: JobRow) -> str:
    found = ledger.find(row.id, row.owner)
    assert found is not None
    return found.status


def kinds(ledger: Ledger, row: JobRow) -> list[str]:
    return [event.kind for event in ledger.events(row.id, row.owner)]


def test_a_job_goes_to_the_worker_and_comes_back(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow]
) -> None:
    dispatcher.start()
    row = run()
    worker.appear()
    eventually(lambda: row.id in worker.got)
    assert worker.bodies[row.id] == [b"{}", b"body"]
    assert worker.got[row.id]["user"] == "a"
    assert worker.got[row.id]["seed"] == 7
    worker.events((row.id, 0, "log", {"text": "hello"}), (row.id, None, "progress", {"progress": 0.5}))
    eventually(lambda: dispatcher.standing(row)["progress"] == 0.5)
    worker.done(row.id)
    eventually(lambda: status(ledger, row) == "done")
    answer = ledger.results(row.id, "a")
    assert answer is not None
    assert (answer[0], answer[1], joined(answer[2])) == (200, "a/b", b"saves")
    assert kinds(ledger, row) == ["queued", "started", "log", "done"]
    assert eventually(lambda: dispatcher.counts == {"queued": 0, "running": 0})
    assert ledger.compute_s_today("a") == 0.5


def test_a_key_has_so_many_in_the_worker_and_others_come_at_once(
    dispatcher: Dispatcher, worker: Played, run: Callable[..., JobRow]
) -> None:
    many = [run() for _ in range(dispatch.EACH + 10)]
    dispatcher.start()
    worker.appear()
    eventually(lambda: len(worker.got) == dispatch.EACH)
    other = run("b")
    eventually(lambda: other.id in worker.got)
    assert len(worker.got) == dispatch.EACH + 1
    last = dispatcher.standing(many[-1])
    assert last["position"] >= dispatch.EACH
    worker.done(other.id)
    worker.done(next(id for id in worker.got if id != other.id))
    eventually(lambda: len(worker.got) == dispatch.EACH + 2)


def test_who_waits_for_room_does_so_quietly(
    dispatcher: Dispatcher, worker: Played, run: Callable[..., JobRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, choose = [], Dispatcher._choose
    monkeypatch.setattr(Dispatcher, "_choose", lambda self: looks.append(1) or choose(self))
    for _ in range(dispatch.EACH + 10):
        run()
    dispatcher.start()
    worker.appear()
    eventually(lambda: len(worker.got) == dispatch.EACH)
    time.sleep(0.1)
    before = len(looks)
    time.sleep(0.3)
    assert len(looks) == before
    worker.done(next(iter(worker.got)))
    eventually(lambda: len(worker.got) == dispatch.EACH + 1)


def test_what_a_dead_worker_had_runs_alone_one_by_one(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow]
) -> None:
    dispatcher.start()
    worker.appear()
    rows = [run(owner) for owner in "abc"]
    eventually(lambda: len(worker.got) == 3)
    worker.die()
    worker.appear()
    late = run("d")
    seen = []
    for _ in rows:
        eventually(lambda: len(worker.got) == 1)
        time.sleep(0.05)
        [id] = worker.got
        seen.append(id)
        worker.got, got = {}, worker.got
        worker.done(id, fence=got[id]["fence"])
    assert sorted(seen) == sorted(row.id for row in rows)
    eventually(lambda: late.id in worker.got)
    for row in rows:
        eventually(lambda row=row: status(ledger, row) == "done")
        assert kinds(ledger, row) == ["queued", "started", "retried", "started", "done"]


def test_who_kills_its_worker_alone_is_blamed_with_reason_and_bytes(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow], deaths: dict[int, Death]
) -> None:
    dispatcher.start()
    worker.appear()
    bad, good = run("a"), run("b")
    eventually(lambda: len(worker.got) == 2)
    deaths[worker.pid] = Death(worker.pid, None, 9, 3 * 2**30)
    worker.die()
    worker.appear()
    deaths_alone = 0
    while status(ledger, bad) != "failed":
        eventually(lambda: worker.got or status(ledger, bad) == "failed")
        if bad.id in worker.got:
            deaths_alone += 1
            assert len(worker.got) == 1
            deaths[worker.pid] = Death(worker.pid, None, 9, 3 * 2**30)
            worker.die()
            worker.appear()
        elif good.id in worker.got:
            assert len(worker.got) == 1
            head = worker.got.pop(good.id)
            worker.done(good.id, fence=head["fence"])
    assert deaths_alone == 2
    found = ledger.results(bad.id, "a")
    assert found is not None
    message = str(decode_error(bytes(joined(found[2]))))
    assert "SIGKILL" in message
    assert "3 GiB" in message or "3.0 GiB" in message
    if status(ledger, good) != "done":
        eventually(lambda: good.id in worker.got)
        worker.done(good.id)
    eventually(lambda: status(ledger, good) == "done")


def test_who_is_alone_when_somebody_kills_workers_is_not_blamed_soon(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow], deaths: dict[int, Death]
) -> None:
    dispatcher.start()
    worker.appear()
    row = run()
    for _ in range(KILLS_ALONE):
        eventually(lambda: row.id in worker.got)
        deaths[worker.pid] = Death(worker.pid, None, 9, 2**30, from_outside=True)
        worker.die()
        worker.appear()
    eventually(lambda: row.id in worker.got)
    assert status(ledger, row) == "running"
    deaths[worker.pid] = Death(worker.pid, None, 9, 2**30, from_outside=True)
    worker.die()
    eventually(lambda: status(ledger, row) == "failed")
    found = ledger.results(row.id, "a")
    assert found is not None
    assert "SIGKILL (from outside, as it seems)" in str(decode_error(bytes(joined(found[2]))))
    worker.appear()


def test_an_answer_of_an_old_attempt_counts_for_nothing(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow]
) -> None:
    dispatcher.start()
    worker.appear()
    row = run()
    eventually(lambda: row.id in worker.got)
    old = worker.got[row.id]["fence"]
    worker.die()
    worker.appear()
    eventually(lambda: row.id in worker.got)
    worker.done(row.id, fence=old, body=b"old")
    worker.done(row.id, body=b"new")
    eventually(lambda: status(ledger, row) == "done")
    found = ledger.results(row.id, "a")
    assert found is not None
    assert joined(found[2]) == b"new"


def test_events_that_a_retry_repeats_are_not_told_twice(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow]
) -> None:
    dispatcher.start()
    worker.appear()
    row = run()
    eventually(lambda: row.id in worker.got)
    worker.events((row.id, 0, "log", {"text": "one"}), (row.id, 1, "log", {"text": "two"}))
    eventually(lambda: kinds(ledger, row).count("log") == 2)
    worker.die()
    worker.appear()
    eventually(lambda: row.id in worker.got)
    worker.events(*((row.id, k, "log", {"text": text}) for k, text in enumerate(["one", "two", "three"])))
    worker.done(row.id)
    eventually(lambda: status(ledger, row) == "done")
    told = [event.data["text"] for event in ledger.events(row.id, "a") if event.kind == "log"]
    assert told == ["one", "two", "three"]


def test_cancel_at_each_stage(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow]
) -> None:
    waiting = run()
    dispatcher.cancel(waiting)
    assert status(ledger, waiting) == "cancelled"
    dispatcher.start()
    worker.appear()
    row = run()
    eventually(lambda: row.id in worker.got)
    assert waiting.id not in worker.got
    dispatcher.cancel(row)
    eventually(lambda: row.id in worker.cancels)
    worker.done(row.id, status=409)
    eventually(lambda: status(ledger, row) == "cancelled")
    assert kinds(ledger, row)[-1] == "cancelled"
    dispatcher.cancel(row)
    assert kinds(ledger, row).count("cancelled") == 1


def test_a_job_that_was_called_off_is_not_retried(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow]
) -> None:
    dispatcher.start()
    worker.appear()
    row = run()
    eventually(lambda: row.id in worker.got)
    dispatcher.cancel(row)
    worker.die()
    eventually(lambda: status(ledger, row) == "cancelled")
    worker.appear()
    other = run()
    eventually(lambda: other.id in worker.got)
    assert row.id not in worker.got


@pytest.mark.parametrize("named", [True, False])
def test_a_worker_that_hangs_is_ended_and_who_hangs_it_is_blamed(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow],
    monkeypatch: pytest.MonkeyPatch, named: bool,
) -> None:  # fmt: skip
    killed: list[int] = []

    def kill(pid: int | None) -> None:
        killed.append(pid or 0)
        worker.die()

    monkeypatch.setattr(dispatch, "_kill", kill)
    monkeypatch.setattr(dispatch, "_DEATH_S", 3.0)  # who is over his limit need not wait for it
    dispatcher.start()
    worker.appear()
    bad = run("a")
    eventually(lambda: bad.id in worker.got)
    if named:
        good = run("b")
        eventually(lambda: good.id in worker.got)
        worker.say({"is": "stats", "pass_s": 2.2, "at": [bad.id, good.id], "node_of": bad.id})
    else:
        worker.say({"is": "stats", "pass_s": 2.2, "at": [bad.id], "node_of": None})
    began = time.monotonic()
    eventually(lambda: killed)
    assert time.monotonic() - began < 2.0
    eventually(lambda: status(ledger, bad) == "failed", timeout_s=2.0)
    found = ledger.results(bad.id, "a")
    assert found is not None
    assert "run_s" in str(decode_error(bytes(joined(found[2]))))
    if named:
        worker.appear()
        eventually(lambda: good.id in worker.got)
        worker.done(good.id)
        eventually(lambda: status(ledger, good) == "done")


def test_what_an_earlier_process_left_runs_again(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, admit: Callable[..., JobRow]
) -> None:
    running, waiting = admit("a"), admit("b")
    assert ledger.claim(running.id, lease_s=30) is not None
    dispatcher.start(ledger.release())
    worker.appear()
    eventually(lambda: {running.id, waiting.id} <= set(worker.got))
    assert kinds(ledger, running) == ["queued", "started", "retried", "started"]


def test_large_tensors_and_bodies_go_along(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow]
) -> None:
    ledger.put_tensor("a", "d" * 64, "float32", (2,), b"tensor message")
    row = run(body=b"x" * 200_000, tensors=("d" * 64,))
    dispatcher.start()
    worker.appear()
    eventually(lambda: row.id in worker.got)
    assert worker.bodies[row.id] == [b"{}", b"x" * 200_000, b"tensor message"]


def test_what_the_worker_has_when_the_service_ends_is_nobodys_fault(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays as it is in the ledger, and runs again in company."""
    monkeypatch.setattr(dispatch, "_DEATH_S", 5.0)
    dispatcher.start()
    worker.appear()
    rows = [run(owner) for owner in "ab"]
    eventually(lambda: len(worker.got) == 2)
    start = time.monotonic()
    dispatcher.close()
    assert time.monotonic() - start < 2.0
    assert [status(ledger, row) for row in rows] == ["running", "running"]
    assert [row.suspect for row in ledger.release()] == [False, False]


@pytest.mark.parametrize("write", ["claim_many", "note", "finish", "requeue"])
def test_what_a_full_disk_has_no_room_for_is_kept_once_it_has(
    write: str, dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow], monkeypatch: Any
) -> None:
    monkeypatch.setattr(dispatch, "_DISK_S", 0.01)
    whole, refusals = getattr(ledger, write), iter(range(3))

    def full(*given: Any, **named: Any) -> Any:
        if next(refusals, None) is not None:
            raise RemoteError("the service cannot write its state now (No space left on device); try again later")
        return whole(*given, **named)

    monkeypatch.setattr(ledger, write, full)
    dispatcher.start()
    row = run()
    worker.appear()
    eventually(lambda: row.id in worker.got)
    worker.events((row.id, 0, "log", {"text": "hello"}))
    if write == "requeue":
        worker.die()
        worker.appear()
        eventually(lambda: row.id in worker.got)
    worker.done(row.id)
    eventually(lambda: status(ledger, row) == "done")
    assert next(refusals, None) is None
    assert kinds(ledger, row)[-1] == "done"
    assert write == "requeue" or kinds(ledger, row) == ["queued", "started", "log", "done"]
    assert eventually(lambda: dispatcher.counts == {"queued": 0, "running": 0})


def test_a_dispatcher_ends_while_the_disk_is_full(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow], monkeypatch: Any
) -> None:
    def full(*given: Any, **named: Any) -> Any:
        raise RemoteError("the service cannot write its state now (No space left on device); try again later")

    monkeypatch.setattr(ledger, "claim_many", full)
    dispatcher.start()
    row = run()
    worker.appear()
    eventually(lambda: dispatcher.counts["running"] == 1)
    dispatcher.close()
    assert status(ledger, row) == "queued"


def test_a_job_whose_end_cannot_be_kept_fails_and_others_go_on(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow], monkeypatch: Any
) -> None:
    whole, faults = ledger.finish, iter([ValueError("no such column")])

    def faulty(*given: Any, **named: Any) -> Any:
        for fault in faults:
            raise fault
        return whole(*given, **named)

    monkeypatch.setattr(ledger, "finish", faulty)
    dispatcher.start()
    bad, good = run(), run()
    worker.appear()
    eventually(lambda: bad.id in worker.got and good.id in worker.got)
    worker.done(bad.id)
    eventually(lambda: status(ledger, bad) == "failed")
    worker.done(good.id)
    eventually(lambda: status(ledger, good) == "done")
    assert eventually(lambda: dispatcher.counts == {"queued": 0, "running": 0})


def test_what_cannot_be_kept_does_not_keep_back_that_the_worker_has_gone(
    dispatcher: Dispatcher, worker: Played, ledger: Ledger, run: Callable[..., JobRow], monkeypatch: Any
) -> None:
    whole, calls, go = ledger.note, [], threading.Event()

    def faulty(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise ValueError("no such column")
        assert go.wait(10)
        return whole(*given, **named)

    monkeypatch.setattr(ledger, "note", faulty)
    dispatcher.start()
    row = run()
    worker.appear()
    eventually(lambda: row.id in worker.got)
    worker.events((row.id, 0, "log", {"text": "one"}))
    eventually(lambda: calls)
    worker.events((row.id, 1, "log", {"text": "two"}))
    worker.die()
    eventually(lambda: dispatcher._said.qsize() == 2)  # both are told of in one go
    go.set()
    worker.appear()
    eventually(lambda: row.id in worker.got)
    assert len(calls) == 2
    worker.done(row.id)
    eventually(lambda: status(ledger, row) == "done")
