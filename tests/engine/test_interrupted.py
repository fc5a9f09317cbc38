"""A key that is pressed while something runs: what was under way goes on rightly or says that it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import glassworks as gw
from engine.test_schedules import check_nothing_left, model_of
from glassworks.engine.loop import Generating
from glassworks.run.eager import EagerRuntime
from glassworks.run.joined import JoinedRuntime
from glassworks.run.packing import PackedRuntime

PROMPTS = [[5, 6, 7], [9, 8]]
ALL = {"eos_token_id": []}


def lone(model: Any, prompt: list[int], new: int = 6) -> list[int]:
    found: list[int] = model.complete(prompt, max_new_tokens=new, **ALL).tokens
    return found


def press(patch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False) -> None:
    """The next call of a function is broken off, before it or once it has run."""
    function = getattr(owner, name)

    def pressed(*args: Any, **kwargs: Any) -> Any:
        patch.setattr(owner, name, function)
        if after:
            function(*args, **kwargs)
        raise KeyboardInterrupt

    patch.setattr(owner, name, pressed)


@contextmanager
def pressed_in(module: torch.nn.Module) -> Iterator[None]:
    """A key is pressed when a module of the model is called."""

    def press_it(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = module.register_forward_pre_hook(press_it)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("family", "owner", "name", "after"),
    [
        ("llama", PackedRuntime, "step", False), ("llama", PackedRuntime, "step", True),
        ("llama", Generating, "took", False), ("bloom", JoinedRuntime, "step", False),
        ("bloom", JoinedRuntime, "step", True), ("bloom", Generating, "took", False),
    ],
)  # fmt: skip
def test_a_shared_step_is_performed_again(
    family: str, owner: Any, name: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = model_of(family)
    engine = gw.Engine(model, block_tokens=4)
    replies = [engine.submit(gw.Request(prompt, 6, options=ALL)) for prompt in PROMPTS]
    engine.step()
    engine.step()
    press(monkeypatch, owner, name, after=after)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.drain()
    assert [reply.wait().tokens for reply in replies] == [lone(model, prompt) for prompt in PROMPTS]
    check_nothing_left(engine)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_what_a_graph_has_begun_in_a_shared_step_ends(family: str) -> None:
    model, bare = model_of(family)
    with model.record() as t, t.steps[1:]:
        model.layers[0].output[:, -1].save("read")
    engine = gw.Engine(model, block_tokens=4)
    looked, plain = (
        engine.submit(gw.Request(prompt, 6, graph, options=ALL))
        for prompt, graph in zip(PROMPTS, (t.graph, None), strict=True)
    )
    engine.step()
    engine.step()
    layers = bare.model.layers if family == "llama" else bare.transformer.h
    with pressed_in(layers[2]), pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.drain()
    assert "broken off" in str(looked.error)
    assert plain.wait().tokens == lone(model, PROMPTS[1])
    check_nothing_left(engine)


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_a_pass_of_its_own_ends_its_request_and_no_other(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had taken some tokens and not others; that it had all of them would be wrong."""
    model, _ = model_of(family)
    engine = gw.Engine(model)
    replies = [engine.submit(gw.Request(prompt, 6, options=ALL), alone=True) for prompt in PROMPTS]
    engine.step()
    press(monkeypatch, EagerRuntime, "step")
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.drain()
    assert "broken off" in str(replies[0].error)
    assert len(replies[0].tokens) == 1
    assert replies[1].wait().tokens == lone(model, PROMPTS[1])
    check_nothing_left(engine)


def test_tokens_of_other_passes_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = model_of("llama")
    engine = gw.Engine(model, block_tokens=4)
    shared, own = (engine.submit(gw.Request(PROMPTS[k], 6, options=ALL), alone=bool(k)) for k in range(2))
    press(monkeypatch, EagerRuntime, "step")
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert (len(shared.tokens), own.tokens) == (1, [])
    engine.drain()
    assert shared.wait().tokens == lone(model, PROMPTS[0])
    check_nothing_left(engine)


def test_what_is_computed_before_the_first_pass() -> None:
    model, _ = model_of("llama")

    def function(value: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with model.record() as t:
        late = gw.apply(function, torch.zeros(2))
        with t.steps[1:]:
            (model.layers[0].output[:, -1, :2] + late).save("read")
    engine = gw.Engine(model, block_tokens=4)
    own, other = (
        engine.submit(gw.Request(prompt, 3, graph, options=ALL))
        for prompt, graph in zip(PROMPTS, (t.graph, None), strict=True)
    )
    with pytest.raises(KeyboardInterrupt):
        engine.drain()
    engine.drain()
    assert "broken off" in str(own.error)
    assert other.wait().tokens == lone(model, PROMPTS[1], 3)
    check_nothing_left(engine)


@pytest.mark.parametrize("how", ["block", "run"])
def test_nobody_waits_any_more_so_nothing_goes_on(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = model_of("llama")
    engine = gw.Engine(model, block_tokens=4)
    press(monkeypatch, PackedRuntime, "step")
    with pytest.raises(KeyboardInterrupt):
        if how == "block":
            model.on(engine).complete(PROMPTS[0], max_new_tokens=50, **ALL)
        else:
            engine.run([gw.Request(prompt, 50, options=ALL) for prompt in PROMPTS])
    assert engine.pending == 0
    check_nothing_left(engine)
