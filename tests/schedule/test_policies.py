"""Each policy by itself: who is first, and what changes that."""

import pytest

from glassworks.errors import InputError
from glassworks.schedule import scheduler
from glassworks.schedule.base import Job
from glassworks.schedule.cost import OPT_13B, IterationCost
from glassworks.schedule.fair import _AWAY, Fair
from glassworks.schedule.fcfs import Fcfs
from glassworks.schedule.lengths import _GROUPS, Learned
from glassworks.schedule.mlfq import Mlfq
from glassworks.schedule.predicted import Predicted
from glassworks.schedule.simulate import simulate
from glassworks.schedule.srpt import Srpt
from schedule.watched import EVEN, requests, watched

COST = IterationCost(OPT_13B)


def ids(policy, jobs):
    return [job.id for job in policy.order(jobs)]


def arrived(policy, *jobs):
    for job in jobs:
        policy.arrive(job)
    return jobs


def test_first_come_first_served():
    late, early = Job(0, 2.0, 1, 1), Job(1, 1.0, 900, 900)
    assert ids(Fcfs(COST), [late, early]) == [1, 0]


def test_the_oracle_goes_by_what_is_left_and_needs_the_truth():
    policy = Srpt(COST)
    long, short = Job(0, 0.0, 10, 100, expected_tokens=100), Job(1, 1.0, 10, 100, expected_tokens=50)
    arrived(policy, long, short)
    assert ids(policy, [long, short]) == [1, 0]
    long.computed_tokens, long.produced_tokens = 69, 60
    assert ids(policy, [long, short]) == [0, 1]
    with pytest.raises(InputError, match="srpt-predicted"):
        policy.arrive(Job(2, 0.0, 1, 1))


def test_an_outlived_prediction_doubles():
    policy = Predicted(COST)
    wrong, right = Job(0, 0.0, 1, 99, expected_tokens=4), Job(1, 0.0, 1, 99, expected_tokens=20)
    arrived(policy, wrong, right)
    wrong.computed_tokens, wrong.produced_tokens = 3, 3
    policy.charge(wrong, 0.1)
    assert ids(policy, [wrong, right]) == [0, 1]
    wrong.computed_tokens, wrong.produced_tokens = 32, 32
    policy.charge(wrong, 0.1)
    assert ids(policy, [wrong, right]) == [1, 0], "64 are expected of it now"
    unknown = Job(2, 0.0, 1, 99)
    arrived(policy, unknown)
    assert ids(policy, [wrong, right, unknown])[0] == 2


def test_a_long_prompt_skips_levels_and_use_sinks():
    policy = Mlfq(COST)
    short, long = arrived(policy, Job(0, 0.0, 1, 99), Job(1, 0.0, 1000, 99))
    assert policy.quantum_s(long.level) >= COST.prefill_s(1000) > policy.quantum_s(long.level - 1)
    assert short.level == 1, "one token of a prompt is a little more than the shortest iteration"
    for level in (1, 2, 3):
        assert short.level == level
        policy.charge(short, policy.quantum_s(level) * 0.6)
        assert short.level == level
        policy.charge(short, policy.quantum_s(level) * 0.6)
    policy.promote(long)
    assert (long.level, long.used_s) == (0, 0.0)
    assert ids(policy, [short, long]) == [1, 0]


def test_three_jobs_of_the_paper_wait_less_than_first_come_first_served():
    """In the spirit of FastServe's figure 7: a long job ahead of two short ones."""
    workload = requests([(0.0, 1, 40), (0.001, 1, 4), (0.002, 1, 2)])
    means = {p: simulate(workload, policy=p, cost=EVEN, rows=1).mean_latency_s for p in ("fcfs", "mlfq", "srpt")}
    assert means["srpt"] <= means["mlfq"] < 0.7 * means["fcfs"]


@pytest.mark.parametrize("policy", [Fcfs(COST), Mlfq(COST), Predicted(COST), Fair(Mlfq(COST))])
def test_who_is_later_in_the_order_waits_longer(policy):
    jobs = arrived(policy, *[Job(n, float(n), 10 + 50 * n, 100, expected_tokens=10.0 + n) for n in range(6)])
    waits = policy.waits_s(policy.order(jobs), 2)
    assert waits == sorted(waits)
    assert waits[0] == 0 < waits[-1]


def test_users_get_equal_shares_whatever_they_ask():
    """The bound of VTC, theorem 4.4: twice the most that a user can receive at once, here over rows of one batch."""
    rows, many, few = 4, 60, 12
    jobs = [(0.0, 20, 30, "many")] * many + [(0.0, 20, 30, "few")] * few
    made = watched("fair", inner="fcfs")
    simulate(requests(jobs), policy=made, rows=rows, cost=EVEN)
    user = {number: job[3] for number, job in enumerate(jobs)}
    received, tokens = {"many": 0.0, "few": 0.0}, {}
    bound, widest, left = 2 * max(20, 2 * rows) + 2 * rows, 0.0, few
    for job, _, _ in made.charges:
        tokens[job] = tokens.get(job, 0) + 1
        received[user[job]] += 22 if tokens[job] == 1 else 2  # the prompt and its first token, or a token
        left -= user[job] == "few" and tokens[job] == 30
        widest = max(widest, abs(received["many"] - received["few"]))
        if not left:
            break
    assert widest <= bound
    assert received["few"] > 500
    unfair = watched("fcfs")
    simulate(requests(jobs), policy=unfair, rows=rows, cost=EVEN)
    assert next(n for n, (job, _, _) in enumerate(unfair.charges) if user[job] == "few") > 1000


def test_a_user_who_comes_back_has_saved_nothing_up():
    policy = Fair(Fcfs(COST))
    (busy,) = arrived(policy, Job(0, 0.0, 500, 9, user="busy"))
    busy.computed_tokens, busy.produced_tokens = 500, 1
    policy.charge(busy, 0.1)
    arrived(policy, Job(1, 9.0, 10, 9, user="idle"))
    assert policy.received == {"busy": 502, "idle": 502}
    policy.finish(busy)
    busy.computed_tokens = 0
    assert policy.received["busy"] == 502


def test_a_job_that_is_computed_again_pays_once():
    policy = Fair(Fcfs(COST))
    (job,) = arrived(policy, Job(0, 0.0, 50, 9, user="a"))
    for computed in (50, 0, 25, 50):
        job.computed_tokens, job.produced_tokens = computed, 1
        policy.charge(job, 0.1)
    assert policy.received["a"] == 52


def test_lengths_learned_from_what_ended_serve_the_policy():
    """Users whose answers differ: after a few, the short ones go first."""
    jobs = [(0.05 * n, 8, *((40, "long") if n % 2 else (4, "short"))) for n in range(300)]
    learned, asked = Learned(), requests(jobs)
    runs = {p: simulate(asked, policy=p, cost=EVEN, rows=4, predictor=learned) for p in ("srpt-predicted", "fcfs")}
    assert runs["srpt-predicted"].mean_latency_s < 0.8 * runs["fcfs"].mean_latency_s
    assert learned.predict(8, 100, "short") == pytest.approx(4, rel=0.2)


def test_names_are_checked():
    with pytest.raises(InputError, match="fcfs, srpt, srpt-predicted, mlfq, fair; got 'lifo'"):
        scheduler("lifo")
    with pytest.raises(InputError, match="inner='fcfs' is for policy='fair'"):
        scheduler("mlfq", inner="fcfs")
    with pytest.raises(InputError, match="inner policy"):
        scheduler("fair", inner="fair")


def test_users_who_are_away_do_not_fill_the_memory() -> None:
    policy, learned = Fair(Fcfs(COST)), Learned()
    for k in range(3 * _AWAY):
        job = Job(id=k, arrival_s=float(k), prompt_tokens=4, max_new_tokens=4, user=f"user {k}")
        policy.arrive(job)
        job.computed_tokens, job.produced_tokens = 4, k % 5
        policy.finish(job)
        learned.observe(4, 1 + k % 5, job.user)
    assert len(policy.received) <= _AWAY
    assert not policy._jobs
    assert len(learned._means) <= _GROUPS
    assert learned.predict(4, 100, "somebody") is not None


def test_who_is_ahead_and_comes_back_is_still_behind() -> None:
    policy = Fair(Fcfs(COST))
    jobs = [Job(id=k, arrival_s=0.0, prompt_tokens=4, max_new_tokens=9, user=u) for k, u in enumerate("aabb")]
    for job in jobs[0], jobs[2]:
        policy.arrive(job)
    jobs[0].computed_tokens, jobs[0].produced_tokens = 4, 9
    policy.finish(jobs[0])
    policy.arrive(jobs[1])
    assert policy.order([jobs[1], jobs[2]]) == [jobs[2], jobs[1]]
