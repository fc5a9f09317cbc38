"""Steps of a generation, beside transformers' own `generate()` with hooks on every module."""

from typing import Any

import pytest
import torch

import glassworks as gw
from contract.places import OTHER, PROMPT, SOURCE, Place, close, names, same
from lines import here

SEQ = len(PROMPT)


@pytest.mark.sentence("steps.1", "steps.16")
def test_generate(place: Place) -> None:
    """`with model.generate(prompt, max_new_tokens=5) as t:`."""
    with place.model.generate(PROMPT, max_new_tokens=5) as t:
        pass
    same(t.result, place.oracle.generate(PROMPT, 5).returned)


@pytest.mark.sentence("steps.2", "steps.3", "steps.6")
def test_what_steps_are(place: Place) -> None:
    """Step 0 is the forward over the prompt ... step k the forward that reads the k-th new token."""
    expected = place.oracle.generate(PROMPT, 5)
    with place.model.generate(PROMPT, max_new_tokens=5) as t, t.steps[0:5]:
        ids = place.model.ids.save()
        hidden = place.model.layers[1].output.save()
        logits = place.model.logits.save()
    new = expected.returned[0].tolist()
    assert [value.tolist() for value in ids] == [[PROMPT], *([[token]] for token in new[:4])]
    assert len(hidden) == len(logits) == 5
    for k in range(5):
        close(hidden[k], expected.visits["layers.1.output"][k])
        close(logits[k], expected.visits["logits"][k])


@pytest.mark.sentence("steps.2", "steps.3", "steps.4")
def test_steps_of_an_encoder_decoder(encdec: Place) -> None:
    """Step 0 is the forward over the prompt (encoder-decoder: encoder and start token), step k the forward that reads
    the k-th new token. `model.ids` are the ids that enter it."""
    expected = encdec.oracle.generate(SOURCE, 4)
    model = encdec.model
    with model.generate(SOURCE, max_new_tokens=4) as t:
        with t.steps[0]:
            source = model.encoder.layers[1].output.save()
        with t.steps[0:4]:
            ids = model.ids.save()
            hidden = model.decoder.layers[1].output.save()
            crossed = model.decoder.layers[1].cross_attn.output.save()
            logits = model.logits.save()
    new = expected.returned[0].tolist()
    assert [value.tolist() for value in ids] == [[[0]], *([[token]] for token in new[:3])]
    close(source.value, expected["encoder.layers.1.output"])
    for k in range(4):
        close(hidden[k], expected.visits["decoder.layers.1.output"][k])
        close(crossed[k], expected.visits["decoder.layers.1.cross_attn.output"][k])
        close(logits[k], expected.visits["logits"][k])
    same(t.result, expected.returned)


@pytest.mark.sentence("steps.2")
def test_the_encoder_runs_at_step_0(encdec: Place) -> None:
    """Step 0 is the forward over the prompt (encoder-decoder: encoder and start token),"""

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        return tensor * 0.5

    expected = encdec.oracle.generate(SOURCE, 4, {"encoder.layers.1.output": change})
    with encdec.model.generate(SOURCE, max_new_tokens=4) as t:
        with t.steps[0]:
            encdec.model.encoder.layers[1].output *= 0.5
        with t.steps[3]:
            logits = encdec.model.logits.save()
    close(logits.value, expected.visits["logits"][3])
    same(t.result, expected.returned)


@pytest.mark.sentence("steps.4")
def test_ids(place: Place) -> None:
    """`model.ids` are the ids that enter it."""
    expected = place.oracle.generate(PROMPT, 3).returned
    with place.model.generate([PROMPT, OTHER], max_new_tokens=3) as t:
        with t.steps[0]:
            first = place.model.ids.save()
        with t.steps[2]:
            last = place.model.ids
            assert last.dtype == torch.int64
            saved = last.save()
    assert first.value[0].tolist() == PROMPT
    assert first.value[1, -3:].tolist() == OTHER
    assert saved.value.tolist() == [[expected[0, 1]], [place.oracle.generate(OTHER, 3).returned[0, 1]]]


@pytest.mark.sentence("steps.5")
def test_logits_of_the_prompt(place: Place) -> None:
    """`logits` has the full `seq` at step 0."""
    expected = place.oracle.forward(PROMPT).logits
    with place.model.generate(PROMPT, max_new_tokens=2) as t, t.steps[0]:
        logits = place.model.logits
        assert tuple(logits.shape) == (1, SEQ, 97)
        saved = logits.save()
        head = place.model.lm_head.output.save()
    close(saved.value, expected)
    close(head.value, expected)


@pytest.mark.sentence("steps.6")
@pytest.mark.parametrize("steps", [slice(1, 3), slice(2, None), slice(None), slice(0, 1)], ids=str)
def test_a_scope_of_steps(place: Place, steps: slice) -> None:
    """`with t.steps[a:b]:` scopes its body to those steps, and saves under it are lists with an entry a step;"""
    expected = place.oracle.generate(PROMPT, 4).visits["layers.1.output"][steps]
    with place.model.generate(PROMPT, max_new_tokens=4) as t, t.steps[steps]:
        saved = place.model.layers[1].output[:, -1].save()
    assert isinstance(gw.values(saved), list)
    assert len(saved) == len(expected)
    for value, tensor in zip(saved, expected, strict=True):
        close(value, tensor[:, -1])


@pytest.mark.sentence("steps.6")
def test_writes_in_a_scope(place: Place) -> None:
    """`with t.steps[a:b]:` scopes its body to those steps,"""

    def change(tensor: torch.Tensor, step: int) -> torch.Tensor:
        return tensor * 3 if 1 <= step < 3 else tensor

    expected = place.oracle.generate(PROMPT, 5, {"layers.1.mlp.output": change})
    assert expected.returned.tolist() != place.oracle.generate(PROMPT, 5).returned.tolist()
    with place.model.generate(PROMPT, max_new_tokens=5) as t:
        with t.steps[1:3]:
            place.model.layers[1].mlp.output *= 3
        with t.steps[:]:
            logits = place.model.logits.save()
    same(t.result, expected.returned)
    for k in range(5):
        close(logits[k], expected.visits["logits"][k])


@pytest.mark.sentence("steps.3", "steps.6")
def test_what_is_written_at_the_prompt_stays_in_the_cache(place: Place) -> None:
    """step k the forward that reads the k-th new token.

    Step k attends to what earlier steps left: a write at step 0 is seen by all.
    """

    def change(tensor: torch.Tensor, step: int) -> torch.Tensor:
        if step == 0:
            tensor[:, 1] = 2.0
        return tensor

    expected = place.oracle.generate(PROMPT, 4, {"layers.0.output": change})
    with place.model.generate(PROMPT, max_new_tokens=4) as t:
        with t.steps[0]:
            place.model.layers[0].output[:, 1] = 2.0
        with t.steps[3]:
            logits = place.model.logits.save()
    close(logits.value, expected.visits["logits"][3])
    same(t.result, expected.returned)


@pytest.mark.sentence("steps.7")
def test_one_step(place: Place) -> None:
    """`with t.steps[k]:` saves a tensor; `t.prompt` is `t.steps[0]`;"""
    expected = place.oracle.generate(PROMPT, 4).visits["layers.1.output"]
    with place.model.generate(PROMPT, max_new_tokens=4) as t:
        with t.steps[2]:
            second = place.model.layers[1].output.save()
        with t.prompt:
            prompt = place.model.layers[1].output.save()
        with t.steps[0]:
            zeroth = place.model.layers[1].output.save()
    for value, tensor in ((second, expected[2]), (prompt, expected[0]), (zeroth, expected[0])):
        assert isinstance(value.value, torch.Tensor)
        close(value.value, tensor)


@pytest.mark.sentence("steps.8")
def test_a_loop_over_steps(place: Place) -> None:
    """`for step in t.steps[0:5]:` unrolls, with an int."""

    def change(tensor: torch.Tensor, step: int) -> torch.Tensor:
        return tensor + 0.1 * step

    expected = place.oracle.generate(PROMPT, 5, {"layers.1.output": change})
    saved, numbers = [], []
    with place.model.generate(PROMPT, max_new_tokens=5) as t:
        for step in t.steps[0:5]:
            assert type(step) is int
            numbers.append(step)
            place.model.layers[1].output += 0.1 * step
            saved.append(place.model.logits[:, -1].save())
    assert numbers == [0, 1, 2, 3, 4]
    for k in range(5):
        assert isinstance(saved[k].value, torch.Tensor)
        close(saved[k].value, expected.visits["logits"][k][:, -1])


@pytest.mark.sentence("steps.9")
def test_a_site_outside_steps(place: Place) -> None:
    """In a generate block a site outside any of these is refused, with the two spellings;"""
    with pytest.raises(gw.ScopeError) as caught, place.model.generate(PROMPT, max_new_tokens=3):
        line = here(+1)
        place.model.layers[1].output.save()
    assert "t.steps[" in str(caught.value)
    assert "t.prompt" in str(caught.value) or str(caught.value).count("t.steps[") > 1
    assert names(caught, line)


@pytest.mark.sentence("steps.10")
def test_every_forward_of_an_edit(place: Place) -> None:
    """in `edit`, `record` and stored graphs it means every forward."""
    expected = place.oracle.generate(PROMPT, 4, {"layers.1.mlp.output": lambda tensor, _: tensor * 2})
    with place.model.edit() as edited:
        edited.layers[1].mlp.output *= 2
    with edited.generate(PROMPT, max_new_tokens=4) as t, t.steps[0:4]:
        logits = edited.logits.save()
    same(t.result, expected.returned)
    for k in range(4):
        close(logits[k], expected.visits["logits"][k])


@pytest.mark.sentence("steps.10")
def test_every_forward_of_a_record(place: Place, tmp_path: Any) -> None:
    """in `edit`, `record` and stored graphs it means every forward."""
    expected = place.oracle.generate(PROMPT, 3, {"layers.1.mlp.output": lambda tensor, _: tensor * 2})
    with place.model.record() as t:
        place.model.layers[1].mlp.output *= 2
        place.model.logits[:, -1].save("last")
    t.graph.save(tmp_path / "graph.safetensors")
    stored = gw.Graph.load(tmp_path / "graph.safetensors")
    for graph in (t.graph, stored):
        once = place.model.run(graph, [PROMPT])
        close(torch.as_tensor(once["last"]), expected.visits["logits"][0][:, -1])
        many = place.model.run(graph, [PROMPT], max_new_tokens=3)
        assert len(many["last"]) == 3
        for k in range(3):
            close(many["last"][k], expected.visits["logits"][k][:, -1])


@pytest.mark.sentence("steps.11")
def test_values_in_later_steps(place: Place) -> None:
    """A value of a step may be used in that step and in later ones."""
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor, step: int) -> None:
        if step == 0:
            kept.append(tensor[:, -1:])

    def change(tensor: torch.Tensor, step: int) -> torch.Tensor:
        return tensor + kept[0] if step == 2 else tensor

    expected = place.oracle.generate(PROMPT, 4, {"layers.2.output": keep, "layers.0.output": change})
    model = place.model
    with model.generate(PROMPT, max_new_tokens=4) as t:
        with t.steps[0]:
            vector = model.layers[2].output[:, -1:]
        with t.steps[2]:
            model.layers[0].output += vector
            logits = model.logits.save()
    close(logits.value, expected.visits["logits"][2])
    same(t.result, expected.returned)


@pytest.mark.sentence("steps.11")
def test_values_in_earlier_steps(place: Place) -> None:
    """A value of a step may be used in that step and in later ones."""
    with pytest.raises(gw.GraphError), place.model.generate(PROMPT, max_new_tokens=4) as t:
        with t.steps[2]:
            vector = place.model.layers[2].output
        with t.steps[1]:
            place.model.layers[0].output += vector
            place.model.logits.save()
