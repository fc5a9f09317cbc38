"""The bound on starvation: it holds under every policy, and without it one starves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassworks.errors import InputError
from glassworks.schedule import scheduler
from glassworks.schedule.simulate import simulate
from schedule.watched import EVEN, STEP_S, requests, watched

ROWS, BOUND_S = 4, 0.2


def stream(seconds, *, long_jobs=1):
    """Long jobs at first, then two short ones of two tokens for each iteration: as much as four rows can serve."""
    rows = [(0.0, 4, 60)] * long_jobs
    return requests(rows + [(STEP_S * (n // 2), 4, 2) for n in range(int(2 * seconds / STEP_S))])


@pytest.mark.parametrize("policy", ["mlfq", "srpt-predicted", "fair"])
def test_with_the_bound_none_waits_longer_than_it_and_two_iterations(policy):
    made = watched(policy, starvation_s=BOUND_S)
    simulate(stream(1.0, long_jobs=ROWS), policy=made, rows=ROWS, cost=EVEN)
    waits = made.longest_waits_s()
    assert max(waits[job] for job in range(ROWS)) <= BOUND_S + 2 * STEP_S + 1e-9
    assert max(waits[job] for job in range(ROWS)) > BOUND_S / 2, "they were made to wait"


def test_without_it_one_starves():
    made = watched("mlfq")
    seconds = 3.0
    simulate(stream(seconds), policy=made, rows=ROWS, cost=EVEN)
    assert made.longest_waits_s()[0] > 10 * BOUND_S, "it waits for as long as short ones come"
    bounded = watched("mlfq", starvation_s=BOUND_S)
    simulate(stream(seconds), policy=bounded, rows=ROWS, cost=EVEN)
    assert bounded.longest_waits_s()[0] <= BOUND_S + 2 * STEP_S + 1e-9


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 5), bound_s=st.sampled_from([0.05, 0.1, 0.3]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    policy=st.sampled_from(["fcfs", "mlfq", "srpt-predicted", "fair"]), prompt=st.integers(1, 400),
)  # fmt: skip
def test_as_many_as_rows_past_the_bound_are_served_at_once(rows, bound_s, lengths, policy, prompt):
    """As many jobs as rows at first, and as many more a moment later, so that no more than rows ever starve."""
    half = bound_s / 2
    jobs = [(0.0, prompt, n) for n in lengths[:rows]] + [(half, 3, n) for n in lengths[:rows]]
    made = watched(policy, starvation_s=bound_s)
    simulate(requests(jobs), policy=made, rows=rows, tokens=64, cost=EVEN)
    assert max(made.longest_waits_s().values()) <= bound_s + 2 * STEP_S + 1e-9


def test_a_promoted_job_stays_in_front_until_served_and_starts_anew():
    from glassworks.schedule.base import Job, Limits, Memory

    made = scheduler("mlfq", starvation_s=1.0)
    old, new = Job(0, 0.0, 10, 10), Job(1, 0.0, 10, 10)
    for job in (old, new):
        made.arrive(job, 0.0)
    old.level, old.used_s, new.last_served_s = 9, 3.0, 1.5
    ask = {"limits": Limits(rows=1), "memory": Memory()}
    for now_s in (1.9, 2.0):
        assert made.decide([old, new], now_s=now_s, **ask).run[0][0] is old
    assert (old.level, old.used_s) == (0, 0.0)
    made.charge(old, 0.5, 2.4)
    assert old.used_s == 0.0
    assert old.level == 1, "it sank again"
    assert made.decide([old, new], now_s=2.45, **ask).run[0][0] is new


@pytest.mark.parametrize("bound_s", [0, -1.0, float("nan")])
def test_a_bound_is_positive(bound_s):
    with pytest.raises(InputError, match="seconds > 0"):
        scheduler("mlfq", starvation_s=bound_s)
