"""What stands inside modules, where it could be mistaken: operations, edits of heads, residuals that are held."""

from typing import Any

import pytest
import torch

import glassworks as gw
from families import FAMILIES, MORE_FAMILIES

LONG, SHORT = [5, 6, 7, 8, 9, 10, 11], [21, 22, 23]


@pytest.fixture(scope="module")
def llama() -> Any:
    return gw.wrap(FAMILIES["llama"]())


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return gw.wrap(FAMILIES["gpt2"]())


def test_an_operation_that_may_be_another_call_is_refused(llama: Any) -> None:
    """Padding makes grouped attention repeat its keys, with the same operations as elsewhere."""
    attention = llama["model.layers.1.self_attn"]
    with llama.trace(LONG):
        alone = attention.op("reshape").output.save()
    assert alone.shape[1] == 4
    with pytest.raises(gw.ModelError, match="called reshape 4 times, and 2 times"), llama.trace([LONG, SHORT]):
        attention.op("reshape").output.save()


def test_an_operation_that_attention_written_out_does_not_call(gpt2: Any) -> None:
    with pytest.raises(gw.ModelError, match="called scaled_dot_product_attention 0 times"), gpt2.trace(LONG):
        gpt2.layers[1].attn.op("scaled_dot_product_attention").output.save()
        gpt2.layers[1].attn.probs.save()


def test_the_module_of_an_operation_runs_to_its_end(gpt2: Any) -> None:
    """Only there it shows whether the call was the one that was meant; what comes after is not run."""
    ran = []
    bare = gpt2.backend.runtime.module
    handle = bare.transformer.h[2].register_forward_hook(lambda *_: ran.append(1))
    try:
        with gpt2.trace(LONG):
            saved = gpt2.layers[1].attn.op("split").output[0].save()
    finally:
        handle.remove()
    assert saved.shape == (1, 7, 32)
    assert not ran


def test_what_a_norm_is_given_is_not_the_residual(gpt2: Any) -> None:
    with gpt2.trace(LONG):
        gpt2["transformer.h.1.ln_2"].input = 0
        given = gpt2["transformer.h.1.ln_2"].input.save()
        mid, whole, added = (v.save() for v in (gpt2.layers[1].mid, gpt2.layers[1].output, gpt2.layers[1].mlp.output))
    assert not bool(given.value.any())
    torch.testing.assert_close(whole.value - added.value, mid.value, rtol=0, atol=1e-5)
    assert float(mid.value.abs().max()) > 0.1


def test_a_block_cannot_change_what_an_edit_has_set(gpt2: Any) -> None:
    with gpt2.edit() as edited:
        edited.layers[1].attn.heads[1].result = 0
    message = "an edit of this model wrote layers.1.attn.heads.result"
    with pytest.raises(gw.WriteError, match=message), edited.trace(LONG):
        edited.layers[1].attn.heads[1].output *= 2
    with edited.trace(LONG):
        edited.layers[0].attn.heads[1].output *= 2
        gpt2_like = edited.layers[1].attn.output.save()
    with gpt2.trace(LONG):
        gpt2.layers[0].attn.heads[1].output *= 2
        gpt2.layers[1].attn.heads[1].output = 0
        expected = gpt2.layers[1].attn.output.save()
    torch.testing.assert_close(gpt2_like.value, expected.value, rtol=0, atol=1e-5)


def test_a_site_that_is_refused_is_not_replaced_by_a_child_of_its_name() -> None:
    bert = gw.wrap(MORE_FAMILIES["bert"]())
    with pytest.raises(gw.UnknownSite, match="normalises or scales after it adds"), bert.trace(LONG):
        bert.layers[1].attn.output.save()
    assert bert["bert.encoder.layer.1.attention"]["output"] is not None


def test_what_the_tab_key_offers(gpt2: Any) -> None:
    assert {"attn", "mid", "mlp", "output", "skip", "ln_1"} <= set(dir(gpt2.layers[1]))
    assert {"heads", "probs", "scores", "output", "op"} <= set(dir(gpt2.layers[1].attn))
    assert set(dir(gpt2.layers[1].attn.heads[0])) == {"query", "key", "value", "output", "result"}
    assert "[batch, seq, 4, 8]" in repr(gpt2.layers[1].attn.heads)
    assert "head 2 of layers.1.attn.heads" in repr(gpt2.layers[1].attn.heads[2])
