"""A service that is killed at any moment: what it acknowledged is there, once, and nothing else is half there."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glassworks.client.content import joined
from glassworks.serve.ledger import Ledger
from glassworks.serve.records import JobRow
from glassworks.serve.state import State

CHILD = Path(__file__).with_name("killed_ledger.py")


def killed(folder: Path, after_s: float) -> list[list[str]]:
    """What a child acknowledged before it was killed, which is any time after it was ready."""
    with subprocess.Popen([sys.executable, str(CHILD), str(folder)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(after_s)
        os.kill(child.pid, signal.SIGKILL)
        said = child.stdout.read().decode()
    assert child.returncode == -signal.SIGKILL
    return [line.split() for line in said.splitlines()]


def digest(body: object) -> str:
    return hashlib.sha256(bytes(joined(body))).hexdigest()  # type: ignore[arg-type]


def check(ledger: Ledger, said: list[list[str]]) -> None:
    """Each acknowledged write is there."""
    rows = {row.id: row for row in ledger.list("ann", limit=10**6)}
    bodies = {id: own[0] for what, id, *own in said if what == "admitted"}
    fences = {id: int(own[0]) for what, id, *own in said if what == "claimed"}
    results = {id: own[1] for what, id, *own in said if what == "ended"}
    assert bodies.keys() <= rows.keys()
    for id, own in results.items():
        answer = ledger.results(id, "ann")
        assert answer is not None
        assert (rows[id].status, digest(answer[2])) == ("done", own)
    for id, own in bodies.items():
        if rows[id].status == "queued":
            assert digest(ledger.body(id)) == own
    assert all(rows[id].fence == fence for id, fence in fences.items())
    for row in rows.values():
        check_job(ledger, row)


def check_job(ledger: Ledger, row: JobRow) -> None:
    """Whatever was acknowledged, a job is whole: it has its body or its result, and its events have no gap."""
    events = ledger.events(row.id, "ann")
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert sum(event.kind == "done" for event in events) == (row.status == "done")
    if row.status == "queued":
        assert digest(ledger.body(row.id)) == row.body_digest
    else:
        assert row.status == "done"
        assert ledger.results(row.id, "ann") is not None


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path, rounds: int) -> None:
    said: list[list[str]] = []
    for _ in range(rounds):
        said += killed(tmp_path, random.uniform(0.0, 0.5))
        with State.hold(tmp_path) as state:
            ledger = Ledger(state)
            ledger.release()
            check(ledger, said)
            named = {row.id for row in ledger.unfinished()}
            assert {path.name for path in state.bodies.iterdir()} <= named
            done = {row.id for row in ledger.list("ann", limit=10**6, status="done")}
            assert {path.name.rsplit("-", 2)[0] for path in state.results.iterdir()} <= done
            charged = ledger.compute_s_today("ann")
            assert charged == len(done)
    assert len([line for line in said if line[0] == "ended"]) > 10 * rounds
