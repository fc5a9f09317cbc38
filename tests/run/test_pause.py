"""A paused function and its caller share a thread, and neither sees the other's state of it."""

import contextvars
from collections.abc import Callable
from contextlib import ExitStack
from threading import Thread
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from glassworks.errors import ScopeError
from glassworks.run.pause import Coroutine

NOTE: contextvars.ContextVar[str] = contextvars.ContextVar("note", default="nothing")


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no autocast": lambda: torch.autocast("cpu", enabled=False),
    "functions": Functions,
    "dispatches": Dispatches,
    "fake": FakeTensorMode,
    "device": lambda: torch.device("meta"),
}


def state() -> tuple[Any, ...]:
    from torch import overrides
    from torch.utils import _python_dispatch as dispatch

    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled(),
        tuple(map(id, overrides._get_current_function_mode_stack())),
        tuple(map(id, dispatch._get_current_dispatch_mode_stack())),
        NOTE.get(),
    )  # fmt: skip


def random_state() -> list[int]:
    return torch.get_rng_state().tolist()


@pytest.mark.parametrize("inside", MODES)
@pytest.mark.parametrize("outside", MODES)
def test_modes_entered_on_one_side_are_not_seen_on_the_other(inside: str, outside: str) -> None:
    seen: list[tuple[Any, ...]] = []

    def work() -> None:
        seen.append(state())
        own.pause()
        with MODES[inside]():
            NOTE.set("inside")
            seen.append(state())
            own.pause()
            seen.append(state())
        NOTE.set("nothing")
        own.pause()
        seen.append(state())

    before, random_before = state(), random_state()
    own = Coroutine(work)
    own.resume()
    assert state() == before
    with MODES[outside]():
        NOTE.set("outside")
        theirs = state()
        own.resume()
        assert state() == theirs
        own.resume()
        assert state() == theirs
    NOTE.set("nothing")
    assert state() == before
    own.resume()
    assert own.ended
    assert state() == before
    assert random_state() == random_before
    first, entered, still, last = seen
    assert first == last == (False, False, *before[2:])
    assert entered == still
    assert entered[-1] == "inside"
    assert theirs not in seen


@pytest.mark.parametrize("ending", ["stop", "error"])
@pytest.mark.parametrize("outside", MODES)
@pytest.mark.parametrize("inside", MODES)
def test_a_function_that_ends_inside_its_modes_leaves_the_callers(inside: str, outside: str, ending: str) -> None:
    unwound: list[str] = []

    def work() -> None:
        try:
            with MODES[inside]():
                own.pause()
                raise KeyError("mine")
        finally:
            unwound.append(inside)

    own = Coroutine(work)
    with MODES[outside]():
        before = state()
        own.resume()
        assert state() == before
        if ending == "stop":
            own.stop()
        else:
            with pytest.raises(KeyError, match="mine"):
                own.resume()
        assert state() == before
    assert unwound == [inside]
    assert own.ended
    own.stop()
    assert unwound == [inside]


def test_it_begins_in_the_callers_state_without_gradients() -> None:
    seen = []
    with ExitStack() as stack:
        for name in ("autocast", "functions", "dispatches", "inference"):
            stack.enter_context(MODES[name]())
        token = NOTE.set("copied")
        own = Coroutine(lambda: seen.append(state()))
        NOTE.reset(token)
        expected = state()
    own.resume()
    assert seen == [(False, False, *expected[2:-1], "copied")]


def test_each_side_draws_its_own_numbers() -> None:
    drawn: dict[str, list[float]] = {"inside": [], "outside": []}

    def work() -> None:
        for _ in range(3):
            drawn["inside"].append(float(torch.rand(())))
            own.pause()

    torch.manual_seed(3)
    expected = [float(torch.rand(())) for _ in range(3)]
    torch.manual_seed(3)
    own = Coroutine(work)
    for _ in range(3):
        own.resume()
        drawn["outside"].append(float(torch.rand(())))
    own.stop()
    assert drawn == {"inside": expected, "outside": expected}


def test_numbers_that_were_drawn_inside_are_spent() -> None:
    """As after a plain call: a loop does not draw the same numbers again and again."""
    torch.manual_seed(3)
    expected = [float(torch.rand(())) for _ in range(3)]
    torch.manual_seed(3)
    drawn: list[float] = []
    for _ in range(3):
        own = Coroutine(lambda: drawn.append(float(torch.rand(()))))
        own.resume()
        own.stop()
    assert drawn == expected


def test_doing_the_work_again_draws_the_same() -> None:
    drawn: list[float] = []

    def work() -> None:
        drawn.append(float(torch.rand(())))
        own.pause()

    torch.manual_seed(3)
    own = Coroutine(work)
    own.resume()
    with own.as_at_first():
        again = float(torch.rand(()))
    before = random_state()
    with own.as_at_first():
        torch.rand(7)
    assert random_state() == before
    own.stop()
    assert [again] == drawn


def test_it_belongs_to_its_thread() -> None:
    own = Coroutine(lambda: own.pause())
    own.resume()
    raised: list[BaseException] = []

    def elsewhere() -> None:
        own.stop()  # does nothing: a stack cannot be unwound from another thread
        try:
            own.resume()
        except ScopeError as error:
            raised.append(error)

    thread = Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "thread" in str(raised[0])
    assert not own.ended
    own.stop()
    assert own.ended


def test_two_take_turns() -> None:
    order: list[str] = []

    def make(name: str) -> Coroutine:
        def work() -> None:
            for k in range(3):
                order.append(f"{name}{k}")
                own.pause()

        own = Coroutine(work)
        return own

    one, two = make("a"), make("b")
    for _ in range(3):
        one.resume()
        two.resume()
    two.stop()
    one.stop()
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_one_that_never_began_is_stopped_in_silence() -> None:
    own = Coroutine(lambda: pytest.fail("it must not run"))
    own.stop()
    own.stop()
