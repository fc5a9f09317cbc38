"""The standard sites of many families: that they are there, and that they are what the contract says.

The contract is checked here by hand, on hooks of the tests' own, not by the code that built the table.
"""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    GPT2ForSequenceClassification,
    GraniteConfig,
    GraniteModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Olmo2Config,
    Olmo2Model,
    OPTConfig,
    OPTForCausalLM,
)

from families import FAMILIES, LLAMA, MORE_FAMILIES, TOKENS, make
from glassworks.errors import ModelError, UnknownSite
from glassworks.graph.sites import from_json, to_json
from glassworks.model.anatomy import build_table, build_table_fake
from glassworks.model.identity import check_identities, unembed_is_plain

IDS = torch.arange(3, 15).view(2, 6)
SUBLAYERS = ("attn.output", "cross_attn.output", "mlp.output")
ADDS_UP = set(MORE_FAMILIES) - {"bert", "granite", "mamba"}


@pytest.fixture(scope="module")
def tables():
    return {name: build_table(build()) for name, build in FAMILIES.items()}


@torch.no_grad()
def read(model, table, names):
    """Tensors at the sites, unfolded, on [2, 6] ids; and what the model returns."""
    wanted, values, handles = {}, {}, []
    for name in names:
        event = table.event_of(table[name])
        wanted.setdefault((event.path, event.port), []).append(table[name])

    def keep(key, value):
        for site in wanted[key]:
            tensor = value
            for part in site.item:
                tensor = tensor[part]
            sizes = {"batch": 2, "seq": 6, "source": 4}
            values[site.name] = tensor.clone().view([sizes.get(axis, axis) for axis in site.axes])

    for path, port in wanted:
        module = model.get_submodule(path)
        if port == "input":
            hook = lambda _, args, kwargs, key=(path, port): keep(key, (args, kwargs))  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            hook = lambda _, args, output, key=(path, port): keep(key, output)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    inputs = {"input_ids": IDS[:, :4], "decoder_input_ids": IDS} if table.encoder_decoder else {"input_ids": IDS}
    try:
        result = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return values, result


def is_at_a_module(table, name):
    """Whether a site is what a module was given or gave, and not something inside it (see test_inside)."""
    return table.event_of(table[name]).port in ("input", "output") and not table[name].heads and ".inputs" not in name


def layers_of(table):
    return [f"{stack}.layers.{i}".removeprefix(".") for stack, paths in table.layers.items() for i in range(len(paths))]


def assert_contract(model, table):
    """Every standard site that exists is what the language says; returns the layers whose parts add up."""
    names = [name for name in table.standard_names if is_at_a_module(table, name)]
    values, result = read(model, table, names)
    assert torch.equal(values["logits"], result.logits)
    added = []
    for layer in layers_of(table):
        parts = [values[f"{layer}.{part}"] for part in SUBLAYERS if f"{layer}.{part}" in values]
        whole = values[f"{layer}.output"]
        assert whole.shape == values[f"{layer}.input"].shape
        if len(parts) >= 2:
            torch.testing.assert_close(sum(parts, values[f"{layer}.input"]), whole, rtol=1e-4, atol=1e-5)
            added.append(layer)
    for stack in table.layers:
        own = [layer for layer in layers_of(table) if layer.startswith(f"{stack}.layers".removeprefix("."))]
        for before, after in pairwise(own):
            assert torch.equal(values[f"{before}.output"], values[f"{after}.input"])
        norm = f"{stack}.norm".removeprefix(".")
        if norm in table.modules:
            assert torch.equal(values[f"{norm}.input"], values[f"{own[-1]}.output"])
    return added


@pytest.mark.parametrize("family", FAMILIES)
def test_standard_sites_keep_the_contract(family, tables):
    model, table = FAMILIES[family](), tables[family]
    assert check_identities(model, table) == {}
    assert assert_contract(model, table) == layers_of(table)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"t5"}))
def test_a_decoder_has_every_standard_site(family, tables):
    table = tables[family]
    layer = {f"layers.2.{part}" for part in ("input", "output")}
    layer |= {f"layers.2.{part}.{port}" for part in ("attn", "mlp") for port in ("input", "output")}
    assert {"embed.output", "norm.input", "norm.output", "logits", *layer} <= set(table.sites)
    assert all(table[name].axes == ("batch", "seq", 32) for name in layer)
    lacks = "neurons" if family == "mixtral" else "router"
    assert set(table.absent) == {f"layers.{i}.mlp.{lacks}" for i in range(3)}
    attention = {f"heads.{port}" for port in ("query", "key", "value", "output")} | {"scores", "probs"}
    assert {"layers.2.mid", *(f"layers.2.attn.{name}" for name in attention)} <= set(table.sites)
    assert {"embed", "norm", "lm_head", "layers.0", "layers.0.attn", "layers.0.mlp"} <= set(table.modules)
    assert (table.family, table.vocab, table.encoder_decoder) == (family, 97, False)
    assert len(table.layers[""]) == 3


def test_encoder_and_decoder_have_their_own_names(tables):
    table, config = tables["t5"], FAMILIES["t5"]().config
    sizes = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
    assert {stack: len(paths) for stack, paths in table.layers.items()} == sizes
    assert table["encoder.layers.1.mlp.output"].axes == ("batch", "source", 32)
    assert table["decoder.layers.2.attn.output"].axes == ("batch", "seq", 32)
    assert "decoder.layers.2.cross_attn.output" in table.sites
    assert "encoder.layers.1.cross_attn.output" not in table.sites
    assert {"encoder.embed.output", "decoder.embed.output", "decoder.norm.output", "logits"} <= set(table.sites)
    assert table.encoder_decoder
    for name in ("layers", "embed", "norm"):
        assert "encoder.layers" in table.absent[name]
        assert "decoder.layers" in table.absent[name]


def test_t5_attention_is_the_module_whose_output_is_added(tables):
    assert tables["t5"].modules["encoder.layers.1.attn"] == "encoder.block.1.layer.0.SelfAttention"


def test_an_mlp_without_a_module_is_two_folded_sites(tables):
    table, layer = tables["opt"], "model.decoder.layers.1"
    assert table.modules["layers.1.mlp"] == layer
    for name, native in (("input", "fc1.input"), ("output", "fc2.output")):
        site = table[f"layers.1.mlp.{name}"]
        assert site.unfold
        assert (site.order, site.item) == (table[f"{layer}.{native}"].order, table[f"{layer}.{native}"].item)
        assert table[f"{layer}.{native}"].axes[0] == "batch*seq"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_survives_json(family, tables):
    assert from_json(json.loads(json.dumps(to_json(tables[family])))) == tables[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_a_model_without_numbers_is_the_same(family, tables):
    assert build_table_fake(FAMILIES[family]) == tables[family]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "opt", "t5"])
def test_the_anatomy_does_not_depend_on_the_precision(family, dtype, tables):
    table = build_table(FAMILIES[family]().to(dtype))
    assert table.modules == tables[family].modules
    assert table.absent == tables[family].absent
    assert table.standard_names == tables[family].standard_names


@pytest.mark.parametrize(("family", "plain"), [*((f, f != "t5") for f in FAMILIES)])
def test_whether_unembedding_is_norm_and_head(family, plain, tables):
    assert unembed_is_plain(FAMILIES[family](), tables[family]) is plain


def test_a_capped_head_is_not_plain():
    model = MORE_FAMILIES["gemma2"]()
    assert not unembed_is_plain(model, build_table(model))


def test_unembedding_with_a_projection_is_not_plain():
    config = OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        **TOKENS,
    )
    model = make(OPTForCausalLM, config)
    assert not unembed_is_plain(model, build_table(model))


@pytest.mark.parametrize("part", ["layers.1.attn.output", "layers.1.mlp.output"])
def test_a_wrong_anatomy_fails_the_identity(part, tables):
    table = tables["llama"]
    wrong = replace(table["model.layers.1.post_attention_layernorm.output"], name=part)
    reasons = check_identities(FAMILIES["llama"](), replace(table, sites={**table.sites, part: wrong}))
    assert "not the layer's output" in reasons[part]
    assert not any(name.startswith("layers.0") for name in reasons)


def test_attention_and_mlp_of_another_layer_fail_the_identity(tables):
    table = tables["llama"]
    swapped = {f"layers.0.{p}.output": replace(table[f"layers.1.{p}.output"], name="") for p in ("attn", "mlp")}
    reasons = check_identities(FAMILIES["llama"](), replace(table, sites={**table.sites, **swapped}))
    assert set(reasons) == set(swapped)


def test_wrong_logits_and_wrong_neighbours_fail_the_identity(tables):
    table = tables["llama"]
    wrong = {
        "logits": replace(table["norm.output"], name="logits"),
        "layers.1.input": replace(table["layers.0.input"], name="layers.1.input"),
    }
    reasons = check_identities(FAMILIES["llama"](), replace(table, sites={**table.sites, **wrong}))
    assert {"logits", "layers.1.input"} <= set(reasons)


def test_a_few_huge_elements_do_not_hide_a_wrong_part():
    model = FAMILIES["llama"]()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 5] = 1e4
    table = build_table(model)
    assert check_identities(model, table) == {}
    wrong = {"layers.1.mlp.output": replace(table["layers.1.mlp.input"], name="layers.1.mlp.output")}
    assert check_identities(model, replace(table, sites={**table.sites, **wrong}))


def test_what_is_normed_before_it_is_added_moves_to_the_norm():
    table = build_table(MORE_FAMILIES["gemma2"]())
    layer = table.modules["layers.1"]
    assert table.modules["layers.1.attn"] == f"{layer}.self_attn"
    assert table.event_of(table["layers.1.attn.output"]).path == f"{layer}.post_attention_layernorm"
    assert table.event_of(table["layers.1.mlp.output"]).path == f"{layer}.post_feedforward_layernorm"
    assert table.event_of(table["layers.1.mlp.input"]).path == f"{layer}.mlp"


def test_what_is_scaled_before_it_is_added_is_absent_with_the_factor():
    table = build_table(MORE_FAMILIES["granite"]())
    with pytest.raises(UnknownSite, match=r"granite has no 'layers.1.attn.output'.*multiplies.*0\.22"):
        table["layers.1.attn.output"]
    assert {"layers.1.attn.input", "layers.1.mlp.input", "layers.1.output"} <= set(table.sites)


def test_what_is_normed_after_it_is_added_is_absent():
    table = build_table(MORE_FAMILIES["bert"]())
    assert "normalises" in table.absent["layers.1.mlp.output"]
    assert "no norm" in table.absent["norm"]


def test_layers_without_attention_say_what_they_have_instead():
    table = build_table(MORE_FAMILIES["mamba"]())
    assert {"layers.1.input", "layers.1.output", "norm.output", "logits"} <= set(table.sites)
    with pytest.raises(UnknownSite, match=r"no attention module; it has backbone\.layers\.1\.mixer"):
        table["layers.1.attn.output"]


def test_a_change_in_place_after_the_mlp_returned_is_marked():
    table = build_table(MORE_FAMILIES["falcon"]())
    assert table["layers.1.mlp.output"].mutated
    assert not table["layers.1.attn.output"].mutated


def test_without_a_stack_of_layers_there_are_native_sites_and_reasons():
    config = LlamaConfig(**LLAMA | {"num_hidden_layers": 0}, **TOKENS)
    table = build_table(make(LlamaForCausalLM, config))
    assert {"layers", "embed", "norm"} <= set(table.absent)
    assert {"model.norm.output", "logits"} <= set(table.sites)


def test_a_layer_that_is_called_several_times_is_several_layers():
    config = AlbertConfig(
        embedding_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        **TOKENS,
    )
    table = build_table(make(AlbertForMaskedLM, config))
    assert len(table.layers[""]) == 3
    assert len(set(table.layers[""])) == 1
    assert [table.event_of(table[f"layers.{i}.output"]).call for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (LlamaModel, LlamaConfig(**LLAMA, **TOKENS)),
        (Olmo2Model, Olmo2Config(**LLAMA, **TOKENS)),
        (GraniteModel, GraniteConfig(residual_multiplier=0.5, **LLAMA, **TOKENS)),
    ],
    ids=["llama", "olmo2", "granite"],
)
def test_a_native_path_that_is_a_standard_name_gives_way_only_if_it_means_something_else(kind, config):
    table = build_table(make(kind, config))
    event = next(e for e in table.events if (e.path, e.port) == ("layers.1.mlp", "output"))
    native = "layers.1.mlp.output" if kind is LlamaModel else "layers.1.mlp.call(0).output"
    assert event.structure == {"leaf": native}
    assert table.event_of(table[native]) == event
    assert ("layers.1.mlp.output" in table.sites) is (kind is not GraniteModel)
    assert "AutoModelForCausalLM" in table.absent["logits"]
    assert "lm_head" in table.absent


def test_classes_are_logits_too():
    model = make(GPT2ForSequenceClassification, FAMILIES["gpt2"]().config)
    table = build_table(model)
    assert table["logits"].axes == ("batch", 2)
    assert "layers.1.attn.output" in table.sites


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rotary_types_that_depend_on_the_longest_position_are_not_shared(rope_type):
    rope = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 128}
    rope = rope if rope_type == "longrope" else {key: rope[key] for key in ("rope_type", "factor", "rope_theta")}
    table = build_table(make(LlamaForCausalLM, LlamaConfig(rope_parameters=rope, **LLAMA, **TOKENS)))
    assert not table.shareable
    assert build_table(FAMILIES["llama"]()).shareable


def test_a_model_that_raises_is_an_error_with_its_cause():
    model = FAMILIES["llama"]()
    del model.model.norm
    with pytest.raises(ModelError, match="LlamaForCausalLM to run on") as caught:
        build_table(model)
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_more_families_keep_the_contract(family):
    model = MORE_FAMILIES[family]()
    table = build_table(model)
    assert check_identities(model, table) == {}
    added = assert_contract(model, table)
    assert added == (layers_of(table) if family in ADDS_UP else [])
    assert {"embed.output", "logits", "layers.2.input", "layers.2.output"} <= set(table.sites)
    assert from_json(to_json(table)) == table


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_more_families_have_the_same_table_without_numbers(family):
    assert build_table_fake(MORE_FAMILIES[family]) == build_table(MORE_FAMILIES[family]())
