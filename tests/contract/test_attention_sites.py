"""Sites inside attention: scores, probabilities, heads; reads and writes beside attention written out by hand."""

from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import glassworks as gw
from contract.places import PROMPT, SOURCE, START, Place, close, refused, write

SEQ = len(PROMPT)
GROUPED = ("llama", "qwen3", "mixtral")


def shared(case: Place) -> int:
    """How many heads read one key."""
    return 2 if case.family in GROUPED else 1


def projection(case: Place, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The output projection: `[heads, head_dim, d_model]`, and its bias `[d_model]`."""
    if case.family == "gpt2":
        own = case.oracle.stock.transformer.h[layer].attn.c_proj
        return own.weight.detach().reshape(4, 8, 32), own.bias.detach()
    own = case.oracle.stock.model.layers[layer].self_attn.o_proj
    return own.weight.detach().T.reshape(4, 8, 32), torch.zeros(32)


def holds_a_write(case: Place, name: str, change: Any) -> torch.Tensor:
    """The logits, and what that layer's attention adds, are those of an execution changed at that place."""
    expected = case.oracle.forward(PROMPT, {f"layers.1.attn.{name}": lambda tensor, _: change(tensor)})
    plain = case.oracle.forward(PROMPT)
    with case.block(PROMPT):
        attn = case.model.layers[1].attn
        write(attn, name, change(case.site(f"layers.1.attn.{name}")))
        after = case.site(f"layers.1.attn.{name}").save()
        output = attn.output.save()
        logits = case.model.logits.save()
    close(after.value, expected[f"layers.1.attn.{name}"])
    close(output.value, expected["layers.1.attn.output"])
    close(logits.value, expected.logits)
    assert (logits.value - plain.logits).abs().max() > 1e-3
    return output.value


@pytest.mark.sentence("sites.6")
@pytest.mark.parametrize("layer", [0, 2])
def test_probs(case: Place, layer: int) -> None:
    """`attn.probs` `[batch, heads, query, key]`;"""
    expected = case.oracle.stock(torch.tensor([PROMPT]), output_attentions=True).attentions[layer]
    with case.block(PROMPT):
        site = case.model.layers[layer].attn.probs
        assert tuple(site.shape) == (1, 4, SEQ, SEQ)
        probs = site.save()
    close(probs.value, expected)


@pytest.mark.sentence("sites.6")
def test_scores(case: Place) -> None:
    """`attn.scores` (masked, before the softmax)"""
    expected = case.oracle.forward(PROMPT)["layers.1.attn.scores"]
    with case.block(PROMPT):
        attn = case.model.layers[1].attn
        assert tuple(attn.scores.shape) == (1, 4, SEQ, SEQ)
        scores = attn.scores.save()
        probs = attn.probs.save()
    seen = torch.ones(SEQ, SEQ).tril().bool()
    close(scores.value[..., seen], expected[..., seen])
    assert (scores.value[..., ~seen] < -1e4).all()
    close(scores.value.softmax(-1), probs.value)


@pytest.mark.sentence("sites.6")
def test_probs_that_are_written(case: Place) -> None:
    """`attn.probs`

    Every query of head 2 looks at token 1 only, so that the head's output is token 1's value.
    """

    def change(probs: Any) -> Any:
        one = torch.zeros(1, 4, SEQ, SEQ)
        one[:, 2, :, 1] = 1.0
        keep = torch.ones(4, 1, 1)
        keep[2] = 0.0
        return probs * keep + one

    output = holds_a_write(case, "probs", change)
    found = case.oracle.forward(PROMPT)
    value = found["layers.1.attn.heads.value"][:, 1, 2 // shared(case)]
    weight, bias = projection(case, 1)
    heads = found["layers.1.attn.heads.output"].clone()
    heads[:, :, 2] = value[:, None]
    close(output, torch.einsum("bshd,hdm->bsm", heads, weight) + bias)


@pytest.mark.sentence("sites.6")
def test_scores_that_are_written(case: Place) -> None:
    """`attn.scores`"""
    holds_a_write(case, "scores", lambda scores: scores * 0.5)
    holds_a_write(case, "scores", lambda scores: scores + torch.linspace(0, 3, SEQ))


@pytest.mark.sentence("sites.6")
def test_part_of_probs(case: Place) -> None:
    """`attn.probs` `[batch, heads, query, key]`;"""

    def change(probs: torch.Tensor, _: int) -> torch.Tensor:
        probs[:, 1, -1, 0] = 0.0
        return probs

    expected = case.oracle.forward(PROMPT, {"layers.1.attn.probs": change})
    with case.block(PROMPT):
        case.model.layers[1].attn.probs[:, 1, -1, 0] = 0.0
        logits = case.model.logits.save()
    close(logits.value, expected.logits)


@pytest.mark.sentence("sites.7")
def test_heads_output(case: Place) -> None:
    """`attn.heads.output` `[batch, seq, heads, head_dim]` and `attn.heads[h].output`, before the output projection;"""
    entered: list[torch.Tensor] = []
    own = case.oracle.stock
    path = "transformer.h.1.attn.c_proj" if case.family == "gpt2" else "model.layers.1.self_attn.o_proj"
    handle = own.get_submodule(path).register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    own(torch.tensor([PROMPT]))
    handle.remove()
    expected = entered[0].reshape(1, SEQ, 4, 8)
    with case.block(PROMPT):
        heads = case.model.layers[1].attn.heads
        assert tuple(heads.output.shape) == (1, SEQ, 4, 8)
        every = heads.output.save()
        one = heads[3].output.save()
    close(every.value, expected)
    close(one.value, expected[:, :, 3])


@pytest.mark.sentence("sites.7")
def test_heads_output_that_is_written(case: Place) -> None:
    """`attn.heads.output` ... and `attn.heads[h].output`, before the output projection;"""
    output = holds_a_write(case, "heads.output", lambda heads: heads * torch.tensor([1.0, 0, 2, 1])[:, None])

    def change(heads: torch.Tensor, _: int) -> torch.Tensor:
        heads[:, :, 1] = 0.0
        heads[:, :, 2] *= 2
        return heads

    expected = case.oracle.forward(PROMPT, {"layers.1.attn.heads.output": change})
    with case.block(PROMPT):
        heads = case.model.layers[1].attn.heads
        heads[1].output = 0.0
        heads[2].output *= 2
        logits = case.model.logits.save()
    close(output, expected["layers.1.attn.output"])
    close(logits.value, expected.logits)


@pytest.mark.sentence("sites.8")
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_query_key_value(case: Place, part: str) -> None:
    """`heads[h].query`, `.key`, `.value` (after rotary;"""
    expected = case.oracle.forward(PROMPT)[f"layers.1.attn.heads.{part}"]
    groups = 1 if part == "query" else shared(case)
    with case.block(PROMPT):
        heads = case.model.layers[1].attn.heads
        each = [getattr(head, part).save() for head in heads]
        every = getattr(heads, part).save()
    assert every.value.shape == (1, SEQ, 4 // groups, 8)
    close(every.value, expected)
    for n, value in enumerate(each):
        close(value.value, expected[:, :, n // groups])


@pytest.mark.sentence("sites.8")
def test_rotary_was_applied(rotary: Place) -> None:
    """`heads[h].query`, `.key`, `.value` (after rotary;"""
    own = rotary.oracle.stock.model
    entered = rotary.oracle.forward(PROMPT)["layers.1.attn.input"]
    attn = own.layers[1].self_attn
    query, key = (attn.q_proj(entered).view(1, SEQ, 4, 8), attn.k_proj(entered).view(1, SEQ, 2, 8))
    if rotary.family == "qwen3":
        query, key = attn.q_norm(query), attn.k_norm(key)
    cos, sin = own.rotary_emb(entered, torch.arange(SEQ)[None])
    query, key = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
    with rotary.block(PROMPT):
        heads = rotary.model.layers[1].attn.heads
        queries = heads.query.save()
        keys = heads.key.save()
    close(queries.value, query)
    close(keys.value, key)


@pytest.mark.sentence("sites.8")
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_query_key_value_that_are_written(case: Place, part: str) -> None:
    """`heads[h].query`, `.key`, `.value`"""
    holds_a_write(case, f"heads.{part}", lambda heads: heads * 0.5 + 0.3)


@pytest.mark.sentence("sites.8")
def test_a_query_of_nothing_looks_everywhere(case: Place) -> None:
    """`heads[h].query`"""
    found = case.oracle.forward(PROMPT)
    values = found["layers.1.attn.heads.value"][:, :, 1 // shared(case)]
    mean = values.cumsum(1) / torch.arange(1, SEQ + 1)[:, None]
    with case.block(PROMPT):
        heads = case.model.layers[1].attn.heads
        heads[1].query = 0.0
        output = heads.output.save()
    expected = found["layers.1.attn.heads.output"].clone()
    expected[:, :, 1] = mean
    close(output.value, expected)


@pytest.mark.sentence("sites.9")
@pytest.mark.parametrize("part", ["key", "value"])
def test_what_heads_share(case: Place, part: str) -> None:
    """a key or value shared by several heads is written only through `heads.key`/`heads.value`);"""

    def change(heads: torch.Tensor, _: int) -> torch.Tensor:
        heads[:, :, 1] = 0.25
        return heads

    expected = case.oracle.forward(PROMPT, {f"layers.1.attn.heads.{part}": change}).logits
    if case.family in GROUPED:
        with pytest.raises(gw.WriteError, match=f"heads.{part}"), case.block(PROMPT):
            setattr(case.model.layers[1].attn.heads[1], part, 0.25)
            case.model.logits.save()
        with case.block(PROMPT):
            getattr(case.model.layers[1].attn.heads, part)[:, :, 1] = 0.25
            logits = case.model.logits.save()
    else:
        with case.block(PROMPT):
            setattr(case.model.layers[1].attn.heads[1], part, 0.25)
            logits = case.model.logits.save()
    close(logits.value, expected)


@pytest.mark.sentence("sites.10")
def test_results(case: Place) -> None:
    """`heads[h].result` `[batch, seq, d_model]`, whose sum over heads plus the bias is the native output;"""
    weight, bias = projection(case, 1)
    heads = case.oracle.forward(PROMPT)["layers.1.attn.heads.output"]
    with case.block(PROMPT):
        attn = case.model.layers[1].attn
        assert tuple(attn.heads[0].result.shape) == (1, SEQ, 32)
        results = [head.result.save() for head in attn.heads]
        output = attn.output.save()
    for n, result in enumerate(results):
        close(result.value, heads[:, :, n] @ weight[n])
    close(sum(result.value for result in results) + bias, output.value)


@pytest.mark.sentence("sites.19")
def test_a_result_that_is_written(case: Place) -> None:
    """and a write is inverted or refused with the reason, never dropped."""
    weight, bias = projection(case, 1)
    heads = case.oracle.forward(PROMPT)["layers.1.attn.heads.output"]
    try:
        with case.block(PROMPT):
            attn = case.model.layers[1].attn
            attn.heads[2].result = torch.ones(32)
            output = attn.output.save()
    except gw.WriteError as error:
        refused(error, "result.{40}")
    else:
        others = sum(heads[:, :, n] @ weight[n] for n in (0, 1, 3))
        close(output.value, others + 1.0 + bias)


@pytest.mark.sentence("sites.6", "sites.7", "sites.15")
@pytest.mark.parametrize("name", ["encoder.layers.1.attn", "decoder.layers.1.attn", "decoder.layers.1.cross_attn"])
@pytest.mark.parametrize("part", ["probs", "heads.output", "heads.query", "heads.value"])
def test_attention_of_two_stacks(encdec_case: Place, name: str, part: str) -> None:
    """`attn.probs` `[batch, heads, query, key]`; ... Encoder-decoder: `encoder.layers[i]`,
    `decoder.layers[i].cross_attn`;"""
    site = f"{name}.{part}"
    found = encdec_case.oracle.forward(SOURCE, decoder_input_ids=START)
    changed = encdec_case.oracle.forward(SOURCE, {site: lambda tensor, _: tensor * 0.5}, decoder_input_ids=START)
    with encdec_case.block(SOURCE, decoder_input_ids=START):
        before = encdec_case.site(site).save()
    with encdec_case.block(SOURCE, decoder_input_ids=START):
        write(encdec_case.model, site, encdec_case.site(site) * 0.5)
        logits = encdec_case.model.logits.save()
    close(before.value, found[site])
    close(logits.value, changed.logits)


@pytest.mark.sentence("sites.17")
@pytest.mark.parametrize("site", ["scores", "probs"])
def test_one_layer_materialises(inside: Place, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading `scores` or `probs` makes that layer, and only it, compute attention in a way that materialises them."""
    calls: list[int] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    model, counts = inside.model, []
    for read in (False, True, False):
        calls.clear()
        with model.trace(PROMPT):
            logits = model.logits.save()
            if read:
                getattr(model.layers[1].attn, site).save()
        counts.append(len(calls))
        close(logits.value, inside.oracle.forward(PROMPT).logits)
    assert counts == [3, 2, 3]
    calls.clear()
    inside.bare(torch.tensor([PROMPT]))
    assert len(calls) == 3


@pytest.mark.sentence("sites.6")
def test_probs_of_a_padded_batch(place: Place) -> None:
    """`attn.probs` `[batch, heads, query, key]`;"""
    short = PROMPT[:3]
    expected = place.oracle.stock(torch.tensor([short]), output_attentions=True).attentions[1]
    with place.model.trace([PROMPT, short]):
        probs = place.model.layers[1].attn.probs.save()
    close(probs.value[1:, :, 2:, 2:], expected)
    assert (probs.value[1, :, :2] == 0).all()


@pytest.mark.sentence("sites.6", "sites.7", "sites.8")
def test_attention_in_generation(place: Place) -> None:
    """`attn.probs` `[batch, heads, query, key]`;

    At step k there is one query, and as many keys as there are tokens so far.
    """
    expected = place.oracle.generate(PROMPT, 3).visits
    with place.model.generate(PROMPT, max_new_tokens=3) as t, t.steps[0:3]:
        attn = place.model.layers[1].attn
        probs = attn.probs.save()
        heads = attn.heads.output.save()
        query = attn.heads.query.save()
    assert [tuple(value.shape) for value in probs] == [(1, 4, SEQ, SEQ), (1, 4, 1, SEQ + 1), (1, 4, 1, SEQ + 2)]
    for k in range(3):
        close(probs[k], expected["layers.1.attn.probs"][k])
        close(heads[k], expected["layers.1.attn.heads.output"][k])
        close(query[k], expected["layers.1.attn.heads.query"][k])
