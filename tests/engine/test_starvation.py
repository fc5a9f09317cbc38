"""The bound on starvation, on the engine itself: a clock that every iteration moves by as much."""

from typing import Any

import pytest

import glassworks as gw
from families import FAMILIES
from glassworks.measure.clock import VirtualClock
from glassworks.memory.links import EmulatedLink

ITERATION_S, BOUND_S, ROWS = 0.01, 0.2, 2


@pytest.fixture(scope="module")
def model() -> Any:
    return gw.wrap(FAMILIES["llama"]())


def longest_wait_s(model: Any, policy: str, bound_s: float | None, monkeypatch: pytest.MonkeyPatch) -> float:
    """The longest that a request waited between two turns, while short ones kept coming."""
    clock = VirtualClock()
    engine = gw.Engine(model, policy=policy, rows=ROWS, starvation_s=bound_s, clock=clock, block_tokens=4)
    readings = iter(range(10**9))
    monkeypatch.setattr(engine, "_timer", lambda: next(readings) * ITERATION_S)
    settings = {"eos_token_id": []}
    engine.submit(gw.Request([5, 6, 7], 60, options=settings, expected_tokens=60.0))
    longest, iterations = 0.0, 0
    while engine.pending:
        if iterations % 3 == 0 and iterations < 150:
            for _ in range(2):
                engine.submit(gw.Request([8, 9], 4, options=settings, expected_tokens=4.0))
        engine.step()
        iterations += 1
        waits = [clock.now_s() - job.last_served_s for job in engine._works]
        if sum(wait >= BOUND_S for wait in waits) <= ROWS:
            longest = max(longest, *waits, 0.0)
    return longest


@pytest.mark.parametrize("policy", ["fcfs", "srpt", "srpt-predicted", "mlfq", "fair"])
def test_nobody_waits_longer_than_the_bound(model: Any, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert longest_wait_s(model, policy, BOUND_S, monkeypatch) <= BOUND_S + 2 * ITERATION_S + 1e-9


@pytest.mark.parametrize("policy", ["srpt", "mlfq"])
def test_without_a_bound_somebody_starves(model: Any, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert longest_wait_s(model, policy, None, monkeypatch) > 3 * BOUND_S


BLOCK_BYTES = 1536
"""Of four tokens: three layers of two heads of eight numbers, keys and values, in float32."""


def scarce_wait_s(model: Any, policy: str, bound_s: float, link_blocks: float | None, monkeypatch: Any) -> float:
    """The longest wait of four long requests, of which the device holds one or two, and of short ones between them.

    `link_blocks`: how many blocks are copied in an iteration; None: copies take no time.
    """
    clock = VirtualClock()
    links = {}
    if link_blocks is not None:
        speed = link_blocks * BLOCK_BYTES / ITERATION_S
        links = {"out": EmulatedLink(speed, clock.now_s), "back": EmulatedLink(speed, clock.now_s)}
    kv = gw.KVBudget(device=BLOCK_BYTES * 18, host="8MiB")
    engine = gw.Engine(
        model, policy=policy, rows=4, starvation_s=bound_s, clock=clock, block_tokens=4, kv=kv, share=False,
        poison=True, **links,
    )  # fmt: skip
    readings = iter(range(10**9))
    monkeypatch.setattr(engine, "_timer", lambda: next(readings) * ITERATION_S)
    settings = {"eos_token_id": []}
    for _ in range(4):
        engine.submit(gw.Request([5, 6, 7], 40, options=settings, expected_tokens=40.0))
    longest, iterations = 0.0, 0
    while engine.pending:
        if iterations % 8 == 0 and iterations < 160:
            engine.submit(gw.Request([8, 9], 3, options=settings, expected_tokens=3.0))
        engine.step()
        iterations += 1
        waits = [clock.now_s() - job.last_served_s for job in engine._works]
        assert sum(wait >= bound_s for wait in waits) <= 4
        longest = max(longest, *waits, 0.0)
    assert engine.stats.swaps_in, "blocks were scarce"
    return longest


@pytest.mark.parametrize("policy", ["fcfs", "srpt", "srpt-predicted", "mlfq", "fair"])
@pytest.mark.parametrize("link_blocks", [None, 10.0])
def test_nobody_waits_longer_than_the_bound_where_blocks_are_scarce(
    model: Any, policy: str, link_blocks: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound_s = 0.4
    assert scarce_wait_s(model, policy, bound_s, link_blocks, monkeypatch) <= bound_s + 2 * ITERATION_S + 1e-9
