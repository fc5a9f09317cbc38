"""Which of several lines counts, skipped work, and what is run at all."""

import re
from typing import Any

import pytest
import torch

import glassworks as gw
from contract.places import OTHER, PROMPT, Place, close, names
from lines import here

SITE = "layers.1.output"


@pytest.mark.sentence("writes.8")
def test_skip(case: Place) -> None:
    """`layer.skip(value)` is a write of the output"""
    found = case.oracle.forward(PROMPT)
    expected = case.oracle.forward(PROMPT, {SITE: lambda *_: found["layers.0.output"] * 2}).logits
    with case.block(PROMPT):
        case.model.layers[1].skip(case.model.layers[0].output * 2)
        own = case.model.layers[1].output.save()
        logits = case.model.logits.save()
    close(own.value, found["layers.0.output"] * 2)
    close(logits.value, expected)


@pytest.mark.sentence("writes.8")
def test_skip_spares_the_work(inside: Place) -> None:
    """that spares the work where nothing else depends on it;"""
    model, path = inside.model, inside.stack
    paths = [f"{path}.{n}.mlp" for n in range(3)]
    with inside.counted(*paths) as ran, model.trace(PROMPT):
        model.layers[1].skip(model.layers[1].input)
        model.logits.save()
    assert ran == [paths[0], paths[2]]
    clean = inside.oracle.forward(PROMPT)
    with inside.counted(*paths) as ran, model.trace() as t:
        with t.invoke(PROMPT):
            model.layers[1].skip(model.layers[1].input)
            skipped = model.logits.save()
        with t.invoke(OTHER):
            other = model.logits.save()
    assert ran == paths
    close(skipped.value, inside.oracle.forward(PROMPT, {SITE: lambda *_: clean["layers.0.output"]}).logits)
    close(other.value, inside.oracle.forward(OTHER).logits)


@pytest.mark.sentence("writes.8")
def test_skip_in_generation(place: Place) -> None:
    """`layer.skip(value)` is a write of the output"""
    oracle = place.oracle
    before: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor, _: int) -> None:
        before.append(tensor)

    expected = oracle.generate(PROMPT, 4, {"layers.0.output": keep, SITE: lambda *_: before[-1]})
    with place.model.generate(PROMPT, max_new_tokens=4) as t, t.steps[:]:
        place.model.layers[1].skip(place.model.layers[1].input)
        logits = place.model.logits.save()
    assert torch.equal(t.result, expected.returned)
    close(logits[3], expected.visits["logits"][3])


@pytest.mark.sentence("writes.9")
def test_inside_a_skipped_layer(case: Place) -> None:
    """its inner sites can't be read."""
    reason = "passed|left" if case.live else "skip"
    with pytest.raises(gw.GlassworksError, match=reason) as caught, case.block(PROMPT):
        first = here(+1)
        case.model.layers[1].skip(case.model.layers[1].input)
        second = here(+1)
        case.model.layers[1].mlp.output.save()
    assert names(caught, first) or names(caught, second)


@pytest.mark.sentence("writes.14")
def test_a_value_before_it_can_exist(place: Place) -> None:
    """A value used before it can exist is an error that names both lines, raised when the block ends, before anything
    runs."""
    ended = False
    with pytest.raises(gw.OrderError) as caught, place.model.trace(PROMPT):
        first = here(+1)
        late = place.model.layers[2].output
        second = here(+1)
        place.model.layers[0].output = late * 2
        place.model.logits.save()
        ended = True
    assert ended
    assert names(caught, first)
    assert names(caught, second)


@pytest.mark.sentence("writes.14")
def test_nothing_ran(inside: Place) -> None:
    """raised when the block ends, before anything runs."""
    with inside.counted("", inside.embed) as ran, pytest.raises(gw.OrderError), inside.model.trace(PROMPT):
        inside.model.embed.output.save()
        inside.model.layers[0].output = inside.model.layers[2].output
        inside.model.logits.save()
    assert ran == []


@pytest.mark.sentence("writes.16")
def test_another_pass_supplies_it(place: Place) -> None:
    """Between invokes, where another pass can supply a value, another pass does."""
    model = place.model
    late = place.oracle.forward(OTHER)["layers.2.output"][:, -1]

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, 0] = late
        return tensor

    expected = place.oracle.forward(PROMPT, {"layers.0.output": change}).logits
    for swapped in (False, True):
        with model.trace() as t:
            with t.invoke(OTHER):
                value = model.layers[2].output[:, -1]
            if swapped:
                with t.invoke(OTHER):
                    model.logits.save()
            with t.invoke(PROMPT):
                model.layers[0].output[:, 0] = value
                logits = model.logits.save()
        close(logits.value, expected)


@pytest.mark.sentence("writes.16")
def test_a_cycle_is_refused(place: Place) -> None:
    """where another pass can supply a value, another pass does.

    Here none can: each invoke waits for the other.
    """
    model = place.model
    with pytest.raises(gw.OrderError), model.trace() as t:
        with t.invoke(PROMPT):
            first = model.layers[2].output
        with t.invoke(PROMPT):
            model.layers[0].output = first
            second = model.layers[2].output
        with t.invoke(PROMPT):
            model.logits.save()
        model.layers[0].output[:1] = second
        model.logits.save()


@pytest.mark.sentence("writes.17")
def test_only_what_saves_need(inside: Place) -> None:
    """Only what saves need runs,"""
    model, path = inside.model, inside.stack
    heavy = inside.counted(f"{path}.1", f"{path}.2", "lm_head")
    with heavy as ran, model.trace(PROMPT):
        model.layers[0].output.save()
        _ = model.logits.softmax(-1)
        model.lm_head(model.layers[2].output)
        model.layers[2].output += 1
    assert ran == []


@pytest.mark.sentence("writes.18")
def test_the_forward_stops(inside: Place) -> None:
    """and the forward stops after the last site needed;"""
    model, path = inside.model, inside.stack
    paths = [f"{path}.{n}" for n in range(3)]
    with inside.counted(*paths, "lm_head") as ran, model.trace(PROMPT):
        model.layers[1].output.save()
    assert ran == paths[:2]
    with inside.counted(f"{path}.1.mlp", *paths) as ran, model.trace(PROMPT):
        model.layers[1].attn.output.save()
    assert ran == paths[:2]
    with inside.counted(*paths, "lm_head") as ran, model.trace(PROMPT):
        model.logits.save()
    assert ran == [*paths, "lm_head"]


@pytest.mark.sentence("writes.19")
def test_nothing_saved(inside: Place) -> None:
    """with nothing saved nothing runs."""
    with inside.counted("", inside.embed) as ran:
        with inside.model.trace(PROMPT):
            inside.model.layers[1].output += 1
        with inside.model.generate(PROMPT, max_new_tokens=3) as t, t.steps[0]:
            inside.model.layers[1].output += 1
    assert ran == []


@pytest.mark.sentence("writes.20")
def test_reading_the_result(inside: Place) -> None:
    """In `generate`, reading `t.result` after the block needs no save and runs all steps;"""
    embed = inside.embed
    expected = inside.oracle.generate(PROMPT, 5).returned
    with inside.counted(embed) as ran:
        with inside.model.generate(PROMPT, max_new_tokens=5) as t:
            pass
        assert ran == []
        assert torch.equal(torch.as_tensor(t.result), expected)
        assert len(ran) == 5
        assert torch.equal(torch.as_tensor(t.result), expected)
        assert len(ran) == 5


@pytest.mark.sentence("writes.21")
def test_only_the_steps_that_saves_need(inside: Place) -> None:
    """otherwise only the steps that saves need."""
    embed = inside.embed
    counted = inside.counted(embed, "lm_head")
    with counted as ran, inside.model.generate(PROMPT, max_new_tokens=5) as t, t.steps[0:2]:
        inside.model.layers[0].output.save()
    assert ran.count(embed) == 2
    assert ran.count("lm_head") == 1
    assert torch.equal(torch.as_tensor(t.result), inside.oracle.generate(PROMPT, 5).returned)


@pytest.mark.sentence("writes.22")
def test_logs_are_always_needed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """`gw.log(...)` and `gw.apply(..., effect=True)` are always needed."""
    expected = place.oracle.forward(PROMPT)["layers.1.output"].mean()
    with place.model.trace(PROMPT):
        gw.log("mean", place.model.layers[1].output.mean())
    printed = capsys.readouterr()
    assert "mean" in printed.out + printed.err
    numbers = re.findall(r"-?\d+\.\d+(?:e-?\d+)?", printed.out + printed.err)
    assert any(abs(float(number) - float(expected)) < 1e-3 for number in numbers), printed


@pytest.mark.sentence("writes.22")
def test_effects_are_always_needed(local: Place) -> None:
    """`gw.apply(..., effect=True)` are always needed."""
    seen: list[Any] = []
    with local.model.trace(PROMPT):
        gw.apply(lambda value: seen.append(value) or value, local.model.layers[1].output)
    assert seen == []
    with local.model.trace(PROMPT):
        gw.apply(seen.append, local.model.layers[1].output, effect=True)
    assert len(seen) == 1
    close(seen[0], local.oracle.forward(PROMPT)["layers.1.output"])
