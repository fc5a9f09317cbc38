"""Laws of conditions, as functions of a runtime.

A program is made so that plain Python knows which way it goes: a predicate depends on a site, and so has its place in
the forward pass, but whether it holds was drawn beforehand.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st

import glassworks as gw
from laws.checks import PROMPT, RAGGED
from laws.equal import close, plain, same_bits
from laws.reference import hooked, map_of
from laws.runtimes import Runtime

STEER = torch.linspace(-1, 1, 32)


@dataclass(frozen=True)
class Line:
    """`scale` a site, `keep` what it holds, `skip` a layer, or `choose` between two bodies at a site."""

    kind: str
    site: int
    factor: float = 1.0
    holds: bool = False
    bodies: tuple[tuple["Line", ...], ...] = ()


def lines(depth: int, first: int = 0) -> Any:
    """Bodies whose lines concern sites from `first` on; a predicate stands at or before what it decides on."""
    site = st.integers(first, 2)
    factor = st.sampled_from([0.5, 1.5, 2.0, -1.0])
    simple = st.builds(Line, st.sampled_from(["scale", "handle", "replace", "keep", "keep"]), site, factor)
    if depth == 0:
        return st.lists(simple, max_size=3).map(tuple)
    nested = site.flatmap(
        lambda at: st.builds(
            Line, st.just("choose"), st.just(at), factor, st.booleans(),
            st.tuples(lines(depth - 1, at), lines(depth - 1, at)),
        )
    )  # fmt: skip
    return st.lists(st.one_of(simple, simple, nested), max_size=4).map(tuple)


class Writer:
    """Writes a body into the block that is open, with `gw.cond` or with Python's own `if`."""

    def __init__(self, runtime: Runtime, *, conditions: bool) -> None:
        self.runtime, self.conditions = runtime, conditions
        self.handles = [layer.output for layer in runtime.layers]
        self.written: set[int] = set()
        self.kept: list[Any] = []

    def body(self, own: tuple[Line, ...], name: str) -> None:
        for number, line in enumerate(own):
            getattr(self, f"_{line.kind}")(line, f"{name}.{number}")

    def _scale(self, line: Line, name: str) -> None:
        self.runtime.layers[line.site].output[:, -1] *= line.factor
        self.written.add(line.site)

    def _handle(self, line: Line, name: str) -> None:
        """A write through a handle from before the condition, as long as it is not stale."""
        if line.site not in self.written:
            self.handles[line.site][..., ::2] += line.factor
        self.written.add(line.site)

    def _replace(self, line: Line, name: str) -> None:
        self.runtime.layers[line.site].output = self.runtime.layers[line.site].output.roll(1, -1) * line.factor
        self.written.add(line.site)

    def _keep(self, line: Line, name: str) -> None:
        self.kept.append(self.runtime.layers[line.site].output[:, -1].save(name))

    def _choose(self, line: Line, name: str) -> None:
        read = self.runtime.layers[line.site].output

        def branch(k: int) -> Any:
            before = set(self.written)
            self.body(line.bodies[k], f"{name}.{k}")
            first[k], self.written = set(self.written), before
            return {"x": read[:, -1] * (k + 2)}

        first: dict[int, set[int]] = {}
        if self.conditions:
            pred = (read.sum() * 0 == 0) & torch.tensor(line.holds)
            found = gw.cond(pred, lambda: branch(0), lambda: branch(1))
        else:
            found = branch(0 if line.holds else 1)
        self.written = set().union(*first.values()) | _writes(line)
        found["x"].save(name)


def _writes(line: Line) -> set[int]:
    """The sites that any of the bodies writes: handles on them are stale afterwards."""
    inner = [own for body in line.bodies for own in body]
    return {own.site for own in inner if own.kind in ("scale", "handle", "replace")}.union(*map(_writes, inner))


def written(runtime: Runtime, own: tuple[Line, ...], *, conditions: bool) -> tuple[dict[str, Any], Any]:
    """The saves of a body by name, and the block."""
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        Writer(runtime, conditions=conditions).body(own, "line")
        runtime.model.logits.save("logits")
    assert t._results is not None
    return dict(t._results.saves), t


def a_condition_is_an_if(runtime: Runtime, own: tuple[Line, ...]) -> None:
    """The same saves, and no others, as where Python's `if` chose what to write."""
    found, block = written(runtime, own, conditions=True)
    expected, _ = written(runtime, own, conditions=False)
    assert set(found) == set(expected)
    for name, value in expected.items():
        same_bits(found[name], value)
    if not block.graph.functions:
        decoded = gw.Graph.decode(block.graph.encode())
        assert decoded == block.graph
        assert decoded.structure == block.graph.structure


def each_branch(runtime: Runtime) -> None:
    write = Line("scale", 1, 0.5)
    inner = Line("choose", 1, 1.0, True, ((Line("handle", 2, 2.0), Line("keep", 2)), (Line("replace", 1),)))
    for holds in (True, False):
        own = Line("choose", 0, 1.0, holds, ((write, inner, Line("keep", 1)), (Line("scale", 1, 2.0), Line("keep", 2))))
        a_condition_is_an_if(runtime, (own,))
        a_condition_is_an_if(runtime, (own, replace(own, holds=not holds), Line("keep", 1)))


def a_branch_that_is_not_taken_costs_and_raises_nothing(runtime: Runtime) -> None:
    with runtime.model.trace(PROMPT) as t:
        resid = runtime.layers[1].output

        def wrong() -> Any:
            return resid.reshape(7, 11, 13)

        gw.cond(resid.isnan().any(), wrong, lambda: resid * 2).save("x")
    same_bits(t._results["x"], 2 * read_alone(runtime, PROMPT))


def read_alone(runtime: Runtime, prompt: list[int]) -> torch.Tensor:
    with runtime.model.trace(prompt):
        found = runtime.layers[1].output.save()
    return found.value


def a_condition_in_company(runtime: Runtime) -> None:
    """Each invoke decides for itself, in one padded batch as alone."""

    def write(k: int) -> Any:
        resid = runtime.layers[0].output

        def louder() -> Any:
            runtime.layers[1].output[:, -1] *= 3
            return resid[:, -1].norm()

        chosen = gw.cond(resid[0, -1, k] > resid[0, -1, 3 - k], louder, resid[:, -1].mean)
        return [chosen.save(), runtime.model.logits[:, -1].save()]

    with runtime.model.trace() as t:
        saved = []
        for k, prompt in enumerate(RAGGED):
            with t.invoke(prompt):
                saved.append(write(k))
    ways = set()
    for k, prompt in enumerate(RAGGED):
        with runtime.model.trace(prompt):
            alone = write(k)
        for found, expected in zip(saved[k], alone, strict=True):
            close(found, expected)
        ways.add(float(plain(alone[0])) > 2)
    assert ways == {True, False}


def a_condition_is_asked_at_each_step(runtime: Runtime) -> None:
    """As hooks on the bare module that decide with `if`, step by step."""
    site = "decoder.layers.{}.output" if runtime.two else "layers.{}.output"
    places = {str(k): map_of(runtime.family).places[site.format(k)] for k in (0, 1)}
    seen: list[torch.Tensor] = []
    taken: list[bool] = []

    def look(tensor: torch.Tensor) -> None:
        seen.append(tensor[0, -1, 0] - tensor[0, -1, 1])

    def decide(tensor: torch.Tensor) -> torch.Tensor | None:
        taken.append(bool(seen[-1] > threshold))
        if not taken[-1]:
            return None
        changed = tensor.clone()
        changed[:, -1] += 4 * STEER
        return changed

    def run(steps: int = 6) -> Any:
        ids = torch.tensor([PROMPT])
        return hooked(
            runtime.bare, places, {"0": look, "1": decide},
            lambda: runtime.bare.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False, eos_token_id=None,
                pad_token_id=0, output_logits=True, return_dict_in_generate=True,
            ),
        )  # fmt: skip

    threshold = float("inf")
    run()
    middle = torch.stack(seen).unique(sorted=True)
    threshold = float(middle[len(middle) // 2 - 1 : len(middle) // 2 + 1].mean())
    taken.clear()
    seen.clear()
    expected = run()
    assert set(taken) == {True, False}
    assert all(abs(float(value) - threshold) > 1e-3 for value in seen)
    with runtime.model.generate(PROMPT, max_new_tokens=6, eos_token_id=[]) as t, t.steps[:]:
        early = runtime.layers[0].output[:, -1]

        def steer() -> Any:
            runtime.layers[1].output[:, -1] += 4 * STEER
            return early.save()

        loud = early[0, 0] - early[0, 1] > threshold
        inside = gw.cond(loud, lambda: {"early": steer()}, lambda: {"early": torch.zeros(1, 32)})
        entries, ways = runtime.model.logits[:, -1].save(), loud.save()
        chosen = inside["early"].save()
    assert [bool(way) for way in ways.value] == taken
    assert [bool(value.any()) for value in chosen.value] == taken
    for found, logits in zip(entries.value, expected.logits, strict=True):
        close(found, logits)


WRITTEN = [
    each_branch,
    a_branch_that_is_not_taken_costs_and_raises_nothing,
    a_condition_in_company,
    a_condition_is_asked_at_each_step,
]
