"""Conditions in a graph, and blocks that run line by line."""

from typing import Any

import pytest
import torch

import glassworks as gw
from contract.places import OTHER, PROMPT, Place, close, names
from lines import here

SEQ = len(PROMPT)
BOTH = pytest.mark.parametrize("taken", [True, False])


def positive(model: Any, taken: bool) -> Any:
    """A condition that holds, or not."""
    hidden = model.layers[0].output
    return (hidden**2).sum() > 0 if taken else (hidden**2).sum() < 0


@pytest.mark.sentence("control.1", "control.2")
@BOTH
def test_a_condition_of_values(case: Place, taken: bool) -> None:
    """`gw.cond(pred, a, b)`: `pred` has one element ... `a` and `b` are Values,"""
    found = case.oracle.forward(PROMPT)["layers.0.output"]
    with case.block(PROMPT):
        hidden = case.model.layers[0].output
        got = gw.cond(positive(case.model, taken), hidden * 2, hidden - 1).save()
    close(got.value, found * 2 if taken else found - 1)


@pytest.mark.sentence("control.1")
@BOTH
def test_a_condition_of_numbers(case: Place, taken: bool) -> None:
    """`gw.cond(pred, a, b)`: `pred` has one element

    The condition is on what the model computed: the sign of a logit.
    """
    logit = case.oracle.forward(PROMPT).logits[0, -1, 3]
    limit = float(logit) + (-0.1 if taken else 0.1)
    with case.block(PROMPT):
        hidden = case.model.layers[2].output
        got = gw.cond(case.model.unembed(hidden)[0, -1, 3] > limit, hidden[:, 0], hidden[:, 1]).save()
    close(got.value, case.oracle.forward(PROMPT)["layers.2.output"][:, 0 if taken else 1])


@pytest.mark.sentence("control.1")
def test_a_condition_for_each_row(place: Place) -> None:
    """`pred` has one element (for each row: `torch.where`);"""
    expected = [place.oracle.forward(prompt)["layers.0.output"][:, -1] for prompt in (PROMPT, OTHER)]
    middle = float((expected[0].sum() + expected[1].sum()) / 2)
    with pytest.raises(gw.GraphError, match=r"torch\.where") as caught, place.model.trace([PROMPT, OTHER]):
        hidden = place.model.layers[0].output[:, -1]
        line = here(+1)
        gw.cond(hidden.sum(-1) > middle, hidden, -hidden).save()
    assert names(caught, line)
    with place.model.trace([PROMPT, OTHER]):
        hidden = place.model.layers[0].output[:, -1]
        got = torch.where((hidden.sum(-1) > middle)[:, None], hidden, -hidden).save()
    for n, tensor in enumerate(expected):
        close(got.value[n], (tensor if tensor.sum() > middle else -tensor)[0])


@pytest.mark.sentence("control.2")
@BOTH
def test_writes_in_a_branch(case: Place, taken: bool) -> None:
    """functions of no arguments recorded at once, with writes and saves allowed."""
    changes: dict[str, Any] = (
        {"layers.1.output": lambda h, _: h * 0.5} if taken else {"layers.2.mlp.output": lambda h, _: h * 0}
    )
    model, calls = case.model, []

    def first() -> None:
        calls.append("first")
        model.layers[1].output *= 0.5

    def second() -> None:
        calls.append("second")
        model.layers[2].mlp.output[:] = 0

    with case.block(PROMPT):
        gw.cond(positive(model, taken), first, second)
        assert sorted(calls) == (["first" if taken else "second"] if case.live else ["first", "second"])
        logits = model.logits.save()
    close(logits.value, case.oracle.forward(PROMPT, changes).logits)


@pytest.mark.sentence("control.2")
@BOTH
def test_values_of_branches(case: Place, taken: bool) -> None:
    """`a` and `b` are Values, or functions of no arguments recorded at once,"""
    found = case.oracle.forward(PROMPT)["layers.1.output"]
    with case.block(PROMPT):
        holds = positive(case.model, taken)
        hidden = case.model.layers[1].output
        got = gw.cond(holds, lambda: hidden.exp(), lambda: hidden * 3 + 1)
        saved = (got + 1).save()
    close(saved.value, (found.exp() if taken else found * 3 + 1) + 1)


@pytest.mark.sentence("control.2", "control.3")
@BOTH
def test_saves_in_a_branch(place: Place, taken: bool) -> None:
    """with writes and saves allowed. Using a save of the branch not taken raises `NotTaken` with its line."""
    saved: dict[bool, Any] = {}
    lines: dict[bool, str] = {}
    model = place.model

    def first() -> None:
        lines[True] = here(+1)
        saved[True] = model.layers[1].output.save()

    def second() -> None:
        lines[False] = here(+1)
        saved[False] = model.layers[2].output.save()

    with model.trace(PROMPT):
        gw.cond(positive(model, taken), first, second)
    name = "layers.1.output" if taken else "layers.2.output"
    close(saved[taken].value, place.oracle.forward(PROMPT)[name])
    for use in (lambda value: value.value, lambda value: value + 1, torch.sum):
        with pytest.raises(gw.NotTaken) as caught:
            use(saved[not taken])
        assert names(caught, lines[not taken])
    assert issubclass(gw.NotTaken, gw.GlassworksError)


@pytest.mark.sentence("control.1")
def test_a_condition_in_generation(place: Place) -> None:
    """`gw.cond(pred, a, b)`: `pred` has one element"""
    bound = float(place.oracle.generate(PROMPT, 4).visits["layers.1.output"][2][:, -1].sum())

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        return tensor * 2 if tensor[:, -1].sum() >= bound - 1e-3 else tensor - 1

    expected = place.oracle.generate(PROMPT, 4, {"layers.1.output": change})
    with place.model.generate(PROMPT, max_new_tokens=4, eos_token_id=None) as t, t.steps[0:4]:
        hidden = place.model.layers[1].output
        place.model.layers[1].output = gw.cond(hidden[:, -1].sum() >= bound - 1e-3, hidden * 2, hidden - 1)
        logits = place.model.logits.save()
    for k in range(4):
        close(logits[k], expected.visits["logits"][k])


# Line by line.
