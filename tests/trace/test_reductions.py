"""`save(reduce=)` and rows that are joined, against what each prompt gives alone, at any number of rows a pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glassworks as gw
from laws.runtimes import eager

PROMPTS = st.lists(st.lists(st.integers(3, 90), min_size=1, max_size=6), min_size=1, max_size=7)
ROWS = st.integers(1, 8)
SETTINGS = settings(max_examples=12, deadline=None)


def heads(h: Any) -> Any:
    """`[batch, seq, heads, head_dim]`."""
    return h.unflatten(-1, (4, 8))


def gate(model: Any) -> Any:
    """Rows and tokens folded into one axis, as the router returns them."""
    return model.model.layers[0].mlp.gate.output[0]


VALUES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a site": ("gpt2", lambda m: m.layers[1].output),
    "one token": ("gpt2", lambda m: m.layers[1].output[:, -1]),
    "a number a row": ("gpt2", lambda m: m.logits[:, -1].logsumexp(-1)),
    "a number a token": ("gpt2", lambda m: m.layers[1].output.norm(dim=-1)),
    "all tokens but the last": ("gpt2", lambda m: m.layers[1].output[:, :-1]),
    "all tokens but the first": ("gpt2", lambda m: m.layers[1].output[:, 1:]),
    "heads": ("gpt2", lambda m: heads(m.layers[1].output)),
    "heads before tokens": ("gpt2", lambda m: heads(m.layers[1].output).transpose(1, 2)),
    "tokens by tokens": ("gpt2", lambda m: m.layers[1].output @ m.layers[1].output.mT),
    "whole numbers": ("gpt2", lambda m: m.logits.argmax(-1)),
    "bools": ("gpt2", lambda m: m.layers[1].output > 0),
    "complex": ("gpt2", lambda m: torch.complex(m.layers[1].output, m.layers[0].output)),
    "the last axis of many": ("gpt2", lambda m: m.layers[1].output.mT),
    "rows behind": ("gpt2", lambda m: m.layers[1].output.transpose(0, 1)),
    "folded": ("mixtral", gate),
    "an expert's share": ("mixtral", lambda m: gate(m).softmax(-1).max(-1).values),
}
AXES: dict[str, tuple[int, tuple[int, ...]]] = {
    "a site": (0, (1,)), "one token": (0, ()), "a number a row": (0, ()), "a number a token": (0, (1,)),
    "all tokens but the last": (0, (1,)), "all tokens but the first": (0, (1,)), "heads": (0, (1,)),
    "heads before tokens": (0, (2,)), "tokens by tokens": (0, (1, 2)), "whole numbers": (0, (1,)), "bools": (0, (1,)),
    "complex": (0, (1,)), "the last axis of many": (0, (2,)), "rows behind": (1, (0,)), "folded": (-1, (0,)),
    "an expert's share": (-1, (0,)),
}  # fmt: skip
"""The axis of rows (-1: folded into that of tokens) and the axes of tokens of what a lone prompt gives."""


def alone(name: str, prompt: list[int]) -> torch.Tensor:
    family, write = VALUES[name]
    model = eager(family)
    with model.trace(prompt):
        saved = write(model).save()
    return saved.value


def by_hand(name: str, prompts: list[list[int]]) -> tuple[torch.Tensor, int]:
    """The sum over all rows and tokens, and over how many places; and one after the other."""
    axis, tokens = AXES[name]
    axes = tuple(dict.fromkeys([*([axis] if axis >= 0 else []), *tokens]))
    total, count = None, 0
    for prompt in prompts:
        value = alone(name, prompt)
        wide = value.to(torch.complex128) if value.is_complex() else value.double()
        own = wide.sum(dim=axes)
        total = own if total is None else total + own
        places = 1
        for k in axes:
            places *= value.shape[k]
        count += places
    assert total is not None
    return total, count


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    wide = torch.complex128 if expected.is_complex() else torch.float64
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found.to(wide), expected, atol=2e-5 * scale, rtol=2e-5, equal_nan=True)


@pytest.mark.parametrize("name", VALUES)
@settings(SETTINGS)
@given(prompts=PROMPTS, rows=ROWS)
def test_reductions_are_those_over_the_lone_runs(name, prompts, rows):
    family, write = VALUES[name]
    model = eager(family)
    with model.record() as t:
        value = write(model)
        value.save("mean", reduce="mean")
        value.save("sum", reduce="sum")
    found = model.run(t.graph, prompts, rows=rows)
    total, count = by_hand(name, prompts)
    close(found["sum"], total)
    if count:
        close(found["mean"], total / count)
    else:
        assert bool(found["mean"].isnan().all())
    dtype = alone(name, prompts[0]).dtype
    has_fractions = dtype.is_floating_point or dtype.is_complex
    assert found["sum"].dtype == (dtype if has_fractions else torch.int64)
    assert found["mean"].dtype == (dtype if has_fractions else torch.float64)


@pytest.mark.parametrize("name", VALUES)
@settings(SETTINGS)
@given(prompts=PROMPTS, rows=ROWS)
def test_rows_are_joined_without_padding(name, prompts, rows):
    family, write = VALUES[name]
    model = eager(family)
    with model.record() as t:
        write(model).save("x")
    found = model.run(t.graph, prompts, rows=rows)["x"]
    axis, _ = AXES[name]
    lone = [alone(name, prompt) for prompt in prompts]
    if axis >= 0:
        lone = [value.squeeze(axis) for value in lone]
    if isinstance(found, list):
        assert len({value.shape for value in lone}) > 1
        pieces = found
    else:
        assert len({value.shape for value in lone}) == 1
        pieces = list(found.unbind(axis)) if axis >= 0 else list(found.split([len(value) for value in lone]))
    assert len(pieces) == len(prompts)
    for piece, value in zip(pieces, lone, strict=True):
        assert piece.shape == value.shape
        assert piece.dtype == value.dtype
        if value.is_floating_point() or value.is_complex():
            close(piece, value.to(torch.complex128) if value.is_complex() else value.double())
        else:
            assert torch.equal(piece, value)


def test_sums_of_whole_numbers_are_exact():
    model = eager("gpt2")
    with model.record() as t:
        (model.ids * 0 + 2**60 + 1).save("sum", reduce="sum")
    found = model.run(t.graph, [[5, 6], [7]], rows=1)
    assert int(found["sum"]) == 3 * (2**60 + 1)


def test_means_of_a_narrow_format_are_summed_in_a_wide_one():
    model = eager("gpt2")
    with model.record() as t:
        (model.layers[0].output * 0 + 1.0).to(torch.bfloat16).save("sum", reduce="sum")
        (model.layers[0].output * 0 + 1.0).to(torch.bfloat16).save("mean", reduce="mean")
    found = model.run(t.graph, [[5, 6, 7, 8]] * 200, rows=64)
    assert found["sum"].dtype == torch.bfloat16
    assert float(found["sum"][0]) == 800
    assert float(found["mean"][0]) == 1


def test_an_axis_of_no_tokens_that_depends_on_their_number_is_ragged_too():
    model = eager("gpt2")
    with model.record() as t:
        model.layers[0].output.flatten(1).save("flat")
    ragged = model.run(t.graph, [[7], [5, 6]], rows=2)["flat"]
    assert [row.shape for row in ragged] == [(32,), (64,)]


def test_a_graph_that_speaks_of_a_far_token_runs():
    model = eager("gpt2")
    with model.record() as t:
        model.layers[0].output[:, 12].save("x")
    assert model.run(t.graph, [[5] * 14, [6] * 14], rows=1)["x"].shape == (2, 32)


def test_random_nodes_draw_by_the_row_whatever_a_pass_holds(tmp_path):
    model = eager("gpt2")
    prompts = [[5 + k % 7 + j for j in range(1 + (k * 3) % 6)] for k in range(11)]
    with model.record() as t:
        torch.rand_like(model.layers[0].output[:, -1]).save("noise")
    expected = model.run(t.graph, prompts, rows=64)["noise"]
    assert len({float(row[0]) for row in expected}) == len(prompts)
    torch.testing.assert_close(model.run(t.graph, prompts, rows=2)["noise"], expected, atol=0, rtol=0)
    torch.testing.assert_close(model.run(t.graph, prompts, rows=3, to=tmp_path)["noise"], expected, atol=0, rtol=0)
    torch.testing.assert_close(gw.connect(model).run(t.graph, prompts, rows=4)["noise"], expected, atol=0, rtol=0)


# Steps.


def ends_by_itself(model: Any) -> gw.Graph:
    """A generation in which a row ends when it is told to by its last token, sooner or later."""
    with model.generate([5, 6], max_new_tokens=4) as t:
        with t.steps[:]:
            ends = (model.ids[:, -1] % 3 == 0).float()
            model.logits[:, -1, 2] += ends * 1e6
            h = model.layers[1].output[:, -1]
            h.save("each")
            h.save("mean", reduce="mean")
            h.save("sum", reduce="sum")
        with t.steps[2]:
            model.layers[1].output[:, -1].save("third", reduce="mean")
        t.result.save("new")
    return t.graph


@settings(SETTINGS)
@given(prompts=PROMPTS, rows=ROWS)
def test_rows_that_end_count_no_longer_and_hold_zeros(prompts, rows):
    model = eager("gpt2")
    graph = ends_by_itself(model)
    lone = [model.run(graph, [prompt], rows=1, max_new_tokens=4) for prompt in prompts]
    found = model.run(graph, prompts, rows=rows, max_new_tokens=4)
    steps = max(len(own["each"]) for own in lone)
    assert len(found["each"]) == len(found["mean"]) == steps
    for k in range(steps):
        live = [own["each"][k][0] for own in lone if len(own["each"]) > k]
        close(found["mean"][k], torch.stack(live).double().mean(0))
        close(found["sum"][k], torch.stack(live).double().sum(0))
        for row, own in enumerate(lone):
            expected = own["each"][k][0] if len(own["each"]) > k else torch.zeros(32)
            close(found["each"][k][row], expected.double())
    third = [own["each"][2][0] for own in lone if len(own["each"]) > 2]
    if third:
        close(found["third"], torch.stack(third).double().mean(0))
    else:
        assert found["third"] == []
    for row, own in zip(found["new"], lone, strict=True):
        assert row.tolist() == own["new"][0].tolist()


@pytest.mark.parametrize("prompts", [[[5, 6, 7]], [[5, 6, 7], [8, 9, 10]], [[5, 6, 7, 8], [9, 10]]])
def test_a_folded_site_has_the_shape_that_it_shows_in_any_company(prompts):
    model = eager("mixtral")
    with model.trace(prompts):
        shape = gate(model).shape
        plain = gate(model).save()
        doubled = (gate(model) * 2).save()
        gate(model)[:] = 0.0
        after = gate(model).save()
    assert plain.value.shape == doubled.value.shape == after.value.shape == shape
    assert torch.equal(doubled.value, plain.value * 2)
    assert not bool(after.value.any())


# In a block that runs.


@settings(SETTINGS)
@given(prompts=PROMPTS, others=PROMPTS)
def test_a_block_reduces_over_the_rows_of_the_invoke(prompts, others):
    model = eager("gpt2")
    with model.trace() as t:
        with t.invoke(prompts):
            h = model.layers[1].output
            mean, total = h.save(reduce="mean"), h[:, -1].save(reduce="sum")
        with t.invoke(others):
            model.layers[0].output *= 2.0
            other = model.layers[0].output.save(reduce="mean")
        every = model.layers[0].input.save(reduce="sum")
    close(mean.value, by_hand("a site", prompts)[0] / sum(map(len, prompts)))
    close(total.value, by_hand("one token", prompts)[0])
    first = [alone_at(model, prompt, lambda: model.layers[0].output) for prompt in others]
    close(other.value, torch.cat(first).double().mean(0) * 2)
    inputs = [alone_at(model, prompt, lambda: model.layers[0].input) for prompt in (*prompts, *others)]
    close(every.value, torch.cat(inputs).double().sum(0))


def alone_at(model: Any, prompt: list[int], site: Callable[[], Any]) -> torch.Tensor:
    with model.trace(prompt):
        saved = site().save()
    return saved.value[0]


def test_a_generation_reduces_over_live_rows():
    model = eager("gpt2")
    prompts = [[5, 6], [7, 8, 9], [10, 11]]

    def write(t: Any) -> Any:
        with t.steps[:]:
            ends = (model.ids[:, -1] % 3 == 0).float()
            model.logits[:, -1, 2] += ends * 1e6
            return model.layers[1].output[:, -1].save(reduce="sum")

    with model.generate(prompts, max_new_tokens=4) as t:
        found = write(t)
    lone = []
    for prompt in prompts:
        with model.generate(prompt, max_new_tokens=4) as t:
            lone.append(write(t))
    assert len(found.value) == max(len(own.value) for own in lone)
    assert len({len(own.value) for own in lone}) > 1
    for k, total in enumerate(found.value):
        close(total, torch.stack([own.value[k] for own in lone if len(own.value) > k]).double().sum(0))


@pytest.mark.parametrize("kind", ["remote", "session", "live"])
def test_other_blocks_reduce_too(kind):
    model = gw.connect(eager("gpt2")) if kind == "remote" else eager("gpt2")
    prompts = [[5, 6, 7], [8, 9]]
    if kind == "session":
        with model.session(), model.trace(prompts):
            saved = model.layers[1].output.save(reduce="mean")
    elif kind == "live":
        with model.live(prompts):
            saved = model.layers[1].output.save(reduce="mean")
    else:
        with model.trace(prompts):
            saved = model.layers[1].output.save(reduce="mean")
    close(saved.value, by_hand("a site", prompts)[0] / 5)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda m: m.layers[0].output.mean(), "no axis of rows"),
        (lambda m: m.layers[0].output.flatten(1), "padding cannot be taken off"),
        (lambda m: torch.ones(3) + m.unembed(torch.ones(1, 1, 32)), "rows of one invoke"),
    ],
)
def test_what_cannot_be_reduced_is_refused_before_anything_runs(write, says):
    model = eager("gpt2")
    passes: list[int] = []
    handle = model.backend.runtime.module.register_forward_pre_hook(lambda *args: passes.append(1))
    try:
        with pytest.raises(gw.GraphError, match=rf"(?s){says}.*test_reductions.py"), model.trace([[5, 6, 7], [8, 9]]):
            kept = write(model).save("x", reduce="mean")
        assert passes == []
    finally:
        handle.remove()
    with pytest.raises(gw.NotSaved, match="ended with an error"):
        _ = kept.value


def test_a_plain_module_has_no_rows_to_reduce_over():
    net = gw.wrap(torch.nn.Linear(3, 3))
    with net.record() as t:
        net.output.save("x", reduce="mean")
    with pytest.raises(gw.GraphError, match="no axis of rows"):
        net.run(t.graph, torch.ones(2, 3))
    with pytest.raises(gw.GraphError, match="no axis of rows"), net.trace(torch.ones(2, 3)):
        net.output.save(reduce="mean")
