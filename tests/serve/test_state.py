"""The state folder: one service at a time; a database whose writes share a disk sync and fail alone."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text

from glassworks.errors import InputError, RemoteError
from glassworks.serve.schema import usage
from glassworks.serve.state import State


def hold_up(state: State) -> tuple[threading.Event, Any]:
    """Keep the writer busy until the event is set, so that what is submitted meanwhile is written together."""
    began, held = threading.Event(), threading.Event()
    future = state.database.submit(lambda connection: began.set() or held.wait(10))
    assert began.wait(10)
    return held, future


HOLDER = "import sys, time; from glassworks.serve.state import State; State.hold(sys.argv[1]); print(1, flush=True); "


def add(owner: str) -> Any:
    return lambda connection: connection.execute(insert(usage), {"owner": owner, "day": 1, "compute_s": 0.0}) and owner


def owners(connection: Connection) -> list[str]:
    return list(connection.execute(select(usage.c.owner).order_by(usage.c.owner)).scalars())


@pytest.fixture
def state(tmp_path: Path) -> Any:
    with State.hold(tmp_path / "state") as state:
        yield state


# The folder.


def test_the_folder_is_made_for_its_owner_alone(state: State) -> None:
    assert state.folder.stat().st_mode & 0o777 == 0o700
    names = {path.name for path in state.folder.iterdir() if not path.name.startswith("glassworks.db-")}
    assert names == {"glassworks.db", "bodies", "results", "tensors", "lock"}


def test_a_second_service_is_refused_with_the_process_that_has_it(state: State) -> None:
    with pytest.raises(InputError, match=rf"a service that runs \(process {os.getpid()}\).*--state"):
        State.hold(state.folder)


def test_a_killed_service_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    code = HOLDER + "time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(InputError, match=f"process {child.pid}"):
            State.hold(tmp_path)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    State.hold(tmp_path).close()


def test_a_closed_folder_can_be_held_again(tmp_path: Path) -> None:
    for _ in range(2):
        State.hold(tmp_path).close()


def test_a_visitor_writes_beside_a_service(state: State) -> None:
    with State.visit(state.folder) as visitor:
        visitor.database.write(add("visitor"))
    assert state.database.read(owners) == ["visitor"]


def test_a_folder_without_state_is_not_made_by_a_visit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no state of a service"):
        State.visit(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    State.visit(tmp_path / "made", make=True).close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        State.hold(tmp_path / "file")


def test_state_of_another_version_is_refused(tmp_path: Path) -> None:
    with State.hold(tmp_path) as state:
        state.database.write(lambda connection: connection.execute(text("UPDATE about SET version = 99")) and None)
    with pytest.raises(InputError, match="state of version 99"):
        State.hold(tmp_path)
    (tmp_path / "glassworks.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(InputError, match="cannot be used as the service's state"):
        State.hold(tmp_path)


# The database.


def test_the_disk_is_synced_at_each_commit(state: State) -> None:
    found = [state.database.read(lambda c, q=q: c.exec_driver_sql(f"PRAGMA {q}").scalar()) for q in  # type: ignore[misc]
             ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")]  # fmt: skip
    assert found == ["wal", 2, 1, 10_000]


def test_those_who_write_at_once_share_a_commit(state: State) -> None:
    commits: list[int] = []
    state.database.after_commit = lambda: commits.append(1)
    held, first = hold_up(state)
    rest = [state.database.submit(add(f"o{k:02}")) for k in range(32)]
    held.set()
    assert [future.result() for future in [first, *rest]] == [True, *(f"o{k:02}" for k in range(32))]
    assert len(commits) == 2
    assert state.database.read(owners) == [f"o{k:02}" for k in range(32)]


def test_a_write_that_raises_undoes_itself_alone(state: State) -> None:
    def fail(connection: Connection) -> None:
        add("undone")(connection)
        raise ValueError("mine")

    followed: list[tuple[str, bool]] = []
    held, _ = hold_up(state)
    good = state.database.submit(add("good"), then=lambda written: followed.append(("good", written)))
    bad = state.database.submit(fail, then=lambda written: followed.append(("bad", written)))
    called_off = state.database.submit(add("called off"), then=lambda written: followed.append(("off", written)))
    assert called_off.cancel()
    last = state.database.submit(add("last"))
    held.set()
    assert (good.result(), last.result()) == ("good", "last")
    with pytest.raises(ValueError, match="mine"):
        bad.result()
    assert state.database.read(owners) == ["good", "last"]
    assert sorted(followed) == [("bad", False), ("good", True), ("off", False)]


def test_a_write_is_seen_by_nobody_before_it_is_committed(state: State) -> None:
    wrote, held = threading.Event(), threading.Event()

    def slow(connection: Connection) -> bool:
        add("slow")(connection)
        wrote.set()
        return held.wait(10)

    future = state.database.submit(slow)
    assert wrote.wait(10)
    assert state.database.read(owners) == []
    held.set()
    assert future.result()
    assert state.database.read(owners) == ["slow"]


def test_a_full_disk_is_told_to_all_who_wait_and_then_over(state: State, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite may end the whole transaction by itself, savepoints and all."""

    def pages(count: str) -> None:
        state.database.write(lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={count}") and None)

    used = state.database.read(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar())
    pages(str(used))
    with pytest.raises(RemoteError, match=r"cannot write its state now .*full.*try again later"):
        state.database.write(add("x" * 100_000))
    pages(str(2**30))
    assert state.database.write(add("small")) == "small"
    assert state.database.read(owners) == ["small"]
    assert "cannot be written" in caplog.text


def test_who_follows_a_commit_and_fails_stops_nobody(state: State, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("theirs")

    state.database.after_commit = fail
    assert state.database.write(add("a")) == "a"
    assert "what follows a write failed" in caplog.text


def test_what_was_submitted_is_written_before_the_end(tmp_path: Path) -> None:
    state = State.hold(tmp_path)
    futures = [state.database.submit(add(f"o{k}")) for k in range(5)]
    state.close()
    assert [future.result() for future in futures] == [f"o{k}" for k in range(5)]
    with pytest.raises(RemoteError, match="the service is stopping"):
        state.database.write(add("late"))
    state.database.close()


def test_many_threads_read_while_one_writes(state: State) -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(len(state.database.read(owners)))

    threads = [threading.Thread(target=look) for _ in range(40)]
    for k, thread in enumerate(threads):
        thread.start()
        state.database.write(add(f"o{k}"))
    for thread in threads:
        thread.join()
    assert len(seen) == 40
