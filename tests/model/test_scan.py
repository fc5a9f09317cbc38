"""What a recorded run must find: order, calls, structures, axes, changes in place; and that it leaves no trace."""

import json

import pytest
import torch
from torch import nn
from transformers import BatchFeature

from families import FAMILIES, MORE_FAMILIES
from glassworks.errors import ModelError
from glassworks.graph.sites import from_json, to_json
from glassworks.model.anatomy import build_table
from glassworks.model.scan import scan, scan_fake


class Doubler(nn.Module):
    def forward(self, x):
        return x * 2


class ChangesLater(nn.Module):
    """`first` returns a tensor that is changed in place after it returned; `second` changes nothing."""

    def __init__(self):
        super().__init__()
        self.never = Doubler()
        self.second = Doubler()
        self.first = Doubler()

    def forward(self, x):
        held = self.first(x)
        held.view(-1).add_(1)
        return self.second(held)


class Structures(nn.Module):
    """Calls a module several times and passes every kind of value."""

    def __init__(self):
        super().__init__()
        self.inner = Mixed()
        self.same = self.inner
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, *, scale):
        found = self.inner(3, [x, {"deep": x}], other=x, keys={1: x})
        for _ in range(2):
            x = self.dropout(self.norm(x))
        return BatchFeature({"logits": found[0] * scale, "rest": (x, None)})


class Mixed(nn.Module):
    def forward(self, count, parts, other, keys):
        return parts[0] * count, [other], torch.Size([1])


@pytest.fixture(scope="module")
def structures():
    return scan(Structures(), inputs=((torch.ones(2, 4),), {"scale": torch.tensor(2.0)}), plain=True)


def test_events_come_in_the_order_of_execution_not_of_definition():
    table = scan(ChangesLater(), inputs=((torch.ones(2, 3),), {}), plain=True)
    assert [(event.path, event.port, event.call) for event in table.events] == [
        ("", "input", 0),
        ("first", "input", 0),
        ("first", "output", 0),
        ("second", "input", 0),
        ("second", "output", 0),
        ("", "output", 0),
    ]
    assert table.children[""] == ("never", "second", "first")
    assert table.kinds["first"] == "Doubler"


def test_a_change_in_place_after_an_event_marks_its_sites_also_through_a_view():
    table = scan(ChangesLater(), inputs=((torch.ones(2, 3),), {}), plain=True)
    assert {name for name, site in table.sites.items() if site.mutated} == {"first.output"}


def test_plain_axes_are_the_sizes_seen(structures):
    assert structures.plain
    assert structures.sites["input"].axes == (2, 4)
    assert structures.sites["inputs[1]['scale']"].axes == ()
    assert structures.family == "Structures"


def test_structures_are_spelled_with_the_names_of_their_leaves(structures):
    of = {(event.path, event.port): event.structure for event in structures.events}
    assert of["inner", "input"] == {
        "tuple": [
            {
                "tuple": [
                    {"other": "int"},
                    {
                        "list": [
                            {"leaf": "inner.inputs[0][1][0]"},
                            {"dict": {"deep": {"leaf": "inner.inputs[0][1][1]['deep']"}}},
                        ]
                    },
                ]
            },
            {"dict": {"other": {"leaf": "inner.inputs[1]['other']"}, "keys": {"other": "dict"}}},
        ]
    }
    assert of["inner", "output"] == {
        "tuple": [
            {"leaf": "inner.output[0]"},
            {"list": [{"leaf": "inner.output[1][0]"}]},
            {"tuple": [{"other": "int"}]},
        ]
    }
    assert of["", "output"] == {
        "dict": {
            "logits": {"leaf": "output['logits']"},
            "rest": {"tuple": [{"leaf": "output['rest'][0]"}, {"other": "NoneType"}]},
        }
    }


def test_input_is_the_first_tensor_among_the_arguments_themselves(structures):
    assert structures.sites["inner.input"].item == (1, "other")
    assert structures.sites["input"].item == (0, 0)
    assert structures.sites["inner.inputs[1]['other']"].order == structures.sites["inner.input"].order


def test_calls_are_counted_and_named(structures):
    assert structures.calls == {"": 1, "inner": 1, "same": 1, "norm": 2, "dropout": 2}
    assert "norm.output" not in structures.sites
    assert structures.sites["norm.call(1).output"].order > structures.sites["dropout.call(0).output"].order
    assert scan(ChangesLater(), inputs=((torch.ones(2, 3),), {}), plain=True).calls["never"] == 0


def test_a_module_under_two_paths_has_its_sites_under_both(structures):
    one, other = structures.sites["inner.output[0]"], structures.sites["same.output[0]"]
    assert (one.order, one.item, one.axes) == (other.order, other.item, other.axes)
    assert {"inner", "same"} <= set(structures.children)


def test_widths_are_those_of_modules_with_one_tensor_each_way(structures):
    assert structures.widths == {"norm": (4, 4), "dropout": (4, 4)}


def test_a_scan_leaves_no_trace():
    module = FAMILIES["gpt2"]().train()
    module.transformer.h[1].eval()
    modes = [child.training for child in module.modules()]
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    scan(module)
    assert [child.training for child in module.modules()] == modes
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_running_averages_and_random_state_survive_a_plain_scan():
    module, state = Structures().train(), torch.get_rng_state()
    with torch.inference_mode():
        scan(module, inputs=((torch.ones(2, 4),), {"scale": torch.tensor(2.0)}), plain=True)
    assert int(module.norm.num_batches_tracked) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_hooks_and_modes_come_back_when_the_model_raises():
    class Raises(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Doubler()

        def forward(self, x):
            raise RuntimeError(f"no {self.inner(x)}")

    module = Raises().train()
    with pytest.raises(RuntimeError, match="no tensor"):
        scan(module, inputs=((torch.ones(1),), {}), plain=True)
    assert module.training
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


def test_axes_say_what_they_depend_on():
    table = scan(FAMILIES["opt"]())
    layer = "model.decoder.layers.1"
    assert table.sites["input"].axes == ("batch", "seq")
    assert table.sites[f"{layer}.output"].axes == ("batch", "seq", 32)
    assert table.sites[f"{layer}.fc1.output"].axes == ("batch*seq", 48)
    assert table.sites["output['logits']"].axes == ("batch", "seq", 97)
    assert table.sites[f"{layer}.fc1.output"].dtype == "float32"
    assert table.sites["input"].dtype == "int64"
    assert table.widths[f"{layer}.fc1"] == (32, 48)
    assert table.parameters[f"{layer}.fc1.weight"] == ("float32", (48, 32))
    assert "lm_head.weight" in table.parameters  # tied, and there all the same
    assert table.calls["model"] == 0
    assert "never calls it" in table.why_not("model.output")


def test_positions_have_a_row_for_each_request():
    table = scan(FAMILIES["llama"]())
    assert table.sites["model.rotary_emb.output[0]"].axes == ("batch", "seq", 8)


def test_encoder_and_decoder_tokens_are_told_apart():
    table = scan(FAMILIES["t5"]())
    assert table.sites["encoder.block.1.output[0]"].axes == ("batch", "source", 32)
    assert table.sites["decoder.block.1.output[0]"].axes == ("batch", "seq", 32)
    cross = "decoder.block.1.layer.1.EncDecAttention"
    assert table.sites[f"{cross}.output[1]"].axes == (1, 4, "seq", "source")
    assert table.sites[f"{cross}.k.output"].axes == ("batch", "source", 32)
    assert table.calls["shared"] == 0


def test_what_is_inside_experts_is_not_told_apart_by_rows():
    table = scan(FAMILIES["mixtral"]())
    mlp = "model.layers.1.mlp"
    assert table.sites[f"{mlp}.gate.output[0]"].axes == ("batch*seq", 4)
    assert table.sites[f"{mlp}.experts.output"].axes == ("batch*seq", 32)
    assert table.sites[f"{mlp}.experts.act_fn.output"].axes == ("?", 48)
    assert not table.sites[f"{mlp}.experts.act_fn.output"].can_be_shared


def test_a_module_whose_calls_depend_on_the_tokens_has_no_sites_and_a_reason():
    module = FAMILIES["mixtral"]()
    module.set_experts_implementation("eager")
    table, path = scan(module), "model.layers.1.mlp.experts.act_fn"
    assert not any(name.startswith(path) for name in table.sites)
    assert "depends on the tokens" in table.why_not(f"{path}.output")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_survives_json(family):
    table = scan(FAMILIES[family]())
    assert from_json(json.loads(json.dumps(to_json(table)))) == table


@pytest.mark.parametrize("family", FAMILIES)
def test_every_leaf_is_a_site_at_its_event(family):
    table = scan(FAMILIES[family]())
    for order, event in enumerate(table.events):
        leaves = list(_leaves(event.structure))
        assert [table.sites[name].order for name in leaves] == [order] * len(leaves)
    assert {site.order for site in table.sites.values()} <= set(range(len(table.events)))


def _leaves(structure):
    (kind, inner), *_ = structure.items()
    if kind == "leaf":
        yield inner
    elif kind != "other":
        for part in inner.values() if kind == "dict" else inner:
            yield from _leaves(part)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fake_scan_is_the_real_one(family):
    assert scan_fake(FAMILIES[family]) == scan(FAMILIES[family]())


def test_a_fake_scan_that_needs_numbers_says_so():
    class NeedsNumbers(nn.Module):
        config = FAMILIES["gpt2"]().config

        def forward(self, input_ids):
            return input_ids + int(input_ids.sum())

    with pytest.raises(ModelError, match="load the weights"):
        scan_fake(NeedsNumbers)


def test_a_model_without_token_ids_is_refused_with_what_to_do():
    with pytest.raises(ModelError, match=r"Hugging Face model.*inputs of one call"):
        scan(Doubler())
    with pytest.raises(ModelError, match="inputs of one call"):
        scan(Doubler(), plain=True)


def test_an_order_of_modules_that_depends_on_the_input_is_refused():
    class Fickle(nn.Module):
        config = FAMILIES["gpt2"]().config

        def __init__(self):
            super().__init__()
            self.one, self.two = Doubler(), Doubler()

        def forward(self, input_ids):
            first, second = (self.one, self.two) if len(input_ids) == 2 else (self.two, self.one)
            return second(first(input_ids))

    with pytest.raises(ModelError, match="in one order"):
        scan(Fickle())


@pytest.mark.parametrize(
    ("family", "site", "axes"),
    [
        ("gptj", "transformer.h.1.attn.attn_dropout.output", ("batch", 4, "seq", "context")),
        ("bloom", "transformer.h.1.self_attention.output[1]", ("batch", 4, "seq", "context")),
        ("opt", "model.decoder.embed_positions.input", ("batch", "context")),
        ("bert", "layers.1.attn.probs", ("batch", 4, "seq", "context")),
        ("t5", "decoder.layers.1.attn.probs", ("batch", 4, "seq", "context")),
    ],
)
def test_what_is_looked_back_at_is_told_from_what_enters(family, site, axes):
    assert build_table({**FAMILIES, **MORE_FAMILIES}[family]()).sites[site].axes == axes
