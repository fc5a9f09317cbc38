"""A Hugging Face model that reads images has its standard sites too."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import glassworks as gw

IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


@pytest.fixture(scope="module")
def bare():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def model(bare):
    return gw.wrap(bare)


def test_logits_and_layers_are_those_of_the_bare_model(bare, model):
    with model.trace(pixel_values=IMAGES):
        logits, hidden = model.logits.save(), [layer.output.save() for layer in model.layers]
        probs = model.layers[1].attn.probs.save()
        assert model.logits.shape == (2, 3)
        assert model.layers[0].mid.shape == (2, 5, 32)
    bare.set_attn_implementation("eager")
    with torch.no_grad():
        expected = bare(IMAGES, output_hidden_states=True, output_attentions=True)
    bare.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits.value, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(hidden[0].value, expected.hidden_states[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(probs.value, expected.attentions[1], rtol=0, atol=1e-5)


def test_a_head_without_output_is_a_projection_without_its_columns(bare, model):
    with model.trace(pixel_values=IMAGES):
        model.layers[1].attn.heads[2].output = 0
        logits = model.logits.save()
    [path] = [model.table.modules["layers.1.attn.heads"]]
    projection = bare.get_submodule(path)
    kept = projection.weight.detach().clone()
    with torch.no_grad():
        projection.weight[:, 16:24] = 0
        expected = bare(IMAGES).logits
        projection.weight.copy_(kept)
    torch.testing.assert_close(logits.value, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(logits.value, bare(IMAGES).logits, atol=1e-4)


def test_invokes_of_several_sizes(model):
    with model.trace() as t:
        with t.invoke(pixel_values=IMAGES[:1]):
            one = model.logits.save()
        with t.invoke(pixel_values=IMAGES):
            two = model.logits.save()
    torch.testing.assert_close(one.value, two.value[:1], rtol=0, atol=1e-5)


def test_images_of_another_size_are_refused(model):
    message = r"reads images \[3, 8, 8\].*got \[3, 9, 9\]"
    with pytest.raises(gw.InputError, match=message), model.trace(pixel_values=torch.zeros(1, 3, 9, 9)):
        model.logits.save()
