"""Recorded graphs, runs over many prompts, edits, caches; text in blocks."""

from importlib.resources import files
from typing import Any

import pytest
import torch

import glassworks as gw
from lines import here, told

RAGGED = [[5, 6, 7], [11, 12, 13, 14, 15, 16], [21, 22], [31, 32, 33, 34]]
EQUAL = [[5, 6, 7], [8, 9, 10], [11, 12, 13], [14, 15, 16], [17, 18, 19]]


def alone(model: Any, prompt: list[int], read: Any) -> torch.Tensor:
    with model.trace(prompt):
        saved = read().save()
    return saved.value


def test_recording_does_not_run(model: Any, bare: Any) -> None:
    calls = []
    handle = bare.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with model.record() as t:
            model.logits[:, -1].save("last")
    finally:
        handle.remove()
    assert calls == []
    assert t.graph.saves == ("last",)


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_a_graph_is_run_over_prompts(model: Any, rows: int) -> None:
    with model.record() as t:
        model.layers[0].output[:, -1] *= 0.5
        model.logits[:, -1].save("last")
        model.layers[1].output.save()
    found = model.run(t.graph, RAGGED, rows=rows)
    assert list(found) == ["last", "1"]
    assert found["last"].shape == (4, 97)
    assert isinstance(found["1"], list)
    for k, prompt in enumerate(RAGGED):
        with model.trace(prompt):
            model.layers[0].output[:, -1] *= 0.5
            last = model.logits[:, -1].save()
            whole = model.layers[1].output.save()
        torch.testing.assert_close(found["last"][k], last.value[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["1"][k], whole.value[0], atol=1e-5, rtol=1e-5)


def test_rows_of_one_length_are_one_tensor(model: Any) -> None:
    with model.record() as t:
        model.layers[1].output.save("h")
    found = model.run(t.graph, EQUAL, rows=2)
    assert found["h"].shape == (5, 3, 32)


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("prompts", [RAGGED, EQUAL])
def test_reductions_leave_padding_out(model: Any, prompts: list[list[int]], rows: int) -> None:
    with model.record() as t:
        h = model.layers[1].output
        h.save("mean", reduce="mean")
        h.save("sum", reduce="sum")
        h[:, -1].save("last", reduce="mean")
    found = model.run(t.graph, prompts, rows=rows)
    each = [alone(model, prompt, lambda: model.layers[1].output)[0] for prompt in prompts]
    tokens = torch.cat(each)
    torch.testing.assert_close(found["mean"], tokens.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["sum"], tokens.sum(0), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found["last"], torch.stack([h[-1] for h in each]).mean(0), atol=1e-4, rtol=1e-4)


def test_inputs_by_name(model: Any) -> None:
    with model.record() as t:
        steer = gw.input("steer", (32,))
        model.layers[0].output += steer
        model.logits[:, -1].save("last")
    own = torch.linspace(-1, 1, 32)
    found = model.run(t.graph, EQUAL, steer=own)
    with model.trace(EQUAL[2]):
        model.layers[0].output += own
        last = model.logits[:, -1].save()
    torch.testing.assert_close(found["last"][2], last.value[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(gw.InputError, match="steer"):
        model.run(t.graph, EQUAL)


def test_graphs_compare_by_what_they_do(model: Any) -> None:
    def graph(factor: float) -> gw.Graph:
        with model.record() as t:
            (model.layers[0].output * factor).save("x")
        return t.graph

    assert graph(2.0) == graph(2.0)
    assert hash(graph(2.0)) == hash(graph(2.0))
    assert graph(2.0) != graph(3.0)
    assert "layers.0.output" in str(graph(2.0))


def test_a_reduction_of_another_name_is_refused(model: Any) -> None:
    with pytest.raises(gw.GraphError, match="mean"), model.record():
        model.logits.save("x", reduce="median")


# Edits.


def test_an_edit_is_always_there_and_the_original_is_untouched(model: Any) -> None:
    prompt = [5, 6, 7]
    clean = alone(model, prompt, lambda: model.logits)
    with model.edit() as edited:
        edited.layers[0].output[:, -1] *= 0.5
    with model.trace(prompt):
        model.layers[0].output[:, -1] *= 0.5
        expected = model.logits.save()
    assert torch.equal(alone(edited, prompt, lambda: edited.logits), expected.value)
    assert torch.equal(alone(model, prompt, lambda: model.logits), clean)


def test_edits_nest_and_come_before_the_block(model: Any) -> None:
    prompt = [5, 6, 7]
    with model.edit() as once:
        once.layers[0].output = once.layers[0].output + 1.0
    with once.edit() as twice:
        twice.layers[0].output = twice.layers[0].output * 2.0
    with twice.trace(prompt):
        seen = twice.layers[0].output.save()
        twice.layers[0].output = 0.0
        last = twice.logits.save()
    clean = alone(model, prompt, lambda: model.layers[0].output)
    assert torch.equal(seen.value, (clean + 1.0) * 2.0)
    with model.trace(prompt):
        model.layers[0].output = 0.0
        expected = model.logits.save()
    assert torch.equal(last.value, expected.value)


def test_an_edit_concerns_every_row_and_every_step(model: Any) -> None:
    with model.edit() as edited:
        edited.logits[..., 42] = 1e4
    with edited.generate(RAGGED, max_new_tokens=3, eos_token_id=[]) as t:
        pass
    assert t.result.tolist() == [[42, 42, 42]] * 4
    with edited.trace() as t:
        with t.invoke([5, 6]):
            one = edited.logits.argmax(-1).save()
        with t.invoke([7, 8, 9]):
            two = edited.logits.argmax(-1).save()
    assert bool((one.value == 42).all())
    assert bool((two.value == 42).all())


def test_an_edited_model_runs_stored_graphs(model: Any) -> None:
    with model.edit() as edited:
        edited.layers[0].output = 0.0
    with model.record() as t:
        model.logits[:, -1].save("last")
    plain, changed = model.run(t.graph, EQUAL)["last"], edited.run(t.graph, EQUAL)["last"]
    assert not torch.equal(plain, changed)


def test_an_edit_saves_nothing(model: Any) -> None:
    with pytest.raises(gw.GraphError, match="save"), model.edit() as edited:
        edited.logits.save()


# Caches.


def test_a_cache_holds_final_values_by_site(model: Any) -> None:
    with model.trace([5, 6, 7]) as t:
        kept = t.cache()
        model.layers[0].output = 1.0
        last = model.layers[2].output.save()
    assert list(kept) == ["layers.0.output", "layers.1.output", "layers.2.output"]
    assert bool((kept["layers.0.output"] == 1.0).all())
    assert torch.equal(kept["layers.2.output"], last.value)


def test_a_cache_of_several_patterns_in_another_format(model: Any) -> None:
    with model.trace([5, 6, 7]) as t:
        kept = t.cache(sites=["layers.*.mlp.output", "logits"], dtype=torch.float16)
    assert set(kept) == {"logits", *(f"layers.{k}.mlp.output" for k in range(3))}
    assert kept["logits"].dtype == torch.float16
    assert kept["logits"].device.type == "cpu"


def test_a_cache_of_no_site_is_refused(model: Any) -> None:
    with pytest.raises(gw.UnknownSite) as caught, model.trace([5, 6, 7]) as t:
        line = here(+1)
        t.cache("nothing.*")
    assert line in told(caught.value)


# Text.

_TOY = files("glassworks.model") / "toy" / "config.json"
needs_toy = pytest.mark.skipif(not _TOY.is_file(), reason="the bundled toy is not there yet")


@pytest.fixture(scope="module")
def toy() -> Any:
    return gw.load("toy")


@needs_toy
def test_tokens_of_prompts(toy: Any) -> None:
    prompts = ["The Eiffel Tower is in the city of", "Rome"]
    with toy.trace(prompts) as t:
        tokens, mask = t.tokens, t.mask
        toy.logits.save()
    assert ["".join(row) for row in tokens] == prompts or all(
        text in "".join(row) for text, row in zip(prompts, tokens, strict=True)
    )
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [len(row) for row in tokens]
    assert bool(mask[:, -1].all())


@needs_toy
def test_positions_of_a_text(toy: Any) -> None:
    with toy.trace(["The Eiffel Tower is in the city of", "In Paris the Tower is"]) as t:
        at = t.find(" Tower")
        h = toy.layers[0].output
        found = h[:, at].save()
        whole = h.save()
        assert h[:, at].shape == (2, h.shape[-1])
    for k, position in enumerate(at):
        assert torch.equal(found.value[k], whole.value[k, position])


@needs_toy
def test_a_text_off_a_token_boundary_is_refused(toy: Any) -> None:
    with pytest.raises(gw.InputError) as caught, toy.trace("The Eiffel Tower is in the city of") as t:
        line = here(+1)
        t.find("towerless")
    assert line in told(caught.value)


@needs_toy
def test_one_token(toy: Any) -> None:
    with toy.trace("The Eiffel Tower") as t:
        word = t.tokens[0][-1]
    token = toy.token(word)
    assert type(token) is int
    assert toy.decode(token).strip() == word.strip()
    with pytest.raises(gw.InputError):
        toy.token("The Eiffel Tower is in the city of")


@needs_toy
def test_forms_of_one_prompt(toy: Any) -> None:
    text = "The Eiffel Tower is in the city of"
    ids = toy.encode(text)
    found = []
    for prompt in (
        text,
        [text],
        ids,
        [ids],
        torch.tensor(ids),
        torch.tensor([ids]),
        {"input_ids": torch.tensor([ids])},
    ):
        with toy.trace(prompt):
            found.append(toy.logits.save())
    for value in found[1:]:
        assert torch.equal(value.value, found[0].value)


def test_a_text_without_a_tokenizer_is_refused(model: Any) -> None:
    with pytest.raises(gw.InputError, match="tokenizer"), model.trace("a text"):
        model.logits.save()
