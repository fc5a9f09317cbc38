"""What an engine says of itself: whose seconds were whose, what it is doing now, and whose failure it may be."""

import threading
import time
from typing import Any

import pytest
import torch

import glassworks as gw
from families import FAMILIES, of_type
from glassworks.graph.graph import Graph
from glassworks.measure.clock import VirtualClock

PROMPTS = ([5, 6, 7, 8, 9], [10, 11], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [20])


def model_of(family: str) -> Any:
    return gw.wrap(FAMILIES[family]() if family in FAMILIES else of_type(family)())


def slow_graph(model: Any) -> Graph:
    with model.record() as t:
        wide = model.layers[0].output[0, -1].mean() + torch.zeros(400, 400)
        for _ in range(8):
            wide = wide @ wide * 1e-3
        wide[0, 0].save()
    return t.graph


@pytest.mark.parametrize(
    ("family", "clock"),
    [
        ("llama", None),
        ("bloom", None),
        pytest.param("mamba", None, marks=pytest.mark.slow),
        ("llama", "virtual"),
        ("bloom", "virtual"),
        ("mamba", "virtual"),
    ],
)
def test_the_seconds_of_all_requests_are_those_of_the_iterations(family: str, clock: str | None) -> None:
    model = model_of(family)
    engine = gw.Engine(model, clock=VirtualClock() if clock else None)
    requests = [gw.Request(prompt, max_new_tokens=3 + k) for k, prompt in enumerate(PROMPTS)]
    replies = engine.run([*requests, gw.Request([1, 2], max_new_tokens=2, graph=slow_graph(model))])
    assert all(reply.timing.compute_s > 0 for reply in replies)
    assert sum(reply.timing.compute_s for reply in replies) == pytest.approx(engine.stats.seconds)


def test_nodes_and_passes_of_ones_own_are_counted_as_ones_own() -> None:
    model = model_of("llama")
    engine = gw.Engine(model)
    plain = [engine.submit(gw.Request(prompt, max_new_tokens=1)) for prompt in PROMPTS]
    slow = engine.submit(gw.Request([1, 2], max_new_tokens=1, graph=slow_graph(model)))
    alone = engine.submit(gw.Request([1, 2], max_new_tokens=1, graph=slow_graph(model)), alone=True)
    engine.drain()
    for own in (slow, alone):
        assert own.timing.compute_s > max(reply.timing.compute_s for reply in plain)
    assert (engine.stats.steps, engine.stats.rows, engine.stats.alone_steps) == (1, 5, 1)
    assert alone.tokens == slow.tokens


def test_rows_are_summed_over_shared_passes() -> None:
    for family in ("llama", "bloom"):
        engine = gw.Engine(model_of(family))
        engine.run([gw.Request(prompt, max_new_tokens=4, options={"eos_token_id": []}) for prompt in PROMPTS])
        first = 1 if family == "llama" else 0  # without packing, prompts run alone
        assert engine.stats.rows == len(PROMPTS) * (3 + first)
        assert engine.stats.steps == 3 + first


def breaks(model: Any) -> Graph:
    with model.record() as t:
        model.layers[0].output[:] = float("nan")
    return t.graph


def refuse_nan(model: Any) -> None:
    """From here on a layer of the model raises where it is given what is no number."""
    mlp = model.backend.local.runtime.module.model.layers[1].mlp
    own = mlp.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.isnan().any():
            raise IndexError("not a number")
        return own(hidden)

    mlp.forward = forward


def test_a_model_that_fails_in_a_shared_pass_is_told_apart() -> None:
    model = model_of("llama")
    refuse_nan(model)
    engine = gw.Engine(model)
    good = [engine.submit(gw.Request(prompt, max_new_tokens=3)) for prompt in PROMPTS]
    bad = engine.submit(gw.Request([1, 2], max_new_tokens=3, graph=breaks(model)))
    engine.drain()
    for reply in (*good, bad):
        assert isinstance(reply.error, IndexError)
        assert reply.in_company
    again = [engine.submit(reply.request, alone=True) for reply in (*good, bad)]
    engine.drain()
    for reply in again[:-1]:
        assert reply.tokens == model.complete(reply.request.prompt, max_new_tokens=3).tokens
    assert isinstance(again[-1].error, IndexError)
    assert not any(reply.in_company for reply in again)
    lone = engine.submit(gw.Request([1, 2], max_new_tokens=3, graph=breaks(model)))
    engine.drain()
    assert isinstance(lone.error, IndexError)
    assert not lone.in_company


def test_what_an_engine_does_now_can_be_seen_from_outside() -> None:
    model = model_of("llama")
    engine = gw.Engine(model)
    assert (engine.now().since_s, engine.now().at, engine.now().own) == (None, (), None)
    with model.record() as t:
        wide = model.layers[0].output[0, -1].mean() + torch.zeros(900, 900)
        for _ in range(12):
            wide = wide @ wide * 1e-3
        wide[0, 0].save()
    engine.submit(gw.Request(PROMPTS[0], max_new_tokens=1))
    engine.submit(gw.Request(PROMPTS[1], max_new_tokens=1, graph=t.graph))
    running = threading.Thread(target=engine.drain)
    running.start()
    seen = []
    while running.is_alive():
        seen.append(engine.now())
        time.sleep(0.001)
    inside = [now for now in seen if now.own is not None]
    assert {len(now.at) for now in inside} >= {2}  # before the first pass, nodes that need none run by themselves
    for now in inside:
        assert now.own in now.at
        assert now.own is not None
        assert "matmul" in str(now.own.graph)
        assert now.since_s is not None
        assert now.since_s <= time.perf_counter()
    assert (engine.now().since_s, engine.now().at, engine.now().own) == (None, (), None)


def test_an_experiment_of_any_form_is_a_reply() -> None:
    model = model_of("llama")
    engine = gw.Engine(model)
    with model.trace() as t:
        for prompt in PROMPTS[:2]:
            with t.invoke(prompt):
                model.logits.save()
    from glassworks.graph.backend import Inputs, Rows

    inputs = Inputs(tuple(Rows((tuple(prompt),)) for prompt in PROMPTS[:2]))
    found = engine.start(t.graph, inputs, user="somebody").results
    expected = model.backend.run(t.graph, inputs)
    assert set(found) == set(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
