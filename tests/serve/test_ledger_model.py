"""Any order of moves, by anyone, with restarts in between: the ledger does what a model in plain Python does."""

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from glassworks.client.content import joined
from glassworks.serve.ledger import Ledger
from glassworks.serve.records import NewJob
from glassworks.serve.state import State


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("ledger_model", Path(__file__).with_name("ledger_model.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ledger_model"] = module
    spec.loader.exec_module(module)
    return module


model = _load()

OWNERS = ("ann", "bob")
INLINE_BYTES = 8
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Nothing here ends in the middle, so nothing need wait for a disk."""
bodies = st.sampled_from([b"", b"small", b"a body for a file", b"x" * 100])


class Moves(RuleBasedStateMachine):
    """The ledger beside its model. A fence is taken from all that there ever were."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(dir=MEMORY)
        self.now_s = 1_000_000.0
        self.model = model.Model(kept_s=100.0, kept_jobs=2)
        self.told: set[str] = set()
        self.open()

    def open(self) -> None:
        self.state = State.hold(self.folder)
        self.ledger = Ledger(self.state, now_s=lambda: self.now_s, inline_bytes=INLINE_BYTES, kept_s=100.0, kept_jobs=2)
        self.ledger.on_commit = self.told.update

    def teardown(self) -> None:
        self.state.close()
        shutil.rmtree(self.folder)

    def known(self, id: str) -> bool:
        """Whether it has not expired; of those that have, nothing moves."""
        if id in self.model.jobs:
            return True
        assert self.ledger.claim(id, lease_s=9.0) is None
        assert self.ledger.requeue(id, 1, why="", suspect=False) is None
        assert all(self.ledger.cancel(id, owner) is None for owner in OWNERS)
        return False

    @rule(target=ids, owner=st.sampled_from(OWNERS), body=bodies)
    def admit(self, owner: str, body: bytes) -> Any:
        row, is_new = self.ledger.admit(new_job(owner, body))
        assert is_new
        assert row.id not in self.model.jobs
        self.model.jobs[row.id] = model.ModelJob(row.number, owner, body)
        return row.id

    @rule(id=ids)
    def claim(self, id: str) -> None:
        if self.known(id):
            assert self.ledger.claim(id, lease_s=9.0) == self.model.claim(id)

    @rule(target=ids, owner=st.sampled_from(OWNERS), body=bodies)
    def start(self, owner: str, body: bytes) -> Any:
        id = self.admit(owner, body)
        self.claim(id)
        return id

    @rule(said=st.lists(st.tuples(ids, st.integers(0, 1), st.none() | st.integers(0, 3), st.sampled_from("ab"))))
    def note(self, said: list[tuple[str, int, int | None, str]]) -> None:
        entries = [
            (id, self.model.jobs[id].fence - back, source, kind)
            for id, back, source, kind in said
            if id in self.model.jobs
        ]
        self.ledger.note([(*entry, {"said": 1}) for entry in entries] + [(id, 1, 0, "a", {}) for id in self.model.gone])
        for entry in entries:
            self.model.note(*entry)

    @rule(id=ids, count=st.integers(1, 4))
    def say(self, id: str, count: int) -> None:
        """What a run says from its beginning on, as one that is done again does."""
        if id in self.model.jobs:
            fence = self.model.jobs[id].fence
            self.ledger.note([(id, fence, source, "said", {}) for source in range(count)])
            for source in range(count):
                self.model.note(id, fence, source, "said")

    @rule(target=ids, owner=st.sampled_from(OWNERS), body=bodies)
    def run(self, owner: str, body: bytes) -> Any:
        id = self.start(owner, body)
        self.say(id, 2)
        self.finish(id, 0, "done", body)
        return id

    @rule(id=ids, back=st.integers(0, 1), status=st.sampled_from(model.ENDED), result=bodies)
    def finish(self, id: str, back: int, status: str, result: bytes) -> None:
        if self.known(id):
            fence = self.model.jobs[id].fence - back
            ended = self.ledger.finish(
                id, fence, status=status, answer=200, result=result, media="a/b", compute_s=1.5, data={}
            )
            assert ended == self.model.finish(id, fence, status, result, 1.5, self.now_s)

    @rule(id=ids, back=st.integers(0, 1), suspect=st.booleans())
    def requeue(self, id: str, back: int, suspect: bool) -> None:
        if self.known(id):
            fence = self.model.jobs[id].fence - back
            status = self.ledger.requeue(id, fence, why="it died", suspect=suspect)
            assert status == self.model.requeue(id, fence, suspect, self.now_s)

    @rule(id=ids, owner=st.sampled_from(OWNERS))
    def cancel(self, id: str, owner: str) -> None:
        if self.known(id):
            row = self.ledger.cancel(id, owner)
            assert (row is None) == (self.model.jobs[id].owner != owner)
            if row is not None:
                self.model.cancel(id, self.now_s)
                assert (row.status, row.cancelled) == (self.model.jobs[id].status, self.model.jobs[id].cancelled)

    @rule(later_s=st.sampled_from([1.0, 30.0, 101.0, 86400.0]))
    def expire(self, later_s: float) -> None:
        self.now_s += later_s
        assert set(self.ledger.expire()) == self.model.expire(self.now_s)

    @rule(torn=st.booleans())
    def restart(self, torn: bool) -> None:
        """With files beside those that rows name, as a service leaves them that ends in the middle."""
        self.state.close()
        for part in ("bodies", "results", "tensors") if torn else ():
            (Path(self.folder) / part / "torn").write_bytes(b"half")
        self.open()
        waiting = self.ledger.release()
        self.model.release(self.now_s)
        assert [row.id for row in waiting] == [id for id, job in self.model.jobs.items() if job.status == "queued"]

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        for owner in OWNERS:
            own = {id: job for id, job in self.model.jobs.items() if job.owner == owner}
            rows = self.ledger.list(owner)
            assert [row.id for row in rows] == list(reversed(own))
            for row in rows:
                job = own[row.id]
                assert (row.status, row.fence, row.attempts) == (job.status, job.fence, job.fence)
                assert (row.suspect, row.cancelled) == (job.suspect, job.cancelled)
                self.check_bytes(row.id, job)
                self.check_events(row.id, job)
            day = int(self.now_s // 86400)
            assert self.ledger.compute_s_today(owner) == self.model.charged.get((owner, day), 0.0)

    def check_bytes(self, id: str, job: Any) -> None:
        """One of a body and a result, and only one."""
        found = self.ledger.results(id, job.owner)
        if job.status in model.ENDED:
            assert found is not None
            assert job.result is None or bytes(joined(found[2])) == job.result
        else:
            assert found is None
            assert bytes(joined(self.ledger.body(id))) == job.body

    def check_events(self, id: str, job: Any) -> None:
        events = self.ledger.events(id, job.owner)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert [event.kind for event in events] == job.kinds
        assert sum(kind in model.ENDED for kind in job.kinds) == (job.status in model.ENDED)
        assert id in self.told

    @invariant()
    def the_files_are_those_that_rows_need(self) -> None:
        waiting = [id for id, job in self.model.jobs.items() if job.status not in model.ENDED]
        large = [id for id in waiting if len(self.model.jobs[id].body) > INLINE_BYTES]
        assert sorted(path.name for path in self.state.bodies.iterdir()) == sorted(large)
        results = [id for id, job in self.model.jobs.items() if job.result and len(job.result) > INLINE_BYTES]
        assert sorted(path.name.rsplit("-", 2)[0] for path in self.state.results.iterdir()) == sorted(results)


def new_job(owner: str, body: bytes) -> NewJob:
    return NewJob(
        owner=owner, model="small", kind="experiments", verdict=b"{}", body=body, seed=7, tokens=8, forwards=1
    )


TestMoves = Moves.TestCase
TestMoves.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.slow
class TestManyMoves(Moves.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(max_examples=500, stateful_step_count=60, deadline=None)
