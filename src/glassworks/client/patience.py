"""Asking again: what is tried once more, after which pause, and for how long.

No answer, and the answers 502, 503 and 504, mean that a service is not there now: it may be starting again. Whatever
else it says is its answer. Patience is a time: it runs from the first failure of a row of them, and begins anew when
something has come. A request that is tried again must be one that may come twice.
"""

import random
import time
from collections.abc import Callable

from glassworks.client.base import Answer
from glassworks.client.calls import error_of
from glassworks.client.flow import Flow, Open, Pause, Send
from glassworks.errors import RemoteError

NOT_THERE = frozenset({502, 503, 504})
_FIRST_S, _LONGEST_S = 0.1, 5.0


class Patience:
    """How long one piece of work puts up with a service that is not there.

    Args:
        seconds: 0 takes the first failure for an answer.
        now_s: a clock.
    """

    def __init__(self, seconds: float, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._now_s = seconds, now_s
        self._until_s: float | None = None
        self._pause_s = _FIRST_S

    def restored(self) -> None:
        """Something has come."""
        self._until_s, self._pause_s = None, _FIRST_S

    def pause_s(self, *, at_least_s: float = 0.0) -> float | None:
        """How long to wait before the next try, longer each time; None: there is to be none."""
        now_s = self._now_s()
        if self._until_s is None:
            self._until_s = now_s + self.seconds
        left_s = self._until_s - now_s
        # Many clients lose a service at one moment, and are not to come back at one.
        own_s = self._pause_s * (0.5 + random.random())
        self._pause_s = min(2 * self._pause_s, _LONGEST_S)
        if left_s <= 0 or at_least_s > left_s:
            return None
        return max(at_least_s, min(own_s, left_s))


def asked(step: Send | Open, patience: Patience) -> Flow[Answer]:
    """The answer of a service that is there.

    Raises:
        RemoteError: it was not, for as long as the patience goes; what it said last, or that it said nothing.
    """
    while True:
        try:
            answer: Answer = yield step
        except RemoteError as error:
            yield from paused(patience, error)
            continue
        if answer.status not in NOT_THERE:
            if isinstance(step, Send):  # of what is opened, little has come yet
                patience.restored()
            return answer
        refusal = error_of(answer.status, answer.body, str(step.request))
        yield from paused(patience, refusal, at_least_s=_retry_after_s(answer))


def paused(patience: Patience, error: Exception, *, at_least_s: float = 0.0) -> Flow[None]:
    """Wait before another try; if there is to be none, the error is raised."""
    pause_s = patience.pause_s(at_least_s=at_least_s)
    if pause_s is None:
        if patience.seconds:
            error.add_note(f"  tried again for {patience.seconds:g} s (patience_s of gw.connect)")
        raise error
    yield Pause(pause_s)


def _retry_after_s(answer: Answer) -> float:
    """What the service asks for, in seconds; its other form, a date, is not ours."""
    try:
        return max(0.0, min(float(answer.headers.get("retry-after", "0")), 3600.0))
    except ValueError:
        return 0.0
