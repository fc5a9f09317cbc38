"""Budgets hold: whatever the lengths, the graphs and the policy, no tier ever has more than it was given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glassworks as gw
from engine.random_schedules import RandomScheduler
from engine.test_schedules import check_nothing_left, lone, model_of
from families import FAMILIES
from glassworks.engine.caches import size_of
from glassworks.graph.backend import Generation, Inputs, Rows
from glassworks.measure.clock import VirtualClock
from glassworks.memory.links import EmulatedLink
from glassworks.schedule import NAMES
from glassworks.trace.results import with_results

WRITTEN, NEW_TOKENS = 6, 9
REQUEST = st.tuples(
    st.integers(1, 30), st.integers(0, WRITTEN), st.sampled_from(["", "", "reads", "writes"]), st.sampled_from("ab")
)


def graph_of(model: Any, which: str) -> Any:
    if not which:
        return None
    with model.record() as t, t.steps[:]:
        hidden = model.layers[1].output
        if which == "writes":
            hidden[:] *= 1.25
        hidden[:, -1].save("read")
    return t.graph


def check_budget(engine: Any) -> None:
    for arena in engine.arenas.values():
        assert 0 <= arena.used_bytes <= arena.budget_bytes
    store = engine.store
    if store is not None:
        assert 0 <= store.free_blocks <= store.total_blocks


@pytest.mark.parametrize("policy", NAMES)
@settings(max_examples=12, deadline=None)
@given(
    data=st.tuples(
        st.lists(REQUEST, min_size=1, max_size=6), st.integers(24, 90), st.integers(0, 90), st.booleans(),
        st.integers(1, 4), st.integers(8, 40), st.sampled_from(["llama", "bloom"]),
    )
)  # fmt: skip
def test_no_tier_is_ever_over_its_budget(policy: str, data: Any) -> None:
    wanted, device_kib, host_kib, slow, rows, tokens, family = data
    model, bare = model_of(family)
    scale = 1 if family == "llama" else 3
    clock = VirtualClock()
    links = {"out": EmulatedLink(3e6, clock.now_s), "back": EmulatedLink(3e6, clock.now_s)} if slow else {}
    engine = gw.Engine(
        model, policy=policy, rows=rows, tokens=tokens, block_tokens=4, clock=clock, poison=True,
        kv=gw.KVBudget(device=f"{scale * device_kib}KiB", host=f"{scale * host_kib}KiB"), **links,
    )  # fmt: skip
    replies: list[Any] = []
    refused = 0
    for length, new, which, user in wanted:
        prompt = [(length * 7 + k * 5) % 90 + 3 for k in range(length)]
        try:
            request = gw.Request(
                prompt, max_new_tokens=new, graph=graph_of(model, which), user=user, expected_tokens=new + 1
            )
            replies.append((prompt, new, which, engine.submit(request)))
        except gw.BudgetExceeded:
            refused += 1  # its message has a test of its own
        engine.step()
        check_budget(engine)
    for _ in range(20_000):
        if not engine.step():
            break
        check_budget(engine)
    assert engine.pending == 0
    assert len(replies) + refused == len(wanted)
    for prompt, new, which, reply in replies:
        if reply.error is not None:
            assert isinstance(reply.error, gw.BudgetExceeded), reply.error  # what a graph saves counts as it is saved
            assert which
        elif which != "writes":
            assert reply.tokens == lone(bare, prompt)[:new]
    clock.advance(1e6)
    engine.step()
    check_nothing_left(engine)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_request_that_could_never_fit_is_refused_with_the_sizes(family: str) -> None:
    model, bare = model_of(family)
    engine = gw.Engine(model, kv=gw.KVBudget(device="48KiB"), block_tokens=4)
    with pytest.raises(gw.BudgetExceeded, match=r"may come to (199|200) tokens.* KiB; the device has 48.0 KiB"):
        engine.submit(gw.Request([5] * 100, max_new_tokens=100))
    assert engine.pending == 0
    assert engine.submit(gw.Request([5, 6, 7], max_new_tokens=3)).wait().tokens == lone(bare, [5, 6, 7])[:3]


def test_what_is_never_computed_again_needs_room_off_the_device() -> None:
    model, _ = model_of("llama")
    engine = gw.Engine(model, kv=gw.KVBudget(device="1MiB", host=0), block_tokens=4)
    with pytest.raises(gw.BudgetExceeded, match=r"give KVBudget\(host=\.\.\.\) .* KiB"):
        engine.submit(gw.Request([5] * 40, max_new_tokens=8, graph=graph_of(model, "writes")))


def test_saves_of_no_known_size_count_and_too_many_end_their_request_alone() -> None:
    model, bare = model_of("llama")
    engine = gw.Engine(model, kv=gw.KVBudget(device="1MiB", host="64KiB"), block_tokens=4, rows=2)
    with model.record() as t, t.steps[:]:
        gw.apply(lambda value: value.repeat(1, 40, 1), model.layers[1].output).save("much")
    greedy, plain = engine.run([
        gw.Request([5] * 8, max_new_tokens=7, graph=t.graph), gw.Request([9, 8, 7], max_new_tokens=7)
    ])  # fmt: skip
    assert isinstance(greedy.error, gw.BudgetExceeded)
    assert "what the graph of a request has saved" in str(greedy.error)
    assert plain.tokens == lone(bare, [9, 8, 7])
    check_nothing_left(engine)
    assert all(arena.used_bytes <= arena.budget_bytes for arena in engine.arenas.values())


def repeating(model: Any, times: int) -> gw.Graph:
    with model.record() as t, t.steps[1:]:
        model.layers[1].output.repeat(1, times, 1).save("much")
    return t.graph


def test_saves_that_could_never_fit_are_refused_with_the_sizes() -> None:
    model, _ = model_of("llama")
    engine = gw.Engine(model, kv=gw.KVBudget(device="1MiB", host="64KiB"), block_tokens=4)
    with pytest.raises(gw.BudgetExceeded, match=r"may come to 6\d.\d KiB; the host has 61.0 KiB for it: give KVBudget"):
        engine.submit(gw.Request([5] * 8, max_new_tokens=7, graph=repeating(model, 42)))


def test_beginnings_that_nobody_uses_make_room_for_saves() -> None:
    model, _ = model_of("llama")
    options = {"eos_token_id": []}
    engine = gw.Engine(model, block_tokens=4, kv=gw.KVBudget(device="60KiB", host=0))
    for k in range(12):
        engine.submit(gw.Request([3 + k] * 9, 2, options=options)).wait()
    reply = engine.submit(gw.Request([5, 6, 7], 8, repeating(model, 4), options=options)).wait()
    assert len(reply.saves["much"]) == 7
    check_nothing_left(engine)


@pytest.mark.parametrize("seed", range(4))
def test_what_others_swap_leaves_room_for_saves(seed: int) -> None:
    model, _ = model_of("llama")
    options = {"eos_token_id": []}
    engine = gw.Engine(
        model, policy=RandomScheduler(seed), rows=4, block_tokens=4, clock=VirtualClock(), share=False,
        kv=gw.KVBudget(device="60KiB", host="64KiB"),
    )  # fmt: skip
    graph = repeating(model, 12)
    replies = [engine.submit(gw.Request([5, 6, 7], 12, graph, options=options)) for _ in range(3)]
    others = [engine.submit(gw.Request([9 + k] * 14, 16, options=options)) for k in range(6)]
    while engine.step():
        check_budget(engine)
    assert [len(reply.saves["much"]) for reply in replies] == [11] * 3
    assert [len(reply.wait().tokens) for reply in others] == [16] * 6
    check_nothing_left(engine)


@pytest.mark.parametrize("which", ["", "reads"])
def test_the_disk_takes_what_the_host_has_no_room_for(which: str) -> None:
    model, _ = model_of("llama")
    prompts = [[5 + k, 9, 11, 4] * 5 for k in range(3)]
    graph = graph_of(model, which)
    requests = [gw.Request(own, max_new_tokens=7, graph=graph, user=str(k)) for k, own in enumerate(prompts)]
    expected = [own.tokens for own in gw.Engine(model).run(requests)]
    engine = gw.Engine(
        model, policy="mlfq", kv=gw.KVBudget(device="40KiB", host="44KiB", disk="1MiB"), block_tokens=4, rows=4,
        tokens=32, poison=True, starvation_s=1e-4, clock=VirtualClock(),
    )  # fmt: skip
    assert [tier.arena.name for tier in engine.store.tiers][-1] == "disk"
    assert [own.tokens for own in engine.run(requests)] == expected
    assert engine.stats.swaps_out == engine.stats.swaps_in
    check_nothing_left(engine)


def test_the_disk_keeps_the_bits(tmp_path: Path) -> None:
    """Forced: everybody leaves for the disk once, and comes back."""
    from engine.test_requests import Once

    model, bare = model_of("llama")
    engine = gw.Engine(
        model, policy=Once(), kv=gw.KVBudget(device="1MiB", host=0, disk="1MiB"), block_tokens=4, poison=True
    )
    prompts = [[5, 9, 11], [7] * 20]
    assert [own.tokens for own in engine.run(gw.Request(p, max_new_tokens=7) for p in prompts)] == [
        lone(bare, p) for p in prompts
    ]
    assert (engine.stats.swaps_out, engine.stats.swaps_in) == (2, 2)
    check_nothing_left(engine)


def test_two_engines_over_one_model() -> None:
    model, bare = model_of("llama")
    engines = [gw.Engine(model, kv=gw.KVBudget(device="120KiB"), block_tokens=4, poison=True) for _ in range(2)]
    prompts = [[5, 9, 11], [7] * 20, [3, 4, 5, 6]]
    replies = [(p, own.submit(gw.Request(p, max_new_tokens=7))) for p in prompts for own in engines]
    while sum(own.step() for own in engines):
        assert torch.isfinite(bare(torch.tensor([[5, 6]])).logits).all()
    for prompt, reply in replies:
        assert reply.wait().tokens == lone(bare, prompt)
    for own in engines:
        check_nothing_left(own)


# At the border: what is admitted is served.


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("blocks", [7, 8])
def test_blocks_are_whole_for_what_runs_by_itself_too(family: str, blocks: int) -> None:
    """Two rows of 13 to 16 tokens come to eight blocks, whether or not their bytes would fit in less."""
    model, bare = model_of(family)
    block_bytes = 4 * gw.Engine(model, block_tokens=4)._admission.cache_sizes[0]
    zeros = 1 if family == "llama" else 0
    size = (blocks + zeros) * block_bytes + block_bytes // 2
    for new in range(10, 14):
        engine = gw.Engine(model, policy="fcfs", block_tokens=4, kv=gw.KVBudget(device=size, host="1MiB"))
        if blocks == 7 and new > 11:
            with pytest.raises(gw.BudgetExceeded, match=f"{new * 2 + 6} tokens in 8 blocks.* {blocks} blocks"):
                model.on(engine).complete([[5, 6, 7], [8, 9, 10]], max_new_tokens=new)
        else:
            found = model.on(engine).complete([[5, 6, 7], [8, 9, 10]], max_new_tokens=new, eos_token_id=[])
            assert [len(own.tokens) for own in found] == [new, new]
        assert engine.submit(gw.Request([5, 6, 7], max_new_tokens=3)).wait().tokens == lone(bare, [5, 6, 7])[:3]
        check_nothing_left(engine)


def test_beams_count() -> None:
    model, _ = model_of("llama")
    engine = gw.Engine(model, block_tokens=4, kv=gw.KVBudget(device="24KiB", host="1MiB"))
    on = model.on(engine)
    assert len(on.complete([5, 6, 7], max_new_tokens=5, num_beams=3).tokens)
    with pytest.raises(gw.BudgetExceeded, match="48 tokens in 12 blocks"):
        on.complete([5, 6, 7], max_new_tokens=5, num_beams=6)


class Stubborn:
    """Lets the oldest run and nobody else, and never gives it its blocks."""

    def arrive(self, job: Any, now_s: float) -> None:
        pass

    charge = finish = lambda self, *_: None

    def decide(self, jobs: Any, *, now_s: float, limits: Any, memory: Any) -> Any:
        from glassworks.schedule.base import Decision

        oldest = min(jobs, key=lambda job: job.id)
        return Decision() if oldest.prompt_tokens == 2 else Decision(run=((oldest, oldest.pending_tokens),))


def test_who_is_stuck_ends_alone() -> None:
    model, bare = model_of("llama")
    engine = gw.Engine(model, policy=Stubborn(), block_tokens=4, clock=VirtualClock())
    stuck, other = engine.run([gw.Request([5, 6], max_new_tokens=3), gw.Request([5, 6, 7], max_new_tokens=3)])
    assert isinstance(stuck.error, gw.BudgetExceeded)
    assert "could not go on" in str(stuck.error)
    assert other.wait().tokens == lone(bare, [5, 6, 7])[:3]
    check_nothing_left(engine)


def test_what_is_kept_for_a_later_step_holds_on_to_nothing_else() -> None:
    """A value of a step is read in company with a long prompt, and used four steps later."""
    model, _ = model_of("llama")
    engine = gw.Engine(model, block_tokens=4)
    with model.record() as t:
        with t.steps[1]:
            early = model.layers[0].output[:, -1]
        with t.steps[5]:
            (early + model.layers[0].output[:, -1]).save("read")
    options = {"eos_token_id": []}
    replies = [engine.submit(gw.Request([9 + k, 8], 8, t.graph, options=options)) for k in range(2)]
    engine.step()
    engine.submit(gw.Request([7] * 100, 3, options=options))
    for _ in range(4):
        engine.step()
        for work in engine._works.values():
            held = {
                own.untyped_storage().data_ptr(): own.untyped_storage()
                for own in work.run.frame.values
                if own is not None
            }
            if work.facts.touches:
                assert sum(own.nbytes() for own in held.values()) == work.frame_size.now_bytes(work) == 256
                assert work.frame_bytes >= 256
    alone = gw.Engine(model).submit(gw.Request([9, 8], 8, t.graph, options=options)).wait()
    torch.testing.assert_close(replies[0].saves["read"], alone.saves["read"], rtol=1e-9, atol=1e-9)


# What is counted is what is there.


@pytest.mark.parametrize("prompts", [[[5, 6, 7]], [[5, 6, 7], [8, 9, 10, 11, 12]]], ids=["one row", "two rows"])
@pytest.mark.parametrize("family", ["llama", "bloom", "mamba", "t5"])
def test_the_cache_of_what_runs_by_itself_takes_what_is_counted(family: str, prompts: list[list[int]]) -> None:
    model = gw.wrap(FAMILIES["t5"]().double()) if family == "t5" else model_of(family)[0]
    engine = gw.Engine(model, block_tokens=4)
    graph = with_results(gw.Graph((), invokes=1))
    inputs = Inputs((Rows(tuple(map(tuple, prompts))),))
    engine.start(graph, inputs, Generation(NEW_TOKENS, {"eos_token_id": []}), alone=True)
    largest = 0
    while engine.step():
        for work in engine._works.values():
            size = max([size_of(own) for own in work.run.cache.values()], default=0)
            assert size <= work._held.size_bytes
            assert engine.arenas["device"].used_bytes >= size
            largest = max(largest, size / work._held.size_bytes)
    assert largest > 0.4  # of an encoder-decoder, either side counts as both
    check_nothing_left(engine)
