"""The bound on starvation: it holds under every policy, and without it one starves."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassworks.errors import InputError
from glassworks.schedule import scheduler
from glassworks.schedule.simulate import simulate
from glassworks.schedule.store import LimitedKV
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


def scarce(seed):
    """Long jobs, short ones that come one after the other, and a store that holds little more than one long job."""
    draw = random.Random(seed)
    rows = [(0.0, draw.randint(4, 60), draw.randint(20, 60)) for _ in range(ROWS)]
    rows += [(STEP_S * 4 * n * draw.uniform(0.8, 1.2), draw.randint(2, 20), draw.randint(1, 6)) for n in range(25)]
    largest = max(-(-(prompt + output) // 16) for _, prompt, output in rows)
    return requests(sorted(rows)), largest + draw.randint(2, 8)


def longest_wait_s(policy, seed, link, bound_s):
    """With scarce blocks; None: more than rows were past the bound at once, and nothing is promised."""
    asked, blocks = scarce(seed)
    made, past = watched(policy, starvation_s=bound_s), []
    decide = made.inner.decide

    def counted(jobs, *, now_s, **more):
        past.append(sum(now_s - job.last_served_s >= bound_s for job in jobs))
        return decide(jobs, now_s=now_s, **more)

    made.inner.decide = counted
    simulate(asked, policy=made, rows=ROWS, kv=LimitedKV(blocks, 10**6, 16, link), cost=EVEN)
    return None if max(past) > ROWS else max(made.longest_waits_s().values()), blocks


@pytest.mark.parametrize("policy", ["fcfs", "mlfq", "srpt-predicted", "fair"])
@pytest.mark.parametrize(("link", "bound_s"), [(None, 0.2), (4000.0, 0.2), (1000.0, 0.2), (400.0, 0.4)])
def test_it_holds_where_blocks_are_scarce(policy, link, bound_s):
    waits = [longest_wait_s(policy, seed, link, bound_s)[0] for seed in range(25)]
    promised = [wait for wait in waits if wait is not None]
    assert len(promised) > 15
    assert max(promised) <= bound_s + 2 * STEP_S + 1e-9
    assert max(promised) > bound_s / 2, "some were made to wait"


@pytest.mark.parametrize("policy", ["fcfs", "mlfq", "srpt-predicted", "fair"])
@pytest.mark.parametrize("link", [400.0, 200.0])
def test_a_slower_link_than_the_bound_allows_adds_the_time_of_copies(policy, link):
    """Half the bound is less than the jobs that are away need to come in turns: it cannot be promised, but two rounds
    of copies of the whole store, out and back, are enough."""
    for seed in range(25):
        wait, blocks = longest_wait_s(policy, seed, link, BOUND_S)
        if wait is not None:
            assert wait <= BOUND_S + 2 * STEP_S + 4 * blocks / link + 1e-9


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
