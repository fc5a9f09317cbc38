"""The cost of an iteration: seeded, then learned from what is observed; and lengths, learned from what ended."""

import random

import pytest

from glassworks.errors import InputError
from glassworks.measure.table import CostTable, Point
from glassworks.schedule.cost import OPT_13B, IterationCost
from glassworks.schedule.lengths import Learned, Noisy


def asked(cost, rows=8, context_tokens=3000, prefill_tokens=100):
    return cost.seconds(rows=rows, context_tokens=context_tokens, prefill_tokens=prefill_tokens)


def iterations(seed, count):
    draw = random.Random(seed)
    for _ in range(count):
        prefill = draw.choice([0, 0, 0, draw.randint(1, 500)])
        yield {"rows": draw.randint(1, 32), "context_tokens": draw.randint(0, 20000), "prefill_tokens": prefill}


def test_the_table_is_the_seed():
    cost = IterationCost(OPT_13B)
    assert asked(cost) == pytest.approx(19e-3 + 0.8e-3 + 3e-3 + 17e-3)
    assert cost.minimal_s == pytest.approx(19.1e-3)
    assert cost.prefill_s(100) == pytest.approx(19.1e-3 + 17e-3)


@pytest.mark.parametrize("true", [(5e-3, 2e-3, 3e-7, 1e-3), (0.0, 1e-3, 0.0, 2e-4)])
def test_it_learns_other_costs_despite_outliers(true):
    cost, noise = IterationCost(OPT_13B), random.Random(1)
    for number, each in enumerate(iterations(0, 1500)):
        seconds = sum(c * n for c, n in zip(true, (1, *each.values()), strict=True)) * noise.uniform(0.95, 1.05)
        cost.observe(**each, seconds=seconds * (50 if number % 40 == 39 else 1))
    for each in iterations(1, 50):
        truth = sum(c * n for c, n in zip(true, (1, *each.values()), strict=True))
        assert asked(cost, **each) == pytest.approx(truth, rel=0.15)
    assert min(cost.iteration_s, cost.row_s, cost.context_token_s, cost.prefill_token_s) >= 0


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="seconds > 0"):
        IterationCost().observe(rows=1, context_tokens=0, prefill_tokens=0, seconds=0)
    with pytest.raises(InputError, match="features"):
        IterationCost(CostTable((Point("iteration", {"rows": 1}, 1.0),)))


def test_lengths_are_learned_by_user_and_prompt():
    learned, draw = Learned(), random.Random(0)
    assert learned.predict(10, 100, "a") is None
    for _ in range(300):
        learned.observe(10, round(draw.lognormvariate(3, 0.3)), "short")
        learned.observe(1000, round(draw.lognormvariate(6, 0.3)), "long")
    assert learned.predict(10, 4096, "short") == pytest.approx(20, rel=0.2)
    assert learned.predict(1000, 4096, "long") == pytest.approx(403, rel=0.2)
    assert learned.predict(1000, 50, "long") == 50
    assert 20 < learned.predict(100, 4096, "new") < 403


def test_noise_has_the_spread_that_was_asked():
    errors = [abs(p / 100 - 1) for p in Noisy(0.8).predictions([100] * 2000, seed=0)]
    assert sorted(errors)[1000] == pytest.approx(0.46, abs=0.06)
    assert Noisy(0.0).predictions([7, 9], seed=3) == [7, 9]
    with pytest.raises(InputError):
        Noisy(-1)
