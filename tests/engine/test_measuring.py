"""Measuring iterations: what is measured is what an engine ran, and what the table says goes where costs are wanted."""

import pytest
from typer.testing import CliRunner

import glassworks as gw
from families import FAMILIES
from glassworks.cli import main as cli
from glassworks.engine import measuring
from glassworks.engine.engine import Engine
from glassworks.schedule.cost import IterationCost

ROWS, LENGTHS = (1, 3), (4, 9)


@pytest.fixture(scope="module")
def model():
    return gw.load("toy")


def test_the_points_are_the_iterations_that_the_engine_ran(model, monkeypatch):
    seen = []
    original = IterationCost.observe

    def observe(self, *, rows, context_tokens, prefill_tokens, seconds):
        seen.append((rows, context_tokens, prefill_tokens))
        original(self, rows=rows, context_tokens=context_tokens, prefill_tokens=prefill_tokens, seconds=seconds)

    monkeypatch.setattr(IterationCost, "observe", observe)
    table = measuring.measure(model, rows=ROWS, prompt_tokens=LENGTHS, repeats=2, cpu_seconds=True)
    points = [
        (own.features["rows"], own.features["context_tokens"], own.features["prefill_tokens"]) for own in table.points
    ]
    steps = range(measuring.NEW - 1)
    expected = []
    for rows in ROWS:
        for length in LENGTHS:
            expected += [(rows, 0, rows * length), *[(rows, rows * (length + step), 0) for step in steps]]
    assert points == expected
    assert sorted(seen) == sorted(expected * 3)
    assert all(own.what == "iteration" and own.seconds > 0 for own in table.points)


def test_known_costs_are_found_again(model, monkeypatch):
    step, costs = Engine.step, {"": 5e-3, "rows": 2e-4, "context_tokens": 3e-6, "prefill_tokens": 1e-4}

    def timed(self):
        before, more = self.stats.seconds, step(self)
        own = self._scheduler.last
        self.stats.seconds = before + costs[""] + sum(costs[name] * count for name, count in own._asdict().items())
        return more

    monkeypatch.setattr(Engine, "step", timed)
    table = measuring.measure(model, rows=ROWS, prompt_tokens=LENGTHS, repeats=1, cpu_seconds=True)
    assert table.costs_s("iteration") == pytest.approx(costs)


def test_a_slow_repetition_does_not_count(model, monkeypatch):
    step, calls = Engine.step, []

    def timed(self):
        before, more = self.stats.seconds, step(self)
        calls.append(1)
        repetition = (len(calls) - 1) // measuring.NEW % 4
        self.stats.seconds = before + (1.0, 1e-3, 0.5, 1e-3)[repetition]  # the first warms up, the third was disturbed
        return more

    monkeypatch.setattr(Engine, "step", timed)
    table = measuring.measure(model, rows=ROWS, prompt_tokens=LENGTHS, repeats=3, cpu_seconds=True)
    assert {round(own.seconds, 9) for own in table.points} == {1e-3}


def test_the_table_says_where_it_is_from_and_goes_where_costs_are_wanted(model, tmp_path):
    found = CliRunner().invoke(
        cli.app,
        ["measure", "toy", "--out", str(tmp_path / "cost.json"), "--rows", "1,3", "--prompt-tokens", "4,9"]
        + ["--repeats", "1", "--cpu-seconds"],
    )
    assert found.exit_code == 0, found.output
    assert "16 points in " in found.stdout
    for line in ("an iteration", "a row of it", "a token of a prompt", "error of the fit, median"):
        assert line in found.stdout
    table = gw.CostTable.load(tmp_path / "cost.json")
    assert (table.hardware["model"], table.hardware["seconds"]) == ("toy", "of the processor")
    assert table.hardware["cpu"]
    engine = gw.Engine(model, cost=table)
    assert engine.submit(gw.Request("The Eiffel Tower is in the city of", max_new_tokens=1)).wait().text == " Paris"
    arrivals = gw.arrivals("short", count=20, cost=table)
    assert gw.simulate(arrivals, policy="fcfs", cost=table).mean_latency_s > 0


def test_a_dry_run_measures_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "step", None)
    found = CliRunner().invoke(cli.app, ["measure", "toy", "--out", str(tmp_path / "cost.json"), "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "9 rounds, 6 times each, at most 22680 tokens in all:\n  1 requests of 8 tokens\n" in found.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": (4,)}, "at least two numbers of rows"),
        ({"prompt_tokens": (8, 8)}, "two lengths of prompts"),
        ({"rows": (0, 1)}, "rows are ints of at least 1"),
        ({"prompt_tokens": (1, 8)}, "prompt_tokens are ints of at least 2"),
        ({"repeats": 0}, "repeats is an int"),
        ({"kv": gw.KVBudget(device="256KiB")}, "give KVBudget"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, given, message):
    with pytest.raises(gw.InputError, match=message.replace("(", r"\(")):
        measuring.measure(model, **given)


def test_a_round_that_would_take_turns_is_refused_before_it_runs(model, monkeypatch):
    block_bytes = Engine(model).store.pool.block_bytes
    monkeypatch.setattr(Engine, "step", None)
    small = gw.KVBudget(device=20 * block_bytes, host="64MiB")
    with pytest.raises(gw.BudgetExceeded, match=r"8 requests of 60 tokens take 32 blocks .*; the budget has 19"):
        measuring.measure(model, rows=(1, 8), prompt_tokens=(8, 60), kv=small)


def test_prompts_stay_within_the_positions_of_a_model():
    short = gw.wrap(FAMILIES["gpt2"]())
    assert {own.prompt_tokens for own in measuring.rounds(short, (1, 2), (8, 252, 253))} == {8, 252}
    with pytest.raises(gw.InputError, match="of at most 252 tokens"):
        measuring.rounds(short, (1, 2), (8, 253))


def test_the_command_refuses_what_is_no_number(model, tmp_path):
    found = CliRunner().invoke(cli.app, ["measure", "toy", "--out", str(tmp_path / "c"), "--rows", "1-4"])
    assert isinstance(found.exception, gw.InputError)
    assert "whole numbers with commas" in str(found.exception)
