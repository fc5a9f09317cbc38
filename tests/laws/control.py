"""Laws of states, stops, logs, draws and gradients under control. Functions of a runtime, as in `checks`."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

import glassworks as gw
from laws.checks import PROMPT, RAGGED
from laws.equal import close, differs, same_bits
from laws.reference import hooked, map_of
from laws.runtimes import Runtime, local

# States and stops.


def a_state_goes_from_step_to_step(runtime: Runtime) -> None:
    """A write of what was summed so far is what hooks with a variable do."""
    site = "decoder.layers.{}.output" if runtime.two else "layers.{}.output"
    places = {str(k): map_of(runtime.family).places[site.format(k)] for k in (0, 1)}
    total = [torch.zeros(1, 32)]

    def add(tensor: torch.Tensor) -> None:
        total.append(0.5 * total[-1] + tensor[:, -1])

    def write(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[:, -1] += total[-2]
        return changed

    ids = torch.tensor([PROMPT])
    expected = hooked(
        runtime.bare, places, {"0": add, "1": write},
        lambda: runtime.bare.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True,
        ),
    )  # fmt: skip

    def block(t: Any) -> Any:
        before = s.value
        s.value = 0.5 * before + runtime.layers[0].output[:, -1]
        runtime.layers[1].output[:, -1] += before
        return before.save(), s.value.save(), runtime.model.logits[:, -1].save()

    with runtime.model.generate(PROMPT, max_new_tokens=5, eos_token_id=[]) as t:
        s = t.state(torch.zeros(1, 32))
        with t.steps[:]:
            came, went, entries = block(t)
    with runtime.model.generate(PROMPT, max_new_tokens=5, eos_token_id=[]) as t:
        s = t.state(torch.zeros(1, 32))
        unrolled = [block(t) for _ in t.steps[0:5]]
    for k, logits in enumerate(expected.logits):
        close(came.value[k], total[k])
        close(went.value[k], total[k + 1])
        close(entries.value[k], logits)
        for found, value in zip(unrolled[k], (came, went, entries), strict=True):
            close(found, value.value[k])
    differs(total[-1], total[1])


def a_state_in_company(runtime: Runtime) -> None:
    """Each invoke has its own state, as when it runs alone; so has each row of one invoke."""

    def body(s: Any) -> Any:
        s.value = s.value * 0.5 + runtime.layers[1].output[:, -1]
        runtime.layers[1].output[:, -1] += s.value
        return s.value.save()

    with runtime.model.generate(max_new_tokens=4, eos_token_id=[]) as t:
        s, saved = t.state(0.0), []
        for prompt in RAGGED:
            with t.invoke(prompt), t.steps[:]:
                saved.append(body(s))
    with runtime.model.generate(RAGGED, max_new_tokens=4, eos_token_id=[]) as t:
        s = t.state(0.0)
        with t.steps[:]:
            together = body(s)
    for k, prompt in enumerate(RAGGED):
        with runtime.model.generate(prompt, max_new_tokens=4, eos_token_id=[]) as t:
            s = t.state(0.0)
            with t.steps[:]:
                alone = body(s)
        assert len(alone.value) == len(saved[k].value) == 4
        for step, expected in enumerate(alone.value):
            close(saved[k].value[step], expected)
            close(together.value[step][k : k + 1], expected)


def a_stop_is_an_end_token(runtime: Runtime) -> None:
    """Rows that stop when a token enters give what an end token gives, one step later: tokens, entries, who is live."""
    options = {"max_new_tokens": 7, "do_sample": True, "temperature": 4.0, "seed": 1, "pad_token_id": 0}
    with runtime.model.generate(RAGGED, eos_token_id=[], **options) as t:
        pass
    free = t.result
    ends = sorted({int(free[0, 1]), int(free[2, 2]), int(free[3, 4])})
    with runtime.model.generate(RAGGED, eos_token_id=ends, **options) as t, t.steps[:]:
        expected = runtime.model.logits[:, -1].save()
    tokens, alive = t.result, t.alive
    with runtime.model.generate(RAGGED, eos_token_id=[], **options) as t, t.steps[1:]:
        entering = runtime.model.ids[:, -1:]
        t.stop(when=(entering == torch.tensor(ends)).any(-1, keepdim=True))
        found = runtime.model.logits[:, -1].save()
    lengths = [sum(bool(live[row]) for live in alive) for row in range(4)]
    assert len(set(lengths)) > 1
    longer = [min(length + 1, 7) for length in lengths]
    assert [sum(bool(live[row]) for live in t.alive) for row in range(4)] == longer
    for row, length in enumerate(longer):
        assert t.result[row, :length].tolist() == free[row, :length].tolist()
        assert not bool(t.result[row, length:].any())
        assert tokens[row, : lengths[row]].tolist() == free[row, : lengths[row]].tolist()
    for step in range(1, len(expected.value)):
        live = alive[step]
        close(found.value[step - 1][live], expected.value[step][live])


def a_stop_of_one_invoke(runtime: Runtime) -> None:
    """The rows of one invoke stop; its lists are shorter, and its neighbours go on. Nothing saved: the result knows."""
    with runtime.model.generate(max_new_tokens=5, eos_token_id=[]) as t:
        saved, invokes = [], []
        for k, prompt in enumerate(RAGGED):
            with t.invoke(prompt) as invoke, t.steps[:]:
                count = runtime.model.ids[:, -1:] * 0
                if k == 1:
                    s = t.state(0)
                    s.value = s.value + 1 + count
                    t.stop(when=s.value == 3)
                saved.append(runtime.layers[0].output[:, -1].save())
            invokes.append(invoke)
    assert [len(value.value) for value in saved] == [5, 3, 5, 5]
    assert [invoke.result.shape[1] for invoke in invokes] == [5, 3, 5, 5]
    assert [live.tolist() for live in t.alive] == [[True] * 4] * 3 + [[True, False, True, True]] * 2
    with runtime.model.generate(PROMPT, max_new_tokens=5, eos_token_id=[]) as t, t.steps[2]:
        t.stop(when=torch.tensor(True))
    assert t.result.shape == (1, 3)


# Logs.


def a_log_is_the_same_everywhere(runtime: Runtime) -> None:
    with runtime.model.generate(RAGGED[:2], max_new_tokens=3, eos_token_id=[]) as t:
        gw.log("once")
        with t.steps[1:]:
            entering = runtime.model.ids
            gw.log("ids\nof", entering, 1.5)
            gw.cond(entering.sum() < 0, lambda: gw.log("never"), lambda: gw.log("each step"))
    said = [(entry.step, entry.rows, entry.text.split("[")[0]) for entry in t.logs]
    steps = [[(k, (0, 1), "ids\\nof int64"), (k, (), "each step")] for k in (1, 2)]
    assert [(None, (), "once"), *steps[0], *steps[1]] == [(a, b if "ids" in c else (), c) for a, b, c in said]
    assert all(entry.line.startswith(__file__) for entry in t.logs)


# Draws and gradients.


def draws_are_the_same_everywhere(runtime: Runtime) -> None:
    """By seed, node, row and step: on every runtime, in a branch, in company, with the seed set inside."""

    def drawn(own: Runtime, prompts: list[list[int]]) -> list[list[torch.Tensor]]:
        with own.model.generate(max_new_tokens=3, eos_token_id=[], do_sample=True) as t:
            t.seed = 11
            s, kept = t.state(0.0), []
            for prompt in prompts:
                with t.invoke(prompt), t.steps[:]:
                    h = own.layers[0].output[:, -1]
                    s.value = s.value + torch.rand_like(h)
                    chosen = gw.cond(h.isnan().any(), lambda h=h: h, lambda h=h: torch.randn_like(h))
                    kept.append([s.value.save(), chosen.save(), own.model.ids[:, -1].save()])
        return [[item for value in own for item in value.value] for own in kept]

    found, expected = drawn(runtime, RAGGED), drawn(local(runtime.family), RAGGED)
    alone = drawn(runtime, RAGGED[:1])
    assert len(found[0]) == 9
    for one, other in zip([*found, found[0]], [*expected, alone[0]], strict=True):
        for a, b in zip(one[:6], other[:6], strict=True):
            same_bits(a, b)
        assert [a.item() for a in one[7:]] == [b.item() for b in other[7:]]
    differs(found[0][0], found[1][0])
    differs(found[0][3], found[0][4])


def gradients_flow_through_the_branch_taken(runtime: Runtime) -> None:
    """Those of the plain experiment, and none where a captured tensor is only in the other branch."""

    def taken(holds: bool, conditional: bool) -> list[torch.Tensor]:
        w = torch.ones(32, requires_grad=True)
        with runtime.model.trace(PROMPT, **runtime.arguments) as t:
            h = runtime.layers[0].output

            def scale() -> Any:
                runtime.layers[1].output[:, -1] += (h * w).sum(1)
                return h * 2

            pred = (h.sum() * 0 == 0) & torch.tensor(holds)
            if conditional:
                chosen = gw.cond(pred, scale, lambda: h**2)
            else:
                chosen = scale() if holds else h**2
            t.backward(runtime.model.logits[:, -1, 7].sum() + chosen.sum())
            found = h.grad.save()
        return [found.value, torch.zeros(32) if w.grad is None else w.grad]

    for holds in (True, False):
        (grad, trained), (expected, also) = taken(holds, True), taken(holds, False)
        close(grad, expected)
        close(trained, also)
        assert bool(also.any()) == holds


# Programs of states.


@dataclass(frozen=True)
class Assignment:
    """Under `scope`: keep the state, or make it `factor` times itself plus one, chosen by a condition or not."""

    scope: tuple[int, int | None] | int
    kind: str
    factor: float
    holds: bool = True


def assignments() -> Any:
    scopes = st.sampled_from([(0, None), (0, 3), (1, 4), (2, None), 0, 1, 2, 3])
    own = st.builds(
        Assignment, scopes, st.sampled_from(["keep", "keep", "set", "choose"]), st.sampled_from([0.5, 2.0, 3.0]),
        st.booleans(),
    )  # fmt: skip
    return st.lists(own, min_size=2, max_size=7)


def a_state_is_a_variable(runtime: Runtime, program: list[Assignment], steps: int = 4) -> None:
    """A program of overlapping scopes does what plain Python does, step by step."""
    with runtime.model.generate(PROMPT, max_new_tokens=steps, eos_token_id=[]) as t:
        s = t.state(1.0)
        kept = []
        for line in program:
            scope = t.steps[line.scope if isinstance(line.scope, int) else slice(*line.scope)]
            with scope:
                kept.append(_assign(s, line))
    variable = 1.0
    expected: list[list[float]] = [[] for _ in program]
    for step in range(steps):
        for k, line in enumerate(program):
            first, end = (line.scope, line.scope + 1) if isinstance(line.scope, int) else line.scope
            if first <= step and (end is None or step < end):
                if line.kind == "set" or (line.kind == "choose" and line.holds):
                    variable = line.factor * variable + 1
                elif line.kind == "choose":
                    variable = variable - line.factor
                expected[k].append(variable)
    for value, numbers in zip(kept, expected, strict=True):
        found = value.value if isinstance(value.value, list) else [value.value]
        assert [float(item) for item in found] == pytest.approx(numbers, rel=1e-6)  # a state is float32


def _assign(s: Any, line: Assignment) -> Any:
    def more() -> None:
        s.value = line.factor * s.value + 1

    def less() -> None:
        s.value = s.value - line.factor

    if line.kind == "set":
        more()
    elif line.kind == "choose":
        gw.cond((s.value == s.value) & torch.tensor(line.holds), more, less)
    return s.value.save()


WRITTEN = [
    a_state_goes_from_step_to_step,
    a_state_in_company,
    a_stop_is_an_end_token,
    a_stop_of_one_invoke,
    a_log_is_the_same_everywhere,
    draws_are_the_same_everywhere,
]
