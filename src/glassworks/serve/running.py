"""The life of a worker on one connection: messages are taken in, the model goes on, what came of it is sent.

One thread does all that touches the model; it takes messages in between two steps of the runner, and waits for one
where there is nothing to do. Beside it, one thread reads (and answers what needs no model) and one says twice a second
how things are, also during a pass that takes long.
"""

import json
import os
import threading
import time
from collections.abc import Sequence
from socket import socket
from typing import Any

from glassworks.client.content import Body
from glassworks.graph import logs
from glassworks.serve.line import Line
from glassworks.serve.pulse import beat
from glassworks.serve.runner import Done, Event, Order, Runner

PASSES, AT_MOST_S = 2.0, 0.1


def serve(runner: Runner, connection: socket) -> None:
    """Do what comes over a connection until it ends; then nothing of it is left."""
    line = Line(connection)
    over, says = threading.Event(), _Saying(line)
    line.send({"is": "ready", "pid": os.getpid(), **runner.about()})
    line.read(lambda head, body: _at_once(runner, says, head, body))
    threading.Thread(target=beat, args=(runner, says, over), name="glassworks-pulse", daemon=True).start()
    try:
        with logs.silence():
            _work(runner, line, says)
    finally:
        over.set()
        runner.drop()


def _work(runner: Runner, line: Line, says: "_Saying") -> None:
    busy, gathering = False, Gathering()
    while True:
        wait_s = 0.0 if busy else None
        while wait_s is None or wait_s >= 0:
            for message in line.arrived(wait_s=wait_s):
                if message is None:
                    return
                gathering.came += message[0]["do"] == "run"
                _take(runner, says, *message)
            wait_s = -1.0 if busy else gathering.wait_s()
        began_s = time.monotonic()
        busy = runner.step(says)
        gathering.passed(time.monotonic() - began_s, together=runner.together, waiting=line.waiting)


class Gathering:
    """How long a worker that has nothing else to do waits for more before it begins: people whose jobs ended together
    are likely to come back together, and a pass that they share costs little more than one of its own.

    A worker waits for as many as ended in the step before and came while it ran, and at most for `PASSES` times as long
    as that step took: so one who comes alone waits for nobody, and nobody waits longer than a crowd would have taken.
    """

    def __init__(self) -> None:
        self.came = 0
        self._expected, self._at_most_s = 0, 0.0
        self._until_s: float | None = None

    def passed(self, seconds: float, *, together: int, waiting: int) -> None:
        """A step has ended jobs `together`; so many messages came meanwhile."""
        self._expected = together + waiting if together else 0
        self._at_most_s = min(PASSES * seconds, AT_MOST_S)
        self.came, self._until_s = 0, None

    def wait_s(self) -> float:
        """How much longer to wait for the next; negative: not at all."""
        if not 0 < self.came < self._expected:
            return -1.0
        if self._until_s is None:
            self._until_s = time.monotonic() + self._at_most_s
        return self._until_s - time.monotonic() or -1.0


def _take(runner: Runner, says: "_Saying", head: dict[str, Any], body: bytearray) -> None:
    match head["do"]:
        case "run":
            own = {name: head[name] for name in ("job", "fence", "user", "weight", "kind", "streams", "seed")}
            runner.begin(Order(**own, body=body), says)
        case "cancel":
            runner.cancel((head["job"], head["fence"]), says)
        case "selftest":
            runner.test(head["n"], says)
        case "ask":
            says.answer(head["n"], *runner.host.sites_for(memoryview(body)))


def _at_once(runner: Runner, says: "_Saying", head: dict[str, Any], body: bytearray) -> bool:
    """What the reading thread does with a message; whether nothing is left to do."""
    match head["do"], head.get("what"):
        case "cancel", _:
            runner.stop((head["job"], head["fence"]))
            return False
        case "ask", "tokenizer":
            says.answer(head["n"], 200, runner.host.tokenizer)
            return True
        case "ask", "sites" if not body:
            says.answer(head["n"], *runner.host.sites())
            return True
    return False


class _Saying:
    """What a runner says, as messages."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def events(self, events: Sequence[Event]) -> None:
        if events:
            self._line.send({"is": "events"}, json.dumps(events).encode())

    def done(self, done: Done) -> None:
        (job, fence), (status, body) = done.key, done.answer
        self._line.send(
            {
                "is": "done", "job": job, "fence": fence, "status": status, "media": done.media,
                "compute_s": done.compute_s, "forwards": done.forwards,
            },
            body,
        )  # fmt: skip

    def stats(self, figures: dict[str, Any]) -> None:
        self._line.send({"is": "stats", **figures})

    def answer(self, n: int, status: int, body: Body) -> None:
        self._line.send({"is": "answer", "n": n, "status": status}, body)
