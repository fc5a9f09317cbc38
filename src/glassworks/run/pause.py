"""A function that runs piece by piece in the caller's thread, and keeps what the thread remembers to itself.

A greenlet has a stack and context variables of its own. Everything else that torch keeps for a thread would leak from
one side to the other: the gradient and inference modes, autocast, the stacks of function and dispatch modes, the random
state. So all of it is exchanged whenever the two sides change places, always on the caller's side: the function is
unwound in its own state too, and an exception finds the caller's state as it was.

Surprises this file settles:
- A new greenlet has an empty context; it gets a copy of the caller's.
- Inference mode can be left and entered only as one leaves and enters a block, which the caller's side does around
  every piece, whatever the mode was.
- A state is taken with the mode stacks emptied: under a fake mode even reading the random state gives fake tensors.
- Both sides begin with the same random state and draw from it apart, so neither changes what the other draws. What the
  function has drawn is spent when it ends, as after a plain call, unless the caller has drawn in the meantime.

Knows nothing of models.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from threading import get_ident
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import overrides
from torch.utils import _python_dispatch as dispatch

from glassworks.errors import ScopeError
from glassworks.run.modules import Stopped

Devices = Sequence[torch.device]


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What torch remembers for a thread.

    Attributes:
        autocast: (kind of device, whether it is on, its dtype). caching: whether autocast keeps what it has cast.
        functions, dispatchers: the stacks of torch function modes and of dispatch modes, innermost last.
        random: the state of each device's generator.
    """

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    caching: bool
    functions: tuple[Any, ...]
    dispatchers: tuple[Any, ...]
    random: tuple[torch.Tensor, ...]

    @classmethod
    def take(cls, devices: Devices) -> "ThreadState":
        """The state as it is. The stacks of modes are left empty, for `put` to fill."""
        functions = tuple(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]
        dispatchers = tuple(dispatch._get_current_dispatch_mode_stack())
        for _ in functions:
            overrides._pop_mode()  # type: ignore[no-untyped-call]
        for _ in dispatchers:
            dispatch._pop_mode()
        return cls(
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            autocast=tuple(_autocast(device.type) for device in devices),
            caching=torch.is_autocast_cache_enabled(),
            functions=functions,
            dispatchers=dispatchers,
            random=tuple(_random_state(d) for d in devices),
        )  # fmt: skip

    def put(self, devices: Devices) -> None:
        """Make this the state, inference mode excepted; after a `take`."""
        torch.set_grad_enabled(self.grad)
        for kind, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(self.caching)
        for device, state in zip(devices, self.random, strict=True):
            _set_random_state(device, state)
        for mode in self.dispatchers:
            dispatch._push_mode(mode)
        for mode in self.functions:
            overrides._push_mode(mode)  # type: ignore[no-untyped-call]


class Coroutine:
    """A function that can be paused from inside, and is resumed or stopped from outside.

    It begins in the state of the thread that makes it, without gradients and inference mode.

    Args:
        work: is called at the first `resume`. device: where it computes, beside the CPU.
    """

    def __init__(self, work: Callable[[], None], *, device: torch.device | None = None) -> None:
        others = [] if device is None or device.type in ("cpu", "meta") else [device]
        self._devices = [torch.device("cpu"), *others]
        self._thread = get_ident()
        self._greenlet = greenlet(partial(_unwound, work))
        self._greenlet.gr_context = copy_context()
        own = ThreadState.take(self._devices)
        own.put(self._devices)
        self._first = self._now = replace(own, grad=False, inference=False)

    @property
    def ended(self) -> bool:
        """Whether the function has returned, raised or been stopped."""
        return bool(self._greenlet.dead)

    def resume(self) -> None:
        """Run it until it pauses or ends; what it raises is raised here."""
        with self.inside():
            self._greenlet.parent = getcurrent()
            self._greenlet.switch()

    def pause(self) -> None:
        """Called by the function: go back to whoever resumed it."""
        self._greenlet.parent.switch()

    def stop(self) -> None:
        """Unwind the function, if it has begun and not ended.

        From another thread, and when Python is about to exit, that cannot be done: it is left.
        """
        if get_ident() != self._thread or sys.is_finalizing():
            return
        if self._greenlet:  # true from its beginning to its end
            with self.inside():
                self._greenlet.parent = getcurrent()
                self._greenlet.throw(Stopped)
        callers = ThreadState.take(self._devices)
        if all(torch.equal(now, first) for now, first in zip(callers.random, self._first.random, strict=True)):
            callers = replace(callers, random=self._now.random)
        callers.put(self._devices)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block this thread is in the function's state.

        Raises:
            ScopeError: this is not the thread that it belongs to.
        """
        if get_ident() != self._thread:
            raise ScopeError("a live block belongs to the thread that opened it, and this is another")
        state = [self._now]
        try:
            with self._exchanged(state):
                yield
        finally:
            [self._now] = state

    @contextmanager
    def as_at_first(self) -> Iterator[None]:
        """Within the block this thread is in the state that the function began in, for doing its work again."""
        with self._exchanged([self._first]):
            yield

    @contextmanager
    def _exchanged(self, state: list[ThreadState]) -> Iterator[None]:
        """Within the block the one state in the list is the thread's; then the list holds what became of it."""
        devices = self._devices
        callers = ThreadState.take(devices)
        try:
            with torch.inference_mode(state[0].inference):
                state[0].put(devices)
                try:
                    yield
                finally:
                    state[0] = ThreadState.take(devices)
        finally:
            callers.put(devices)


def _unwound(work: Callable[[], None]) -> None:
    with suppress(Stopped):
        work()


def _autocast(kind: str) -> tuple[str, bool, torch.dtype]:
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _random_state(device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)  # type: ignore[no-any-return]


def _set_random_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
