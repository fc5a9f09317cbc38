# ruff: noqa: SIM117
"""`gw.cond`: what it records, what it refuses and with which lines. That it does what `if` does is a law."""

from typing import Any

import pytest
import torch

import glassworks as gw
from lines import here, told

PROMPT = [5, 6, 7, 8]


def sign(model: Any, holds: bool) -> Any:
    """A predicate in the graph whose truth is known."""
    return (model.layers[0].output.sum() * 0 == 0) & torch.tensor(holds)


@pytest.mark.parametrize("holds", [True, False])
def test_values_and_numbers_may_stand_for_functions(model: Any, holds: bool) -> None:
    ones = torch.ones(1, 4, 32)
    with model.trace(PROMPT):
        h = model.layers[1].output
        pred = sign(model, holds)
        one = gw.cond(pred, h, h * 2).save()
        two = gw.cond(pred, ones, 0.5).save()
        three = gw.cond(pred, lambda: 3, 4).save()
        kept = h.save()
    assert torch.equal(one.value, kept.value if holds else kept.value * 2)
    assert torch.equal(two.value, ones if holds else torch.tensor(0.5))
    assert three.item() == (3 if holds else 4)


def test_structures_come_back_as_they_were(model: Any) -> None:
    with model.trace(PROMPT):
        h = model.layers[1].output
        found = gw.cond(
            sign(model, False),
            lambda: {"top": h.topk(2), "rest": [h, (h * 2,)], "none": None},
            lambda: {"top": (h * 3).topk(2), "rest": [h * 3, (h * 4,)], "none": None},
        )
        assert list(found) == ["top", "rest", "none"]
        assert found["none"] is None
        kept = [found["top"].values.save(), found["rest"][0].save(), found["rest"][1][0].save(), h.save()]
        assert gw.cond(sign(model, True), lambda: None, lambda: None) is None
    h = kept[3].value
    for value, expected in zip(kept, [(h * 3).topk(2).values, h * 3, h * 4], strict=False):
        assert torch.equal(value.value, expected)


def test_branches_of_different_structure_are_refused(model: Any) -> None:
    h = None

    def pair(a: Any, b: Any) -> str:
        with pytest.raises(gw.GraphError) as caught, model.trace(PROMPT):
            nonlocal h
            h = model.layers[0].output
            line = here(+1)
            gw.cond(h.sum() > 0, a, b)
        assert line in told(caught.value)
        return told(caught.value)

    assert "a gives a Value, b gives None" in pair(lambda: h, lambda: None)
    assert "a gives a tuple of 2, b gives a list of 2" in pair(lambda: (h, h), lambda: [h, h])
    assert "a dict with x, b gives a dict with y" in pair(lambda: {"x": h}, lambda: {"y": h})
    assert "got str" in pair(lambda: "text", lambda: "text")
    assert "function of no arguments" in pair(lambda x: x, lambda: h)


def test_a_predicate_of_several_elements_is_refused(model: Any) -> None:
    with pytest.raises(gw.GraphError, match=r"torch\.where") as caught, model.trace([PROMPT, PROMPT]):
        line = here(+1)
        gw.cond(model.layers[0].output[:, -1, 0] > 0, 1.0, 2.0).save()
    assert line in told(caught.value)
    assert "[2]" in told(caught.value)


def test_it_is_refused_when_it_runs_if_the_shape_is_not_known_before(model: Any) -> None:
    with model.record() as t:
        line = here(+1)
        gw.cond(model.layers[0].output[:, -1, 0] > 0, 1.0, 2.0).save("x")
    assert model.run(t.graph, PROMPT)["x"] in (1.0, 2.0)
    with pytest.raises(gw.GraphError, match=r"one element, got shape \[2\].*torch\.where") as caught:
        model.run(t.graph, [PROMPT, PROMPT])
    assert line in told(caught.value)


def test_a_save_of_the_branch_not_taken_raises_with_its_line(model: Any) -> None:
    with model.trace(PROMPT):
        h = model.layers[1].output
        kept = []
        line = here(+1)
        gw.cond(sign(model, False), lambda: kept.append((h * 2).save("a")), lambda: kept.append(h.save("b")))
    assert torch.is_tensor(kept[1].value)
    for use in (lambda v: v.value, lambda v: v + 1, lambda v: v.shape, torch.sum, float):
        with pytest.raises(gw.NotTaken) as caught:
            use(kept[0])
        assert line in told(caught.value)
    assert isinstance(caught.value, gw.GraphError)
    assert "not taken" in repr(kept[0])


def test_results_of_a_stored_graph_name_it_too(model: Any) -> None:
    with model.record() as t:
        h = model.layers[1].output[:, -1]
        line = here(+1)
        gw.cond(h.sum() * 0 == 1, lambda: h.save("never"), lambda: (h * 2).save("always"))
    results = model.run(t.graph, [PROMPT, PROMPT[:2]], rows=1)
    assert results["always"].shape == (2, 32)
    assert list(results) == ["always"]
    assert results.get("never") is None
    with pytest.raises(gw.NotTaken) as caught:
        results["never"]
    assert line in told(caught.value)


def test_rows_of_passes_that_did_not_take_it_are_none(model: Any) -> None:
    with model.record() as t:
        h = model.layers[1].output[:, -1]
        gw.cond(model.ids[0, -1] == 8, lambda: (h.save("h"), h.save("sum", reduce="sum")), lambda: (h, h))
    results = model.run(t.graph, [PROMPT, [5, 6, 7]], rows=1)
    alone = model.run(t.graph, [PROMPT])["h"]
    assert torch.equal(results["h"][0], alone[0])
    assert results["h"][1] is None
    assert torch.allclose(results["sum"], alone.sum(0))


def test_entries_of_steps_that_did_not_take_it_are_none(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=4, eos_token_id=[]) as t, t.steps[:]:
        s = t.state(0)
        s.value = s.value + 1
        kept: list[Any] = []
        gw.cond(s.value % 2 == 0, lambda: kept.append(s.value.save()), lambda: None)
    assert [None if entry is None else entry.item() for entry in kept[0].value] == [None, 2, None, 4]


@pytest.mark.parametrize("where", ["after", "in the other branch"])
def test_a_value_of_a_branch_is_refused_elsewhere(model: Any, where: str) -> None:
    kept: list[Any] = []
    with pytest.raises(gw.ScopeError, match="return it from the function") as caught, model.trace(PROMPT):
        h = model.layers[0].output
        made = here(+1)
        first = lambda: kept.append(h * 2)  # noqa: E731
        used = here(+1)
        second = lambda: kept[0].save() and None  # noqa: E731
        gw.cond(h.sum() > 0, first, second if where == "in the other branch" else lambda: None)
        used = here(+1) if where == "after" else used
        (kept[0] + 1).save()
    assert made in told(caught.value)
    assert used in told(caught.value)


def test_a_read_of_a_branch_belongs_to_it_too(model: Any) -> None:
    kept: list[Any] = []
    with pytest.raises(gw.ScopeError, match="return it"), model.trace(PROMPT):
        gw.cond(sign(model, True), lambda: kept.append(model.layers[1].output), lambda: None)
        kept[0].save()


def test_a_handle_is_what_it_was_and_stale_where_a_branch_wrote(model: Any) -> None:
    with model.trace(PROMPT):
        h = model.layers[1].output
        before = h.save()

        def write() -> None:
            h[:, -1] = 0

        gw.cond(sign(model, True), write, lambda: None)
        after, now = h.save(), model.layers[1].output.save()
    assert torch.equal(after.value, before.value)
    assert not bool(now.value[:, -1].any())
    with pytest.raises(gw.WriteError, match="read it again"), model.trace(PROMPT):
        h = model.layers[1].output
        gw.cond(sign(model, True), write, lambda: None)
        h[:, 0] = 1


def test_skip_in_a_branch_is_a_write(model: Any) -> None:
    with model.trace(PROMPT):
        clean = model.layers[2].output.save()
    for holds in (True, False):
        with model.trace(PROMPT):
            early = model.layers[0].output
            gw.cond(sign(model, holds), lambda own=early: model.layers[2].skip(own), lambda: None)
            found, kept = model.layers[2].output.save(), early.save()
        assert torch.equal(found.value, kept.value if holds else clean.value)


def test_a_head_written_in_a_branch(model: Any) -> None:
    def found(conditional: bool, holds: bool) -> list[torch.Tensor]:
        with model.trace(PROMPT):
            heads = model.layers[1].attn.heads

            def write() -> None:
                heads[0].output *= 0.5
                heads[1].result = heads[1].result * 2

            if conditional:
                gw.cond(sign(model, holds), write, lambda: None)
            elif holds:
                write()
            kept = [heads[1].result.save(), model.logits.save()]
        return [value.value for value in kept]

    for holds in (True, False):
        for one, other in zip(found(True, holds), found(False, holds), strict=True):
            torch.testing.assert_close(one, other)


def test_what_a_branch_cannot_hold_is_refused(model: Any) -> None:
    def refusal(write: Any) -> str:
        with pytest.raises(gw.GraphError) as caught, model.trace() as t, t.invoke(PROMPT):
            h = model.layers[0].output
            gw.cond(h.sum() > 0, lambda: write(t, h), lambda: None)
        assert __file__ in told(caught.value)
        return str(caught.value)

    def invoke(t: Any, h: Any) -> None:
        with t.invoke(PROMPT):
            pass

    def gradient(t: Any, h: Any) -> None:
        t.backward(h.sum())

    assert "after it" in refusal(gradient)
    assert "t.cache outside" in refusal(lambda t, h: t.cache())
    assert "open the invoke around" in refusal(invoke)


def test_outside_a_block_it_is_refused() -> None:
    with pytest.raises(gw.ScopeError, match="belongs inside a block") as caught:
        gw.cond(torch.tensor(True), 1.0, 2.0)
    assert here(-1) in told(caught.value)


def test_shapes_are_what_the_branches_agree_on(model: Any) -> None:
    with model.trace(PROMPT):
        h = model.layers[0].output
        pred = sign(model, True)
        assert gw.cond(pred, h, h * 2).shape == (1, 4, 32)
        assert gw.cond(pred, h, h[:, :2]).shape == (1, None, 32)
        different = gw.cond(pred, h, 0.5)
        with pytest.raises(gw.GraphError, match="only when it runs"):
            different.shape  # noqa: B018


def test_the_text_of_a_graph_shows_the_guards(model: Any) -> None:
    with model.record() as t:
        h = model.layers[0].output
        gw.cond(h.sum() > 0, lambda: (h * 2).save("twice"), lambda: h + 1)
    text = str(t.graph)
    assert "mul(%0, 2) if %2" in text
    assert "add(%0, 1) unless %2" in text
    assert "%4 if %2 else %6" in text or "if %2 else" in text
    assert gw.Graph.decode(t.graph.encode()) == t.graph


def test_gradients_flow_through_the_branch_that_is_taken(model: Any) -> None:
    w = torch.ones(32, requires_grad=True)
    for holds in (True, False):
        with model.trace(PROMPT) as t:
            h = model.layers[1].output
            chosen = gw.cond(sign(model, holds), lambda h=h: h * w, lambda h=h: h * 3)
            t.backward((chosen**2).sum())
            found, kept = h.grad.save(), h.save()
        scale = 1.0 if holds else 9.0
        torch.testing.assert_close(found.value, 2 * scale * kept.value)
        expected = (2 * kept.value**2).sum((0, 1)) if holds else torch.zeros(32)
        torch.testing.assert_close(w.grad if w.grad is not None else torch.zeros(32), expected)
        w.grad = None


def test_an_edit_may_decide(model: Any) -> None:
    with model.edit() as edited:
        h = edited.layers[0].output
        gw.cond(h[:, -1].norm() > 0, lambda: edited.layers[1].skip(h), lambda: None)
    with edited.trace(PROMPT):
        found, kept = edited.layers[1].output.save(), edited.layers[0].output.save()
    assert torch.equal(found.value, kept.value)


def test_random_numbers_in_a_branch_do_not_depend_on_company(model: Any) -> None:
    def noise(own: Any) -> Any:
        h = model.layers[0].output
        return gw.cond(own, lambda: torch.randn_like(h[:, -1]), lambda: torch.zeros(1, 32)).save()

    with model.trace(seed=3) as t:
        with t.invoke(PROMPT):
            own = model.layers[0].output.sum() * 0 == 0
            first = noise(own)
        with t.invoke([9, 10]):
            second = noise(own)
    with model.trace(PROMPT, seed=3):
        alone = noise(model.layers[0].output.sum() * 0 == 0)
    assert torch.equal(first.value, alone.value)
    assert not torch.equal(first.value, second.value)
    with model.trace(seed=3) as t:
        with t.invoke([9, 10, 11]):
            own = model.layers[0].output.sum() * 0 == 0
            noise(own)
        with t.invoke([9, 10]):
            again = noise(own)
    assert second.value.shape == again.value.shape


@pytest.mark.parametrize("holds", [True, False])
def test_in_a_live_block_it_is_an_if(model: Any, holds: bool) -> None:
    with model.live(PROMPT) as t:
        h = model.layers[0].output

        def louder() -> Any:
            assert holds, "the other branch is not even called"
            model.layers[1].output[:, -1] *= 2
            return model.layers[1].output.sum()

        found = gw.cond((h.sum() * 0 == 0) & torch.tensor(holds), louder, 0.5)
        assert float(found) != 0
        kept = model.logits.save()
        with pytest.raises(gw.GraphError, match=r"torch\.where"):
            gw.cond(h[0, :, 0] > 0, 1, 2)
    with model.trace(PROMPT):
        if holds:
            model.layers[1].output[:, -1] *= 2
        expected = model.logits.save()
    assert torch.equal(kept.value, expected.value)
    assert all(not node.when for node in t.graph)


def test_a_gradient_is_not_read_in_a_branch(model: Any) -> None:
    with pytest.raises(gw.GraphError, match="outside of a branch") as caught, model.trace(PROMPT) as t:
        h = model.layers[0].output
        t.backward(model.logits.sum())
        line = here(+1)
        gw.cond(h.sum() > 0, lambda: h.grad.save(), lambda: None)
    assert line in told(caught.value)


def test_in_a_plain_module() -> None:
    net = gw.wrap(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)))
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    for sign in (1, -1):
        with net.trace(x) as t:
            h = net[0].output

            def write() -> None:
                net[1].output = torch.zeros(2, 4)

            gw.cond(sign * (h**2).sum() > 0, write, lambda: gw.log("left alone"))
            found, own = net[2].output.save(), net[2].bias.save()
            with pytest.raises(gw.ScopeError, match=r"model\.generate"):
                t.state(0)
        assert torch.equal(found.value, own.value.expand(2, 2)) == (sign > 0)
        assert len(t.logs) == (sign < 0)


def test_in_a_session_what_it_gives_goes_on(model: Any) -> None:
    with model.session():
        with model.trace(PROMPT):
            h = model.layers[1].output
            chosen = gw.cond(sign(model, False), lambda: h, lambda: h * 2)
            kept = h.save()
        with model.trace(PROMPT):
            model.layers[1].output = chosen
            found = model.layers[1].output.save()
    assert torch.equal(found.value, kept.value * 2)
    inside: list[Any] = []
    with pytest.raises(gw.ScopeError, match=r"use what gw\.cond gives"), model.session():
        with model.trace(PROMPT):
            h = model.layers[1].output
            gw.cond(sign(model, False), lambda: inside.append(h * 2), lambda: None)
        with model.trace(PROMPT):
            (inside[0] + 1).save()


def test_a_session_that_only_logs_runs(model: Any, capsys: Any) -> None:
    with model.session():
        with model.trace(PROMPT) as t:
            gw.log("in a session", model.ids.sum())
    assert "in a session 26" in capsys.readouterr().out
    assert len(t.logs) == 1
