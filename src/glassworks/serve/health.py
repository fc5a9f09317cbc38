"""Whether a service works: every few seconds a test runs in each worker, among the jobs of people.

Red when a test fails, gives no answer in time, or there is no worker, or one that says nothing. A worker in the middle
of one long pass, within the limit of jobs, is busy and not red: it answers when that has ended.
"""

import json
import threading
from collections.abc import Mapping
from typing import Any

from glassworks.errors import RemoteError
from glassworks.graph.messages import decode_error
from glassworks.serve.answers import Answer
from glassworks.serve.dispatch import Dispatcher

_EVERY_S = 2.0
_ANSWER_S = 7.0
_SILENT_S = 5.0
OK, BUSY, STARTING, ABSENT, FAILED = "ok", "busy", "starting", "absent", "failed"


class Health:
    """The tests of a service's models, by name."""

    def __init__(self, dispatchers: Mapping[str, Dispatcher]) -> None:
        self._dispatchers = dict(dispatchers)
        self._found: dict[str, tuple[str, str]] = dict.fromkeys(dispatchers, (STARTING, "no test has run yet"))
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(name,), name="glassworks-health", daemon=True)
            for name in dispatchers
        ]

    def start(self) -> None:
        """Begin to test."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Test no more; a test under way ends by itself."""
        self._stopping.set()

    def state(self, name: str) -> tuple[str, str]:
        """A word, and why."""
        dispatcher = self._dispatchers[name]
        state, why = self._found[name]
        if not dispatcher.link.is_up:
            return (STARTING if state == STARTING else ABSENT), "its worker is not there"
        if dispatcher.silent_s > _SILENT_S:
            return FAILED, f"its worker has said nothing for {dispatcher.silent_s:.0f} s"
        return state, why

    def answer(self) -> Answer:
        """Of the whole service, as JSON; 503 if it is red."""
        states = {name: self.state(name) for name in self._dispatchers}
        good = all(state in (OK, BUSY) for state, _ in states.values())
        told = {name: {"state": state, "why": why} for name, (state, why) in states.items()}
        body = json.dumps({"status": "ok" if good else "red", "models": told})
        return (200 if good else 503), body.encode()

    def told(self, name: str) -> dict[str, Any]:
        """How one model stands."""
        dispatcher = self._dispatchers[name]
        state, why = self.state(name)
        stats = dispatcher.stats
        passes = stats.get("passes", 0)
        rows = round(stats["rows"] / passes, 2) if passes else None
        return {"state": state, "why": why, **dispatcher.counts, "rows_per_pass": rows}

    def _work(self, name: str) -> None:
        while not self._stopping.wait(0.1 if self._found[name][0] == STARTING else _EVERY_S):
            self._found[name] = self._tested(name)

    def _tested(self, name: str) -> tuple[str, str]:
        dispatcher = self._dispatchers[name]
        if not dispatcher.link.is_up:
            return self._found[name]
        try:
            status, body = dispatcher.link.ask("selftest", timeout_s=_ANSWER_S)
        except RemoteError as error:
            if dispatcher.link.is_up and dispatcher.is_in_a_pass:
                return BUSY, "one pass takes long"
            return FAILED, str(error)
        return (OK, "") if status == 200 else (FAILED, str(decode_error(bytes(body))))  # type: ignore[arg-type]
