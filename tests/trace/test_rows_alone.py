"""A row of `model.run` is what it is alone, for any `rows=`: also where a graph mixes tokens, and where it draws."""

import tempfile
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glassworks as gw
from families import FAMILIES

PROMPTS = st.lists(st.lists(st.integers(3, 90), min_size=1, max_size=5, unique=True), min_size=1, max_size=7)
"""Tokens of a row differ, so that `argmax` over them has no ties."""
ROWS = st.integers(1, 8)
SETTINGS = settings(max_examples=15, deadline=None)
NEW = 3


@cache
def model_of(family: str) -> Any:
    return gw.wrap(FAMILIES[family]())


def save_mixed(model: Any) -> None:
    """Saves with and without an axis of tokens, of values in which tokens are mixed."""
    h = model.layers[1].output
    h.save("h")
    h.mean(1).save("mean")
    h.softmax(1).save("softmax")
    h.softmax(1).sum(1, keepdim=True).save("kept")
    h[:, -1].save("last")
    h.cumsum(1).save("cumsum")
    h.flip(1).save("flip")
    h.argmax(1).save("argmax")
    h.flatten(1).save("flat")
    h.std(1, correction=0).save("std")
    h.norm(dim=-1).mean(1).save("number")
    (h @ h.transpose(1, 2)).softmax(-1).save("gram")
    torch.rand_like(h[:, -1]).save("noise")


@cache
def graph_of(family: str, kind: str) -> gw.Graph:
    model = model_of(family)
    if kind == "forward":
        with model.record() as t:
            model.layers[0].output += model.layers[0].output.mean(1, keepdim=True)  # a write that mixes tokens
            save_mixed(model)
        return t.graph
    with model.generate([5, 6], max_new_tokens=NEW) as t:
        with t.steps[:]:
            model.logits[:, -1, 2] += (model.ids[:, -1] % 3 == 0).float() * 1e6  # rows end sooner or later
            model.layers[1].output.mean(1).save("each")
        with t.steps[0]:
            save_mixed(model)
        with t.steps[1]:
            model.layers[1].output[:, -1].save("second")
        t.result.save("new")
    return t.graph


def close(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if found.is_floating_point():
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    else:
        assert torch.equal(found, expected)


def row_is_alone(found: Any, row: int, alone: Any) -> None:
    """One save: a tensor, a list of ragged rows, or a list of an entry a step."""
    for name, expected in alone.items():
        if name in ("noise", "new"):
            continue
        if name in ("each", "second"):
            entries = expected if isinstance(expected, list) else [expected]
            mine = found[name] if isinstance(found[name], list) else [found[name]]
            for k, entry in enumerate(entries):
                close(mine[k][row], entry[0])
            assert all(not bool(entry[row].any()) for entry in mine[len(entries) :])
            continue
        close(found[name][row], expected[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["forward", "generate"])
@settings(SETTINGS)
@given(prompts=PROMPTS, rows=ROWS)
def test_a_row_is_what_it_is_alone(family, kind, prompts, rows):
    model, graph = model_of(family), graph_of(family, kind)
    options = {} if kind == "forward" else {"max_new_tokens": NEW}
    found = model.run(graph, prompts, rows=rows, **options)
    lone = [model.run(graph, [prompt], rows=1, **options) for prompt in prompts]
    for row, alone in enumerate(lone):
        row_is_alone(found, row, alone)
    if kind == "generate":
        [alive] = found.alive
        for row, own in enumerate(lone):
            mine = [step[row] for step in alive]
            assert mine == [*(step[0] for step in own.alive[0]), *[False] * (len(alive) - len(own.alive[0]))]
            assert found["new"][row].tolist() == own["new"][0].tolist()
    one = model.run(graph, prompts, rows=1, **options)
    for row in range(len(prompts)):
        assert torch.equal(found["noise"][row], one["noise"][row])  # by the row's own number
    assert len({tuple(row.tolist()) for row in one["noise"]}) == len(prompts)


@settings(max_examples=8, deadline=None)
@given(prompts=PROMPTS, rows=ROWS, kind=st.sampled_from(["forward", "generate"]))
def test_a_folder_and_a_service_give_the_rows_in_the_order_of_the_prompts(prompts, rows, kind):
    model, graph = model_of("gpt2"), graph_of("gpt2", kind)
    options = {} if kind == "forward" else {"max_new_tokens": NEW}
    expected = model.run(graph, prompts, rows=rows, **options)
    with tempfile.TemporaryDirectory() as folder:
        stored = model.run(graph, prompts, rows=rows, to=folder, **options)
        remote = gw.connect(model).run(graph, prompts, rows=rows, **options)
        waited = gw.connect(model).run(graph, prompts, rows=rows, wait=False, **options)
        assert stored.ids == [tuple(prompt) for prompt in prompts]
        assert list(map(list, stored.alive[0])) == list(map(list, expected.alive[0]))
        for name in expected:
            each = [list(own[name]) for own in (expected, stored, remote, waited)]
            for first, *others in zip(*each, strict=True):
                assert all(torch.equal(first, other) for other in others)
        for row, own in zip(stored.rows("mean"), expected["mean"], strict=True):
            assert torch.equal(row, own)


def test_a_value_without_rows_is_refused_over_prompts_of_several_lengths():
    model = model_of("gpt2")
    with model.record() as t:
        model.layers[0].output.mean().save("x")
    with pytest.raises(gw.GraphError, match=r"(?s)'x' has no axis of rows .* over 2 passes.*prompts of one length"):
        model.run(t.graph, [[5, 6], [7]])
    assert model.run(t.graph, [[5, 6], [7, 8]])["x"].shape == ()


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_arguments_of_the_model_go_with_their_rows(rows):
    prompts = [[5, 6, 7], [11, 12, 13, 4], [3, 4, 8], [9, 5]]
    begins = torch.tensor([[0, 11], [0, 12], [0, 13], [0, 14]])
    t5, gpt2 = model_of("t5"), model_of("gpt2")
    places = torch.tensor([[0, 2, 4, 6], [1, 2, 3, 4], [0, 9, 8, 7], [0, 0, 5, 3]])
    for model, all_rows in ((t5, {"decoder_input_ids": begins}), (gpt2, {"position_ids": places})):
        with model.record() as t:
            model.logits[:, -1].save("last")
        found = model.run(t.graph, prompts, rows=rows, **all_rows)["last"]
        for row, prompt in enumerate(prompts):
            own = {name: value[row : row + 1] for name, value in all_rows.items()}
            if model is gpt2:
                own["position_ids"] = own["position_ids"][:, -len(prompt) :]
            with model.trace(prompt, **own):
                alone = model.logits[:, -1].save()
            close(found[row], alone.value[0])
