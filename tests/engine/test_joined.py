"""The padded fallback: rows of families that cannot be packed decode together, as each does alone."""

from typing import Any

import pytest
import torch

import glassworks as gw
from families import FAMILIES, MORE_FAMILIES
from glassworks.run import joined

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [20, 21, 22, 23]]
NEW = 6


def lone(bare: Any, prompt: list[int]) -> list[int]:
    found = bare.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return found[0, len(prompt) :].tolist()


def model_of(family: str) -> tuple[Any, Any]:
    bare = {**FAMILIES, **MORE_FAMILIES}[family]().double()
    return gw.wrap(bare), bare


@pytest.mark.parametrize("family", ["bloom", "falcon", "gptj"])
def test_rows_decode_together(family: str) -> None:
    model, bare = model_of(family)
    engine = gw.Engine(model)
    assert engine.why_not_packed
    replies = engine.run([gw.Request(prompt, max_new_tokens=NEW) for prompt in PROMPTS])
    assert [reply.tokens for reply in replies] == [lone(bare, prompt) for prompt in PROMPTS]
    assert engine.stats.steps >= 1  # shared
    assert engine.stats.alone_steps < sum(len(reply.tokens) for reply in replies)


def test_graphs_see_their_own_rows() -> None:
    model, _ = model_of("bloom")
    with model.record() as t, t.steps[:]:
        model.layers[1].output[:, -1] *= 1.3
        model.layers[2].mlp.output.save("read")
    expected = []
    for prompt in PROMPTS:
        with model.generate(prompt, max_new_tokens=NEW) as own, own.steps[:]:
            model.layers[1].output[:, -1] *= 1.3
            read = model.layers[2].mlp.output.save()
        expected.append((own.result[0].tolist(), read.value))
    engine = gw.Engine(model)
    graphs = [t.graph, None, t.graph]
    replies = engine.run([gw.Request(p, max_new_tokens=NEW, graph=g) for p, g in zip(PROMPTS, graphs, strict=True)])
    assert engine.stats.steps
    for reply, graph, (tokens, read) in zip(replies, graphs, expected, strict=True):
        if graph is not None:
            assert reply.tokens == tokens[: len(reply.tokens)]
            for ours, theirs in zip(reply.saves["read"], read, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert replies[1].tokens == model.complete(PROMPTS[1], max_new_tokens=NEW).tokens


def test_what_a_graph_raises_ends_its_request_alone() -> None:
    model, bare = model_of("bloom")
    with model.record() as t, t.steps[2:]:
        hidden = model.layers[1].output
        hidden.index_select(1, torch.tensor([7])).save("bad")
    engine = gw.Engine(model)
    bad, good = engine.run([gw.Request(PROMPTS[0], max_new_tokens=NEW, graph=t.graph), gw.Request(PROMPTS[1])])
    assert isinstance(bad.error, RuntimeError)
    assert good.tokens[:NEW] == lone(bare, PROMPTS[1])
    assert all(arena.used_bytes == 0 for arena in engine.arenas.values())


def test_a_family_whose_rows_do_not_come_out_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask off by one would mix a row with its padding; the check says so, and rows run one by one."""
    model, bare = model_of("bloom")
    padded = joined._padded
    monkeypatch.setattr(joined, "_padded", lambda rows, longest: padded(rows, longest).roll(1, dims=2))
    engine = gw.Engine(model)
    replies = engine.run([gw.Request(prompt, max_new_tokens=NEW) for prompt in PROMPTS])
    assert [reply.tokens for reply in replies] == [lone(bare, prompt) for prompt in PROMPTS]
    assert not engine.stats.steps


def test_a_state_that_is_not_keys_and_values_is_not_joined() -> None:
    model, bare = model_of("mamba")
    engine = gw.Engine(model)
    replies = engine.run([gw.Request(prompt, max_new_tokens=NEW) for prompt in PROMPTS])
    assert [reply.tokens for reply in replies] == [lone(bare, prompt) for prompt in PROMPTS]
    assert not engine.stats.steps
