"""Sites: the standard ones of the residual stream and the sublayers, what is derived and what is absent."""

import re
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, ViTConfig, ViTForImageClassification

import glassworks as gw
from contract.places import PROMPT, SOURCE, START, Place, close, read, refused, wrapped, write
from families import TOKENS, make

STREAM = ("input", "mid", "output")
WIDTHS = {"logits": 97, "mlp.neurons": 48, "mlp.router.output": 4}


def halved(value: Any) -> Any:
    """A change that no norm undoes."""
    return value * 0.5 + 0.1 * value.sin()


def holds_a_read(case: Place, name: str, prompt: list[int] = PROMPT, **arguments: Any) -> torch.Tensor:
    """A read gives what the oracle saw; its shape was known before."""
    expected = case.oracle.forward(prompt, **arguments)[name]
    with case.block(prompt, **arguments):
        value = case.site(name)
        assert tuple(value.shape) == tuple(expected.shape)
        assert value.dtype == torch.float32
        got = value.save()
    close(got.value, expected)
    return got.value


def holds_a_write(case: Place, name: str, prompt: list[int] = PROMPT, **arguments: Any) -> None:
    """A write gives the logits of an execution that was changed at that place, and reads back."""
    changed = case.oracle.forward(prompt, {name: lambda tensor, _: halved(tensor)}, **arguments)
    plain = case.oracle.forward(prompt, **arguments)
    with case.block(prompt, **arguments):
        write(case.model, name, halved(case.site(name)))
        after = case.site(name).save()
        logits = case.model.logits.save()
    close(after.value, changed[name])
    close(logits.value, changed.logits)
    assert (logits.value - plain.logits).abs().max() > 1e-3


@pytest.mark.sentence("sites.1", "sites.2")
def test_embed(case: Place) -> None:
    """A standard site is one tensor with known axes on every family: `embed.output`;"""
    got = holds_a_read(case, "embed.output")
    close(got, case.oracle.stock.get_input_embeddings().weight[PROMPT][None])
    holds_a_write(case, "embed.output")


@pytest.mark.sentence("sites.1", "sites.3")
@pytest.mark.parametrize("part", STREAM)
@pytest.mark.parametrize("layer", [0, 2])
def test_residual(case: Place, layer: int, part: str) -> None:
    """`layers[i].input`, `.mid` (residual between attention and MLP, where there is one), `.output`, all
    `[batch, seq, d_model]`;"""
    got = holds_a_read(case, f"layers.{layer}.{part}")
    assert got.shape == (1, len(PROMPT), 32)
    holds_a_write(case, f"layers.{layer}.{part}")


@pytest.mark.sentence("sites.3")
def test_the_residual_is_that_of_transformers(case: Place) -> None:
    """`layers[i].input`"""
    found = case.oracle.stock(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
    with case.block(PROMPT):
        got = [layer.input.save() for layer in case.model.layers]
    for value, expected in zip(got, found, strict=False):
        close(value.value, expected)


@pytest.mark.sentence("sites.4")
@pytest.mark.parametrize("name", ["attn.input", "mlp.input"])
def test_what_sublayers_read(case: Place, name: str) -> None:
    """`attn.input`, `mlp.input`: what the sublayer reads;"""
    holds_a_read(case, f"layers.1.{name}")
    holds_a_write(case, f"layers.1.{name}")


@pytest.mark.sentence("sites.5")
@pytest.mark.parametrize("name", ["attn.output", "mlp.output"])
def test_what_sublayers_add(case: Place, name: str) -> None:
    """`attn.output`, `mlp.output`: what the block adds to the residual;"""
    holds_a_read(case, f"layers.1.{name}")
    holds_a_write(case, f"layers.1.{name}")
    with case.block(PROMPT):
        layer = case.model.layers[1]
        entered = layer.input.save()
        added = layer.attn.output.save()
        middle = layer.mid.save()
        more = layer.mlp.output.save()
        left = layer.output.save()
    close(middle.value, entered.value + added.value)
    close(left.value, middle.value + more.value)


@pytest.mark.sentence("sites.13")
def test_norm(case: Place) -> None:
    """`norm.output`;"""
    holds_a_read(case, "norm.output")
    holds_a_write(case, "norm.output")


@pytest.mark.sentence("sites.14")
def test_logits(case: Place) -> None:
    """`logits` `[batch, seq, vocab]`."""
    got = holds_a_read(case, "logits")
    assert got.shape == (1, len(PROMPT), 97)
    holds_a_write(case, "logits")
    close(got, case.oracle.stock(torch.tensor([PROMPT])).logits)


@pytest.mark.sentence("sites.11")
@pytest.mark.parametrize("layer", [0, 2])
def test_neurons(dense: Place, layer: int) -> None:
    """`mlp.neurons` `[batch, seq, d_ff]`, what enters the down projection;"""
    got = holds_a_read(dense, f"layers.{layer}.mlp.neurons")
    assert got.shape == (1, len(PROMPT), 128 if dense.family == "gpt2" else 48)
    holds_a_write(dense, f"layers.{layer}.mlp.neurons")


@pytest.mark.sentence("sites.12")
@pytest.mark.parametrize("layer", [0, 2])
def test_router(moe: Place, layer: int) -> None:
    """`mlp.router.output`;"""
    got = holds_a_read(moe, f"layers.{layer}.mlp.router.output")
    assert got.shape == (1, len(PROMPT), 4)
    returned = moe.oracle.stock(torch.tensor([PROMPT]), output_router_logits=True).router_logits
    close(got[0], returned[layer])


@pytest.mark.sentence("sites.12")
def test_a_router_that_is_written(moe: Place) -> None:
    """`mlp.router.output`;

    The experts that are chosen follow what was written: here experts 1 and 3 for every token.
    """

    def chosen(logits: Any) -> Any:
        return logits * 0 + torch.tensor([0.0, 50.0, 0.0, 49.0])

    expected = moe.oracle.forward(PROMPT, {"layers.1.mlp.router.output": lambda tensor, _: chosen(tensor)})
    with moe.block(PROMPT):
        router = moe.model.layers[1].mlp.router
        router.output = chosen(router.output)
        logits = moe.model.logits.save()
    close(logits.value, expected.logits)


@pytest.mark.sentence("sites.15")
@pytest.mark.parametrize("part", [*STREAM, "attn.input", "attn.output", "mlp.input", "mlp.output", "mlp.neurons"])
def test_encoder(encdec_case: Place, part: str) -> None:
    """Encoder-decoder: `encoder.layers[i]`"""
    holds_a_read(encdec_case, f"encoder.layers.1.{part}", SOURCE, decoder_input_ids=START)
    holds_a_write(encdec_case, f"encoder.layers.1.{part}", SOURCE, decoder_input_ids=START)


@pytest.mark.sentence("sites.15")
@pytest.mark.parametrize(
    "part", ["input", "output", "attn.output", "cross_attn.input", "cross_attn.output", "mlp.output", "mlp.neurons"]
)
def test_decoder(encdec_case: Place, part: str) -> None:
    """`decoder.layers[i].cross_attn`"""
    holds_a_read(encdec_case, f"decoder.layers.1.{part}", SOURCE, decoder_input_ids=START)
    holds_a_write(encdec_case, f"decoder.layers.1.{part}", SOURCE, decoder_input_ids=START)


@pytest.mark.sentence("sites.15")
def test_plain_layers_of_two_stacks(encdec_case: Place) -> None:
    """plain `layers` is then an error that names both."""
    with pytest.raises(gw.UnknownSite) as caught, encdec_case.block(SOURCE):
        encdec_case.model.layers[0].output.save()
    assert "encoder.layers" in str(caught.value)
    assert "decoder.layers" in str(caught.value)


def classifier() -> Any:
    config = GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, num_labels=3, **TOKENS)
    return make(GPT2ForSequenceClassification, config)


def vision() -> Any:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    return make(ViTForImageClassification, config)


@pytest.mark.sentence("sites.16")
@pytest.mark.parametrize("way", [lambda model: model, gw_connect := lambda model: gw.connect(model)])
def test_classes(way: Any) -> None:
    """Classification and vision: `logits` `[batch, classes]`."""
    bare = classifier()
    model = way(gw.wrap(bare))
    with model.trace([[5, 6, 7], [8, 9, 10]]):
        shape = tuple(model.logits.shape)
        logits = model.logits.save()
    close(logits.value, bare(torch.tensor([[5, 6, 7], [8, 9, 10]])).logits)
    assert shape == (2, 3)


@pytest.mark.sentence("sites.16")
@pytest.mark.parametrize("way", [lambda model: model, gw_connect])
def test_classes_of_images(way: Any) -> None:
    """Classification and vision: `logits` `[batch, classes]`."""
    bare = vision()
    model = way(gw.wrap(bare))
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with model.trace(pixel_values=pixels):
        assert tuple(model.logits.shape) == (2, 3)
        logits = model.logits.save()
    close(logits.value, bare(pixels).logits)


def bloom_parts(change: float) -> dict[str, torch.Tensor]:
    """BLOOM's sublayers return the residual with what they add: by hooks, what they add, and the logits if halved."""
    bare = wrapped("bloom")[0]
    found: dict[str, torch.Tensor] = {}

    def after(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            tensor = output[0] if isinstance(output, tuple) else output
            found[name] = change * (tensor - args[1])
            new = args[1] + found[name]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    own = bare.transformer.h[1]
    handles = [own.self_attention.register_forward_hook(after("attn.output"))]
    handles.append(own.mlp.register_forward_hook(after("mlp.output")))
    try:
        with torch.no_grad():
            found["logits"] = bare(torch.tensor([PROMPT])).logits
    finally:
        for handle in handles:
            handle.remove()
    return found


@pytest.mark.sentence("sites.18")
@pytest.mark.parametrize("name", ["attn.output", "mlp.output"])
def test_derived_reads(bloom: Place, name: str) -> None:
    """On a family where a standard site is derived (its module returns something else), reads are derived,"""
    with bloom.block(PROMPT):
        got = bloom.site(f"layers.1.{name}").save()
    close(got.value, bloom_parts(1.0)[name])


@pytest.mark.sentence("sites.19")
def test_derived_writes(bloom: Place) -> None:
    """and a write is inverted or refused with the reason, never dropped."""
    expected = bloom_parts(0.5)["logits"]
    try:
        with bloom.block(PROMPT):
            layer = bloom.model.layers[1]
            layer.attn.output *= 0.5
            layer.mlp.output *= 0.5
            logits = bloom.model.logits.save()
    except gw.WriteError as error:
        refused(error, "residual|derived|return")
    else:
        close(logits.value, expected)


@pytest.mark.sentence("sites.20")
@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        ("gpt2", "layers.0.mlp.router.output", "router|expert"),
        ("mixtral", "layers.0.mlp.neurons", "expert|projection"),
        ("gptj", "layers.0.mid", "parallel|residual|between"),
        ("mamba", "layers.0.attn.output", "attention|attn"),
        ("gpt2", "encoder.layers.0.output", "encoder"),
    ],
)
@pytest.mark.parametrize("way", [lambda model: model, gw_connect])
def test_absent_sites(family: str, name: str, reason: str, way: Any) -> None:
    """A site that a family lacks is refused with the reason."""
    model = way(wrapped(family)[1])
    with pytest.raises(gw.UnknownSite) as caught, model.trace(PROMPT):
        read(model, name).save()
    assert re.search(reason, str(caught.value).replace(name, ""))


@pytest.mark.sentence("sites.28")
def test_layers_are_a_sequence(case: Place) -> None:
    """`len`, iteration, slices and negative indices work on `model.layers`"""
    found = case.oracle.forward(PROMPT)
    layers = case.model.layers
    assert len(layers) == 3
    with case.block(PROMPT):
        each = [layer.output.save() for layer in layers]
    with case.block(PROMPT):
        some = [layer.output.save() for layer in layers[1:]]
    with case.block(PROMPT):
        last = layers[-1].output.save()
    for n, value in enumerate(each):
        close(value.value, found[f"layers.{n}.output"])
    assert len(some) == 2
    close(some[0].value, found["layers.1.output"])
    close(last.value, found["layers.2.output"])


@pytest.mark.sentence("sites.28")
def test_heads_are_a_sequence(case: Place) -> None:
    """`len`, iteration, slices and negative indices work on ... `heads`."""
    found = case.oracle.forward(PROMPT)["layers.1.attn.heads.output"]
    heads = case.model.layers[1].attn.heads
    assert len(heads) == 4
    with case.block(PROMPT):
        each = [head.output.save() for head in heads]
        some = [head.output.save() for head in heads[1:3]]
        last = heads[-1].output.save()
    for n, value in enumerate(each):
        close(value.value, found[:, :, n])
    close(torch.stack([value.value for value in some], 2), found[:, :, 1:3])
    close(last.value, found[:, :, 3])
