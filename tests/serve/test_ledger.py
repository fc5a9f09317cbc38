"""The ledger, case by case: what the model of `test_ledger_model` does not hold."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from glassworks.client.content import joined, size_of
from glassworks.errors import Cancelled, InputError, QuotaExceeded, RemoteError
from glassworks.graph.messages import decode_error
from glassworks.serve import files
from glassworks.serve.ledger import Ledger
from glassworks.serve.records import Event, JobRow, NewJob
from glassworks.serve.state import State

INLINE_BYTES = 64
SMALL, LARGE = b"small", b"large" * 1000


class Clock:
    at_s = 86400.0 * 100

    def __call__(self) -> float:
        return self.at_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(tmp_path: Path) -> Any:
    with State.hold(tmp_path) as state:
        yield state


@pytest.fixture
def ledger(state: State, clock: Clock) -> Ledger:
    return Ledger(state, now_s=clock, inline_bytes=INLINE_BYTES, kept_s=100.0, kept_bytes=20_000, tensor_bytes=30)


def new_job(body: bytes = SMALL, **changes: Any) -> NewJob:
    own: dict[str, Any] = {"owner": "ann", "model": "m", "kind": "experiments", "verdict": b"v", "seed": 2**63 - 1}
    return NewJob(**{**own, "tokens": 8, "forwards": 2, "body": body, **changes})


def admitted(ledger: Ledger, body: bytes = SMALL, **changes: Any) -> JobRow:
    row, is_new = ledger.admit(new_job(body, **changes))
    assert is_new
    return row


def running(ledger: Ledger, body: bytes = SMALL, **changes: Any) -> tuple[str, int]:
    row = admitted(ledger, body, **changes)
    fence = ledger.claim(row.id, lease_s=9.0)
    assert fence is not None
    return row.id, fence


def finish(ledger: Ledger, id: str, fence: int, result: bytes = b"r", **changes: Any) -> bool:
    own: dict[str, Any] = {"status": "done", "answer": 200, "media": "a/b", "compute_s": 2.0, "data": {"n": 1}}
    return ledger.finish(id, fence, result=result, **{**own, **changes})


def ended(ledger: Ledger, result: bytes = b"r", **changes: Any) -> str:
    id, fence = running(ledger, **changes)
    assert finish(ledger, id, fence, result)
    return id


def kinds(ledger: Ledger, id: str, owner: str = "ann") -> list[str]:
    return [event.kind for event in ledger.events(id, owner)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Letting in.


@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_a_job_is_as_it_was_let_in(ledger: Ledger, clock: Clock, body: bytes) -> None:
    row = admitted(ledger, body, priority=3, streams=True, verdict=b"\0verdict")
    assert row.id.startswith("job-")
    assert (row.status, row.fence, row.attempts, row.suspect, row.cancelled) == ("queued", 0, 0, False, False)
    assert (row.priority, row.streams, row.seed, row.verdict) == (3, True, 2**63 - 1, b"\0verdict")
    assert (row.created_s, row.started_s, row.ended_s) == (clock.at_s, None, None)
    assert ledger.find(row.id, "ann") == row
    assert ledger.list("ann") == ledger.unfinished() == [row]
    assert bytes(joined(ledger.body(row.id))) == body
    assert ledger.events(row.id, "ann") == [Event(1, "queued", {}, clock.at_s)]


def test_only_large_bytes_are_files(ledger: Ledger, state: State) -> None:
    admitted(ledger, SMALL)
    row = admitted(ledger, LARGE)
    assert names(state.bodies) == [row.id]


def test_a_file_is_on_the_disk_before_its_row(ledger: Ledger, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes, then its name in the folder, then the row."""
    order: list[str] = []
    sync, submit = files.os.fsync, state.database.submit
    monkeypatch.setattr(files.os, "fsync", lambda number: order.append("sync") or sync(number))
    monkeypatch.setattr(state.database, "submit", lambda *a, **k: order.append("row") or submit(*a, **k))
    id, fence = running(ledger, LARGE)
    assert order == ["sync", "sync", "row", "row"]
    order.clear()
    finish(ledger, id, fence, LARGE)
    ledger.put_tensor("ann", "a" * 64, "int8", (3,), b"abc")
    assert order == ["sync", "sync", "row"] * 2


def test_a_body_that_breaks_off_leaves_nothing(ledger: Ledger, state: State) -> None:
    class Broken:
        size_bytes = 1000

        def __init__(self, sound: int) -> None:
            self.sound = sound

        def __iter__(self) -> Any:
            self.sound -= 1
            yield b"x" * 500
            if self.sound < 0:
                raise OSError(28, "No space left on device")
            yield b"x" * 500

    with pytest.raises(RemoteError, match="No space left on device"):
        ledger.admit(new_job(Broken(1)))  # type: ignore[arg-type]
    id, fence = running(ledger)
    with pytest.raises(RemoteError, match="No space left on device"):
        finish(ledger, id, fence, Broken(0))  # type: ignore[arg-type]
    assert names(state.bodies) == names(state.results) == []
    assert [row.id for row in ledger.unfinished()] == [id]


def test_a_write_that_fails_leaves_no_file(ledger: Ledger, state: State, caplog: pytest.LogCaptureFixture) -> None:
    id, fence = running(ledger)
    pages = state.database.read(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar())
    state.database.write(lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={pages}") and None)
    with pytest.raises(RemoteError, match="full"):
        for _ in range(1000):
            admitted(ledger, LARGE)
    with pytest.raises(RemoteError, match="full"):
        finish(ledger, id, fence, LARGE, data={"much": "x" * 100_000})
    assert names(state.bodies) == sorted(row.id for row in ledger.unfinished() if row.id != id)
    assert names(state.results) == []


# Asking twice.


def test_asking_twice_makes_one_job(ledger: Ledger, state: State) -> None:
    row = admitted(ledger, LARGE, idempotency="k")
    assert ledger.admit(new_job(LARGE, idempotency="k", seed=1)) == (row, False)
    assert admitted(ledger, LARGE, idempotency="k", owner="bob").id != row.id
    assert admitted(ledger, LARGE, idempotency="other").id != row.id
    assert len(names(state.bodies)) == 3


@pytest.mark.parametrize("changes", [{"body": b"another"}, {"model": "other"}, {"kind": "completion"}])
def test_a_name_for_two_requests_is_refused(ledger: Ledger, changes: dict[str, Any]) -> None:
    row = admitted(ledger, idempotency="k")
    with pytest.raises(InputError, match=f"'k' belongs to the job {row.id}"):
        ledger.admit(new_job(**{"idempotency": "k", **changes}))
    assert len(ledger.list("ann")) == 1


def test_many_who_ask_the_same_at_once_get_one_job(ledger: Ledger, state: State) -> None:
    found: list[tuple[JobRow, bool]] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        found.append(ledger.admit(new_job(LARGE, idempotency="k")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({row.id for row, _ in found}) == 1
    assert sum(is_new for _, is_new in found) == 1
    assert names(state.bodies) == [found[0][0].id]


def test_the_name_of_an_expired_job_is_free(ledger: Ledger, clock: Clock) -> None:
    id = ended(ledger, idempotency="k")
    clock.at_s += 101
    assert ledger.expire() == [id]
    assert admitted(ledger, b"another", idempotency="k").id != id


# Running.


@pytest.mark.parametrize(("body", "result"), [(SMALL, LARGE), (LARGE, SMALL)])
def test_a_job_that_ended_has_a_result_in_the_place_of_its_body(
    ledger: Ledger, state: State, clock: Clock, body: bytes, result: bytes
) -> None:
    id, fence = running(ledger, body)
    assert ledger.results(id, "ann") is None
    clock.at_s += 5
    assert finish(ledger, id, fence, result)
    found = ledger.results(id, "ann")
    assert found is not None
    assert (found[0], found[1], bytes(joined(found[2]))) == (200, "a/b", result)
    row = ledger.find(id, "ann")
    assert row is not None
    assert (row.status, row.ended_s, row.compute_s, row.result_bytes) == ("done", clock.at_s, 2.0, len(result))
    assert row.verdict == b""
    assert names(state.bodies) == []
    assert ledger.events(id, "ann")[-1] == Event(3, "done", {"n": 1}, clock.at_s)
    with pytest.raises(RemoteError, match="it has ended"):
        ledger.body(id)


def test_an_end_by_an_old_fence_changes_nothing(ledger: Ledger, state: State) -> None:
    id, old = running(ledger)
    assert ledger.requeue(id, old, why="the worker died", suspect=True) == "queued"
    assert not finish(ledger, id, old, LARGE)
    new = ledger.claim(id, lease_s=9.0)
    assert new == old + 1
    assert not finish(ledger, id, old, LARGE)
    assert names(state.results) == []
    row = ledger.find(id, "ann")
    assert row is not None
    assert (row.status, row.attempts, row.suspect) == ("running", 2, True)
    assert finish(ledger, id, new, LARGE)
    assert not finish(ledger, id, new, SMALL)
    assert kinds(ledger, id) == ["queued", "started", "retried", "started", "done"]
    assert [event.data for event in ledger.events(id, "ann")][1:4] == [
        {"attempt": 1}, {"why": "the worker died"}, {"attempt": 2},
    ]  # fmt: skip


def test_a_job_does_not_end_as_something_that_goes_on(ledger: Ledger) -> None:
    id, fence = running(ledger)
    with pytest.raises(InputError, match="cancelled, done, failed, got 'queued'"):
        finish(ledger, id, fence, status="queued")


def test_many_start_at_once_and_only_what_waits(ledger: Ledger) -> None:
    ids = [admitted(ledger).id for _ in range(3)]
    assert ledger.claim(ids[1], lease_s=9.0) == 1
    assert ledger.claim_many([*ids, "job-none"], lease_s=9.0) == {ids[0]: 1, ids[2]: 1}


def test_a_lease_runs_out_unless_it_is_renewed(ledger: Ledger, clock: Clock) -> None:
    (first, one), (second, two) = running(ledger), running(ledger)
    clock.at_s += 8
    ledger.renew([(first, one), (second, two + 1)], lease_s=9.0)
    clock.at_s += 8
    assert [row.id for row in ledger.expired_leases()] == [second]
    assert ledger.requeue(second, two, why="late", suspect=False) == "queued"
    assert ledger.expired_leases() == []
    ledger.renew([], lease_s=9.0)


def test_what_ran_when_the_service_ended_waits_again(ledger: Ledger, state: State) -> None:
    (suspect, one), (called_off, _), waiting = running(ledger), running(ledger, LARGE), admitted(ledger)
    ledger.requeue(suspect, one, why="died", suspect=True)
    ledger.claim(suspect, lease_s=9.0)
    ledger.cancel(called_off, "ann")
    again = Ledger(state)
    rows = again.release()
    assert [(row.id, row.suspect) for row in rows] == [(suspect, True), (waiting.id, False)]
    assert again.events(suspect, "ann")[-1].data == {"why": "the service was restarted"}
    assert kinds(again, called_off) == ["queued", "started", "cancelled"]
    assert names(state.bodies) == []
    assert again.release() == rows
    assert kinds(again, waiting.id) == ["queued"]


# Events.


def test_entries_keep_their_order_and_are_read_in_parts(ledger: Ledger) -> None:
    (a, one), (b, two) = running(ledger), running(ledger)
    ledger.note([(a, one, k // 2, "log", {"k": k}) if k % 2 == 0 else (b, two, None, "progress", {}) for k in range(8)])
    assert kinds(ledger, a) == ["queued", "started", *["log"] * 4]
    assert kinds(ledger, b) == ["queued", "started", *["progress"] * 4]
    assert [event.data.get("k") for event in ledger.events(a, "ann", after=2)] == [0, 2, 4, 6]
    assert [event.number for event in ledger.events(a, "ann", after=3, limit=2)] == [4, 5]


def test_what_a_run_repeats_is_stored_once(ledger: Ledger) -> None:
    id, fence = running(ledger)
    ledger.note([(id, fence, 0, "log", {"k": 0}), (id, fence, 1, "log", {"k": 1}), (id, fence, None, "progress", {})])
    ledger.requeue(id, fence, why="died", suspect=True)
    ledger.note([(id, fence, 2, "log", {"k": "stale"})])
    new = ledger.claim(id, lease_s=9.0)
    assert new is not None
    ledger.note([(id, fence, 2, "log", {"k": "stale"})])
    ledger.note([(id, new, k, "log", {"k": k}) for k in range(3)])
    assert finish(ledger, id, new)
    ledger.note([(id, new, 3, "log", {"k": "late"})])
    logs = [event.data["k"] for event in ledger.events(id, "ann") if event.kind == "log"]
    assert logs == [0, 1, 2]
    assert [event.number for event in ledger.events(id, "ann")] == list(range(1, 10))


def test_a_job_with_too_many_events_is_cut_short_and_still_ends(state: State) -> None:
    ledger = Ledger(state, most_events=5)
    id, fence = running(ledger)
    ledger.note([(id, fence, k, "log", {}) for k in range(4)])
    ledger.note([(id, fence, k, "log", {}) for k in range(4, 9)])
    assert finish(ledger, id, fence)
    assert kinds(ledger, id) == ["queued", "started", "log", "log", "log", "truncated", "done"]
    assert ledger.events(id, "ann")[5].data == {"kept": 5}


def test_who_waits_is_told_once_events_can_be_read(ledger: Ledger) -> None:
    told: list[tuple[str, list[str]]] = []

    def tell(ids: frozenset[str]) -> None:
        told.extend((id, kinds(ledger, id)) for id in ids)

    ledger.on_commit = tell
    id, fence = running(ledger)
    ledger.note_soon([(id, fence, 0, "log", {}), ("job-none", 1, 0, "log", {})]).result()
    finish(ledger, id, fence - 1)
    finish(ledger, id, fence)
    everything = ["queued", "started", "log", "done"]
    assert told == [(id, everything[: k + 1]) for k in range(4)]


# Calling off.


@pytest.mark.parametrize("body", [SMALL, LARGE])
def test_a_job_that_waits_is_called_off_at_once(ledger: Ledger, state: State, body: bytes) -> None:
    id = admitted(ledger, body).id
    row = ledger.cancel(id, "ann")
    assert row is not None
    assert (row.status, row.cancelled) == ("cancelled", True)
    assert ledger.claim(id, lease_s=9.0) is None
    assert kinds(ledger, id) == ["queued", "cancelled"]
    found = ledger.results(id, "ann")
    assert found is not None
    assert found[:2] == (409, "application/json")
    assert type(decode_error(bytes(joined(found[2])))) is Cancelled
    assert ledger.cancel(id, "ann") == row
    assert names(state.bodies) == []


def test_a_job_that_runs_is_marked_and_ends_as_its_worker_says(ledger: Ledger) -> None:
    for status in ("cancelled", "done"):
        id, fence = running(ledger)
        row = ledger.cancel(id, "ann")
        assert row is not None
        assert (row.status, row.cancelled) == ("running", True)
        assert finish(ledger, id, fence, status=status)
        assert kinds(ledger, id) == ["queued", "started", status]


def test_a_job_that_was_called_off_is_not_retried(ledger: Ledger, state: State) -> None:
    id, fence = running(ledger, LARGE)
    ledger.cancel(id, "ann")
    assert ledger.requeue(id, fence - 1, why="died", suspect=True) is None
    assert ledger.requeue(id, fence, why="died", suspect=True) == "cancelled"
    assert kinds(ledger, id) == ["queued", "started", "cancelled"]
    assert names(state.bodies) == []


def test_of_a_result_and_a_cancellation_one_is_first(ledger: Ledger) -> None:
    """Thirty jobs, each ended and called off, and started and called off, at the same moment."""
    for _ in range(30):
        id = admitted(ledger).id
        start = threading.Barrier(2)

        def run(id: str = id, start: threading.Barrier = start) -> None:
            start.wait()
            fence = ledger.claim(id, lease_s=9.0)
            if fence is not None:
                finish(ledger, id, fence)

        thread = threading.Thread(target=run)
        thread.start()
        start.wait()
        ledger.cancel(id, "ann")
        thread.join()
        row = ledger.find(id, "ann")
        assert row is not None
        assert kinds(ledger, id) in (["queued", "cancelled"], ["queued", "started", "done"])
        assert kinds(ledger, id)[-1] == row.status


# Letting go.


def test_what_ended_long_ago_goes_as_a_whole(ledger: Ledger, state: State, clock: Clock) -> None:
    old, waiting = ended(ledger, LARGE), admitted(ledger, LARGE)
    found = ledger.results(old, "ann")
    assert found is not None
    clock.at_s += 60
    young = ended(ledger, LARGE)
    clock.at_s += 60
    assert ledger.expire() == [old]
    assert ledger.find(old, "ann") is None
    assert ledger.events(old, "ann") == []
    assert ledger.results(old, "ann") is None
    assert [row.id for row in ledger.list("ann")] == [young, waiting.id]
    assert [name.startswith(young) for name in names(state.results)] == [True]
    count = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM payloads)"
    assert state.database.read(lambda connection: connection.exec_driver_sql(count).scalar()) == 4 + 2
    assert bytes(joined(found[2])) == LARGE, "who reads a result when it goes has it to the end"


def test_an_owner_with_too_much_loses_the_oldest(ledger: Ledger) -> None:
    ids = [ended(ledger, b"x" * 8000) for _ in range(4)]
    other = ended(ledger, b"x" * 20_000, owner="bob")
    assert sorted(ledger.expire()) == sorted(ids[:2])
    assert ledger.find(other, "bob") is not None


def test_an_owner_with_too_many_loses_the_oldest(state: State) -> None:
    ledger = Ledger(state, kept_jobs=2)
    ids = [ended(ledger) for _ in range(4)]
    waiting, other = admitted(ledger).id, ended(ledger, owner="bob")
    assert sorted(ledger.expire()) == sorted(ids[:2])
    assert [row.id for row in ledger.list("ann")] == [waiting, ids[3], ids[2]]
    assert ledger.find(other, "bob") is not None


def test_what_an_owner_has(ledger: Ledger, clock: Clock) -> None:
    id, fence = running(ledger, b"x" * 10)
    admitted(ledger, b"x" * 100)
    admitted(ledger, owner="bob")
    ledger.put_tensor("ann", "a" * 64, "int8", (7,), b"x" * 7)
    assert (ledger.queued_count("ann"), ledger.running_count("ann")) == (1, 1)
    assert ledger.stored_bytes("ann") == 117
    finish(ledger, id, fence, b"x" * 1000, compute_s=2.5)
    assert (ledger.queued_count("ann"), ledger.running_count("ann")) == (1, 0)
    assert ledger.stored_bytes("ann") == 1107
    ended(ledger)
    assert ledger.compute_s_today("ann") == 4.5
    assert ledger.compute_s_today("bob") == 0.0
    clock.at_s += 86400
    assert ledger.compute_s_today("ann") == 0.0


def test_an_end_that_does_not_count_costs_nothing(ledger: Ledger) -> None:
    id, fence = running(ledger)
    finish(ledger, id, fence + 1)
    finish(ledger, id, fence)
    finish(ledger, id, fence)
    assert ledger.compute_s_today("ann") == 2.0


# Owners.


def test_another_owner_finds_nothing(ledger: Ledger) -> None:
    id = ended(ledger)
    waiting = admitted(ledger).id
    ledger.put_tensor("ann", "a" * 64, "int8", (1,), b"x")
    for owner in ("bob", ""):
        assert ledger.find(id, owner) is None
        assert ledger.list(owner) == []
        assert ledger.results(id, owner) is None
        assert ledger.events(id, owner) == []
        assert ledger.cancel(waiting, owner) is None
        assert ledger.tensor(owner, "a" * 64) is None
    assert kinds(ledger, waiting) == ["queued"]
    assert [row.id for row in ledger.list("ann", status="queued")] == [waiting]
    assert [row.id for row in ledger.list("ann", limit=1)] == [waiting]


def test_unknown_jobs(ledger: Ledger) -> None:
    assert ledger.find("job-x", "ann") is None
    assert ledger.claim("job-x", lease_s=1.0) is None
    assert not finish(ledger, "job-x", 0)
    with pytest.raises(RemoteError, match="'job-x' has no body"):
        ledger.body("job-x")


def test_a_ledger_needs_a_folder_of_its_own(state: State) -> None:
    with State.visit(state.folder) as visitor, pytest.raises(InputError, match="held"):
        Ledger(visitor)


# Large tensors.


def put(ledger: Ledger, name: str, size: int = 10, owner: str = "ann") -> None:
    ledger.put_tensor(owner, name, "int8", (size,), b"x" * size)


def here(ledger: Ledger, owner: str = "ann") -> str:
    """Which are here, without using them."""
    state: State = ledger._state
    query = f"SELECT digest FROM tensors WHERE owner = '{owner}' ORDER BY digest"
    return "".join(state.database.read(lambda connection: connection.exec_driver_sql(query).scalars().all()))


def test_a_tensor_outlives_the_service(ledger: Ledger, state: State) -> None:
    ledger.put_tensor("ann", "a" * 64, "float32", (2, 3), b"x" * 24)
    found = Ledger(state).tensor("ann", "a" * 64)
    assert found is not None
    assert (found.dtype, found.shape, size_of(found.body), bytes(joined(found.body))) == (
        "float32", (2, 3), 24, b"x" * 24,
    )  # fmt: skip


def test_the_tensor_used_longest_ago_goes_first(ledger: Ledger, state: State) -> None:
    for name in "abc":
        put(ledger, name)
    put(ledger, "a", owner="bob")
    assert ledger.tensor("ann", "a") is not None
    put(ledger, "b")
    put(ledger, "d")
    assert (here(ledger), here(ledger, "bob")) == ("abd", "a")
    assert len(names(state.tensors)) == 4


def test_a_job_holds_on_to_its_tensors_until_it_has_ended(ledger: Ledger) -> None:
    for name in "abc":
        put(ledger, name)
    id, fence = running(ledger, tensors=("a", "b", "a"))
    put(ledger, "d")
    put(ledger, "e")
    assert here(ledger) == "abe"
    with pytest.raises(QuotaExceeded, match="40 bytes with this one, 30 allowed"):
        put(ledger, "f", 20)
    assert here(ledger) == "abe"
    finish(ledger, id, fence)
    put(ledger, "f", 20)
    assert here(ledger) == "ef"


def test_a_tensor_that_is_too_large_alone_is_refused_and_nothing_goes(ledger: Ledger, state: State) -> None:
    put(ledger, "a")
    with pytest.raises(QuotaExceeded):
        put(ledger, "b", 31)
    assert here(ledger) == "a"
    assert len(names(state.tensors)) == 1


def test_a_job_whose_tensor_just_went_is_not_let_in(ledger: Ledger, state: State) -> None:
    put(ledger, "a")
    with pytest.raises(RemoteError, match="1 large tensors were let go"):
        ledger.admit(new_job(LARGE, tensors=("a", "b")))
    with pytest.raises(RemoteError, match="1 large tensors were let go"):
        ledger.admit(new_job(LARGE, owner="bob", tensors=("a",)))
    assert ledger.unfinished() == []
    assert names(state.bodies) == []


def test_tensors_of_a_job_are_in_its_row(ledger: Ledger) -> None:
    put(ledger, "a")
    put(ledger, "b")
    assert admitted(ledger, tensors=("b", "a")).tensors == ("b", "a")
    assert ledger.unfinished()[0].tensors == ("b", "a")


def test_events_are_json_in_the_database(ledger: Ledger, state: State) -> None:
    id, fence = running(ledger)
    ledger.note([(id, fence, 0, "log", {"text": "é\n", "list": [1.5, None]})])
    query = "SELECT data FROM events WHERE kind = 'log'"
    stored = state.database.read(lambda connection: connection.exec_driver_sql(query).scalar_one())
    assert json.loads(stored) == {"text": "é\n", "list": [1.5, None]} == ledger.events(id, "ann")[-1].data
