"""Sites by the model's own names, in company: what a lone run shows, or the request runs by itself."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import glassworks as gw
from families import FAMILIES, MORE_FAMILIES

PROMPT = [5, 9, 11, 4, 8, 6, 7, 3, 12]
COMPANY = [[20, 21, 22], [7] * 13]
OPTIONS = {"eos_token_id": []}
NEW = 4
Native = Callable[[Any], Any]
PROBABILITIES: list[tuple[str, Native]] = [
    ("gptj", lambda model: model.transformer.h[1].attn.attn_dropout.output),
    ("gptj", lambda model: model.transformer.h[1].attn.output[1]),
    ("bloom", lambda model: model.transformer.h[1].self_attention.attention_dropout.output),
    ("bloom", lambda model: model.transformer.h[1].self_attention.output[1]),
]
MISSING: list[tuple[str, Native]] = [
    ("gemma2", lambda model: model.model.layers[1].self_attn.output[1]),
    ("opt", lambda model: model.model.decoder.embed_positions.input),
]


@cache
def model_of(family: str) -> Any:
    bare = {**FAMILIES, **MORE_FAMILIES}[family]()
    return gw.wrap(
        bare if family == "bloom" else bare.double()
    )  # transformers' own BLOOM, padded in float64, gives NaN


def look(site: Any, *, writes: bool) -> Any:
    """Reads the site, perhaps after a write to its first key; gives what it saves."""
    if writes:
        site[:, :, :, 0] = 0.0
    return site.save("site")


def lone(family: str, native: Native, *, writes: bool) -> tuple[Any, list[int], list[torch.Tensor]]:
    """The graph, and the tokens and the entries of a lone run."""
    model = model_of(family)
    with model.generate(PROMPT, max_new_tokens=NEW, **OPTIONS) as t, t.steps[1:]:
        saved = look(native(model), writes=writes)
    return t.graph, t.result[0].tolist(), saved.value


def in_company(family: str, graph: Any) -> tuple[Any, Any]:
    engine = gw.Engine(model_of(family), block_tokens=4)
    others = [gw.Request(prompt, max_new_tokens=NEW + 2, options=OPTIONS) for prompt in COMPANY]
    reply, *_ = engine.run([gw.Request(PROMPT, max_new_tokens=NEW, graph=graph, options=OPTIONS), *others])
    return engine, reply


def check(tokens: list[int], entries: list[torch.Tensor], ours: list[int], seen: list[torch.Tensor]) -> None:
    assert ours == tokens
    for own, expected in zip(seen, entries, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize(("family", "native"), PROBABILITIES)
def test_probabilities_in_a_joined_step_look_back_at_all_tokens(family: str, native: Native, writes: bool) -> None:
    graph, tokens, entries = lone(family, native, writes=writes)
    engine, reply = in_company(family, graph)
    assert engine.stats.steps  # shared
    check(tokens, entries, reply.tokens, reply.saves["site"])


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize(("family", "native"), PROBABILITIES)
def test_probabilities_of_an_invoke_among_others_look_back_at_all_tokens(
    family: str, native: Native, writes: bool
) -> None:
    model = model_of(family)
    _, tokens, entries = lone(family, native, writes=writes)
    with model.generate(max_new_tokens=NEW, **OPTIONS) as t:
        with t.invoke(COMPANY[1]):
            pass
        with t.invoke(PROMPT) as own, t.steps[1:]:
            saved = look(native(model), writes=writes)
    check(tokens, entries, own.result[0].tolist(), saved.value)


@pytest.mark.parametrize(("family", "native"), MISSING)
def test_what_a_packed_step_does_not_show_is_looked_at_alone(family: str, native: Native) -> None:
    graph, tokens, entries = lone(family, native, writes=False)
    engine, reply = in_company(family, graph)
    assert engine.why_not_packed is None
    assert engine.stats.alone_steps
    check(tokens, entries, reply.tokens, reply.saves["site"])
