"""The laws as functions of a runtime. Each raises AssertionError where the law does not hold.

They stand apart from the tests so that `test_broken_interpreter` can show that they fail when they should.
"""

from typing import Any

import torch

import glassworks as gw
from laws.equal import close, differs, same_bits
from laws.places import read, write
from laws.reference import hooked, map_of, names_of
from laws.runtimes import Runtime, local

PROMPT = [5, 6, 7, 8, 9]
RAGGED = [[5, 6, 7], [11, 12, 13, 14, 15, 16], [21, 22], [31, 32, 33, 34, 35]]
NAN = float("nan")


def logits_alone(runtime: Runtime, prompt: list[int]) -> torch.Tensor:
    with runtime.model.trace(prompt):
        saved = runtime.model.logits.save()
    return saved.value


def middle(runtime: Runtime) -> Any:
    return runtime.layers[1]


# Law 1.


def saving_is_the_plain_forward(runtime: Runtime) -> None:
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        logits = runtime.model.logits.save()
        result = t.result["logits"].save()
    expected = runtime.forward(PROMPT, **runtime.arguments).logits
    same_bits(result, expected)
    same_bits(logits, expected)


def every_site_reads_what_passes_there(runtime: Runtime) -> None:
    places = map_of(runtime.family).places
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda tensor: seen.update({name: tensor.clone()})

    hooked(
        runtime.bare, places, {name: keep(name) for name in places},
        lambda: runtime.forward(PROMPT, **runtime.arguments),
    )  # fmt: skip
    with runtime.model.trace(PROMPT, **runtime.arguments):
        saved = {name: read(runtime.model, name).save() for name in places}
    for name, value in saved.items():
        (same_bits if name in _as_it_runs(runtime) else close)(value, seen[name])


def writing_what_was_read_changes_nothing(runtime: Runtime) -> None:
    expected = runtime.forward(PROMPT, **runtime.arguments).logits
    for names, equal in ((_as_it_runs(runtime), same_bits), (names_of(runtime), close)):
        with runtime.model.trace(PROMPT, **runtime.arguments):
            for name in names:
                write(runtime.model, name, read(runtime.model, name))
            saved = runtime.model.logits.save()
        equal(saved, expected)


def _as_it_runs(runtime: Runtime) -> list[str]:
    """Sites that do not make attention compute otherwise than it does when nobody looks."""
    return [name for name in names_of(runtime) if not name.endswith((".scores", ".probs"))]


def a_write_matters(runtime: Runtime, name: str) -> None:
    """Scaling half of the features, which no normalisation takes back, changes the result as a hook would."""
    places = map_of(runtime.family).places
    plain = runtime.forward(PROMPT, **runtime.arguments).logits

    def scale(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[..., ::2] *= 1.5
        return changed

    expected = hooked(
        runtime.bare, places, {name: scale}, lambda: runtime.forward(PROMPT, **runtime.arguments)
    ).logits  # fmt: skip
    with runtime.model.trace(PROMPT, **runtime.arguments):
        read(runtime.model, name)[..., ::2] *= 1.5
        saved = runtime.model.logits.save()
    (same_bits if name in _as_it_runs(runtime) and ".heads." not in name else close)(saved, expected)
    differs(saved, plain)


def what_was_saved_keeps_what_it_was(runtime: Runtime) -> None:
    with runtime.model.trace(PROMPT):
        clean = runtime.model.logits.save()
    with runtime.model.trace(PROMPT):
        site = runtime.model.logits
        part = site[:, -1].save()
        twice = (site * 2).save()
        site[:, -1] = 0
        after = runtime.model.logits.save()
    same_bits(part, clean.value[:, -1])
    same_bits(twice, clean.value * 2)
    assert not bool(after.value[:, -1].any())


def a_save_has_memory_of_its_own(runtime: Runtime) -> None:
    with runtime.model.trace(RAGGED):
        part = runtime.layers[1].output[:1, -1].save()
        whole = runtime.model.logits.save()
    for value in (part.value, whole.value):
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def a_write_is_cast_and_broadcast(runtime: Runtime) -> None:
    row = torch.arange(32, dtype=torch.float64) / 16
    with runtime.model.trace(PROMPT):
        middle(runtime).output = row
        back = middle(runtime).output.save()
        after = runtime.model.logits.save()
    whole = row.to(torch.float32).expand(back.shape)
    same_bits(back, whole)
    with runtime.model.trace(PROMPT):
        middle(runtime).output = whole.clone()
        expected = runtime.model.logits.save()
    close(after, expected.value)


# Law 2.


def special_constants() -> dict[str, torch.Tensor]:
    odd = [NAN, float("inf"), -float("inf"), -0.0, 1e-40]
    return {
        "float32": torch.tensor(odd),
        "float64": torch.tensor(odd, dtype=torch.float64),
        "float16": torch.tensor([NAN, float("inf"), -0.0, 0.5], dtype=torch.float16),
        "bfloat16": torch.tensor([NAN, float("inf"), -0.0, 1.0], dtype=torch.bfloat16),
        "int64": torch.tensor([-(2**63), 0, 2**63 - 1]),
        "int8": torch.tensor([-128, 127], dtype=torch.int8),
        "bool": torch.tensor([True, False]),
        "complex64": torch.tensor([complex(1.5, -2.0), complex(0.0, 1e-40)]),
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "strided": torch.arange(12.0).reshape(3, 4).t(),
        "one of many": torch.arange(12).reshape(3, 4)[:1, -1],
    }


def constants_survive(runtime: Runtime) -> None:
    with runtime.model.trace(PROMPT) as t:
        anchor = middle(runtime).output.sum() * 0
        kept = {name: _with(anchor, constant).save(name) for name, constant in special_constants().items()}
    decoded = gw.Graph.decode(t.graph.encode())
    assert decoded == t.graph
    again = runtime.model.backend.run(decoded, t.inputs)
    for name, constant in special_constants().items():
        for found in (kept[name].value, again[name]):
            same_bits(found, constant)
            if constant.is_floating_point():
                assert torch.equal(found.signbit() & ~found.isnan(), constant.signbit() & ~constant.isnan())


def _with(anchor: Any, constant: torch.Tensor) -> Any:
    """The constant as a Value: chosen where a thing that always holds does."""
    return torch.where((anchor == anchor) | True, constant, constant)


# Laws 3 and 7.


def touch(runtime: Runtime, k: int) -> Any:
    """One of four small experiments, in the block or invoke that is open; gives what it saves."""
    early, late = runtime.layers[0], runtime.layers[2]
    if k == 0:
        early.output[:, -1] *= 1.5
    elif k == 1:
        late.mlp.output = late.mlp.output * 0.5
    elif k == 2:
        early.mlp.output[..., 4:20] = 0.25
    return [early.output.save(), late.output[:, -1].softmax(-1).save(), runtime.model.logits.save()]


def alone(runtime: Runtime, prompt: Any, k: int) -> list[torch.Tensor]:
    with runtime.model.trace(prompt):
        saved = touch(runtime, k)
    return [value.value for value in saved]


def a_sweep_is_its_runs(runtime: Runtime, rows: int | None = None) -> int:
    """Gives how many forward passes it took."""
    with runtime.model.trace(rows=rows) as t:
        saved = []
        for k, prompt in enumerate(RAGGED):
            with t.invoke(prompt):
                saved.append(touch(runtime, k))
    for k, prompt in enumerate(RAGGED):
        for found, expected in zip(saved[k], alone(runtime, prompt, k), strict=True):
            close(found, expected)
    return t.forwards


def nan_stays_where_it_was_written(runtime: Runtime) -> None:
    with runtime.model.trace() as t:
        saved = []
        for k, prompt in enumerate(RAGGED):
            with t.invoke(prompt):
                if k == 1:
                    runtime.layers[0].output = NAN
                saved.append(runtime.model.logits.save())
    assert bool(saved[1].isnan().all())
    for k in (0, 2, 3):
        close(saved[k], logits_alone(runtime, RAGGED[k]))


def several_prompts_in_one_invoke(runtime: Runtime) -> None:
    with runtime.model.trace(RAGGED):
        inner = runtime.layers[1].output.save()
        last = runtime.model.logits[:, -1].save()
    for k, prompt in enumerate(RAGGED):
        with runtime.model.trace(prompt):
            mine = runtime.layers[1].output.save()
            own = runtime.model.logits[:, -1].save()
        close(last.value[k], own.value[0])
        if not runtime.two:
            close(inner.value[k, -len(prompt) :], mine.value[0])
            assert not bool(inner.value[k, : -len(prompt)].any())


def padding_ignores_writes(runtime: Runtime) -> None:
    """A write everywhere, over several prompts, is the same write over each alone."""
    steer = torch.linspace(-1, 1, 32)
    site = "encoder.layers.0.output" if runtime.two else "layers.0.output"
    with runtime.model.trace(RAGGED):
        write(runtime.model, site, read(runtime.model, site) * 0.5 + steer)
        last = runtime.model.logits[:, -1].save()
    for k, prompt in enumerate(RAGGED):
        with runtime.model.trace(prompt):
            write(runtime.model, site, read(runtime.model, site) * 0.5 + steer)
            own = runtime.model.logits[:, -1].save()
        close(last.value[k], own.value[0])


def padding_reads_as_zero(runtime: Runtime) -> None:
    """Also where it was written just before, at the site itself and at the next one that holds the same tensor."""
    stack = "encoder.layers" if runtime.two else "layers"
    with runtime.model.trace(RAGGED):
        write(runtime.model, f"{stack}.0.output", read(runtime.model, f"{stack}.0.output") + 1.0)
        back = read(runtime.model, f"{stack}.0.output").save()
        following = read(runtime.model, f"{stack}.1.input").save()
    for k, prompt in enumerate(RAGGED):
        assert not bool(following.value[k, : -len(prompt)].any())
        assert not bool(back.value[k, : -len(prompt)].any())


def a_patch_across_invokes(runtime: Runtime) -> None:
    """From a later site of one prompt to an earlier of another: the clean value comes from its own run."""
    with runtime.model.trace(RAGGED[1]):
        late = runtime.layers[2].output[:, -1].save()
        same = runtime.layers[1].output[:, -1].save()
    with runtime.model.trace() as t:
        with t.invoke(RAGGED[1]):
            across, beside = runtime.layers[2].output[:, -1], runtime.layers[1].output[:, -1]
        with t.invoke(RAGGED[0]):
            runtime.layers[0].output[:, -1] = across
            first = runtime.model.logits.save()
        with t.invoke(RAGGED[3]):
            runtime.layers[1].output[:, -1] = beside
            second = runtime.model.logits.save()
    with runtime.model.trace(RAGGED[0]):
        runtime.layers[0].output[:, -1] = late.value
        one = runtime.model.logits.save()
    with runtime.model.trace(RAGGED[3]):
        runtime.layers[1].output[:, -1] = same.value
        two = runtime.model.logits.save()
    close(first, one.value)
    close(second, two.value)
    differs(first, logits_alone(runtime, RAGGED[0]))


def one_invoke_in_two_passes(runtime: Runtime) -> None:
    """A value is written before its own place, which takes a later pass, and after it, which does not."""
    with runtime.model.trace(RAGGED[0]):
        clean = runtime.layers[2].attn.output[:, -1:].save()
    with runtime.model.trace() as t:
        with t.invoke(RAGGED[0]):
            across = runtime.layers[2].attn.output[:, -1:]
        with t.invoke(RAGGED[1]):
            runtime.layers[1].output = across
            runtime.layers[2].mlp.output = across
            between = runtime.layers[1].attn.output.save()
            after = runtime.model.logits.save()
    with runtime.model.trace(RAGGED[1]):
        runtime.layers[1].output = clean.value
        runtime.layers[2].mlp.output = clean.value
        expected = [runtime.layers[1].attn.output.save(), runtime.model.logits.save()]
    close(between, expected[0].value)
    close(after, expected[1].value)


def equal_lengths_take_one_forward(runtime: Runtime, count: int = 64) -> None:
    with runtime.model.trace() as t:
        saved = []
        for k in range(count):
            with t.invoke([5 + k % 40, 6, 7, 8]):
                runtime.layers[k % 3].output[:, -1] *= 1.0 + k / count
                saved.append(runtime.model.logits[:, -1].save())
    assert t.forwards == 1
    for k in (0, 1, count - 1):
        with runtime.model.trace([5 + k % 40, 6, 7, 8]):
            runtime.layers[k % 3].output[:, -1] *= 1.0 + k / count
            own = runtime.model.logits[:, -1].save()
        close(saved[k], own.value)


INSIDE = ("attn.probs", "attn.scores", "attn.heads.key", "attn.heads.query", "mid")


def what_is_inside_a_generation(runtime: Runtime) -> None:
    """Keys grow with the steps; each invoke sees its own, whatever the company; a write there matters."""
    model, part = runtime.model, middle(runtime)

    def steps_of(t: Any) -> dict[str, Any]:
        found = {}
        with t.steps[0:3]:
            part.attn.heads.value[:, -1, 0] *= 3.0
            for name in INSIDE:
                found[name] = read(part, name).save()
            found["logits"] = model.logits[:, -1].save()
        return found

    alone, together = [], []
    for prompt in RAGGED:
        with model.generate(prompt, max_new_tokens=3) as t:
            alone.append(steps_of(t))
    with model.generate(max_new_tokens=3) as t:
        for prompt in RAGGED:
            with t.invoke(prompt):
                together.append(steps_of(t))
    for own, other in zip(together, alone, strict=True):
        assert len(own["logits"].value) == len(other["logits"].value) > 0
        for name in own:
            for found, expected in zip(own[name].value, other[name].value, strict=True):
                close(found, expected)
    for prompt, own in zip(RAGGED, alone, strict=True):
        tokens = 1 if runtime.two else len(prompt)
        assert [p.shape[-1] for p in own["attn.probs"].value] == [tokens, tokens + 1, tokens + 2][
            : len(own["mid"].value)
        ]


def skipping_is_replacing(runtime: Runtime) -> None:
    with runtime.model.trace(PROMPT):
        resid = runtime.layers[0].output
        runtime.layers[1].skip(resid)
        skipped = runtime.model.logits.save()
    with runtime.model.trace(PROMPT):
        runtime.layers[1].output = runtime.layers[0].output
        replaced = runtime.model.logits.save()
    same_bits(skipped, replaced.value)
    differs(skipped, logits_alone(runtime, PROMPT))


# Gradients.


def gradients_are_the_traces(runtime: Runtime) -> None:
    """Of a block that runs line by line; also where one is written, and the next depends on it."""
    found = []
    for own in (runtime, local(runtime.family)):
        with own.model.trace(PROMPT, **runtime.arguments) as t:
            values = [layer.output for layer in own.layers]
            part = values[1][:, -1, 4:9]
            doubled = values[2] * 2
            own.layers[2].output = doubled
            b = t.backward((own.model.logits[:, -1] ** 2).mean())
            late = [value.grad.save() for value in (doubled, values[2], part, values[1])]
            values[1].grad = values[1].grad * 0.25
            early = [values[1].grad.save(), values[0].grad.save()]
            b.grad(values[0])[:, -1].abs().sum().save()
        found.append(([*late, *early], t.graph))
    (mine, graph), (expected, other) = found
    assert graph == other
    for gradient, theirs in zip(mine, expected, strict=True):
        same_bits(gradient, theirs)
    same_bits(mine[4], mine[3].value * 0.25)
    assert float(mine[5].value.abs().max()) > 1e-6


# Generation.


def generation_is_greedy(runtime: Runtime, prompts: list[list[int]], new: int = 6) -> None:
    """As transformers' own `generate`, each prompt alone."""
    with runtime.model.generate(prompts, max_new_tokens=new) as t:
        pass
    for k, prompt in enumerate(prompts):
        expected = greedy(runtime, prompt, new)
        assert t.result[k].tolist()[: len(expected)] == expected


def greedy(runtime: Runtime, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    found = runtime.bare.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
    )
    return found[0, (1 if runtime.two else len(prompt)) :].tolist()


def steps_read_and_write(runtime: Runtime) -> None:
    """Writes at every step steer the generation as hooks on the bare module would."""
    steer = torch.linspace(-1, 1, 32)
    with runtime.model.generate(PROMPT, max_new_tokens=4, eos_token_id=[]) as t, t.steps[:]:
        runtime.layers[1].output[:, -1] += steer
        entries = runtime.model.logits[:, -1].save()
    place = map_of(runtime.family).places["decoder.layers.1.output" if runtime.two else "layers.1.output"]

    def add(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[:, -1] += steer
        return changed

    ids = torch.tensor([PROMPT])
    expected = hooked(
        runtime.bare, {"site": place}, {"site": add},
        lambda: runtime.bare.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=None,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        ),
    )  # fmt: skip
    start = 1 if runtime.two else len(PROMPT)
    assert t.result[0].tolist() == expected.sequences[0, start:].tolist()
    assert len(entries.value) == 4
    for found, logits in zip(entries.value, expected.logits, strict=True):
        close(found, logits)
