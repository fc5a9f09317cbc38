"""Values: symbolic in a block, tensors after it."""

import copy
import gc
import pickle
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

import glassworks as gw
from families import FAMILIES
from lines import here, told

PROMPT = [5, 6, 7, 8]


@pytest.fixture
def saved(model: Any) -> Any:
    with model.trace(PROMPT):
        value = model.layers[1].output.save()
    return value


def test_shapes_come_without_running(model: Any, bare: Any) -> None:
    calls = []
    handle = bare.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with model.trace(PROMPT):
            h = model.layers[1].output
            assert h.shape == (1, 4, 32)
            assert h.dtype == torch.float32
            assert h.ndim == 3
            assert len(h) == 1
            assert h[0].size(0) == 4
            assert (h @ torch.zeros(32, 7)).shape == (1, 4, 7)
            assert [row.shape for row in h[0]] == [(32,)] * 4
            assert model.logits.argmax(-1).dtype == torch.int64
            assert model.logits[0, -1, model.ids[0, -1]].shape == ()
            assert model.unembed(h).shape == (1, 4, 97)
            assert torch.einsum("bsd,btd->bst", h, h).shape == (1, 4, 4)
    finally:
        handle.remove()
    assert calls == []


@pytest.mark.parametrize("use", [float, int, bool, lambda v: v.item(), lambda v: v.tolist(), lambda v: v.numpy()])
def test_numbers_of_an_open_value_are_refused(model: Any, use: Any) -> None:
    with pytest.raises(gw.GraphError, match=r"gw\.cond") as caught, model.trace(PROMPT):
        use(model.logits[0, 0, 0])
    assert "model.live" in str(caught.value)
    assert __file__ in str(caught.value)


def test_several_results_are_a_named_tuple(model: Any) -> None:
    with model.trace(PROMPT):
        top = model.logits.topk(3, dim=-1)
        values, _ = top
        best = model.logits.max(dim=-1)
        kept = [top.values.save(), top.indices.save(), values.sum().save(), best.indices.save()]
        logits = model.logits.save()
    expected = logits.value.topk(3, dim=-1)
    assert torch.equal(kept[0].value, expected.values)
    assert torch.equal(kept[1].value, expected.indices)
    assert torch.equal(kept[3].value, logits.value.argmax(-1))


def test_torch_functions_and_modules_record_themselves(model: Any) -> None:
    layer = torch.nn.Linear(32, 5)
    norm = torch.nn.LayerNorm(32)
    with model.trace(PROMPT):
        h = model.layers[1].output
        found = layer(torch.nn.functional.gelu(norm(h))).save()
        kept = h.save()
    with torch.no_grad():
        torch.testing.assert_close(found.value, layer(torch.nn.functional.gelu(norm(kept.value))))


def test_einops_records_itself(model: Any) -> None:
    einops = pytest.importorskip("einops")
    with model.trace(PROMPT):
        h = model.layers[1].output
        found = einops.rearrange(h, "b s (h d) -> b h s d", h=4).save()
        mean = einops.reduce(h, "b s d -> b d", "mean").save()
        kept = h.save()
    assert torch.equal(found.value, einops.rearrange(kept.value, "b s (h d) -> b h s d", h=4))
    torch.testing.assert_close(mean.value, kept.value.mean(1))


def test_modules_of_the_model_are_pure_functions(model: Any, bare: Any) -> None:
    with model.trace(PROMPT):
        h = model.layers[2].output
        lens = model.unembed(h).save()
        by_hand = model.lm_head(model.norm(h)).save()
        by_path = model["transformer.h.0.mlp"](h).save()
        weight = model.lm_head.weight
        product = (model.norm.output @ weight.T).save()
        logits = model.logits.save()
        own = h.save()
    assert torch.equal(lens.value, logits.value)
    torch.testing.assert_close(by_hand.value, logits.value)
    torch.testing.assert_close(product.value, logits.value)
    with torch.no_grad():
        torch.testing.assert_close(by_path.value, bare.transformer.h[0].mlp(own.value))


def test_a_module_called_as_a_function_fires_no_sites(model: Any) -> None:
    with model.trace(PROMPT):
        model.lm_head(model.layers[0].output).save()
        count = model.lm_head.output.save()
        logits = model.logits.save()
    assert torch.equal(count.value, logits.value)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_unembed_of_the_last_residual_is_the_logits(family: str) -> None:
    model = gw.wrap(FAMILIES[family]())
    last = model.decoder.layers[-1] if family == "t5" else model.layers[-1]
    with model.trace(PROMPT):
        found = model.unembed(last.output).save()
        logits = model.logits.save()
    torch.testing.assert_close(found.value, logits.value, atol=1e-5, rtol=1e-5)


# After the block.


def test_a_saved_value_acts_as_its_tensor(saved: Any) -> None:
    tensor = saved.value
    assert isinstance(tensor, torch.Tensor)
    assert torch.equal(saved + 1, tensor + 1)
    assert torch.equal(1 - saved, 1 - tensor)
    assert torch.equal(saved @ torch.ones(32), tensor @ torch.ones(32))
    assert torch.equal(torch.softmax(saved, -1), tensor.softmax(-1))
    assert torch.equal(torch.cat([saved, tensor]), torch.cat([tensor, tensor]))
    assert torch.equal(saved[:, -1], tensor[:, -1])
    assert torch.equal(saved.mean(1), tensor.mean(1))
    assert torch.equal(saved > 0, tensor > 0)
    assert saved.shape == tensor.shape
    assert saved.device == tensor.device
    assert saved.is_contiguous() == tensor.is_contiguous()
    assert len(saved) == 1
    assert [row.shape for row in saved] == [tensor[0].shape]
    assert saved.tolist() == tensor.tolist()
    assert float(saved[0, 0, 0]) == float(tensor[0, 0, 0])
    assert repr(saved) == repr(tensor)
    assert not saved.requires_grad


def test_a_saved_value_is_numpys(saved: Any) -> None:
    assert np.array_equal(np.asarray(saved), saved.value.numpy())
    assert np.array_equal(np.asarray(saved, dtype=np.float64), saved.value.double().numpy())
    assert np.allclose(np.asarray(saved).mean(), float(saved.value.mean()))
    assert np.array_equal(saved.numpy(), saved.value.numpy())


def test_a_saved_value_is_pickled_and_copied_as_its_tensor(saved: Any) -> None:
    for other in (pickle.loads(pickle.dumps(saved)), copy.copy(saved), copy.deepcopy(saved)):
        assert torch.equal(other + 0, saved.value)


def test_a_saved_number_is_formatted(model: Any) -> None:
    with model.trace(PROMPT):
        number = model.logits.mean().save()
        index = model.logits[0, -1].argmax().save()
    assert f"{number:.3f}" == f"{number.value.item():.3f}"
    assert int(index) == index.value.item()
    assert list(range(97))[index] == int(index)
    assert bool(number == number)
    assert number.item() == number.value.item()


def test_a_saved_value_is_used_in_another_block(model: Any, saved: Any) -> None:
    with model.trace([9, 10, 11, 12]):
        model.layers[1].output = saved
        back = model.layers[1].output.save()
    assert torch.equal(back.value, saved.value)


def test_values_of_a_tree(model: Any) -> None:
    with model.trace(PROMPT):
        tree = {"a": [model.layers[0].output.save(), 3], "b": (model.logits.save(),)}
    plain = gw.values(tree)
    assert type(plain["a"][0]) is torch.Tensor
    assert plain["a"][1] == 3
    assert type(plain["b"][0]) is torch.Tensor


def test_a_value_that_was_not_saved_names_the_line_of_the_read(model: Any) -> None:
    with model.trace(PROMPT):
        line = here(+1)
        value = model.layers[1].output
        model.logits.save()
    for use in (
        lambda: value.value,
        lambda: value + 1,
        lambda: value.shape,
        lambda: float(value),
        lambda: value.mean(),
    ):
        with pytest.raises(gw.NotSaved) as caught:
            use()
        assert line in told(caught.value)


# Errors, lines, blocks.


def test_errors_keep_their_type_and_name_the_line(model: Any) -> None:
    with pytest.raises(IndexError) as caught, model.trace(PROMPT):
        line = here(+1)
        model.layers[1].output[:, 17].save()
    assert line in told(caught.value)
    with pytest.raises(RuntimeError) as caught, model.trace(PROMPT):
        line = here(+1)
        (model.layers[1].output @ torch.ones(31, 2)).save()
    assert line in told(caught.value)
    assert not isinstance(caught.value, gw.GlassworksError)


def test_unknown_names_are_refused_with_the_nearest(model: Any) -> None:
    with pytest.raises(gw.UnknownOperation, match="softmax") as operation, model.trace(PROMPT):
        line = here(+1)
        model.logits.sofmax(-1)
    assert line in told(operation.value)
    with pytest.raises(gw.UnknownSite) as site, model.trace(PROMPT):
        line = here(+1)
        _ = model.layers[1].attnn
    assert line in told(site.value)
    assert isinstance(site.value, AttributeError)
    with pytest.raises(gw.UnknownSite), model.trace(PROMPT):
        _ = model.layers[3]


def test_an_error_in_the_body_is_the_users(model: Any) -> None:
    with pytest.raises(KeyError, match="mine"), model.trace(PROMPT):
        model.logits.save()
        raise KeyError("mine")
    with model.trace(PROMPT):
        model.logits.save()


def test_one_open_block_a_thread(model: Any) -> None:
    with model.trace(PROMPT):
        with pytest.raises(gw.ScopeError) as caught, model.trace(PROMPT):
            pass
        assert __file__ in told(caught.value)
        outer = model.logits.save()
        found: list[Any] = []

        def other() -> None:
            with model.trace(PROMPT):
                inner = model.logits.save()
            found.append(inner.value)

        thread = Thread(target=other)
        thread.start()
        thread.join()
    assert torch.equal(outer.value, found[0])


def test_a_value_of_another_block_is_refused(model: Any) -> None:
    with model.trace(PROMPT):
        first = here(+1), model.layers[0].output
        model.logits.save()
    with pytest.raises(gw.GraphError) as caught, model.trace(PROMPT):
        second = here(+1)
        model.layers[0].output = first[1]
        model.logits.save()
    assert second in told(caught.value)


def test_a_value_of_an_open_block_of_another_model_is_refused(model: Any) -> None:
    other = gw.wrap(FAMILIES["llama"]())
    with model.trace(PROMPT):
        own = model.layers[0].output
        with pytest.raises(gw.ScopeError), other.trace(PROMPT):
            other.layers[0].output = own


def test_sites_need_a_block(model: Any) -> None:
    with pytest.raises(gw.ScopeError) as caught:
        _ = model.logits
    assert __file__ in told(caught.value)


def test_saving_after_the_block_is_refused(model: Any) -> None:
    with model.trace(PROMPT):
        value = model.layers[0].output
    with pytest.raises(gw.GraphError):
        value.save()


def test_two_saves_of_one_name_are_refused(model: Any) -> None:
    with pytest.raises(gw.GraphError, match=r"twice|two saves"), model.trace(PROMPT):
        model.layers[0].output.save("x")
        model.layers[1].output.save("x")


def test_misuse_of_invoke(model: Any) -> None:
    with pytest.raises(gw.ScopeError, match="invoke"), model.trace(PROMPT) as t, t.invoke(PROMPT):
        pass
    with pytest.raises(gw.ScopeError), model.trace() as t, t.invoke(PROMPT), t.invoke(PROMPT):
        pass
    with pytest.raises(gw.ScopeError), model.trace():
        model.logits.save()
    with model.trace() as t, t.invoke(PROMPT):
        model.logits.save()
    with pytest.raises(gw.ScopeError), t.invoke(PROMPT):
        pass
    with pytest.raises(gw.InputError), model.trace() as t, t.invoke([]):
        pass


def test_sites_outside_an_invoke_mean_all_rows(model: Any) -> None:
    with model.trace() as t:
        with t.invoke([5, 6, 7]):
            one = model.logits[:, -1].save()
        with t.invoke([8, 9, 10]):
            two = model.logits[:, -1].save()
        every = model.logits[:, -1].save()
    assert torch.equal(every.value, torch.cat([one.value, two.value]))


def test_a_session_joins_blocks(model: Any, bare: Any) -> None:
    calls = []
    handle = bare.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with model.session():
            with model.trace(PROMPT):
                first = model.layers[1].output[:, -1]
                one = model.logits.save()
            with model.trace([9, 10, 11]):
                model.layers[1].output[:, -1] = first
                two = model.logits.save()
            assert calls == []
    finally:
        handle.remove()
    with model.trace(PROMPT):
        value = model.layers[1].output[:, -1].save()
        expected = model.logits.save()
    with model.trace([9, 10, 11]):
        model.layers[1].output[:, -1] = value.value
        patched = model.logits.save()
    assert torch.equal(one.value, expected.value)
    assert torch.equal(two.value, patched.value)


def test_random_nodes_draw_by_seed_and_not_by_company(model: Any) -> None:
    def noisy(seed: int, prompts: list[list[int]]) -> list[torch.Tensor]:
        with model.trace(seed=seed) as t:
            found = []
            for prompt in prompts:
                with t.invoke(prompt):
                    found.append(torch.rand_like(model.layers[0].output).save())
        return [value.value for value in found]

    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    alone = noisy(3, [[5, 6, 7]])
    again = noisy(3, [[5, 6, 7], [8, 9, 10, 11]])
    other = noisy(4, [[5, 6, 7]])
    assert torch.equal(alone[0], again[0])
    assert not torch.equal(alone[0], other[0])
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_block_seed(model: Any) -> None:
    def noise(seed: int) -> torch.Tensor:
        with model.trace(PROMPT) as t:
            t.seed = seed
            saved = torch.randn_like(model.layers[0].output).save()
        return saved.value

    assert torch.equal(noise(1), noise(1))
    assert not torch.equal(noise(1), noise(2))


def test_native_modules(model: Any, bare: Any) -> None:
    with model.trace(PROMPT):
        whole = model.transformer.h[0].attn.output
        first = whole[0].save()
        standard = model.layers[0].attn.output.save()
        args, kwargs = model.transformer.h[0].mlp.inputs
        entering = args[0].save()
        standard_input = model.layers[0].mlp.input.save()
        by_path = model["transformer.h.0.attn"].output[0].save()
    assert torch.equal(first.value, standard.value)
    assert torch.equal(by_path.value, standard.value)
    assert torch.equal(entering.value, standard_input.value)
    assert list(kwargs) == []


def test_layers_are_a_sequence(model: Any) -> None:
    assert len(model.layers) == 3
    with model.trace(PROMPT):
        last = model.layers[-1].output.save()
        every = [layer.output.save() for layer in model.layers]
        tail = [layer.output.save() for layer in model.layers[1:]]
    assert torch.equal(last.value, every[2].value)
    assert torch.equal(tail[0].value, every[1].value)


def test_plain_layers_of_an_encoder_and_a_decoder_name_both() -> None:
    model = gw.wrap(FAMILIES["t5"]())
    with pytest.raises(gw.UnknownSite, match="encoder") as caught:
        _ = model.layers
    assert "decoder" in str(caught.value)


def test_a_model_is_freed_with_its_values(model: Any) -> None:
    with model.trace(PROMPT):
        unsaved = model.layers[1].output
        model.logits.save()
    gc.collect()
    assert not any(isinstance(item, gw.Graph) for item in gc.get_referents(unsaved))
