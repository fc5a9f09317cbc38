# ruff: noqa: SIM117
"""`t.state` and `t.stop`: what they refuse, and cases that the laws do not have."""

from typing import Any

import pytest
import torch

import glassworks as gw
from lines import here, told

PROMPT = [5, 6, 7, 8]


def test_a_read_before_the_line_gives_the_step_before(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=3, eos_token_id=[]) as t:
        s = t.state(10)
        with t.steps[:]:
            before = s.value.save()
            s.value = s.value + 1
            s.value = s.value * 2
            after = s.value.save()
        with t.steps[2]:
            last = s.value.save()
    assert [value.item() for value in before.value] == [10, 22, 46]
    assert [value.item() for value in after.value] == [22, 46, 94]
    assert last.item() == 94


def test_it_begins_as_a_value_of_the_prompt(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=4, eos_token_id=[]) as t:
        with t.prompt:
            first = model.layers[2].output[:, -1]
            kept = first.save()
        s = t.state(first)
        with t.steps[1:]:
            model.layers[0].output[:, -1] += s.value
            s.value = s.value * 0.5
            found = s.value.save()
    for step, value in enumerate(found.value):
        assert torch.equal(value, kept.value * 0.5 ** (step + 1))


def test_a_state_that_is_only_carried_costs_no_steps(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=6, eos_token_id=[]) as t:
        s = t.state(0.0)
        with t.steps[:]:
            s.value = s.value + model.layers[1].output[:, -1].sum()
            t.stop(when=model.logits[:, -1].isnan().any(-1))
        with t.steps[1]:
            s.value.save()
    assert t.forwards == 2


def test_a_write_at_all_steps_costs_no_more_steps_than_the_save(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=6, eos_token_id=[]) as t:
        with t.steps[:]:
            model.layers[0].output[:, -1] += 1
        with t.prompt:
            model.logits.save()
    assert t.forwards == 1


def test_in_a_trace_it_is_refused_with_what_to_write(model: Any) -> None:
    for use in (lambda t: t.state(0), lambda t: t.stop(when=torch.tensor(True))):
        with pytest.raises(gw.ScopeError, match=r"model\.generate") as caught, model.trace(PROMPT) as t:
            line = here(+1)
            use(t)
        assert __file__ in told(caught.value)
        assert line.split(":")[0] in told(caught.value)


def test_outside_of_steps_it_is_refused_with_both_spellings(model: Any) -> None:
    with pytest.raises(gw.ScopeError, match=r"with t\.steps\[0:5\].*for step in") as caught:
        with model.generate(PROMPT, max_new_tokens=3) as t:
            s = t.state(0)
            line = here(+1)
            s.value = s.value + 1
    assert line in told(caught.value)


def test_another_shape_is_refused(model: Any) -> None:
    with pytest.raises(gw.GraphError, match=r"keeps the shape.*\[32\].*\[1, 32\].*a number") as caught:
        with model.generate(PROMPT, max_new_tokens=3) as t, t.steps[:]:
            begun = here(+1)
            s = t.state(torch.zeros(32))
            line = here(+1)
            s.value = s.value + model.layers[0].output[:, -1]
    assert begun in told(caught.value)
    assert line in told(caught.value)


def test_its_shape_is_that_of_what_it_begins_as(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=3) as t, t.steps[:]:
        assert t.state(torch.zeros(1, 32)).value.shape == (1, 32)
        with pytest.raises(gw.GraphError, match="begins as a number"):
            t.state(0).value.shape  # noqa: B018


def test_what_cannot_be_a_state_is_refused(model: Any) -> None:
    with pytest.raises(gw.ScopeError, match="begins as a value of one step"):
        with model.generate(PROMPT, max_new_tokens=3) as t, t.steps[:]:
            t.state(model.layers[0].output[:, -1]).value.save()
    with pytest.raises(gw.ScopeError, match="does not exist yet at step 0"):
        with model.generate(PROMPT, max_new_tokens=3) as t:
            with t.steps[2]:
                late = model.layers[0].output[:, -1]
            s = t.state(late)
            with t.steps[0]:
                s.value.save()
    with pytest.raises(gw.ScopeError, match="not both"), model.generate(max_new_tokens=3) as t:
        s = t.state(0)
        with t.invoke(PROMPT), t.steps[:]:
            s.value = s.value + 1
        with t.steps[:]:
            s.value.save()
    with pytest.raises(gw.GraphError, match=r"before gw\.cond"):
        with model.generate(PROMPT, max_new_tokens=3) as t, t.steps[:]:
            gw.cond(model.logits.sum() > 0, lambda: t.state(0).value, 1)
    with pytest.raises(gw.ScopeError, match="within its own steps only"):
        with model.generate(PROMPT, max_new_tokens=3) as t:
            s = t.state(0)
            with t.steps[:]:
                every = model.layers[0].output.sum()
            with t.steps[1]:
                s.value = every
            with t.steps[2]:
                s.value.save()
    with pytest.raises(gw.OrderError, match=r"model\.ids"), model.generate(PROMPT, max_new_tokens=3) as t:
        s = t.state(0)
        with t.steps[0:3]:
            s.value.save()
            s.value = t.result.sum()
    with pytest.raises(gw.ScopeError, match="has ended"):
        s.value  # noqa: B018


def test_a_recorded_state(model: Any) -> None:
    with model.record() as t:
        s = t.state(0)
        s.value = s.value + 1
        s.value.save("count")
        t.stop(when=s.value == torch.tensor(3))
    assert gw.Graph.decode(t.graph.encode()) == t.graph
    assert "stop when" in str(t.graph)
    found = model.run(gw.Graph.decode(t.graph.encode()), PROMPT, max_new_tokens=5)["count"]
    assert [value.item() for value in found] == [1, 2, 3]
    assert model.run(t.graph, PROMPT)["count"].item() == 1


def test_a_value_that_another_pass_gives_is_carried(model: Any) -> None:
    """The assigned value is of a later place in another invoke's rows than where the state is used."""

    def together() -> Any:
        with model.generate(max_new_tokens=3, eos_token_id=[]) as t:
            s = t.state(torch.zeros(1, 32))
            with t.invoke([9, 10, 11]), t.steps[:]:
                late = model.layers[2].output[:, -1]
                donor = late.save()
            with t.invoke(PROMPT), t.steps[:]:
                model.layers[0].output[:, -1] = late * 0.5
                s.value = s.value + late
                model.layers[1].output[:, -1] += s.value
                found, kept = s.value.save(), model.logits[:, -1].save()
        return donor.value, found.value, kept.value

    donor, found, kept = together()
    for step in range(3):
        torch.testing.assert_close(found[step], torch.stack(donor[: step + 1]).sum(0))
    with model.generate(PROMPT, max_new_tokens=3, eos_token_id=[]) as t:
        expected = []
        for step in t.steps[0:3]:
            model.layers[0].output[:, -1] = donor[step] * 0.5
            model.layers[1].output[:, -1] += torch.stack(donor[: step + 1]).sum(0)
            expected.append(model.logits[:, -1].save())
    for one, other in zip(kept, expected, strict=True):
        torch.testing.assert_close(one, other.value)


def test_writes_of_some_steps_are_performed_again_in_a_later_pass(model: Any) -> None:
    """Their values are those of each step, not of the last one."""

    def body(late: Any) -> Any:
        with t.steps[0:3]:
            model.layers[0].output[:, -1] += model.layers[0].output[:, -1] * 0.5
        with t.steps[3]:
            model.layers[0].output[:, -1] = late
        with t.steps[0:5]:
            return model.logits[:, -1].save()

    with model.generate(max_new_tokens=5, eos_token_id=[]) as t:
        with t.invoke([9, 10, 11]), t.steps[3]:
            late = model.layers[2].output[:, -1]
            donor = late.save()
        with t.invoke(PROMPT):
            found = body(late)
    with model.generate(PROMPT, max_new_tokens=5, eos_token_id=[]) as t:
        expected = body(donor.value)
    for one, other in zip(found.value, expected.value, strict=True):
        torch.testing.assert_close(one, other)


def test_a_stop_that_is_no_truth_value_is_refused(model: Any) -> None:
    with pytest.raises(gw.GraphError, match="float32: compare it first") as caught:
        with model.generate(PROMPT, max_new_tokens=3) as t, t.steps[:]:
            line = here(+1)
            t.stop(when=model.logits[:, -1].max(-1).values)
    assert line in told(caught.value)
    with pytest.raises(gw.GraphError, match=r"got bool \[2, 97\] for 2 rows") as caught:
        with model.generate([PROMPT, PROMPT], max_new_tokens=3) as t, t.steps[:]:
            line = here(+1)
            t.stop(when=model.logits[:, -1] > 0)
            model.logits.save()
    assert line in told(caught.value)
    with pytest.raises(gw.OrderError, match=r"depends on t\.result.*model\.ids") as caught:
        with model.generate(PROMPT, max_new_tokens=3) as t:
            line = here(+1)
            t.stop(when=(t.result == 3).any(-1))
            t.result.save()
    assert line in told(caught.value)


def test_a_write_of_the_result_is_refused(model: Any) -> None:
    with pytest.raises(gw.OrderError, match=r"depends on t\.result") as caught:
        with model.generate(PROMPT, max_new_tokens=3) as t:
            tokens = t.result
            with t.steps[:]:
                line = here(+1)
                model.layers[0].output = tokens.sum()
                tokens.save()
    assert line in told(caught.value)


def test_a_stop_alone_runs_nothing_until_the_result_is_asked_for(model: Any, bare: Any) -> None:
    calls = []
    handle = bare.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with model.generate(PROMPT, max_new_tokens=5, eos_token_id=[]) as t, t.steps[1:]:
            t.stop(when=model.logits[:, -1].isfinite().all(-1))
        assert not calls
        assert t.result.shape == (1, 2)
        assert len(t.alive) == len(calls) == 2
    finally:
        handle.remove()


def test_a_stop_in_a_branch(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=6, eos_token_id=[]) as t:
        s = t.state(0)
        with t.steps[:]:
            s.value = s.value + 1
            gw.cond(s.value > 2, lambda: t.stop(when=s.value == s.value), lambda: None)
            found = s.value.save()
    assert len(found.value) == 3


def test_the_seed_can_be_set_inside(model: Any) -> None:
    def drawn(seed: int, inside: bool) -> list[torch.Tensor]:
        with model.generate(PROMPT, max_new_tokens=3, eos_token_id=[], seed=0 if inside else seed) as t:
            with t.steps[:]:
                noise = torch.randn_like(model.layers[0].output[:, -1])
                kept = noise.save()
            if inside:
                t.seed = seed
        return list(kept.value)

    first, again, other = drawn(7, False), drawn(7, True), drawn(8, True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({tuple(value[0].tolist()) for value in first}) == 3


def test_draws_of_a_generation_do_not_depend_on_company(model: Any) -> None:
    def body(s: Any) -> Any:
        s.value = s.value + torch.randn_like(model.layers[0].output[:, -1])
        model.layers[0].output[:, -1] += s.value
        return [s.value.save(), model.logits[:, -1].save()]

    with model.generate(max_new_tokens=3, eos_token_id=[], seed=5, do_sample=True) as t:
        s, saved = t.state(0.0), []
        for prompt in (PROMPT, [9, 10]):
            with t.invoke(prompt), t.steps[:]:
                saved.append(body(s))
    with model.generate(PROMPT, max_new_tokens=3, eos_token_id=[], seed=5, do_sample=True) as t:
        s = t.state(0.0)
        with t.steps[:]:
            alone = body(s)
    for one, other in zip(saved[0], alone, strict=True):
        for a, b in zip(one.value, other.value, strict=True):
            torch.testing.assert_close(a, b)
