"""Workloads: the rate and spread that were asked, the same for the same seed, and trace files."""

import numpy as np
import pytest

import glassworks as gw
from glassworks.errors import InputError, WireError
from glassworks.measure.table import CostTable
from glassworks.schedule.arrivals import KINDS, Arrivals, shares_s
from glassworks.schedule.report import compare, plot_loads
from schedule.watched import requests


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_asks_for_the_load(kind):
    made = gw.arrivals(kind, load=0.7, count=4000, seed=1)
    work_s = shares_s(made.prompt_tokens, made.output_tokens, cost=None, rows=16).sum()
    assert work_s / made.arrival_s[-1] == pytest.approx(0.7, rel=0.05)
    again = gw.arrivals(kind, load=0.7, count=4000, seed=1)
    assert np.array_equal(made.arrival_s, again.arrival_s)
    assert not np.array_equal(made.arrival_s, gw.arrivals(kind, load=0.7, count=4000, seed=2).arrival_s)
    assert kind in repr(made)


def test_the_spread_of_lengths():
    outputs = gw.arrivals("lognormal", count=20000).output_tokens
    assert outputs.mean() == pytest.approx(245, rel=0.05)
    assert outputs.std() / outputs.mean() == pytest.approx(1.7, rel=0.05)
    assert outputs.max() == 4096
    long = gw.arrivals("long-input", count=5000)
    assert long.output_tokens.std() < long.output_tokens.mean() < long.prompt_tokens.mean() / 10


def test_full_batches_at_full_load_are_just_served():
    """The formula of the rate against the simulator: a backlog from the start keeps the batch full."""
    made = gw.arrivals("chat", load=50, count=300)
    report = gw.simulate(made, policy="fcfs")
    formula_s = shares_s(made.prompt_tokens, made.output_tokens, cost=None, rows=16).sum()
    assert report.busy_s == pytest.approx(formula_s, rel=0.05)


def test_gaps():
    for gaps, cv in (("poisson", 1.0), ("gamma", 3.0)):
        times = gw.arrivals("short", count=20000, gaps=gaps, gap_cv=3.0).arrival_s
        found = np.diff(times)
        assert found.std() / found.mean() == pytest.approx(cv, rel=0.1)
    with pytest.raises(InputError, match="'poisson' or 'gamma'; got 'even'"):
        gw.arrivals("short", gaps="even")


def test_a_slower_model_is_asked_less_often():
    cost = CostTable.of_iterations(iteration_s=1, row_s=0, context_token_s=0, prefill_token_s=0)
    assert gw.arrivals("short", cost=cost).arrival_s[-1] > 20 * gw.arrivals("short").arrival_s[-1]


def test_a_trace_file_gives_the_requests_back(tmp_path):
    made = gw.arrivals("chat", count=20, users=3)
    made.save(tmp_path / "trace.jsonl")
    again = gw.arrivals(tmp_path / "trace.jsonl")
    assert all(map(np.array_equal, (again.arrival_s, again.prompt_tokens), (made.arrival_s, made.prompt_tokens)))
    assert np.array_equal(again.output_tokens, made.output_tokens)
    assert (again.users, again.name) == (made.users, "trace")
    assert gw.arrivals(str(tmp_path / "trace.jsonl")).users == made.users


BAD_LINES = [
    "{",
    "[1]",
    '{"arrival_s": 1}',
    '{"arrival_s": 0, "prompt_tokens": 1.5, "output_tokens": 1}',
    '{"arrival_s": 0, "prompt_tokens": "1", "output_tokens": 1}',
    '{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, "user": 3}',
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n' + line)
    with pytest.raises(WireError, match=r"bad\.jsonl, line 2"):
        Arrivals.load(path)


def test_what_makes_no_sense_is_refused(tmp_path):
    for bad in ([(1.0, 1, 1), (0.0, 1, 1)], [(0.0, 0, 1)], [(-1.0, 1, 1)]):
        with pytest.raises(InputError):
            requests(bad)
    with pytest.raises(InputError, match="chat, lognormal"):
        gw.arrivals("noise")
    with pytest.raises(InputError, match="load must be positive"):
        gw.arrivals("chat", load=0)
    with pytest.raises(InputError, match="cannot be read"):
        gw.arrivals(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="at least one"):
        gw.arrivals(tmp_path / "empty.jsonl")


def test_reports_are_compared_and_drawn(tmp_path):
    made = gw.arrivals("lognormal", count=100)
    fcfs, mlfq = (gw.simulate(made, policy=name) for name in ("fcfs", "mlfq"))
    table = compare([fcfs, mlfq])
    ratio = fcfs.mean_normalized_s / mlfq.mean_normalized_s
    assert f"{ratio:.2f}" in table.splitlines()[2]
    assert "normalised mean" in repr(fcfs)
    assert fcfs.percentile_s(100) == fcfs.latency_s.max()
    plot_loads({0.5: [fcfs, mlfq], 0.9: [fcfs, mlfq]}, tmp_path / "loads.png")
    assert (tmp_path / "loads.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="same arrivals"):
        compare([fcfs, gw.simulate(gw.arrivals("short", count=9))])
    with pytest.raises(InputError, match="a figure"):
        plot_loads({}, tmp_path / "none.png")
