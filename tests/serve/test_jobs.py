"""The queue of a service: order, position, what is called off, what is kept and for whom."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from glassworks.errors import Cancelled, LimitExceeded, RemoteError
from glassworks.graph.messages import decode_error
from glassworks.serve import jobs as module
from glassworks.serve.jobs import Jobs, Served


class Work:
    """What jobs do here: wait to be let go, one by one, and answer with their number."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._go = threading.Semaphore(0)
        self.begins = threading.Semaphore(0)

    def run(self, id: str, status: int = 200) -> tuple[int, bytes]:
        self.begun.append(id)
        self.begins.release()
        assert self._go.acquire(timeout=20)
        return status, b"x" * 100

    def let_go(self, count: int = 1) -> None:
        for _ in range(count):
            self._go.release()

    def await_begin(self) -> None:
        assert self.begins.acquire(timeout=20)


@pytest.fixture
def work() -> Iterator[Work]:
    found = Work()
    yield found
    found.let_go(100)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(clock: Clock) -> Jobs:
    return Jobs(now_s=clock)


def submit(jobs: Jobs, work: Work, owner: str = "a", model: str = "m", **options: Any) -> Served:
    return jobs.submit(owner, model, 3, lambda id: work.run(id, **options))


def test_jobs_of_a_model_run_one_by_one_in_order(jobs: Jobs, work: Work) -> None:
    own = [submit(jobs, work) for _ in range(3)]
    work.await_begin()
    assert [job.status for job in own] == ["running", "queued", "queued"]
    assert [jobs.position(job) for job in own] == [0, 1, 2]
    work.let_go()
    assert own[0].ended.wait(20)
    work.await_begin()
    assert [job.status for job in own] == ["done", "running", "queued"]
    assert [jobs.position(job) for job in own] == [None, 0, 1]
    work.let_go(2)
    assert all(job.ended.wait(20) for job in own)
    assert work.begun == [job.id for job in own]
    assert [job.answer for job in own] == [(200, b"x" * 100)] * 3


def test_models_do_not_wait_for_each_other(jobs: Jobs, work: Work) -> None:
    for model in ("m", "n"):
        submit(jobs, work, model=model)
    work.await_begin()
    work.await_begin()


def test_the_thread_of_a_model_ends_when_nothing_waits(jobs: Jobs, work: Work) -> None:
    job = submit(jobs, work)
    work.let_go()
    assert job.ended.wait(20)
    for thread in (t for t in threading.enumerate() if t.name == "glassworks-jobs"):
        thread.join(20)
    again = submit(jobs, work)
    work.let_go()
    assert again.ended.wait(20)


def test_a_job_that_waits_is_called_off_at_once(jobs: Jobs, work: Work) -> None:
    first, second = submit(jobs, work), submit(jobs, work)
    work.await_begin()
    assert not jobs.cancel(second)
    assert second.status == "cancelled"
    assert second.ended.is_set()
    assert second.answer is not None
    with pytest.raises(Cancelled, match=second.id):
        raise decode_error(bytes(second.answer[1]))  # type: ignore[arg-type]
    assert not jobs.cancel(second)
    work.let_go()
    assert first.ended.wait(20)
    assert work.begun == [first.id]


def test_whoever_runs_a_job_is_told_to_call_it_off(jobs: Jobs, work: Work) -> None:
    job = submit(jobs, work, status=422)
    work.await_begin()
    assert jobs.cancel(job)
    work.let_go()
    assert job.ended.wait(20)
    assert job.status == "cancelled"
    assert not jobs.cancel(job)


def test_a_job_that_was_done_before_it_could_be_called_off_is_done(jobs: Jobs, work: Work) -> None:
    job = submit(jobs, work)
    work.await_begin()
    jobs.cancel(job)
    work.let_go()
    assert job.ended.wait(20)
    assert job.status == "done"


def test_a_job_that_fails_has_failed(jobs: Jobs, work: Work) -> None:
    job = submit(jobs, work, status=422)
    work.let_go()
    assert job.ended.wait(20)
    assert job.status == "failed"


def test_ids_cannot_be_guessed_and_are_the_owners_alone(jobs: Jobs, work: Work) -> None:
    own = [submit(jobs, work, owner="a") for _ in range(20)]
    assert len({job.id for job in own}) == 20
    assert all(len(job.id) >= 24 for job in own)
    assert jobs.find("a", own[0].id) is own[0]
    spoken = []
    for owner, id in (("b", own[0].id), ("a", "job-nothing")):
        with pytest.raises(RemoteError) as caught:
            jobs.find(owner, id)
        spoken.append(str(caught.value).replace(repr(id), "ID"))
    assert spoken[0] == spoken[1]


def test_what_has_ended_is_kept_for_a_day(jobs: Jobs, work: Work, clock: Clock) -> None:
    job, waiting = submit(jobs, work), submit(jobs, work)
    work.let_go()
    assert job.ended.wait(20)
    clock.now_s = module.KEPT_S - 1
    assert jobs.find("a", job.id) is job
    clock.now_s = module.KEPT_S + 1
    with pytest.raises(RemoteError, match="let go"):
        jobs.find("a", job.id)
    assert jobs.find("a", waiting.id) is waiting


def test_results_are_bounded_by_bytes_for_each_key(
    jobs: Jobs, work: Work, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 250)
    work.let_go(5)
    own = []
    for owner in ("b", "a", "a", "a", "a"):
        clock.now_s += 1
        own.append(submit(jobs, work, owner=owner))
        assert own[-1].ended.wait(20)
    for job in own[1:3]:
        with pytest.raises(RemoteError):
            jobs.find("a", job.id)
    assert [jobs.find(job.owner, job.id) for job in (own[0], *own[3:])] == [own[0], *own[3:]]


def test_too_many_of_one_key_are_refused(jobs: Jobs, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNFINISHED", 2)
    submit(jobs, work)
    submit(jobs, work)
    with pytest.raises(LimitExceeded, match="jobs: 3 asked for, 2 allowed"):
        submit(jobs, work)
    submit(jobs, work, owner="b")
