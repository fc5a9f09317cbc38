"""The decision: rules that hold for any table of jobs, and what it does in cases that can be told in a sentence."""

import copy

import pytest
from hypothesis import given, settings

from glassworks.schedule import NAMES, scheduler
from glassworks.schedule.base import UNLIMITED, Job, Limits, Memory, Place
from glassworks.schedule.decide import decide
from schedule.tables import check, tables


def plain(order, **more):
    more = {"limits": Limits(), "memory": Memory(), "waits_s": lambda: list(range(len(order))), **more}
    return decide(order, **more)


def resident(number, tokens, **more):
    job = Job(number, float(number), tokens, 1000, **more)
    job.computed_tokens, job.produced_tokens, job.place, job.served = tokens, 1, Place.DEVICE, 9
    job.held_blocks = job.own_blocks = job.blocks(tokens, 16)
    return job


def state(jobs):
    return [[getattr(job, name) for name in Job.__slots__] for job in jobs]


@pytest.mark.parametrize("starving", [0, 2])
@settings(max_examples=300, deadline=None)
@given(table=tables())
def test_every_decision_respects_rows_tokens_blocks_and_places(table, starving):
    jobs, limits, memory = table
    before = state(jobs)
    waits = [(job.id * 7) % 5 for job in jobs]
    found = decide(jobs, limits=limits, memory=memory, waits_s=lambda: waits, starving=starving, reserve_blocks=3)
    check(found, jobs, limits, memory)
    assert state(jobs) == before, "the decision is pure"


@pytest.mark.parametrize("policy", NAMES)
@settings(max_examples=60, deadline=None)
@given(table=tables())
def test_every_policy_with_a_bound_respects_them_too(policy, table):
    jobs, limits, memory = table
    made = scheduler(policy, starvation_s=3.0)
    for job in jobs:
        made.arrive(job, job.arrival_s)
    check(made.decide(jobs, now_s=12.0, limits=limits, memory=memory), jobs, limits, memory)


@settings(max_examples=300, deadline=None)
@given(table=tables(places=(Place.NOWHERE, Place.DEVICE, Place.HOST)))
def test_something_always_moves(table):
    jobs, limits, memory = table
    for job in jobs:
        job.recomputable, job.own_blocks = True, job.held_blocks
        job.rows = 1
    fits = memory.free_blocks + sum(job.held_blocks for job in jobs) >= jobs[0].blocks(61 + 80, memory.block_tokens)
    found = plain(jobs, limits=limits, memory=memory)
    assert found.run or found.come or found.leave or found.drop or not fits


def test_the_first_of_the_order_gets_its_blocks_from_the_last():
    order = [resident(n, 32) for n in range(4)]
    found = plain(order, memory=Memory(16, 8, 0, 100), limits=Limits(rows=4))
    assert [job.id for job, _ in found.run] == [0, 1]
    assert [job.id for job in found.leave] == [3], "its two blocks are enough for both"


def test_a_full_host_means_dropping_the_shortest():
    order = [resident(0, 32), resident(1, 16), resident(2, 48)]
    found = plain(order, memory=Memory(16, 6, 0, 0), limits=Limits(rows=1))
    assert [job.id for job in found.drop] == [1]
    assert not found.leave


def test_the_host_is_kept_for_what_may_not_be_dropped():
    order = [resident(0, 32, recomputable=False), resident(1, 32)]
    worst = order[0].blocks(32 + 1000, 16)
    ask = {"limits": Limits(rows=1)}
    found = plain(order, memory=Memory(16, 4, 0, worst + 1), **ask)
    assert ([job.id for job in found.drop], found.leave) == ([1], ())
    found = plain(order, memory=Memory(16, 4, 0, worst + 2), **ask)
    assert ([job.id for job in found.leave], found.drop) == ([1], ())


def test_one_that_just_came_back_is_spared_unless_nothing_else_moves():
    order = [resident(0, 32), resident(1, 31)]
    order[1].served = 1
    memory = Memory(16, 4, 0, 100)
    first = plain(order, memory=memory)
    assert [job.id for job, _ in first.run] == [1], "the other runs meanwhile: its last block has room"
    order[1].computed_tokens, order[1].produced_tokens = 32, 2
    forced = plain(order, memory=memory)
    assert [job.id for job, _ in forced.run] == [0]
    assert [job.id for job in forced.leave] == [1]


def test_blocks_on_their_way_stay_claimed_for_the_one_ahead():
    leaving = resident(9, 32)
    leaving.place = Place.LEAVING
    order = [resident(0, 32), Job(1, 0.0, 16, 10), leaving]
    found = plain(order, memory=Memory(16, 5, 1, 100, instant=False))
    assert [job.id for job, _ in found.run] == [0]
    wide = [Job(0, 0.0, 48, 10), Job(1, 0.0, 16, 10), leaving]
    found = plain(wide, memory=Memory(16, 5, 2, 100, instant=False))
    assert not found.run, "two are free, the third is on its way, and the one behind does not take them"
    assert not found.leave


def test_a_job_on_the_host_comes_while_others_use_its_row():
    away = resident(0, 32)
    away.place, away.held_blocks, away.own_blocks = Place.HOST, 0, 0
    order = [away, resident(1, 20), resident(2, 20)]
    found = plain(order, memory=Memory(16, 20, 10, 100, instant=False), limits=Limits(rows=1))
    assert found.come == (away,)
    assert [job.id for job, _ in found.run] == [1]
    at_once = plain(order, memory=Memory(16, 20, 10, 100), limits=Limits(rows=1))
    assert at_once.come == (away,)
    assert [job.id for job, _ in at_once.run] == [0]


def test_decodes_do_not_stall_behind_a_prompt():
    order = [Job(0, 0.0, 900, 10), resident(1, 20), resident(2, 20)]
    found = plain(order, limits=Limits(rows=3, tokens=100), memory=Memory())
    assert [(job.id, n) for job, n in found.run] == [(0, 98), (1, 1), (2, 1)]


def test_a_prompt_that_may_not_be_cut_exceeds_the_budget_alone():
    order = [Job(0, 0.0, 900, 10, chunkable=False), Job(1, 0.0, 900, 10, chunkable=False), resident(2, 20)]
    found = plain(order, limits=Limits(rows=3, tokens=100))
    assert [(job.id, n) for job, n in found.run] == [(0, 900), (2, 1)]


def test_one_unfinished_prompt_a_level():
    order = [Job(n, 0.0, 90, 10) for n in range(4)]
    order[3].level = 1
    found = plain(order, limits=Limits(rows=4, tokens=100))
    assert [(job.id, n) for job, n in found.run] == [(0, 90), (1, 8), (3, 2)]
    starving = plain(order, limits=Limits(rows=4, tokens=100), starving=4)
    assert [job.id for job, _ in starving.run] == [0, 1, 2, 3]


def test_ahead_of_need_one_leaves_or_one_comes_never_both():
    away = resident(5, 16)
    away.place, away.held_blocks, away.own_blocks = Place.HOST, 0, 0
    order = [resident(0, 20), resident(1, 20), resident(2, 20), away]
    ask = {"limits": Limits(rows=1), "reserve_blocks": 4}
    short = plain(order, memory=Memory(16, 9, 3, 100, instant=False), **ask)
    assert ([job.id for job in short.leave], short.come) == ([2], ())
    between = plain(order, memory=Memory(16, 13, 7, 100, instant=False), **ask)
    assert not between.leave
    assert not between.come
    ample = plain(order, memory=Memory(16, 16, 10, 100, instant=False), **ask)
    assert (ample.leave, ample.come) == ((), (away,))
    assert not plain(order, memory=Memory(16, 9, 3, 100), **ask).leave, "copies that take no time need no foresight"


def test_without_bounds_memory_is_not_looked_at():
    order = [resident(n, 32) for n in range(3)]
    found = plain(order, memory=Memory(total_blocks=UNLIMITED), waits_s=lambda: pytest.fail("nobody waits"))
    assert len(found.run) == 3
    assert copy.copy(found) == found
