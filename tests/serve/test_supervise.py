"""When a child that has ended is started again, by a clock that the test holds."""

import itertools
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glassworks.serve import deaths, supervise
from glassworks.serve.deaths import death_of
from glassworks.serve.supervise import _Child


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One that ends at once; `starts` is when it was started, by the clock of the test."""
    found: Any = _Child(name="child", command=[sys.executable, "-c", ""], fds=[])
    now_s, starts, start = [100.0], [], _Child.start

    def counted(self: _Child) -> None:
        start(self)
        self.started_s = now_s[0]
        self.process.wait()
        starts.append(now_s[0])

    monkeypatch.setattr(_Child, "start", counted)
    found.start()

    def until(seconds: float) -> list[float]:
        end_s, before = now_s[0] + seconds, len(starts)
        while now_s[0] < end_s:
            now_s[0] += 0.125
            found.revive(now_s[0])
        return [each - end_s + seconds for each in starts[before:]]

    found.until = until
    yield found
    found.stop()


def test_a_child_that_keeps_ending_waits_longer_each_time(child: Any) -> None:
    begun = child.until(200.0)
    gaps = [b - a for a, b in itertools.pairwise(begun)]
    assert begun[0] == 0.125
    assert gaps[:4] == pytest.approx([0.5, 1.0, 2.0, 4.0], abs=0.3)
    assert max(gaps) == pytest.approx(supervise._PAUSES_S[1], abs=0.3)


def test_one_that_had_run_for_a_while_starts_at_once(child: Any) -> None:
    child.until(40.0)
    child.started_s -= supervise._SETTLED_S + 40
    child.due_s = None
    assert child.until(0.5)[0] == 0.125


def test_a_child_that_runs_is_left_alone() -> None:
    child = _Child(name="child", command=[sys.executable, "-c", "import time; time.sleep(60)"], fds=[])
    child.start()
    try:
        first = child.process.pid
        child.revive(time.monotonic() + 1000)
        assert child.process.pid == first
    finally:
        child.process.kill()
        child.process.wait()


def test_nobody_waits_for_anothers_pause(child: Any) -> None:
    child.until(40.0)
    other = _Child(name="other", command=[sys.executable, "-c", ""], fds=[])
    other.start()
    first, pid = child.process.pid, other.process.pid
    child.due_s = time.monotonic() + 1000
    stopping = supervise.threading.Event()
    watcher = supervise.threading.Thread(target=supervise._watch, args=([child, other], stopping))
    watcher.start()
    end_s = time.monotonic() + 20
    while other.process.pid == pid and time.monotonic() < end_s:
        time.sleep(0.01)
    stopping.set()
    watcher.join()
    assert other.process.pid != pid
    assert child.process.pid == first


def test_the_log_says_what_has_ended(child: Any, caplog: pytest.LogCaptureFixture) -> None:
    child.until(0.25)
    assert "the child has ended (exit code 0); it is started again" in caplog.text


@pytest.mark.parametrize(("counts", "from_outside"), [([7, 7], True), ([7, 8], False), ([None, None], False)])
def test_a_kill_is_from_outside_where_the_kernel_was_not_short_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int | None], from_outside: bool
) -> None:
    monkeypatch.setattr(supervise, "memory_kills", iter(counts).__next__)
    path = tmp_path / "deaths.jsonl"
    child = _Child(name="child", command=[sys.executable, "-c", "import time; time.sleep(60)"], fds=[], deaths=path)
    child.start()
    child.process.kill()
    while child.poll() is None:
        time.sleep(0.01)
    death = death_of(path, child.process.pid)
    assert death is not None
    assert (death.signal, death.code, death.from_outside) == (signal.SIGKILL, None, from_outside)


def test_what_ends_by_itself_was_not_ended_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "deaths.jsonl"
    child = _Child(name="child", command=[sys.executable, "-c", "raise SystemExit(9)"], fds=[], deaths=path)
    child.start()
    while child.poll() is None:
        time.sleep(0.01)
    death = death_of(path, child.process.pid)
    assert death is not None
    assert (death.signal, death.code, death.from_outside) == (None, 9, False)


def test_the_kernels_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "_VMSTAT", tmp_path / "vmstat")
    assert deaths.memory_kills() is None
    (tmp_path / "vmstat").write_text("nr_free_pages 100\noom_kill 3\n")
    assert deaths.memory_kills() == 3
