"""What heads add is derived: its gradients by head, and what is refused because it would leave a write out."""

import pytest
import torch

import families
import glassworks as gw

PROMPT = [29, 68, 49, 86, 93]


@pytest.fixture(scope="module")
def model() -> gw.Model:
    return gw.wrap(families.gpt2())


def test_the_gradient_of_one_heads_result(model: gw.Model) -> None:
    with model.trace(PROMPT) as t:
        attn = model.layers[1].attn
        one, last, several = attn.heads[1].result, attn.heads[2].result[:, -1], attn.heads.result.unbind(2)[3]
        t.backward(model.logits[:, -1, 3].sum())
        gradients = [value.grad.save() for value in (one, last, several, attn.output)]
    own, at_last, item, whole = [gradient.value for gradient in gradients]
    assert whole.abs().max() > 0
    assert torch.equal(own, whole)
    assert torch.equal(at_last, whole[:, -1])
    assert torch.equal(item, whole)


def test_the_gradient_of_a_result_that_is_written(model: gw.Model) -> None:
    with model.trace(PROMPT) as t:
        attn = model.layers[1].attn
        result = attn.heads[1].result
        result *= 2
        t.backward(model.logits[:, -1, 3].sum())
        own, whole = result.grad.save(), attn.output.grad.save()
    assert torch.equal(own.value, whole.value)


def test_outputs_are_written_above_results(model: gw.Model) -> None:
    bias = model.backend.runtime.module.transformer.h[1].attn.c_proj.bias.detach()
    with model.trace(PROMPT):
        attn = model.layers[1].attn
        attn.heads[0].output = 0
        result, output = attn.heads.result.save(), attn.output.save()
    torch.testing.assert_close(result.value.sum(2) + bias, output.value)
    with pytest.raises(gw.WriteError, match="is upstream of"), model.trace(PROMPT):
        model.layers[1].attn.heads.result.save()
        model.layers[1].attn.heads[0].output = 0
    with pytest.raises(gw.WriteError, match="upstream"), model.trace(PROMPT):
        model.layers[1].attn.heads[1].result = 0
        model.layers[1].attn.heads[1].output *= 2
        model.logits.save()


def test_results_are_touched_in_one_scope(model: gw.Model) -> None:
    with pytest.raises(gw.ScopeError, match="was written in other rows"), model.trace() as t:
        with t.invoke(PROMPT):
            model.layers[1].attn.heads[1].result = 0
        model.layers[1].attn.heads.result.save()
    with (
        pytest.raises(gw.ScopeError, match="was written in other rows"),
        model.generate(PROMPT, max_new_tokens=3) as t,
    ):
        with t.steps[0:3]:
            model.layers[1].attn.heads[1].result = 0
        with t.steps[1:2]:
            model.layers[1].attn.heads.result.save()
    with model.edit() as edited:
        edited.layers[1].attn.heads[1].result = 0
    with pytest.raises(gw.ScopeError, match="edit"), edited.trace(PROMPT):
        edited.layers[1].attn.heads.result.save()


def test_other_rows_and_other_steps_are_free(model: gw.Model) -> None:
    with model.trace() as t:
        with t.invoke(PROMPT):
            model.layers[1].attn.heads[1].result = 0
            gone = model.layers[1].attn.heads[1].result.save()
        with t.invoke(PROMPT):
            model.layers[1].attn.heads[0].output = 0
            kept = model.layers[1].attn.heads[1].result.save()
    assert gone.value.abs().max() == 0
    assert kept.value.abs().max() > 0
