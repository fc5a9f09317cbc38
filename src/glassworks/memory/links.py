"""Links between tiers: who copies, and when a copy has happened.

A copy is sent and has a *fence*. Until the fence has passed its source must stay as it is and its destination means
nothing; whoever sent it looks at the fence, and nobody waits inside a copy. Between tiers of one memory a copy is done
when it is sent; an emulated link takes the time that its bandwidth says, on the clock it is given, and really copies
only then, so that whoever ignores the fence reads what is not there yet.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from glassworks.errors import InputError

Copy = Callable[[], None]


class Fence(Protocol):
    """Of one copy."""

    def passed(self) -> bool:
        """Whether the copy has happened."""


class Link(Protocol):
    """Carries copies one way. `instant`: a fence has passed as soon as its copy is sent."""

    instant: bool

    def send(self, copy: Copy, size_bytes: int) -> Fence:
        """Begin a copy of so many bytes."""


class _Passed:
    def passed(self) -> bool:
        return True


class SameMemory:
    """Between arenas of one memory: the copy is done at once."""

    instant = True

    def send(self, copy: Copy, size_bytes: int) -> Fence:
        """See `Link`."""
        copy()
        return _Passed()


class EmulatedLink:
    """A link of a given bandwidth: one copy after another, each done when its time has come.

    Args:
        bytes_per_s: its bandwidth. now_s: the clock.
    """

    instant = False

    def __init__(self, bytes_per_s: float, now_s: Callable[[], float]) -> None:
        if not bytes_per_s > 0:
            raise InputError(f"a link's bandwidth is more than 0 bytes a second, got {bytes_per_s!r}")
        self._bytes_per_s, self._now_s = bytes_per_s, now_s
        self._busy_until_s = 0.0

    def send(self, copy: Copy, size_bytes: int) -> Fence:
        """See `Link`."""
        self._busy_until_s = max(self._busy_until_s, self._now_s()) + size_bytes / self._bytes_per_s
        return _Timed(copy, self._busy_until_s, self._now_s)


class _Timed:
    def __init__(self, copy: Copy, due_s: float, now_s: Callable[[], float]) -> None:
        self._copy: Copy | None = copy
        self.due_s, self._now_s = due_s, now_s

    def passed(self) -> bool:
        if self._copy is not None and self._now_s() >= self.due_s:
            copy, self._copy = self._copy, None
            copy()
        return self._copy is None


class CudaLink:
    """Copies between an accelerator and pinned memory, on a stream of its own."""

    instant = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, copy: Copy, size_bytes: int) -> Fence:
        """See `Link`."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # what is copied has been computed
        with torch.cuda.stream(self._stream):
            copy()
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return _CudaFence(event)


class _CudaFence:
    def __init__(self, event: Any) -> None:
        self._event = event

    def passed(self) -> bool:
        return bool(self._event.query())


def link_for(device: torch.device) -> Link:
    """The link between a device and the host."""
    return CudaLink(device) if device.type == "cuda" else SameMemory()
