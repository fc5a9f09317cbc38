"""`model.trace(..., rows=n)`: at most n rows a pass, with the same results for any number, also within one invoke."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glassworks as gw
from glassworks.run import lockstep
from laws.equal import close
from laws.runtimes import bare, eager, in_process, staged

PROMPTS = [[5, 6, 7], [11, 12, 13, 14, 15, 16], [21, 22], [31, 32, 33, 34, 35], [41, 42, 43], [51, 52, 53, 54]]
EQUAL = [[5 + k, 6, 7, 8] for k in range(5)]
FAMILIES = ("gpt2", "llama", "mixtral", "t5", "opt")
Experiment = Callable[[Any, Any], list[Any]]


@contextmanager
def rows_of_passes(module: torch.nn.Module) -> Iterator[list[int]]:
    """How many rows each forward pass of a module has."""
    seen: list[int] = []
    handle = module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def layers(model: Any) -> Any:
    return model.encoder.layers if "encoder" in model.table.layers else model.layers


def read(model: Any, t: Any) -> list[Any]:
    return [*[layer.output.save() for layer in layers(model)], model.logits.save(), t.result["logits"].save()]


def write(model: Any, t: Any) -> list[Any]:
    layers(model)[0].output[:, -1] *= 1.5
    layers(model)[1].mlp.output = layers(model)[1].mlp.output * 0.5
    layers(model)[1].output[..., 3:9] = 0.25
    return [layers(model)[1].output.save(), layers(model)[2].input.save(), model.logits.save()]


def mix_rows(model: Any, t: Any) -> list[Any]:
    """What is computed from all rows together, and written to all, to one, and from one to another."""
    h = layers(model)[0].output
    mean = h.mean(0, keepdim=True).save()
    layers(model)[1].output = layers(model)[1].output - mean
    h = layers(model)[1].mlp.output
    h[0] = h[-1]
    order = model.logits[:, -1].max(-1).values.argsort().save()
    return [mean, order, layers(model)[2].output.save(), model.logits.save()]


def skip(model: Any, t: Any) -> list[Any]:
    layers(model)[1].skip(layers(model)[0].output * 2)
    return [model.logits.save()]


def differentiate(model: Any, t: Any) -> list[Any]:
    early, late = layers(model)[0].output, layers(model)[1].output
    loss = (model.logits[:, -1].logsumexp(-1) * torch.tensor(1.0)).sum() + late.mean() ** 2
    t.backward(loss)
    late.grad = late.grad * 2
    return [loss.save(), early.grad.save(), late[:, -1].grad.save()]


def draw(model: Any, t: Any) -> list[Any]:
    layers(model)[0].output += torch.randn_like(layers(model)[0].output) * 0.1
    return [model.logits.save()]


EXPERIMENTS: dict[str, Experiment] = {
    function.__name__: function for function in (read, write, mix_rows, skip, differentiate, draw)
}


def run(model: Any, prompts: Any, experiment: Experiment, rows: int | None) -> tuple[list[Any], int]:
    with model.trace(prompts, rows=rows, seed=3) as t:
        saved = experiment(model, t)
    return [value.value for value in saved], t.forwards


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompts", [PROMPTS, EQUAL], ids=["ragged", "equal"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_same_results_for_any_number_of_rows(family, prompts, experiment):
    model = eager(family)
    expected, forwards = run(model, prompts, EXPERIMENTS[experiment], None)
    assert forwards == 1
    for rows in (1, 2, 4, len(prompts)):
        with rows_of_passes(bare(family)) as passes:
            found, count = run(model, prompts, EXPERIMENTS[experiment], rows)
        assert count == len(passes) == -(-len(prompts) // rows)
        assert max(passes) <= rows
        assert sum(passes) == len(prompts)
        for value, other in zip(found, expected, strict=True):
            close(value, other)


LENGTHS = st.lists(st.lists(st.integers(3, 90), min_size=1, max_size=6), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(first=LENGTHS, second=LENGTHS, rows=st.integers(1, 7))
def test_invokes_of_any_sizes_and_what_stands_outside_them(first, second, rows):
    model = eager("gpt2")

    def everything(bound: int | None) -> list[torch.Tensor]:
        with model.trace(rows=bound) as t:
            with t.invoke(first):
                across = model.layers[0].output[:, -1].mean(0)
                one = model.logits.save()
            with t.invoke(second):
                model.layers[1].output[:, -1] = across
                two = model.logits.save()
            all_rows = model.layers[0].output[:, -1].save()
        return [one.value, two.value, all_rows.value]

    for found, expected in zip(everything(rows), everything(None), strict=True):
        close(found, expected)


def test_what_stands_inside_modules():
    model = eager("gpt2")

    def inner(bound: int | None) -> list[Any]:
        with model.trace(PROMPTS, rows=bound):
            attn = model.layers[1].attn
            attn.heads[1].output[:, -1] = 0.0
            model.layers[1].mid[:, -1] += 1.0
            saved = [attn.heads.output.save(), attn.probs.save(), model.layers[1].mlp.neurons.save()]
            saved += [model.layers[1].output.save(), model.logits.save()]
        return [value.value for value in saved]

    for found, expected in zip(inner(2), inner(None), strict=True):
        close(found, expected)


def test_a_captured_tensor_trains_as_in_one_pass():
    model = eager("gpt2")

    def gradient(bound: int | None) -> torch.Tensor:
        vector = torch.linspace(-1, 1, 32, requires_grad=True)
        with model.trace(PROMPTS, rows=bound) as t:
            model.layers[1].output += vector
            t.backward(model.logits[:, -1].log_softmax(-1)[:, 7].mean())
        assert vector.grad is not None
        return vector.grad

    close(gradient(2), gradient(None))
    assert float(gradient(None).abs().max()) > 1e-3


def test_a_remote_model_divides_too():
    model = in_process("gpt2")
    expected, _ = run(model, PROMPTS, mix_rows, None)
    found, count = run(model, PROMPTS, mix_rows, 2)
    assert count == 3
    for value, other in zip(found, expected, strict=True):
        close(value, other)


def test_tensors_of_the_callers_are_divided_with_the_rows():
    model, mask = eager("gpt2"), torch.ones(5, 4, dtype=torch.long)
    mask[2, :2] = 0

    def masked(rows: int | None) -> torch.Tensor:
        with model.trace(EQUAL, rows=rows, attention_mask=mask):
            saved = model.logits.save()
        return saved.value

    close(masked(2), masked(None))


def test_an_error_of_one_pass_ends_them_all_and_leaves_the_model_as_it_was():
    model, module = eager("gpt2"), bare("gpt2")
    before = module(torch.tensor([[5, 6]])).logits
    calls = []

    def breaks(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the second pass")

    handle = module.transformer.h[1].register_forward_pre_hook(breaks)
    with pytest.raises(RuntimeError, match="the second pass"), model.trace(PROMPTS, rows=2):
        model.layers[0].output.save()
        model.logits.save()
    handle.remove()
    with pytest.raises(RuntimeError, match="size of tensor") as caught, model.trace(PROMPTS, rows=2):
        (model.layers[0].output[:, :2] + torch.ones(1, 3, 1)).save()
    assert "test_lockstep.py" in str(caught.value) + "".join(caught.value.__notes__)
    assert torch.equal(module(torch.tensor([[5, 6]])).logits, before)
    assert all("forward" not in vars(m) for m in module.modules())
    assert torch.is_grad_enabled()


def test_what_cannot_be_divided_says_so():
    with pytest.raises(gw.InputError, match=r"6 rows belong together .* at most rows=2"), staged("gpt2").trace(
        PROMPTS, rows=2
    ):  # fmt: skip
        staged("gpt2").logits.save()
    model = eager("gpt2")
    with pytest.raises(gw.InputError, match="a generation at most rows=2"):  # noqa: SIM117
        with model.generate(PROMPTS, max_new_tokens=2, rows=2) as t, t.steps[0]:
            model.logits.save()


def swapped(patch: pytest.MonkeyPatch) -> None:
    """The parts are put under each other in another order."""
    joined = lockstep._joined
    patch.setattr(lockstep, "_joined", lambda parts, items: joined(parts[::-1], items))


def handed_the_first(patch: pytest.MonkeyPatch) -> None:
    """Each part goes on with the first rows."""
    handed = lockstep._handed_back

    def wrong(parts: Any, *rest: Any, **options: Any) -> None:
        starts = [part.start for part in parts]
        for part in parts:
            part.start = 0
        handed(parts, *rest, **options)
        for part, start in zip(parts, starts, strict=True):
            part.start = start

    patch.setattr(lockstep, "_handed_back", wrong)


@pytest.mark.parametrize("breaks", [swapped, handed_the_first])
def test_the_law_notices(monkeypatch, breaks):
    model = eager("gpt2")
    expected, _ = run(model, EQUAL, write, None)
    with monkeypatch.context() as patch:
        breaks(patch)
        found, _ = run(model, EQUAL[:4], write, 2)
        with pytest.raises(AssertionError):
            for value, other in zip(found, expected, strict=True):
                close(value, other[:4])
