"""A job among an engine's requests: what it has begun, what has come of it so far, and when it has ended.

After each iteration a task is looked at; it says what is new, begins what comes next, and in the end has an answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from glassworks.engine.engine import Engine
from glassworks.engine.requests import Reply
from glassworks.graph.backend import Results, linked
from glassworks.graph.logs import to_json
from glassworks.run.watch import watched
from glassworks.serve.answers import Answer
from glassworks.serve.host import ModelHost
from glassworks.serve.runner import BYTES, JSON, Done, Order, Says
from glassworks.serve.watch import RunWatch

Said = tuple[int, str, dict[str, Any]]
"""(source, kind, data) of an event."""


class Attempt:
    """One request of a task. Where the model failed in a pass that others shared, it is made again by itself: whose
    doing it was shows there.

    Args:
        start: begins it; is told whether to run by itself.
        watch: makes what watches it.
    """

    def __init__(self, start: Callable[[bool], Reply], watch: Callable[[], RunWatch]) -> None:
        self._start, self._made_watch = start, watch
        self._before_s = 0.0
        self._begin(alone=False)

    def _begin(self, *, alone: bool) -> None:
        self.watch = self._made_watch()
        with watched(self.watch):
            self.reply = self._start(alone)

    @property
    def compute_s(self) -> float:
        """Seconds of the model's so far."""
        return self._before_s + self.reply.timing.compute_s

    def has_ended(self) -> bool:
        """Whether it has, and stays so."""
        if self.reply.in_company:
            self._before_s = self.compute_s
            self._begin(alone=True)
        return self.reply.done


class Task(ABC):
    """One job.

    Attributes:
        order: what was asked for. attempts: all requests so far, the last of them under way.
    """

    media = JSON

    def __init__(self, order: Order, host: ModelHost, engine: Engine) -> None:
        self.order, self.host, self.engine = order, host, engine
        self.attempts: list[Attempt] = []
        self.sources = 0

    @abstractmethod
    def begin(self) -> None:
        """Read the order, and start. What is raised ends the job."""

    @abstractmethod
    def look(self) -> Answer | None:
        """After an iteration: go on; the answer, once there is one. What is raised ends the job."""

    @property
    @abstractmethod
    def progress(self) -> float:
        """From 0 to 1. Any thread may ask."""

    def news(self) -> Iterator[Said]:
        """What is to be told since the last time."""
        return iter(())

    def said(self, kind: str, data: dict[str, Any]) -> Said:
        """An event, numbered."""
        self.sources += 1
        return self.sources - 1, kind, data

    def tell(self, answer: Answer, says: Says) -> None:
        """It has ended."""
        says.done(
            Done(
                key=self.order.key, answer=answer, media=self.media if answer[0] == 200 else JSON,
                compute_s=self.compute_s, forwards=self.forwards,
            )
        )  # fmt: skip

    def cancel(self) -> None:
        """All of it ends."""
        for attempt in self.attempts:
            attempt.reply.cancel()

    @property
    def compute_s(self) -> float:
        return sum(attempt.compute_s for attempt in self.attempts)

    @property
    def forwards(self) -> int:
        return sum(attempt.watch.forwards for attempt in self.attempts)


class Experiments(Task):
    """Experiments of a request, in order, values handed on."""

    media = BYTES

    def begin(self) -> None:
        self._verdict, self._request = self.host.read(self.order.body)
        self._price = self.host.price()
        self._done: list[Results] = []
        self._told = 0
        self._next()

    def _next(self) -> None:
        k = len(self._done)
        experiment = self._request.experiments[k]
        inputs = linked(experiment, self._done)

        def start(alone: bool) -> Reply:
            return self.engine.start(
                experiment.graph, inputs, experiment.generation, user=self.order.user, weight=self.order.weight,
                alone=alone,
            )  # fmt: skip

        late = self._verdict["late"][k : k + 1]
        self._attempt = Attempt(start, lambda: RunWatch(late, self._price, job=self.order.job))
        self.attempts.append(self._attempt)
        self._told = 0

    def look(self) -> Answer | None:
        if not self._attempt.has_ended():
            return None
        found: Any = self._attempt.reply.results
        self._done.append(found)
        if len(self._done) < len(self._request.experiments):
            self._next()
            return None
        return 200, self.host.written(self._done)

    def news(self) -> Iterator[Said]:
        entries = self._attempt.reply.logs
        for entry in entries[self._told :]:
            self._told += 1
            yield self.said("log", {"experiment": len(self.attempts) - 1, "entry": to_json(entry)})

    @property
    def progress(self) -> float:
        return min(1.0, self.forwards / max(1, int(self._verdict["forwards"])))
