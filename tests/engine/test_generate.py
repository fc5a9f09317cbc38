# ruff: noqa: SIM117
"""Generation: steps, results, rows that end, sampling; transformers' own `generate` is the oracle."""

from typing import Any

import pytest
import torch

import glassworks as gw
from families import FAMILIES
from lines import here, told

PROMPT = [5, 6, 7, 8]
RAGGED = [[5, 6, 7], [11, 12, 13, 14, 15, 16], [21, 22]]


@pytest.fixture(scope="module")
def bare() -> torch.nn.Module:
    return FAMILIES["llama"]()


@pytest.fixture(scope="module")
def model(bare: torch.nn.Module) -> gw.Model:
    return gw.wrap(bare)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, gw.Model, bool]:
    module = FAMILIES[request.param]()
    return module, gw.wrap(module), request.param == "t5"


def oracle(module: Any, prompt: list[int], two: bool = False, **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    found = module.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **options)
    return found[0, (1 if two else len(prompt)) :].tolist()


def test_the_result_is_transformers_greedy(family: Any) -> None:
    module, model, two = family
    with model.generate(PROMPT, max_new_tokens=8, eos_token_id=[]) as t:
        pass
    assert t.result.dtype == torch.int64
    assert t.result.tolist() == [oracle(module, PROMPT, two, max_new_tokens=8, eos_token_id=None)]


def test_a_ragged_batch_is_each_alone(family: Any) -> None:
    module, model, two = family
    with model.generate(RAGGED, max_new_tokens=8, eos_token_id=[]) as t:
        pass
    assert t.result.tolist() == [oracle(module, p, two, max_new_tokens=8, eos_token_id=None) for p in RAGGED]


def test_an_invoke_has_its_own_result(family: Any) -> None:
    module, model, two = family
    with model.generate(max_new_tokens=5, eos_token_id=[]) as t:
        invokes = []
        for prompt in RAGGED:
            with t.invoke(prompt) as own:
                invokes.append(own)
    for own, prompt in zip(invokes, RAGGED, strict=True):
        assert own.result.tolist() == [oracle(module, prompt, two, max_new_tokens=5, eos_token_id=None)]


def test_repetition_penalty_is_transformers_own(family: Any) -> None:
    module, model, two = family
    with model.generate(PROMPT, max_new_tokens=8, eos_token_id=[], repetition_penalty=1.7) as t:
        pass
    expected = oracle(module, PROMPT, two, max_new_tokens=8, eos_token_id=None, repetition_penalty=1.7)
    assert t.result.tolist() == [expected]


def test_step_0_has_the_whole_prompt(model: Any, bare: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=3, eos_token_id=[]) as t:
        with t.prompt:
            first = model.logits.save()
            ids = model.ids.save()
        with t.steps[2]:
            third = model.logits.save()
            fed = model.ids.save()
    with torch.no_grad():
        expected = bare(input_ids=torch.tensor([PROMPT])).logits
    torch.testing.assert_close(first.value, expected, atol=1e-5, rtol=1e-5)
    assert ids.value.tolist() == [PROMPT]
    assert third.value.shape == (1, 1, 97)
    assert fed.value.tolist() == [[t.result[0, 1].item()]]


def test_saves_under_steps_are_lists(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=5, eos_token_id=[]) as t:
        with t.steps[1:4]:
            some = model.layers[1].output[:, -1].save()
        with t.steps[:]:
            every = model.logits[:, -1].argmax(-1).save()
        with t.steps[3]:
            one = model.layers[1].output[:, -1].save()
    assert isinstance(some.value, list)
    assert len(some.value) == 3
    assert len(every.value) == 5
    assert isinstance(one.value, torch.Tensor)
    assert torch.equal(one.value, some.value[2])
    assert [token.item() for token in every.value] == t.result[0].tolist()


def test_an_unrolled_loop(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=3, eos_token_id=[]) as t:
        kept, steps = [], []
        for step in t.steps[0:3]:
            steps.append(step)
            kept.append(model.logits[:, -1].save())
    assert steps == [0, 1, 2]
    assert all(type(step) is int for step in steps)
    assert [value.argmax(-1).item() for value in kept] == t.result[0].tolist()


def test_a_site_outside_steps_is_refused_with_both_spellings(model: Any) -> None:
    with pytest.raises(gw.ScopeError) as caught, model.generate(PROMPT, max_new_tokens=3):
        line = here(+1)
        model.logits.save()
    assert line in told(caught.value)
    assert "with t.steps[" in told(caught.value)
    assert "for step in t.steps[" in told(caught.value)


def test_a_value_of_an_earlier_step_is_used_in_a_later(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=4, eos_token_id=[]) as t:
        with t.steps[0]:
            early = model.layers[1].output[:, -1:]
        with t.steps[2]:
            model.layers[1].output = early
            back = model.layers[1].output.save()
        with t.steps[0]:
            own = model.layers[1].output[:, -1:].save()
    assert torch.equal(back.value, own.value)


def test_a_value_of_a_later_step_is_refused_in_an_earlier(model: Any) -> None:
    with pytest.raises(gw.GraphError) as caught, model.generate(PROMPT, max_new_tokens=4) as t:
        with t.steps[2]:
            late = model.layers[1].output
        with t.steps[1]:
            line = here(+1)
            model.layers[1].output = late
            model.logits.save()
    assert line in told(caught.value)


def test_shapes_that_differ_between_steps_are_unknown(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=3) as t:
        with t.steps[:]:
            assert tuple(model.layers[0].output.shape) == (1, None, 32)
            assert tuple(model.logits[:, -1].shape) == (1, 97)
        with t.steps[1:3]:
            assert tuple(model.layers[0].output.shape) == (1, 1, 32)
        with t.prompt:
            assert tuple(model.layers[0].output.shape) == (1, 4, 32)


def count_forwards(bare: Any, run: Any) -> int:
    calls: list[int] = []
    handle = bare.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        run()
    finally:
        handle.remove()
    return len(calls)


def test_only_the_steps_that_saves_need_run(model: Any, bare: Any) -> None:
    def run() -> None:
        with model.generate(PROMPT, max_new_tokens=20, eos_token_id=[]) as t, t.steps[1]:
            model.logits.save()

    assert count_forwards(bare, run) == 2


def test_the_result_runs_when_it_is_read(model: Any, bare: Any) -> None:
    found: list[Any] = []

    def run() -> None:
        with model.generate(PROMPT, max_new_tokens=4, eos_token_id=[]) as t:
            pass
        found.append(t)

    assert count_forwards(bare, run) == 0
    assert count_forwards(bare, lambda: found[0].result) == 4
    assert count_forwards(bare, lambda: found[0].result) == 0
    assert found[0].result.shape == (1, 4)


def test_the_result_is_what_the_writes_make_of_it(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=4, eos_token_id=[]) as t, t.steps[:]:
        logits = model.logits
        logits[..., 42] = 1e4
    assert t.result.tolist() == [[42, 42, 42, 42]]


def test_no_new_tokens_only_reads(model: Any, bare: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=0) as t, t.prompt:
        saved = model.logits.save()
    with torch.no_grad():
        expected = bare(input_ids=torch.tensor([PROMPT])).logits
    torch.testing.assert_close(saved.value, expected, atol=1e-5, rtol=1e-5)
    assert tuple(t.result.shape) == (1, 0)


def ends_after(bare: Any, prompt: list[int], new: int) -> tuple[int, list[int]]:
    """An end token that this prompt's generation meets, and what is generated up to it."""
    tokens = oracle(bare, prompt, max_new_tokens=new, eos_token_id=None)
    end = tokens[2]
    return end, tokens[: tokens.index(end) + 1]


def test_an_end_makes_lists_shorter_with_one_row(model: Any, bare: Any) -> None:
    end, expected = ends_after(bare, PROMPT, 8)
    with model.generate(PROMPT, max_new_tokens=8, eos_token_id=end) as t, t.steps[:]:
        kept = model.logits[:, -1].argmax(-1).save()
    assert [token.item() for token in kept.value] == expected
    assert t.result.tolist() == [expected]
    assert oracle(bare, PROMPT, max_new_tokens=8, eos_token_id=end) == expected


def test_an_end_of_one_row_of_several(model: Any, bare: Any) -> None:
    end, expected = ends_after(bare, RAGGED[0], 8)
    with model.generate(RAGGED, max_new_tokens=8, eos_token_id=end, pad_token_id=0) as t, t.steps[:]:
        kept = model.logits[:, -1].save()
    assert all(entry.shape == (3, 97) for entry in kept.value)
    alive = torch.stack(t.alive)
    assert len(kept.value) == len(alive)
    for k, prompt in enumerate(RAGGED):
        own = oracle(bare, prompt, max_new_tokens=8, eos_token_id=end)
        assert int(alive[:, k].sum()) == len(own)
        assert t.result[k, : len(own)].tolist() == own
    assert int(alive[:, 0].sum()) == len(expected)


def test_an_end_in_one_invoke_leaves_others(model: Any, bare: Any) -> None:
    end, expected = ends_after(bare, RAGGED[0], 8)
    with model.generate(max_new_tokens=8, eos_token_id=end) as t:
        kept, owns = [], []
        for prompt in RAGGED:
            with t.invoke(prompt) as own, t.steps[:]:
                kept.append(model.logits[:, -1].argmax(-1).save())
            owns.append(own)
    for own, tokens, prompt in zip(owns, kept, RAGGED, strict=True):
        wanted = oracle(bare, prompt, max_new_tokens=8, eos_token_id=end)
        assert [token.item() for token in tokens.value] == wanted
        assert own.result.tolist() == [wanted]
    assert [token.item() for token in kept[0].value] == expected


def test_sampling_does_not_depend_on_company(model: Any) -> None:
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5, "top_k": 40, "eos_token_id": []}

    def drawn(prompts: list[list[int]], seed: int) -> list[list[int]]:
        with model.generate(seed=seed, **options) as t:
            for prompt in prompts:
                with t.invoke(prompt):
                    pass
        return t.result.tolist()

    torch.manual_seed(1)
    alone = drawn(RAGGED[:1], 3)
    torch.manual_seed(2)
    assert drawn(RAGGED, 3)[0] == alone[0]
    assert drawn(RAGGED[:1], 3) == alone
    assert drawn(RAGGED[:1], 4) != alone


def test_beams_are_refused(model: Any) -> None:
    with pytest.raises((gw.InputError, gw.GraphError), match="beam"):
        with model.generate(PROMPT, max_new_tokens=3, num_beams=2) as t, t.steps[:]:
            model.layers[0].output[:] = 0
            model.logits.save()


def test_unknown_options_are_refused(model: Any) -> None:
    with pytest.raises(gw.InputError, match="temprature"), model.generate(PROMPT, temprature=2.0) as t, t.prompt:
        model.logits.save()


def test_a_skip_in_a_generation(model: Any) -> None:
    with model.generate(RAGGED, max_new_tokens=4, eos_token_id=[]) as t, t.steps[:]:
        model.layers[1].skip(model.layers[0].output)
    for k, prompt in enumerate(RAGGED):
        with model.generate(prompt, max_new_tokens=4, eos_token_id=[]) as own, own.steps[:]:
            model.layers[1].output = model.layers[0].output
        assert t.result[k].tolist() == own.result[0].tolist()


def test_complete(model: Any, bare: Any) -> None:
    reply = model.complete(PROMPT, max_new_tokens=5, eos_token_id=[])
    assert reply.tokens == oracle(bare, PROMPT, max_new_tokens=5, eos_token_id=None)
    replies = model.complete(RAGGED, max_new_tokens=5, eos_token_id=[])
    assert [r.tokens for r in replies] == [oracle(bare, p, max_new_tokens=5, eos_token_id=None) for p in RAGGED]


def test_a_cache_of_a_generation(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=3, eos_token_id=[]) as t, t.steps[:]:
        kept = t.cache("layers.*.output")
        last = model.layers[2].output.save()
    assert list(kept) == ["layers.0.output", "layers.1.output", "layers.2.output"]
    assert len(kept["layers.2.output"]) == 3
    assert torch.equal(kept["layers.2.output"][1], last.value[1])
