"""Whether a model still gives what it gave at first: one token up to its logits, among the jobs of others."""

from typing import Any

from glassworks.engine.engine import Engine
from glassworks.engine.requests import Reply
from glassworks.errors import ModelError
from glassworks.serve.answers import Answer
from glassworks.serve.host import ModelHost
from glassworks.serve.runner import Order, Says
from glassworks.serve.tasks import Attempt, Task
from glassworks.serve.touch import ONE_TOKEN, SITE, TOUCH
from glassworks.serve.watch import RunWatch, free

_CLOSE = 1e-4
"""Of the largest logit: company in a pass moves them by less."""


class Reference:
    """What a model's first self-test gave: `[1, 1, vocab]`, None before it."""

    logits: Any = None


class SelfTest(Task):
    """One self-test; its answer goes to question `n`."""

    def __init__(self, n: int, reference: Reference, host: ModelHost, engine: Engine) -> None:
        order = Order(job="", fence=n, user="", weight=1.0, kind="selftest", streams=False, seed=0, body=bytearray())
        super().__init__(order, host, engine)
        self._reference = reference

    def begin(self) -> None:
        def start(alone: bool) -> Reply:
            return self.engine.start(TOUCH, ONE_TOKEN, alone=alone)

        self.attempts.append(Attempt(start, lambda: RunWatch((), free)))

    def look(self) -> Answer | None:
        [attempt] = self.attempts
        if not attempt.has_ended():
            return None
        logits = attempt.reply.results[SITE]
        if not logits.isfinite().all():
            raise ModelError("self-test: the model's logits are not finite")
        first = self._reference.logits
        if first is None:
            self._reference.logits = logits
        elif float((logits - first).abs().max()) > _CLOSE * max(1.0, float(first.abs().max())):
            raise ModelError("self-test: the model's logits are not what they were at first")
        return 200, b"{}"

    def tell(self, answer: Answer, says: Says) -> None:
        status, body = answer
        says.answer(self.order.fence, 200 if status == 200 else 500, body)

    @property
    def progress(self) -> float:
        return 0.0
