"""What time it is: the computer's own clock, or one that moves only when it is told to.

A policy is handed a reading and never asks for one; whoever drives it owns the clock. The virtual one makes a run on a
busy computer repeatable: time is what the driver says that an iteration cost. It belongs to one thread.
"""

import time
from typing import Protocol

from glassworks.errors import InputError


class Clock(Protocol):
    """Seconds since some moment; only differences mean anything."""

    def now_s(self) -> float:
        """The reading."""

    def advance(self, seconds: float) -> None:
        """Work of so many seconds was done. A virtual clock moves; a real one has moved by itself."""

    def sleep(self, seconds: float) -> None:
        """Wait. A virtual clock moves at once."""


class RealClock:
    """The computer's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()

    def advance(self, seconds: float) -> None:
        _positive(seconds)

    def sleep(self, seconds: float) -> None:
        time.sleep(_positive(seconds))


class VirtualClock:
    """Starts at `start_s` and moves only by `advance` and `sleep`."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += _positive(seconds)

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)


def _positive(seconds: float) -> float:
    if not seconds >= 0:
        raise InputError(f"a clock moves forward: expected seconds >= 0, got {seconds}")
    return seconds
