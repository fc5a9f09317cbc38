"""The bound on starvation, on the engine itself: a clock that every iteration moves by as much."""

from typing import Any

import pytest

import glassworks as gw
from families import FAMILIES
from glassworks.measure.clock import VirtualClock

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


@pytest.mark.parametrize("policy", ["srpt", "srpt-predicted", "mlfq"])
def test_nobody_waits_longer_than_the_bound(model: Any, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert longest_wait_s(model, policy, BOUND_S, monkeypatch) <= BOUND_S + 2 * ITERATION_S + 1e-9


@pytest.mark.parametrize("policy", ["srpt", "mlfq"])
def test_without_a_bound_somebody_starves(model: Any, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert longest_wait_s(model, policy, None, monkeypatch) > 3 * BOUND_S
