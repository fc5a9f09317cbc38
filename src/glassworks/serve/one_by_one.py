"""Jobs one after the other, each with the model for itself: for models that no engine takes."""

import itertools
import time
from collections import deque
from typing import Any

from glassworks.errors import Cancelled, InputError
from glassworks.graph import logs
from glassworks.serve.answers import refusal
from glassworks.serve.host import ModelHost
from glassworks.serve.runner import BYTES, JSON, Done, Key, Order, Says
from glassworks.serve.touch import ONE_TOKEN, SITE, TOUCH
from glassworks.serve.watch import RunWatch


class OneByOne:
    """A `Runner` whose step is a whole job."""

    together = 0

    def __init__(self, host: ModelHost) -> None:
        self.host = host
        self._waiting: deque[Order] = deque()
        self._running: Key | None = None
        self._watch: RunWatch | None = None
        self._forwards = self._ran = self._passes = 0

    def begin(self, order: Order, says: Says) -> None:
        self._waiting.append(order)

    def test(self, n: int, says: Says) -> None:
        try:
            if SITE in self.host.backend.sites().sites:
                self.host.backend.run(TOUCH, ONE_TOKEN)
            says.answer(n, 200, b"{}")
        except Exception as error:  # noqa: BLE001 - what the test is for
            says.answer(n, *refusal(500, error))

    def step(self, says: Says) -> bool:
        if self._waiting:
            order = self._waiting.popleft()
            self._running = order.key
            says.done(self._run(order, says))
            self._running = self._watch = None
            self._ran += 1
        return bool(self._waiting)

    def _run(self, order: Order, says: Says) -> Done:
        if order.kind != "experiments":
            return Done(key=order.key, answer=refusal(422, InputError("this model completes no texts: use its sites")))
        said = itertools.count()

        def hear(number: int, entry: logs.LogEntry) -> None:
            says.events([(*order.key, next(said), "log", {"experiment": number, "entry": logs.to_json(entry)})])

        began_s = time.perf_counter()
        answer = self.host.run(order.body, _id(order.key), hear=hear, begun=self._begun)
        forwards = 0 if self._watch is None else self._watch.forwards
        self._passes += forwards
        return Done(
            key=order.key, answer=answer, media=BYTES if answer[0] == 200 else JSON,
            compute_s=time.perf_counter() - began_s, forwards=forwards,
        )  # fmt: skip

    def _begun(self, verdict: dict[str, Any], watch: RunWatch) -> None:
        self._watch, self._forwards = watch, verdict["forwards"]

    def cancel(self, key: Key, says: Says) -> None:
        for order in [own for own in self._waiting if own.key == key]:
            self._waiting.remove(order)
            says.done(Done(key=key, answer=refusal(409, Cancelled(f"the job {key[0]} was cancelled"))))

    def drop(self) -> None:
        self._waiting.clear()

    def stop(self, key: Key) -> None:
        if self._running == key:
            self.host.cancel(_id(key))

    def about(self) -> dict[str, Any]:
        return {"packed": False, "why_not_packed": "jobs of this model run one by one", "rows": 1}

    def figures(self) -> dict[str, Any]:
        watch, running = self._watch, self._running
        job = None if running is None else running[0]
        return {
            "passes": self._passes, "rows": self._passes, "alone_passes": self._passes, "iterations": self._ran,
            "jobs": len(self._waiting) + (job is not None), "at": [] if job is None else [job], "node_of": job,
            "pass_s": 0.0 if watch is None else time.perf_counter() - watch.since_s, "engine": {},
        }  # fmt: skip

    def progress(self) -> dict[Key, float]:
        watch, running = self._watch, self._running
        if watch is None or running is None:
            return {}
        return {running: min(1.0, watch.forwards / max(1, self._forwards))}


def _id(key: Key) -> str:
    return f"{key[0]}/{key[1]}"
