"""State from step to step, rows that end, and what a generation returns."""

from typing import Any

import pytest
import torch

import glassworks as gw
from contract.places import OTHER, PROMPT, Place, close, same

SEQ = len(PROMPT)


@pytest.mark.sentence("steps.12")
def test_state(place: Place) -> None:
    """`s = t.state(init)`: `s.value` is read and assigned, carried from step to step,

    Here it is the sum of what the last position held so far, and it is written back.
    """
    total = [torch.zeros(1, 1, 32)]

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        total.append(total[-1] + tensor[:, -1:])
        return tensor + total[-1]

    expected = place.oracle.generate(PROMPT, 4, {"layers.1.output": change})
    model = place.model
    with model.generate(PROMPT, max_new_tokens=4) as t:
        state = t.state(torch.zeros(1, 1, 32))
        with t.steps[:]:
            state.value = state.value + model.layers[1].output[:, -1:]
            model.layers[1].output += state.value
            sums = state.value.save()
            logits = model.logits.save()
    for k in range(4):
        close(sums[k], total[k + 1], tolerance=1e-4)
        close(logits[k], expected.visits["logits"][k], tolerance=1e-4)
    same(t.result, expected.returned)


@pytest.mark.sentence("steps.12")
def test_state_of_rows(place: Place) -> None:
    """carried from step to step, for each row."""
    model = place.model

    def sums(prompts: list[list[int]]) -> Any:
        with model.generate(prompts, max_new_tokens=3) as t:
            state = t.state(torch.zeros(len(prompts), 32))
            with t.steps[0:3]:
                state.value = state.value + model.layers[1].output[:, -1]
                saved = state.value.save()
        return saved

    both, first, second = sums([PROMPT, OTHER]), sums([PROMPT]), sums([OTHER])
    for k in range(3):
        close(both[k], torch.cat([first[k], second[k]]))


def ending(place: Place, prompt: list[int], at: int) -> int:
    """A token that comes for the first time at that step."""
    new = place.oracle.generate(prompt, at + 1).returned[0].tolist()
    assert new[at] not in new[:at], "choose another prompt"
    return new[at]


@pytest.mark.sentence("steps.13")
def test_a_row_that_ended(place: Place) -> None:
    """A row that ended has no further entries: with one row lists are shorter;"""
    end = ending(place, PROMPT, 2)
    with place.model.generate(PROMPT, max_new_tokens=6, eos_token_id=end) as t, t.steps[:]:
        logits = place.model.logits.save()
    assert len(logits) == 3
    same(t.result, place.oracle.generate(PROMPT, 6, eos_token_id=end, pad_token_id=0).returned)
    assert t.result.shape == (1, 3)


@pytest.mark.sentence("steps.14")
def test_rows_that_ended(place: Place) -> None:
    """with several, entries keep all rows and `t.alive` says which are live."""
    end = ending(place, PROMPT, 2)
    other = place.oracle.generate(OTHER, 6, eos_token_id=end, pad_token_id=0)
    assert other.returned.shape[1] == 6, "choose another prompt"
    with place.model.generate([PROMPT, OTHER], max_new_tokens=6, eos_token_id=end) as t, t.steps[:]:
        logits = place.model.logits[:, -1].save()
    assert [tuple(value.shape) for value in logits] == [(2, 97)] * 6
    assert [torch.as_tensor(live).tolist() for live in t.alive] == [[True, True]] * 3 + [[False, True]] * 3
    for k in range(6):
        close(logits[k][1], other.visits["logits"][k][0, -1])
    own = place.oracle.generate(PROMPT, 3).visits["logits"]
    for k in range(3):
        close(logits[k][0], own[k][0, -1])


@pytest.mark.sentence("steps.15")
def test_stop(place: Place) -> None:
    """`t.stop(when=value)` ends a row."""
    end = ending(place, PROMPT, 2)
    new = place.oracle.generate(PROMPT, 6).returned
    with place.model.generate(PROMPT, max_new_tokens=6) as t, t.steps[:]:
        t.stop(when=place.model.logits[:, -1].argmax(-1) == end)
        logits = place.model.logits.save()
    assert len(logits) == 3
    result = torch.as_tensor(t.result)
    assert result.tolist() in (new[:, :3].tolist(), new[:, :2].tolist())


@pytest.mark.sentence("steps.14", "steps.15")
def test_stop_of_one_row(place: Place) -> None:
    """`t.stop(when=value)` ends a row."""
    end = ending(place, PROMPT, 2)
    assert end not in place.oracle.generate(OTHER, 6).returned[0].tolist(), "choose another prompt"
    with place.model.generate([PROMPT, OTHER], max_new_tokens=6) as t, t.steps[:]:
        t.stop(when=place.model.logits[:, -1].argmax(-1) == end)
        logits = place.model.logits[:, -1].save()
    assert len(logits) == 6
    assert [torch.as_tensor(live).tolist() for live in t.alive] == [[True, True]] * 3 + [[False, True]] * 3
    assert torch.as_tensor(t.result)[1].tolist() == place.oracle.generate(OTHER, 6).returned[0].tolist()


@pytest.mark.sentence("steps.16")
def test_results(place: Place) -> None:
    """`t.result` is `[batch, new]`, an invoke's own inside it."""
    first = place.oracle.generate(PROMPT, 4).returned
    second = place.oracle.generate(OTHER, 4).returned
    with place.model.generate([PROMPT, OTHER], max_new_tokens=4) as t:
        pass
    same(t.result, torch.cat([first, second]))
    with place.model.generate(max_new_tokens=4) as t:
        with t.invoke(PROMPT) as a:
            inside = t.result
            assert inside.shape[0] == 1
            one = inside.save()
        with t.invoke(OTHER) as b:
            two = t.result.save()
    same(one.value, first)
    same(two.value, second)
    same(t.result, torch.cat([first, second]))
    same(a.result, first)
    same(b.result, second)


@pytest.mark.sentence("steps.17")
def test_the_result_of_a_trace(case: Place) -> None:
    """In `trace`, `t.result` is the model's own return."""
    expected = case.oracle.stock(torch.tensor([PROMPT]))
    with case.block(PROMPT) as t:
        logits = t.result.logits.save()
        same_logits = t.result["logits"].save()
    close(logits.value, expected.logits)
    close(same_logits.value, expected.logits)


@pytest.mark.sentence("steps.17")
def test_the_whole_result_of_a_trace(place: Place) -> None:
    """In `trace`, `t.result` is the model's own return."""
    expected = place.oracle.stock(torch.tensor([PROMPT]), use_cache=False)
    with place.model.trace(PROMPT) as t:
        result = t.result.save()
    close(result.logits.value, expected.logits)
    tensors = gw.values(result)
    assert type(tensors["logits"]) is torch.Tensor


@pytest.mark.sentence("steps.18")
def test_only_reading(place: Place) -> None:
    """`max_new_tokens=0` only reads."""
    with place.model.generate(PROMPT, max_new_tokens=0) as t, t.steps[0]:
        logits = place.model.logits.save()
    close(logits.value, place.oracle.forward(PROMPT).logits)
    assert torch.as_tensor(t.result).shape == (1, 0)


@pytest.mark.sentence("steps.19")
def test_beams(place: Place) -> None:
    """Writes under beam search are refused."""
    refuses = pytest.raises(gw.GlassworksError, match="beam")
    with refuses, place.model.generate(PROMPT, max_new_tokens=3, num_beams=2) as t, t.steps[:]:
        place.model.layers[1].output *= 2
        place.model.logits.save()


@pytest.mark.sentence("steps.19")
def test_beams_without_writes(place: Place) -> None:
    """Writes under beam search are refused.

    What writes nothing is not.
    """
    expected = place.oracle.stock.generate(
        torch.tensor([PROMPT]), attention_mask=torch.ones(1, SEQ, dtype=torch.int64), max_new_tokens=3, num_beams=2,
        do_sample=False, eos_token_id=None,
    )  # fmt: skip
    with place.model.generate(PROMPT, max_new_tokens=3, num_beams=2, eos_token_id=None) as t:
        pass
    same(t.result, expected[:, SEQ:])


@pytest.mark.sentence("steps.12")
def test_state_of_invokes(place: Place) -> None:
    """carried from step to step, for each row.

    A state is counted up in one invoke and read in it alone.
    """
    model = place.model
    with model.generate(max_new_tokens=3) as t:
        with t.invoke(PROMPT):
            state = t.state(0.0)
            with t.steps[0:3]:
                state.value = state.value + model.logits[:, -1].max()
                counted = state.value.save()
        with t.invoke(OTHER), t.steps[0:3]:
            other = model.logits.save()
    tops = [logits[0, -1].max() for logits in place.oracle.generate(PROMPT, 3).visits["logits"]]
    for k in range(3):
        close(torch.as_tensor(counted[k]).squeeze(), sum(tops[: k + 1]), tolerance=1e-4)
        close(other[k], place.oracle.generate(OTHER, 3).visits["logits"][k])
