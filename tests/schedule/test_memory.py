"""Little memory: never overdrawn, nothing for ever stuck, and no swapping to and fro."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glassworks as gw
from glassworks.errors import InputError
from glassworks.schedule import NAMES
from glassworks.schedule.simulate import simulate
from glassworks.schedule.store import LimitedKV
from schedule.tables import check
from schedule.watched import EVEN, STEP_S, Watched, requests, watched


class Checked(Watched):
    """Holds every decision to the rules."""

    def decide(self, jobs, *, now_s, limits, memory):
        decision = super().decide(jobs, now_s=now_s, limits=limits, memory=memory)
        check(decision, jobs, limits, memory)
        return decision


@st.composite
def tight(draw):
    """Requests and a store that holds little more than the largest of them; the host may hold nothing."""
    one = st.tuples(st.sampled_from([0.0, 0.0, 0.3, 0.9]), st.integers(1, 40), st.integers(1, 30))
    jobs = sorted(draw(st.lists(one, min_size=1, max_size=12)))
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    largest = max(-(-(prompt + output) // block_tokens) for _, prompt, output in jobs)
    host, link = draw(st.sampled_from([0, 3, 30, 10**6])), draw(st.sampled_from([None, 5.0, 50.0, 1000.0]))
    return requests(jobs), LimitedKV(largest + draw(st.integers(0, 8)), host, block_tokens, link)


@settings(max_examples=60, deadline=None)
@given(
    asked=tight(), policy=st.sampled_from([name for name in NAMES if name != "srpt"]), rows=st.integers(1, 6),
    tokens=st.integers(4, 64), bound_s=st.sampled_from([None, 0.1, 1.0]),
)  # fmt: skip
def test_all_end_and_the_budget_is_never_exceeded(asked, policy, rows, tokens, bound_s):
    workload, kv = asked
    made = Checked(watched(policy, starvation_s=bound_s))
    report = simulate(workload, policy=made, rows=rows, tokens=tokens, kv=kv, cost=EVEN)
    assert report.peak_blocks <= kv.device_blocks
    assert report.swaps <= len(made.charges) / 2 + len(workload)
    assert [made.ends[n].produced_tokens for n in range(len(workload))] == workload.output_tokens.tolist()
    assert all(memory.free_blocks >= 0 and memory.host_free_blocks >= 0 for _, _, memory, _ in made.decisions)


def loop():
    """Two long jobs of which the store holds one, and quanta of one iteration at first: each would push the other."""
    return requests([(0.0, 64, 120), (0.0, 64, 120), (0.0, 64, 120)])


@pytest.mark.parametrize("link", [None, 200.0])
@pytest.mark.parametrize("bound_s", [None, 0.02])
def test_no_thrashing(link, bound_s):
    made = watched("mlfq", starvation_s=bound_s)
    report = simulate(loop(), policy=made, rows=1, cost=EVEN, kv=LimitedKV(13, 100, 16, link))
    assert report.swaps > 0
    assert report.swaps <= len(made.charges) / 4, "each swap is paid by four iterations at least"


def test_jobs_about_to_starve_go_first_ahead_of_need():
    """Two long jobs and short ones that nearly fill rows and blocks, and copies that take a few iterations."""
    waits = {}
    for ahead in (True, False):
        made = watched("mlfq", starvation_s=0.3)
        if not ahead:
            made.inner._lead_s = lambda *_: 0.0
        short = [(2.5 * STEP_S * n, 16, 8) for n in range(200)]
        asked = requests([(0.0, 100, 60), (0.0, 100, 60), *short])
        simulate(asked, policy=made, rows=4, cost=EVEN, kv=LimitedKV(22, 100, 16, 200.0))
        waits[ahead] = max(made.longest_waits_s().values())
    assert waits[True] <= 0.3 + 2 * STEP_S < waits[False]


def test_a_job_that_is_dropped_gets_on_in_between():
    made = watched("mlfq", starvation_s=0.02)
    report = simulate(loop(), policy=made, rows=1, cost=EVEN, kv=LimitedKV(13, 0, 16), tokens=512)
    assert 0 < report.drops <= 3 * 120 / 4
    assert report.dropped_tokens > 0


def test_a_slow_link_costs_time_and_memory_without_bound_none():
    workload = gw.arrivals("lognormal", count=150, seed=2, rows=4)
    free = simulate(workload, rows=4)
    small = LimitedKV(300, 10**6, 16)
    swapped = simulate(workload, rows=4, kv=small)
    slow = simulate(workload, rows=4, kv=LimitedKV(300, 10**6, 16, 500.0))
    assert free.swaps == 0 < swapped.swaps
    assert swapped.peak_blocks <= 300 < free.peak_blocks
    assert free.mean_latency_s <= swapped.mean_latency_s * 1.01 < slow.mean_latency_s * 1.05
    assert slow.busy_s == pytest.approx(free.busy_s, rel=0.2)


def test_what_cannot_fit_is_refused_with_the_sizes():
    with pytest.raises(InputError, match=r"request 1 needs 8 blocks for 100 \+ 20 tokens; the device has 7"):
        simulate(requests([(0.0, 4, 4), (0.0, 100, 20)]), kv=LimitedKV(7))
    for bad in ({"device_blocks": 0}, {"host_blocks": -1}, {"link_blocks_per_s": 0}):
        with pytest.raises(InputError):
            LimitedKV(**bad)
