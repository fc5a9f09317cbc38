"""Jobs of all people through one engine, which shares each forward pass among them."""

import time
from dataclasses import asdict
from typing import Any

from glassworks.client.content import Body, joined
from glassworks.engine.engine import Engine
from glassworks.errors import Cancelled, WireError
from glassworks.graph.messages import decode_error
from glassworks.serve.answers import Answer, refusal
from glassworks.serve.completing import Completion
from glassworks.serve.host import ModelHost, failed
from glassworks.serve.runner import Done, Event, Key, Order, Says
from glassworks.serve.selftest import Reference, SelfTest
from glassworks.serve.tasks import Experiments, Task
from glassworks.serve.watch import RunWatch, too_long

_KINDS: dict[str, type[Task]] = {"experiments": Experiments, "completion": Completion}


class Together:
    """A `Runner` whose step is an iteration of an engine.

    Args:
        run_s: seconds of compute that one job may have.
    """

    def __init__(self, host: ModelHost, engine: Engine, *, run_s: float) -> None:
        self.host, self._engine, self._run_s = host, engine, run_s
        self._tasks: dict[Key, Task] = {}
        self.together = 0
        self._reference = Reference()

    def try_out(self) -> None:
        """Run the model once; what a self-test gives from now on is compared with it. ModelError: it does not work."""
        heard = _Heard()
        self.test(0, heard)
        while self.step(heard):
            pass
        if heard.refusal is not None:
            raise heard.refusal

    def begin(self, order: Order, says: Says) -> None:
        self._add(_KINDS[order.kind](order, self.host, self._engine), says)

    def test(self, n: int, says: Says) -> None:
        self._add(SelfTest(n, self._reference, self.host, self._engine), says)

    def _add(self, task: Task, says: Says) -> None:
        try:
            task.begin()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's
            self._end(task, self._failed(error), says)
        else:
            self._tasks[task.order.key] = task

    def step(self, says: Says) -> bool:
        self._engine.step()
        events: list[Event] = []
        ended: list[tuple[Task, Answer]] = []
        for task in self._tasks.values():
            events += [(*task.order.key, *said) for said in task.news()]
            answer = self._looked(task)
            if answer is not None:
                ended.append((task, answer))
        says.events(events)
        self.together = len(ended)
        for task, answer in ended:
            del self._tasks[task.order.key]
            self._end(task, answer, says)
        return bool(self._tasks)

    def _looked(self, task: Task) -> Answer | None:
        try:
            answer = task.look()
            if answer is None and task.compute_s > self._run_s:
                raise too_long(task.compute_s, self._run_s)
            return answer
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's
            return self._failed(error)

    def _failed(self, error: Exception) -> Answer:
        return refusal(400, error) if isinstance(error, WireError) else failed(error)

    def _end(self, task: Task, answer: Answer, says: Says) -> None:
        """What is left of it ends too."""
        task.cancel()
        task.tell(answer, says)

    def cancel(self, key: Key, says: Says) -> None:
        task = self._tasks.pop(key, None)
        if task is not None:
            self._end(task, refusal(409, Cancelled(f"the job {key[0]} was cancelled")), says)

    def drop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._engine.step()  # with nobody left it forgets those that were still waiting

    def stop(self, key: Key) -> None:
        task = self._tasks.get(key)
        for attempt in [] if task is None else list(task.attempts):
            attempt.watch.stop()

    def about(self) -> dict[str, Any]:
        why = self._engine.why_not_packed
        return {"packed": why is None, "why_not_packed": why, "rows": self._engine.limits.rows}

    def figures(self) -> dict[str, Any]:
        stats, now = self._engine.stats, self._engine.now()
        own = None if now.own is None else now.own.watch
        return {
            "passes": stats.steps, "rows": stats.rows, "alone_passes": stats.alone_steps,
            "iterations": stats.iterations, "jobs": len(self._tasks),
            "pass_s": 0.0 if now.since_s is None else time.perf_counter() - now.since_s,
            "at": sorted({job for frame in now.at if (job := _job(frame.watch))}), "node_of": _job(own),
            "engine": {
                **asdict(stats),
                "bytes": {name: [own.used_bytes, own.budget_bytes] for name, own in self._engine.arenas.items()},
            },
        }  # fmt: skip

    def progress(self) -> dict[Key, float]:
        return {key: task.progress for key, task in list(self._tasks.items()) if key[0]}


class _Heard:
    """Who listens while the model is tried out: what the test found wrong, if anything."""

    refusal: Exception | None = None

    def events(self, events: list[Event]) -> None:
        """A test has none."""

    def done(self, done: Done) -> None:
        """A test is no job."""

    def stats(self, figures: dict[str, Any]) -> None:
        """Nobody asks."""

    def answer(self, n: int, status: int, body: Body) -> None:
        if status != 200:
            self.refusal = decode_error(bytes(joined(body)))


def _job(watch: Any) -> str | None:
    """Whose run it is that is watched; None: nobody's."""
    return (watch.job or None) if isinstance(watch, RunWatch) else None
