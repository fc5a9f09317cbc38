"""However a live block ends, and whatever is around it: the model and the thread are left as they were."""

import contextvars
import copy
import gc
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

import glassworks as gw
from families import gpt2
from lines import here, told

PROMPT = [5, 6, 7, 8]
IDS = torch.tensor([PROMPT])


@pytest.fixture
def bare() -> torch.nn.Module:
    return gpt2()


@pytest.fixture
def model(bare: torch.nn.Module) -> gw.Model:
    return gw.wrap(bare)


def plain(bare: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return bare(input_ids=IDS, use_cache=False).logits


def attributes(module: nn.Module) -> list[Any]:
    """All that hangs on a module and its children, wrappers, hooks and modes among it."""
    own = [sorted(child.__dict__) for child in module.modules()]
    hooks = [len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules()]
    return [own, hooks, [child.training for child in module.modules()], [p.grad is None for p in module.parameters()]]


NOTE: contextvars.ContextVar[str] = contextvars.ContextVar("note", default="nothing")


def thread_state() -> list[Any]:
    return [
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"), _get_current_function_mode_stack(), _get_current_dispatch_mode_stack(),
        NOTE.get(), contextvars.copy_context().items().__len__(),
    ]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def only_what_is_made_here_is_looked_through() -> Iterator[None]:
    """Else each `gc.collect` goes through all that other tests have imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def all_is_as_it_was(bare: torch.nn.Module, model: gw.Model) -> Iterator[None]:
    """The rule, after each of these tests."""
    logits, before, state, random = plain(bare), attributes(bare), thread_state(), torch.get_rng_state()
    yield
    gc.collect()
    assert attributes(bare) == before
    assert thread_state() == state
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(plain(bare), logits)
    with model.trace(PROMPT):
        saved = model.logits.save()
    assert torch.equal(saved.value, logits)


# How it ends.


def test_at_a_return(model: Any) -> None:
    def first_large() -> Any:
        with model.live(PROMPT) as t:
            for layer in model.layers:
                if layer.output.abs().max() > 0:
                    return t, layer.output.save()
        return None

    block, saved = first_large()
    assert saved.shape == (1, 4, 32)
    assert block.forwards == 1


def test_at_a_break_of_a_loop_around_it(model: Any) -> None:
    for _ in range(3):
        with model.live(PROMPT):
            saved = model.layers[1].attn.output.save()
            break
    assert saved.shape == (1, 4, 32)


def test_nothing_runs_beyond_the_last_site(model: Any, bare: Any) -> None:
    ran: list[str] = []
    handles = [
        child.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, child in bare.named_modules()
    ]
    try:
        with model.live(PROMPT):
            assert ran == []
            model.transformer.h[1].ln_1.output.mean()
            assert ran[-1] == "transformer.h.1.ln_1"
        assert ran[-1] == "transformer.h.1.ln_1"
    finally:
        for handle in handles:
            handle.remove()


def test_without_having_touched_anything(model: Any) -> None:
    with model.live(PROMPT) as t:
        pass
    assert t.forwards == 0


def test_by_an_exception_in_the_body(model: Any) -> None:
    with pytest.raises(KeyError, match="mine"), model.live(PROMPT):
        saved = model.layers[1].output.save()
        assert saved.shape == (1, 4, 32)
        raise KeyError("mine")
    with pytest.raises(gw.NotSaved, match=r"KeyError.*what it computed is gone"):
        saved.mean()


def test_by_an_interrupt(model: Any) -> None:
    with pytest.raises(KeyboardInterrupt), model.live(PROMPT):
        model.layers[1].output.mean()
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [RuntimeError, ZeroDivisionError, KeyboardInterrupt])
def test_by_an_exception_in_the_model(model: Any, bare: Any, kind: type[BaseException]) -> None:
    def fail(*_: Any) -> None:
        raise kind("the model's")

    handle = bare.transformer.h[2].mlp.register_forward_pre_hook(fail)
    try:
        with model.live(PROMPT):
            h = model.layers[0].output
            with pytest.raises(kind, match="the model's") as caught:
                model.logits.mean()
            if issubclass(kind, Exception):
                assert here(-2) in told(caught.value)
            with pytest.raises(gw.OrderError, match="ended on its way to logits"):
                model.logits.mean()
            assert (h * 2).shape == h.shape  # what has been computed is still there
        with pytest.raises(kind, match="the model's"), model.live(PROMPT):
            model.logits.save()
    finally:
        handle.remove()


def test_where_the_pass_takes_another_way(bare: Any) -> None:
    class Way(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.long = nn.Linear(3, 3), nn.Linear(3, 3), True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x)) if self.long else self.one(x)

    with torch.random.fork_rng():
        way = Way()
    wrapped = gw.wrap(way)
    with wrapped.trace(torch.ones(2, 3)):
        wrapped.two.output.save()
    way.long = False
    with pytest.raises(gw.ModelError, match="did not come by two") as caught, wrapped.live(torch.ones(2, 3)):
        wrapped.two.output.mean()
    assert here(-1) in told(caught.value)
    assert "forward" not in way.two.__dict__


def test_by_being_dropped(model: Any, bare: Any) -> None:
    block = model.live(PROMPT)
    block.__enter__()
    value = model.layers[1].output
    assert "forward" in bare.transformer.h[0].__dict__
    del block
    gc.collect()
    assert "forward" not in bare.transformer.h[0].__dict__
    with pytest.raises(gw.NotSaved, match="dropped"):
        float(value.mean())
    with pytest.raises(gw.ScopeError, match="inside a block only"):
        model.layers[2].output.mean()


def test_by_being_dropped_inside_a_generator(model: Any) -> None:
    def layers() -> Iterator[Any]:
        with model.live(PROMPT):
            for layer in model.layers:
                yield layer.output.value

    running = layers()
    assert next(running).shape == next(running).shape
    del running
    gc.collect()


def test_by_being_dropped_inside_a_cycle_within_modes(model: Any, bare: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        block = model.live(PROMPT)
        block.__enter__()
        model.layers[1].output.mean()
    around: list[Any] = [block]
    around.append(around)
    del block, around
    gc.collect()
    assert "forward" not in bare.transformer.h[0].__dict__


def test_by_being_dropped_in_another_thread(model: Any, bare: Any) -> None:
    """Its stack cannot be unwound from there, but the model is free."""
    held: list[Any] = []

    def open_one() -> None:
        held.append(model.live(PROMPT))
        held[0].__enter__()
        model.layers[1].output.mean()

    thread = Thread(target=open_one)
    thread.start()
    thread.join()
    assert "forward" in bare.transformer.h[0].__dict__
    held.clear()
    gc.collect()
    assert "forward" not in bare.transformer.h[0].__dict__


def test_at_the_end_of_python(tmp_path: Path) -> None:
    """Blocks that are still open then are let go of in silence."""
    script = """
        import sys, torch, glassworks as gw
        net = gw.wrap(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)))
        other = gw.wrap(torch.nn.Linear(3, 3))
        dropped = net.live(torch.ones(2, 3))
        dropped.__enter__()
        net[0].output.mean()
        def numbers():
            with other.live(torch.ones(2, 3)):
                yield other.input.value
        running = numbers()
        print(next(running).shape)
        with gw.wrap(torch.nn.Linear(3, 3)).live(torch.ones(2, 3)):
            sys.exit(3)
    """
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (3, "")
    assert "torch.Size([2, 3])" in ran.stdout


def test_many_leave_nothing_behind(model: Any) -> None:
    def blocks(count: int) -> None:
        for k in range(count):
            with model.live([5, 6, 7, 8 + k % 5]) as t:
                h = model.layers[1].output
                h[:, -1] += torch.ones(32)
                if k % 2:
                    t.backward(model.logits[:, -1, 3].sum())
                    h.grad.save()
                h.mean().save()

    def alive() -> int:
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    blocks(10)
    gc.collect()
    before = alive()
    blocks(40)
    gc.collect()
    assert alive() <= before


def test_a_model_that_nobody_holds_is_freed(model: Any, bare: Any) -> None:
    other = copy.deepcopy(bare)
    wrapped = gw.wrap(other)
    with wrapped.live(PROMPT):
        saved = wrapped.logits.save()
    gone = weakref.ref(other)
    del other, wrapped
    gc.collect()
    assert gone() is None
    assert saved.shape == (1, 4, 97)


# What is around it, and what the body does.


class Counted(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


MODES: dict[str, Callable[[], Any]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a function mode": Counted,
    "a dispatch mode": Dispatched,
}


EYE = torch.eye(32)


def steps(model: Any, inside: Callable[[], Any] = nullcontext) -> tuple[Any, Any]:
    with inside():
        h = model.layers[0].output
    with inside():
        h[:, -1] = h[:, -1] @ EYE * 2
        model.layers[2].mlp.output *= 0.5
    with inside():
        return model.layers[2].output.save(), model.logits.save()


@pytest.mark.parametrize("around", MODES)
def test_a_mode_around_it_is_the_traces(model: Any, around: str) -> None:
    with MODES[around]():
        before = thread_state()
        with model.live(PROMPT):
            found = steps(model)
            assert thread_state() == before
        assert thread_state() == before
        with model.trace(PROMPT):
            expected = steps(model)
    for value, own in zip(found, expected, strict=True):
        assert torch.equal(value.value, own.value)
        assert not value.is_inference()


@pytest.mark.parametrize("inside", [*MODES, "fake", "meta"])
def test_a_mode_inside_it_does_not_reach_the_model(model: Any, inside: str) -> None:
    own = {**MODES, "fake": FakeTensorMode, "meta": lambda: torch.device("meta")}[inside]
    with model.trace(PROMPT):
        expected = steps(model)
    with model.live(PROMPT) as t:
        before = thread_state()
        found = steps(model, own if inside != "fake" else nullcontext)
        assert thread_state() == before
        with own():
            entered = thread_state()
            assert t.result is not None
            assert thread_state() == entered
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value.value, other.value)


def test_the_body_draws_apart_from_the_model(bare: Any) -> None:
    """A model in training: its masks are those of a plain run from the same seed, whatever the body draws."""
    noisy = gpt2().train()
    wrapped = gw.wrap(noisy)
    before = torch.get_rng_state()
    torch.manual_seed(1)
    with torch.no_grad():
        expected = noisy(input_ids=IDS, use_cache=False).logits
    after = torch.get_rng_state()
    torch.manual_seed(1)
    with wrapped.live(PROMPT) as t:
        torch.rand(3)
        h = wrapped.layers[0].output
        torch.manual_seed(99)
        logits = wrapped.logits.save()
        t.backward(wrapped.logits[:, -1, 3].sum())
        assert float(h.grad.norm()) > 0
    assert torch.equal(logits.value, expected)
    torch.manual_seed(1)
    with wrapped.live(PROMPT):
        wrapped.logits.mean()
    assert torch.equal(torch.get_rng_state(), after)  # as after a plain run
    torch.set_rng_state(before)


def test_a_gradient_is_that_of_the_numbers_drawn(bare: Any) -> None:
    noisy = gpt2().train()
    wrapped = gw.wrap(noisy)
    before, found = torch.get_rng_state(), []
    for own in (wrapped.live, wrapped.trace):
        torch.manual_seed(1)
        with own(PROMPT) as t:
            h = wrapped.layers[0].output
            logits = wrapped.logits.save()
            t.backward(wrapped.logits[:, -1, 3].sum())
            found.append((logits, h.grad.save()))
    for mine, expected in zip(*found, strict=True):
        assert torch.allclose(mine.value, expected.value, atol=1e-5)
    torch.set_rng_state(before)


def test_context_variables_of_the_body_are_its_own(model: Any) -> None:
    token = NOTE.set("before")
    with model.live(PROMPT):
        model.layers[0].output.mean()
        NOTE.set("inside")
        model.layers[1].output.mean()
        assert NOTE.get() == "inside"
    assert NOTE.get() == "inside"
    NOTE.reset(token)


def test_the_module_itself_called_in_the_body_is_the_bare_one(model: Any, bare: Any) -> None:
    expected = plain(bare)
    with model.live(PROMPT):
        model.layers[0].output *= 2
        assert torch.equal(plain(bare), expected)
        model.transformer.h[1].attn.output[0][:] = 0
        assert torch.equal(plain(bare), expected)
        with torch.enable_grad():
            bare(input_ids=IDS).logits.sum().backward()
        logits = model.logits.save()
        assert torch.equal(plain(bare), expected)
    bare.zero_grad()
    assert not torch.equal(logits.value, expected)


def test_a_stored_graph_can_be_run_in_the_body(model: Any) -> None:
    with model.record() as recorded:
        model.layers[1].output.save("h")
    expected = model.run(recorded.graph, [PROMPT])["h"]
    with model.live(PROMPT):
        model.layers[0].output *= 2
        assert torch.equal(model.run(recorded.graph, [PROMPT])["h"], expected)
        changed = model.layers[1].output.save()
    assert not torch.equal(changed.value, expected)


def test_two_models_take_turns(model: Any, bare: Any) -> None:
    other_bare = copy.deepcopy(bare)
    with torch.no_grad():
        other_bare.transformer.wte.weight.mul_(1.5)
    other = gw.wrap(other_bare)
    expected = []
    for own in (model, other):
        with own.trace(PROMPT):
            own.layers[1].output[:, -1] *= 0.5
            expected.append(own.logits.save())
    with model.live(PROMPT):
        first = model.layers[0].output
        with other.live(PROMPT):
            second = other.layers[1].output
            model.layers[1].output[:, -1] *= 0.5
            second[:, -1] *= 0.5
            one = model.logits.save()
            two = other.logits.save()
        assert first.shape == (1, 4, 32)
    assert torch.equal(one.value, expected[0].value)
    assert torch.equal(two.value, expected[1].value)
    assert "forward" not in other_bare.transformer.h[0].__dict__


def test_threads_do_not_meet(model: Any, bare: Any) -> None:
    expected = plain(bare)
    found: dict[int, Any] = {}

    def work(k: int) -> None:
        with torch.inference_mode(bool(k % 2)), model.live(PROMPT):
            for layer in model.layers:
                layer.output[:, -1] *= 1.0 + k
            found[k] = model.logits.save()

    threads = [Thread(target=work, args=(k,)) for k in range(4)]
    with model.live(PROMPT):
        model.layers[0].output.mean()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        mine = model.logits.save()
    assert torch.equal(mine.value, expected)
    assert torch.equal(found[0].value, expected)
    for k in range(1, 4):
        with model.trace(PROMPT):
            for layer in model.layers:
                layer.output[:, -1] *= 1.0 + k
            own = model.logits.save()
        assert torch.equal(found[k].value, own.value)


def test_a_value_belongs_to_its_thread(model: Any) -> None:
    raised: list[BaseException] = []

    def work(value: Any) -> None:
        try:
            value * 2
        except gw.ScopeError as error:
            raised.append(error)

    with model.live(PROMPT):
        h = model.layers[0].output
        thread = Thread(target=work, args=(h,))
        thread.start()
        thread.join()
        assert (h * 2).shape == h.shape
    assert "thread" in told(raised[0])


def test_a_module_that_was_replaced_is_noticed(bare: Any) -> None:
    changed = copy.deepcopy(bare)
    wrapped = gw.wrap(changed)
    changed.transformer.h[1] = copy.deepcopy(changed.transformer.h[1])
    with pytest.raises(gw.ModelError, match="was replaced"), wrapped.live(PROMPT):
        wrapped.layers[0].output.mean()
    assert not [name for name, child in changed.named_modules() if "forward" in child.__dict__]


class Inside(nn.Module):
    """A forward that stands inside modes of its own when it is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.unwound = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Counted(), Dispatched():
            try:
                x = self.first(x)
                with torch.inference_mode():
                    self.second(x.detach())
            finally:
                self.unwound += 1
        return self.third(x.float())


@pytest.mark.parametrize("around", MODES)
def test_a_model_that_is_left_inside_modes_of_its_own(around: str) -> None:
    with torch.random.fork_rng():
        net = Inside()
    wrapped = gw.wrap(net)
    x = torch.ones(2, 4)
    with torch.no_grad():
        expected = net(x)
    with MODES[around](), torch.autocast("cpu", enabled=False):
        before, count = thread_state(), net.unwound
        with wrapped.live(x):
            wrapped.second.output.mean()
            assert thread_state() == before
            saved = wrapped.third.output.save()
            assert thread_state() == before
        count += 1
        with wrapped.live(x):
            wrapped.second.output.mean()
            assert net.unwound > count - 1
        assert thread_state() == before
    assert torch.equal(saved.value, expected)
