"""Laws of queues that every policy obeys, checked on the simulator; and that they notice a policy that is broken."""

import numpy as np
import pytest

from glassworks.errors import GlassworksError
from glassworks.measure.table import CostTable
from glassworks.schedule import NAMES, scheduler
from glassworks.schedule.arrivals import arrivals
from glassworks.schedule.base import Decision
from glassworks.schedule.cost import IterationCost
from glassworks.schedule.simulate import simulate
from schedule.watched import EVEN, Watched, requests, watched

BLIND = [name for name in NAMES if name != "srpt"]
ROWS = 8


def linear(**more):
    """Costs without a share for the iteration itself: work then takes the same time in any company."""
    return CostTable.of_iterations(
        **{"iteration_s": 0, "row_s": 1e-3, "context_token_s": 0, "prefill_token_s": 1e-4} | more
    )


@pytest.fixture(scope="module")
def workload():
    return arrivals("lognormal", count=200, seed=3, rows=ROWS)


@pytest.mark.parametrize("policy", NAMES)
def test_every_request_gets_exactly_its_tokens(policy, workload):
    ran = {}
    made = _recording(ran, policy, workload)
    report = simulate(workload, policy=made, rows=ROWS)
    assert {job: each.produced_tokens for job, each in made.ends.items()} == dict(enumerate(workload.output_tokens))
    assert np.all(report.ttft_s > 0)
    assert np.all(report.latency_s >= report.ttft_s)
    assert np.array_equal(report.output_tokens, workload.output_tokens)


def _recording(ran, policy, workload):
    made = watched(policy)
    arrive = made.inner.arrive

    def told(job, now_s):
        job.expected_tokens = float(workload.output_tokens[job.id])
        ran[job.id] = job
        arrive(job, now_s)

    made.inner.arrive = told
    return made


@pytest.mark.parametrize("policy", BLIND)
def test_no_row_is_idle_while_a_job_is_ready(policy, workload):
    made = watched(policy)
    simulate(workload, policy=made, rows=ROWS)
    for _, ready, _, decision in made.decisions:
        assert len(decision.run) == min(ROWS, ready)


def test_the_work_done_does_not_depend_on_the_policy():
    workload = arrivals("chat", count=150, seed=1, cost=linear(), rows=1)
    busy = {p: simulate(workload, policy=p, cost=linear(), rows=1, tokens=10**6) for p in NAMES}
    first = busy["fcfs"]
    for report in busy.values():
        assert report.busy_s == pytest.approx(first.busy_s, rel=1e-9)
        assert report.idle_s == pytest.approx(first.idle_s, rel=1e-6, abs=1e-6)
        end_s = float(np.max(report.arrival_s + report.latency_s))
        assert report.busy_s + report.idle_s == pytest.approx(end_s, rel=1e-9)


@pytest.mark.parametrize("policy", BLIND)
def test_littles_law(policy, workload):
    made = watched(policy)
    report = simulate(workload, policy=made, rows=ROWS)
    events = sorted([(t, 1) for t in report.arrival_s] + [(t, -1) for t in report.arrival_s + report.latency_s])
    times = np.array([t for t, _ in events])
    present = np.cumsum([change for _, change in events])
    area = float(np.sum(present[:-1] * np.diff(times)))
    assert area == pytest.approx(float(report.latency_s.sum()), rel=1e-9)
    seen = [(now_s, ready) for now_s, ready, _, _ in made.decisions]
    for now_s, ready in seen[:: max(1, len(seen) // 50)]:
        ended = np.sum(report.arrival_s + report.latency_s <= now_s + 1e-9)
        assert ready == np.sum(report.arrival_s <= now_s) - ended


def test_one_row_first_come_first_served_is_the_single_server_queue():
    cost = linear(iteration_s=2e-3)
    workload = arrivals("short", load=0.6, count=6000, seed=2, cost=cost, rows=1)
    report = simulate(workload, policy="fcfs", cost=cost, rows=1, tokens=10**6)
    service_s = 3e-3 * workload.output_tokens + 1e-4 * workload.prompt_tokens
    ends, end_s = [], 0.0
    for came_s, own_s in zip(workload.arrival_s, service_s, strict=True):  # Lindley's recursion
        end_s = max(end_s, came_s) + own_s
        ends.append(end_s)
    assert report.latency_s == pytest.approx(np.array(ends) - workload.arrival_s, rel=1e-6)
    rate = len(workload) / workload.arrival_s[-1]
    used = rate * service_s.mean()
    formula_s = service_s.mean() + rate * (service_s**2).mean() / (2 * (1 - used))  # Pollaczek-Khinchine
    assert report.mean_latency_s == pytest.approx(formula_s, rel=0.1)


@pytest.mark.parametrize("policy", NAMES)
def test_the_same_seed_gives_the_same_run(policy):
    runs = [simulate(arrivals("chat", count=60, seed=s, users=3), policy=policy, seed=5) for s in (4, 4, 6)]
    assert np.array_equal(runs[0].latency_s, runs[1].latency_s)
    assert not np.array_equal(runs[0].latency_s, runs[2].latency_s)


def test_the_seed_of_predictions_matters_only_where_something_is_predicted():
    workload = arrivals("lognormal", count=200, seed=0, rows=4)
    for policy, same in (("mlfq", True), ("srpt-predicted", False)):
        runs = [simulate(workload, policy=policy, rows=4, seed=seed).latency_s for seed in (0, 1)]
        assert np.array_equal(*runs) is same


class Broken(Watched):
    """Never picks the last of the jobs it is given."""

    def decide(self, jobs, *, now_s, limits, memory):
        super().decide(jobs, now_s=now_s, limits=limits, memory=memory)
        *before, (_, ready, _, decision) = self.decisions
        chosen = tuple(each for each in decision.run if each[0] is not jobs[-1])
        self.decisions[:] = [*before, (now_s, ready, memory, Decision(chosen))]
        return self.decisions[-1][-1]


def test_a_policy_that_never_picks_the_last_job_is_noticed():
    made = Broken(scheduler("fcfs", cost=IterationCost(EVEN)))
    with pytest.raises(GlassworksError, match="runs none although nothing is on its way"):
        simulate(requests([(0.0, 5, 5), (0.0, 5, 5)]), policy=made)
    assert any(len(decision.run) < min(16, ready) for _, ready, _, decision in made.decisions)
