"""What stands inside modules, live: heads, scores and probabilities, operations of a forward."""

from typing import Any

import pytest
import torch
from transformers import AttentionInterface

import glassworks as gw
from families import FAMILIES
from lines import here, told

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module", params=["gpt2", "llama", "mixtral"])
def model(request: pytest.FixtureRequest) -> Any:
    return gw.wrap(FAMILIES[request.param]())


def both(model: Any, lines: Any) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """What lines save live, in a trace, and when the live graph is run."""
    with model.live(PROMPT) as t:
        mine = lines(t)
    with model.trace(PROMPT) as plain:
        expected = lines(plain)
    assert t.graph == plain.graph
    again = model.backend.run(t.graph, t.inputs)
    return [v.value for v in mine], [v.value for v in expected], [again[str(k)] for k in range(len(mine))]


def test_heads_and_probabilities(model: Any) -> None:
    def lines(t: Any) -> list[Any]:
        attn = model.layers[1].attn
        attn.heads[1].query = attn.heads[1].query * 2
        query = attn.heads[1].query.save()
        attn.scores[:, 0, -1, 0] = -1e4
        attn.probs[:, 1] *= 0.5
        probs = attn.probs.save()
        out = attn.heads[2].output.save()
        heads = attn.heads
        heads.result[:, :, 1] *= 3
        result = attn.output.save()
        mid = model.layers[1].mid
        mid += 0.25
        return [query, probs, out, result, mid.save(), model.logits.save()]

    for mine, expected, again in zip(*both(model, lines), strict=True):
        assert torch.equal(mine, expected)
        assert torch.equal(mine, again)


def test_what_was_read_keeps_what_it_was_where_a_site_is_written_in_place(model: Any) -> None:
    def lines(t: Any) -> list[Any]:
        before = model.layers[1].input
        kept = model.layers[1].mid
        same = kept * 1
        model.layers[1].mid = kept * 2 + before
        return [before.save(), kept.save(), same.save(), model.layers[1].mid.save(), model.layers[1].output.save()]

    for mine, expected, again in zip(*both(model, lines), strict=True):
        assert torch.equal(mine, expected)
        assert torch.equal(mine, again)


def test_only_the_layer_that_is_asked_computes_attention_in_plain_operations(model: Any) -> None:
    names: list[str] = []
    find = AttentionInterface.get_interface

    def get_interface(self: Any, name: str, default: Any) -> Any:
        names.append(name)
        return find(self, name, default)

    def asked(sites: Any) -> list[str]:
        names.clear()
        with pytest.MonkeyPatch.context() as patch, model.live(PROMPT):
            patch.setattr(AttentionInterface, "get_interface", get_interface)
            for site in sites:
                site().mean()
            model.logits.mean()
        return list(names)

    attentions = [layer.attn for layer in model.layers]
    assert asked([]) == ["sdpa"] * 3
    assert asked([lambda: attentions[1].heads.query]) == ["sdpa", "glassworks", "sdpa", "sdpa"]
    assert asked([lambda: attentions[1].probs]) == ["sdpa", "glassworks", "sdpa"]
    assert asked([lambda: attentions[1].heads.query, lambda: attentions[1].scores]) == ["sdpa", "glassworks", "sdpa"]


def test_a_query_is_left_behind_at_the_scores(model: Any) -> None:
    behind = r"heads\.query behind: it stands at layers\.1\.attn\.scores"
    with pytest.raises(gw.OrderError, match=behind), model.live(PROMPT):
        model.layers[1].attn.scores.mean()
        model.layers[1].attn.heads.query.mean()


def test_operations_of_a_forward(model: Any) -> None:
    def lines(t: Any) -> list[Any]:
        early = model.layers[0].output.save()
        value = model.layers[1].op("add").output
        value *= 0.5
        return [early, value.save(), model.logits.save()]

    for mine, expected, again in zip(*both(model, lines), strict=True):
        assert torch.equal(mine, expected)
        assert torch.equal(mine, again)


def test_looking_into_a_module_in_the_middle_of_a_block() -> None:
    """The numbers of events change; the pass and everything that waits go on."""
    fresh = gw.wrap(FAMILIES["gpt2"]())
    part = fresh.transformer.h[1].ln_1
    with fresh.live(PROMPT) as t:
        cache = t.cache("layers.*.output")
        h = fresh.layers[0].output
        h[:, -1] *= 2
        before = len(fresh.table.events)
        value = part.op("layer_norm").output
        assert len(fresh.table.events) > before
        value += 1
        late = fresh.transformer.h[2].ln_2.op("layer_norm").output.save()
        logits = fresh.logits.save()
        with pytest.raises(gw.OrderError, match=r"ln_1\.op\(layer_norm,0\)\.output behind: it stands at logits"):
            part.op("layer_norm").output.mean()
    with fresh.trace(PROMPT) as plain:
        expected = plain.cache("layers.*.output")
        fresh.layers[0].output[:, -1] *= 2
        part.op("layer_norm").output += 1
        others = [fresh.transformer.h[2].ln_2.op("layer_norm").output.save(), fresh.logits.save()]
    assert torch.equal(late.value, others[0].value)
    assert torch.equal(logits.value, others[1].value)
    for name in expected:
        assert torch.equal(cache[name], expected[name])


def test_looking_into_a_module_that_is_running_already() -> None:
    fresh = gw.wrap(FAMILIES["gpt2"]())
    with fresh.live(PROMPT):
        fresh.layers[1].attn.output.mean()
        with pytest.raises(gw.ScopeError, match=r"inside transformer\.h\.1 already") as caught:
            fresh.layers[1].op("add").output.mean()
        assert here(-1) in told(caught.value)
        assert fresh.layers[2].op("add").output.shape == (1, 4, 32)
    with fresh.live(PROMPT):
        fresh.layers[1].attn.output.mean()
        assert fresh.layers[1].op("add").output.shape == (1, 4, 32)  # its operations are known by now


def test_an_edit_inside_a_module_comes_first(model: Any) -> None:
    with model.edit() as edited:
        edited.layers[1].attn.probs[:, 0] = 0
        edited.layers[1].attn.heads[1].output *= 2
    with edited.live(PROMPT) as t:
        first = edited.layers[1].attn.probs[:, 0].save()
        saved = edited.logits.save()
    with edited.trace(PROMPT):
        expected = edited.logits.save()
    assert not first.value.any()
    assert torch.equal(saved.value, expected.value)
    assert torch.equal(model.backend.run(t.graph, t.inputs)["1"], saved.value)


def test_gradients_inside(model: Any) -> None:
    def lines(t: Any) -> list[Any]:
        query = model.layers[1].attn.heads[0].query
        probs = model.layers[1].attn.probs
        t.backward(model.logits[:, -1, 3].sum())
        return [probs.grad.save(), query.grad.save()]

    for mine, expected, again in zip(*both(model, lines), strict=True):
        assert torch.equal(mine, expected)
        assert torch.equal(mine, again)
        assert float(mine.abs().max()) > 0


def test_the_attention_is_the_models_own_again(model: Any) -> None:
    modules = [model.backend.runtime.module.get_submodule(p) for p in model.table.children if p]
    before = [module.__dict__.get("config") for module in modules]
    with pytest.raises(KeyError), model.live(PROMPT):
        model.layers[1].attn.probs.mean()
        raise KeyError
    block = model.live(PROMPT)
    block.__enter__()
    model.layers[1].attn.heads.query.mean()
    del block
    assert all(a is b for a, b in zip(before, [m.__dict__.get("config") for m in modules], strict=True))
