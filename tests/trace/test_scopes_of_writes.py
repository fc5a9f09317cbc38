"""Where a write goes, and what becomes of handles: what a reviewer found."""

import threading

import numpy as np
import pytest
import torch

import glassworks as gw
from families import FAMILIES

P, Q = [5, 6, 7, 8], [9, 3, 2, 4]


@pytest.fixture(scope="module")
def hf():
    return FAMILIES["gpt2"]()


@pytest.fixture(scope="module")
def model(hf):
    return gw.wrap(hf)


def test_a_value_is_written_where_it_was_read(model):
    with pytest.raises(gw.ScopeError, match="other rows or steps"), model.trace() as t:
        with t.invoke(P):
            x = model.layers[1].output
        with t.invoke(Q):
            x[:, -1] = 0
            model.logits.save()
    with pytest.raises(gw.ScopeError, match="other rows or steps"), model.generate(P, max_new_tokens=3) as t:
        with t.steps[1]:
            x = model.layers[1].output
        with t.steps[2]:
            x[:] = 0
    with pytest.raises(gw.ScopeError), model.session():
        with model.trace(P):
            x = model.layers[1].output
            model.logits.save()
        with model.trace(Q):
            x[:, -1] = 0
            model.logits.save()


def test_a_write_to_other_rows_makes_no_handle_stale(model):
    with model.trace() as t:
        with t.invoke(P):
            model.layers[1].output[:] = 0
        with t.invoke(Q):
            x = model.layers[1].output
            x += 1
            own = model.layers[1].output.save()
    with model.trace(Q):
        clean = model.layers[1].output.save()
    torch.testing.assert_close(own.value, clean.value + 1)


def test_two_names_of_one_tensor_are_one_tensor(model):
    with pytest.raises(gw.WriteError), model.trace(P):
        a, b = model.layers[1].output, model.transformer.h[1].output
        a += 1
        b += 1
        model.logits.save()


def test_padding_is_zero_on_the_handle_that_wrote(model):
    with model.trace([P, Q[:2]]):
        x = model.layers[0].output
        x += 5
        total = x.sum(1).save()
    with model.trace(Q[:2]):
        x = model.layers[0].output
        x += 5
        alone = x.sum(1).save()
    torch.testing.assert_close(total.value[1:], alone.value)


def test_a_module_that_was_replaced_is_noticed():
    hf = FAMILIES["gpt2"]()
    model = gw.wrap(hf)
    hf.transformer.h[1].mlp = torch.nn.Identity()
    with pytest.raises(gw.ModelError, match="replaced"), model.trace(P):
        model.layers[1].mlp.output[:] = 0
        model.logits.save()
    with model.trace(P):
        model.layers[0].output.save()


def test_a_detached_loss_is_refused(model):
    with pytest.raises(RuntimeError, match="loss"), model.trace(P) as t:
        h = model.layers[1].output
        t.backward(h.detach().sum())
        h.grad.save()


def test_threads_with_different_sites(model, hf):
    with model.trace(P):
        model.layers[1].output[:, -1] = 0
        first = model.logits.save()
    with model.trace(P):
        second = model.layers[2].mlp.output.save()
    wrong = []

    def one():
        for _ in range(30):
            with model.trace(P):
                model.layers[1].output[:, -1] = 0
                found = model.logits.save()
            wrong.extend([] if torch.equal(found.value, first.value) else ["one"])

    def other():
        for _ in range(30):
            with model.trace(P):
                found = model.layers[2].mlp.output.save()
            wrong.extend([] if torch.equal(found.value, second.value) else ["other"])

    threads = [threading.Thread(target=work) for work in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not [path for path, child in hf.named_modules() if "forward" in child.__dict__]


def test_steps_that_never_came(model):
    with model.generate(P, max_new_tokens=3) as t:
        with t.steps[7]:
            late = model.layers[0].output.save()
        with t.steps[5:]:
            later = model.layers[0].output.save()
        with t.prompt:
            first = model.layers[0].output.save()
    assert first.shape[1] == len(P)
    assert list(later) == []
    with pytest.raises(gw.NotSaved, match="never came"):
        late.shape  # noqa: B018


def test_numpy_on_the_left(model):
    with model.trace(P):
        doubled = (np.float32(2) * model.layers[0].output).save()
        plain = model.layers[0].output.save()
    assert torch.equal(doubled.value, 2 * plain.value)


def test_prompts_of_numpy_and_of_ragged_lists(model):
    with model.trace({"input_ids": [P, P[:2]]}):
        lists = model.logits.save()
    with model.trace([P, P[:2]]):
        same = model.logits.save()
    with model.trace([np.int64(token) for token in P]):
        numbers = model.logits.save()
    assert torch.equal(lists.value, same.value)
    assert numbers.shape[:2] == (1, len(P))
    with pytest.raises(gw.InputError):
        model.trace(b"abc")


def test_what_an_ended_block_says(model):
    with pytest.raises(KeyError), model.trace(P):
        saved = model.logits.save()
        raise KeyError("mine")
    with pytest.raises(gw.NotSaved, match="ended with an error"):
        saved.shape  # noqa: B018
    with model.trace(P) as t:
        model.layers[0].output.save()
    assert "1 forward" in repr(t)


def test_lines_of_invokes_are_the_users(model):
    with pytest.raises(gw.InputError, match=r"test_scopes_of_writes\.py"), model.trace() as t, t.invoke(None):
        pass


def test_steps_in_a_trace_are_refused(model):
    with pytest.raises(gw.ScopeError, match="one forward pass"), model.trace(P) as t, t.steps[3]:
        model.logits.save()
    with pytest.raises(gw.InputError, match="max_new_tokens"):
        model.trace(P, max_new_tokens=3)
