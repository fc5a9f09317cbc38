"""Attention that looks back a window: in company a graph sees what it sees alone, also long after the window is full.

Transformers' own cache forgets what has left the window, so that a lone run's keys begin there at every step but the
first; an engine's blocks hold all of them.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import glassworks as gw
from families import LLAMA, of_type

WINDOW = 4
PROMPT = [5, 9, 11, 4, 8, 6, 7, 3, 12]
COMPANY = [[20, 21, 22], [7] * 13]
OPTIONS = {"eos_token_id": []}
NEW = 6
SITES: dict[str, Callable[[Any], Any]] = {
    "scores": lambda attn: attn.scores,
    "probs": lambda attn: attn.probs,
    "key": lambda attn: attn.heads.key,
    "value": lambda attn: attn.heads.value,
}
FAMILIES = {
    "mistral": of_type("mistral", **LLAMA, sliding_window=WINDOW),
    "gemma2": of_type("gemma2", **LLAMA, head_dim=8, sliding_window=WINDOW),
    "gemma3": of_type(
        "gemma3_text", **LLAMA, head_dim=8, sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt_oss": of_type(
        "gpt_oss", **LLAMA, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW,
    ),
}  # fmt: skip


@cache
def model_of(family: str) -> Any:
    bare = FAMILIES[family]().double()
    if family == "gpt_oss":
        bare.set_experts_implementation("batched_mm")
    return gw.wrap(bare)


def body(model: Any, site: str, *, writes: bool) -> dict[str, Any]:
    """What it saves, by name."""
    saved = {"logits": model.logits[:, -1].save("logits")}
    for k, layer in enumerate(model.layers):
        if writes:
            seen = SITES[site](layer.attn)
            seen[:, :, :, 0] = 0.25  # of scores and probabilities: the first key that is seen
            seen[:, 0] *= 0.5
        saved[f"layer {k}"] = SITES[site](layer.attn).save(f"layer {k}")
    return saved


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_sites_in_company_are_those_of_a_lone_run(family: str, site: str, writes: bool) -> None:
    model = model_of(family)
    with model.generate(PROMPT, max_new_tokens=NEW, **OPTIONS) as t, t.steps[:]:
        saved = body(model, site, writes=writes)
    engine = gw.Engine(model, block_tokens=4)
    others = [gw.Request(prompt, max_new_tokens=NEW, options=OPTIONS) for prompt in COMPANY]
    reply, *rest = engine.run([gw.Request(PROMPT, max_new_tokens=NEW, graph=t.graph, options=OPTIONS), *others])
    assert engine.stats.alone_steps == 0
    assert reply.tokens == t.result[0].tolist()
    for name, expected in saved.items():
        for ours, theirs in zip(reply.saves[name], expected.value, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # norms of these families are in float32
    assert [own.tokens for own in rest] == [
        model.complete(prompt, max_new_tokens=NEW, **OPTIONS).tokens for prompt in COMPANY
    ]


@pytest.mark.parametrize("site", SITES)
def test_padded_rows_see_their_own_window(site: str) -> None:
    """Of several prompts in one invoke, each row sees the last places that a lone run sees."""
    model = model_of("mistral")
    axis = -1 if site in ("scores", "probs") else 1
    prompts = [PROMPT, COMPANY[0]]
    with model.generate(prompts, max_new_tokens=NEW, **OPTIONS) as t, t.steps[1:]:
        together = SITES[site](model.layers[1].attn).save()
    for row, prompt in enumerate(prompts):
        with model.generate(prompt, max_new_tokens=NEW, **OPTIONS) as own, own.steps[1:]:
            alone = SITES[site](model.layers[1].attn).save()
        for ours, theirs in zip(together.value, alone.value, strict=True):
            first = ours.shape[axis] - theirs.shape[axis]
            torch.testing.assert_close(ours[row : row + 1].narrow(axis, first, theirs.shape[axis]), theirs)
