"""Law 5: any schedule of preemption, swapping, chunks and computing again gives the tokens and saves of a lone run.

In float64, so that tokens are equal always; saves within 1e-9. Memory that nobody may read is filled with NaN, and on
an emulated link copies happen late.
"""

import random
from functools import cache
from typing import Any

import pytest
import torch

import glassworks as gw
from engine.random_schedules import RandomScheduler
from families import FAMILIES, MORE_FAMILIES, VOCAB
from glassworks.measure.clock import VirtualClock
from glassworks.memory.links import EmulatedLink

NAMES = ("gpt2", "llama", "qwen3", "opt", "mixtral", "bloom", "mamba")
ALONE = ("bloom", "mamba")
NEW = 7


@cache
def model_of(family: str) -> tuple[Any, Any]:
    """The model behind the facade, and as transformers has it."""
    bare = {**FAMILIES, **MORE_FAMILIES}[family]().double()
    if family == "mixtral":
        bare.set_experts_implementation("batched_mm")  # the grouped one has no float64
    return gw.wrap(bare), bare


def lone(bare: Any, prompt: list[int]) -> list[int]:
    """What transformers says alone."""
    found = bare.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return found[0, len(prompt) :].tolist()


def graphs(model: Any, prompt: list[int], which: str) -> tuple[Any, dict[str, Any]]:
    """A graph, and what it saves in a lone run with its tokens."""
    with model.generate(prompt, max_new_tokens=NEW) as t:
        if which == "reads":
            with t.steps[:]:
                model.layers[1].output[:, -1].save("read")
        elif which == "whole":
            with t.steps[:]:
                model.layers[0].attn.output.save("read")
        elif which == "late reads":
            with t.steps[2:]:
                model.layers[0].mlp.output.save("read")
        elif which == "writes":
            with t.steps[1:]:
                model.layers[1].output[:] *= 1.5
                model.layers[2].output.save("read")
        elif which == "counts":
            count = t.state(torch.zeros(1))
            with t.steps[:]:
                count.value = count.value + 1
                model.layers[0].output[:, -1] += 0.3 * count.value.double()
                count.value.save("read")
    tokens = t.result[0].tolist()
    live = sum(bool(row[0]) for row in t.alive)
    return t.graph, {"tokens": tokens[:live], "read": t._results["read"] if which else None}


@cache
def requests_of(family: str, seed: int) -> list[tuple[gw.Request, dict[str, Any]]]:
    """Requests, and what each gives alone."""
    model, bare = model_of(family)
    draw = random.Random(seed)
    found = []
    for k in range(6):
        prompt = [draw.randrange(3, VOCAB) for _ in range(draw.choice([1, 3, 5, 9, 17]))]
        which = draw.choice(["", "", "reads", "whole", "late reads", "writes", "counts"]) if family != "mamba" else ""
        if which:
            graph, own = graphs(model, prompt, which)
            found.append((gw.Request(prompt, max_new_tokens=NEW, graph=graph, user=str(k % 2)), own))
        else:
            own = {"tokens": lone(bare, prompt), "read": None}
            found.append((gw.Request(prompt, max_new_tokens=NEW, user=str(k % 2)), own))
    return found


def check_schedule(family: str, seed: int, *, slow_link: bool) -> RandomScheduler:
    model, bare = model_of(family)
    requests, expected = zip(*requests_of(family, seed), strict=True)
    draw = random.Random(seed)
    scheduler, clock = RandomScheduler(seed), VirtualClock()
    links = {}
    if slow_link:
        links = {"out": EmulatedLink(2e6, clock.now_s), "back": EmulatedLink(1e6, clock.now_s)}
    engine = gw.Engine(
        model, policy=scheduler, rows=4, tokens=64, block_tokens=4, clock=clock, poison=True,
        kv=gw.KVBudget(device="120KiB" if family not in ALONE else "400KiB", host="2MiB"), **links,
    )  # fmt: skip
    assert (engine.why_not_packed is not None) == (family in ALONE)
    before = bare(torch.tensor([[5, 6, 7]])).logits
    replies = [engine.submit(request) for request in requests[:3]]
    for request in requests[3:]:
        for _ in range(draw.randrange(4)):
            engine.step()
        assert torch.equal(bare(torch.tensor([[5, 6, 7]])).logits, before)
        replies.append(engine.submit(request))
    while engine.step():
        for arena in engine.arenas.values():
            assert arena.used_bytes <= arena.budget_bytes
    for reply, own in zip(replies, expected, strict=True):
        assert reply.wait().tokens == own["tokens"]
        if own["read"] is not None:
            for ours, theirs in zip(reply.saves["read"], own["read"], strict=True):
                near = 1e-5 if family in ALONE else 1e-9  # BLOOM's softmax is of float32
                torch.testing.assert_close(ours, theirs, rtol=near, atol=near)
    check_nothing_left(engine)
    return scheduler


def check_nothing_left(engine: Any) -> None:
    """All blocks and bytes are free."""
    store = engine.store
    if store is None:
        assert all(arena.used_bytes == 0 for arena in engine.arenas.values())
        return
    assert store.free_blocks == store.total_blocks
    assert all(tier.free == tier.count for tier in store.tiers)


@pytest.mark.parametrize("slow_link", [False, True], ids=["instant", "slow"])
@pytest.mark.parametrize("family", NAMES)
def test_any_schedule_gives_the_lone_run(family: str, slow_link: bool) -> None:
    found = [check_schedule(family, seed, slow_link=slow_link) for seed in range(2)]
    assert sum(own.left for own in found)
    assert sum(own.came for own in found)


@pytest.mark.slow
@pytest.mark.parametrize("slow_link", [False, True], ids=["instant", "slow"])
@pytest.mark.parametrize("family", NAMES)
def test_many_schedules_give_the_lone_run(family: str, slow_link: bool) -> None:
    found = [check_schedule(family, seed, slow_link=slow_link) for seed in range(100, 115)]
    assert min(sum(own.left for own in found), sum(own.came for own in found)) > 10
    assert sum(own.dropped for own in found) > 10
    assert family in ALONE or sum(own.cut for own in found) > 10
