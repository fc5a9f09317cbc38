"""Random experiments: what they are, how hypothesis makes them, and two ways to run them.

`record` writes one through the public language. `by_hooks` gives what it means, by plain PyTorch (see `reference`).
Variables are named once: a write in place gives the handle a new name, and the old one is not used again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from laws.places import read, write
from laws.reference import Map, hooked, map_of
from laws.runtimes import Runtime, local
from laws.vocabulary import BINARY, IN_PLACE, NEEDS_ONE_LAYOUT, NEEDS_VALUE, UNARY

BEFORE = -1


@dataclass(frozen=True)
class Step:
    """One line. `kind`: read, op, replace, number, in_place, augment, skip, save.

    `time` is the place, in the order of the forward pass, at which the line takes effect.
    """

    kind: str
    time: int
    site: str = ""
    what: str = ""
    given: tuple[int, ...] = ()
    out: int = -1


@dataclass(frozen=True)
class Experiment:
    """Lines on one lone prompt. `imports`: variables of an earlier experiment that it uses."""

    family: str
    prompt: tuple[int, ...]
    steps: tuple[Step, ...]
    imports: tuple[int, ...] = ()


@dataclass
class _Variable:
    sample: torch.Tensor
    time: int
    site: str = ""
    version: int = 0
    alive: bool = True


@dataclass
class _Draft:
    """An experiment that is being made: which variables there are, and what has happened to which site."""

    draw: Any
    family: str
    prompt: tuple[int, ...]
    map: Map
    variables: dict[int, _Variable]
    next: int
    steps: list[Step] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)

    def names(self) -> list[str]:
        return [
            n for n in self.map.order if not any(n.startswith(f"{s}.") and n != f"{s}.output" for s in self.skipped)
        ]

    def sample(self, site: str) -> torch.Tensor:
        lengths: dict[int | str, int] = {"prompt": len(self.prompt), "decoder": 4}
        shape = [lengths[size] if isinstance(size, str) else size for size in self.map.shape[site]]
        return torch.linspace(-1, 1, math.prod(shape)).reshape(shape)

    def usable(self, by: int) -> list[int]:
        return [n for n, v in self.variables.items() if v.alive and v.time <= by]

    def add(self, step: Step, variable: _Variable | None = None) -> None:
        self.steps.append(step)
        if variable is not None:
            self.variables[step.out] = variable
            self.next = step.out + 1

    # Lines.

    def read(self) -> None:
        site = self.draw(st.sampled_from(self.names()))
        time = self.map.order[site]
        own = _Variable(self.sample(site), time, site, self.versions.get(site, 0))
        self.add(Step("read", time, site=site, out=self.next), own)

    def op(self) -> None:
        if not (usable := self.usable(10**6)):
            return self.read()
        x = self.draw(st.sampled_from(usable))
        y = self.draw(st.sampled_from(usable))
        fitting = [(name, (x,)) for name, f in UNARY.items() if self._works(f, x)]
        fitting += [(name, (x, y)) for name, f in BINARY.items() if self._works(f, x, y)]
        name, given = self.draw(st.sampled_from(fitting))
        time = max(self.variables[n].time for n in given)
        own = _Variable(_apply(name, [self.variables[n].sample for n in given]), time)
        return self.add(Step("op", time, what=name, given=given, out=self.next), own)

    def _works(self, function: Callable[..., Any], *given: int) -> bool:
        """Whether torch takes these without a complaint; some operations only warn at an empty tensor."""
        try:
            function(*[self.variables[n].sample.clone() for n in given])
        except (RuntimeError, IndexError, ValueError, UserWarning):
            return False
        return True

    def fitting(self, site: str) -> list[int]:
        """Variables that exist in time to be written at a site, and broadcast to it."""
        shape = self.sample(site).shape
        return [n for n in self.usable(self.map.order[site]) if _broadcasts(self.variables[n].sample.shape, shape)]

    def replace(self) -> None:
        site = self.draw(st.sampled_from(self.names()))
        time = self.map.order[site]
        self.versions[site] = self.versions.get(site, 0) + 1
        fitting = self.fitting(site)
        if fitting and self.draw(st.integers(0, 5)):
            return self.add(Step("replace", time, site=site, given=(self.draw(st.sampled_from(fitting)),)))
        return self.add(Step("number", time, site=site))

    def augment(self) -> None:
        site = self.draw(st.sampled_from(self.names()))
        self.versions[site] = self.versions.get(site, 0) + 1
        self.add(Step("augment", self.map.order[site], site=site, what=self.draw(st.sampled_from(["add", "mul"]))))

    def in_place(self) -> None:
        handles = [
            n for n, v in self.variables.items()
            if v.alive and v.site and v.version == self.versions.get(v.site, 0) and v.site in self.names()
        ]  # fmt: skip
        if not handles:
            return self.read()
        handle = self.draw(st.sampled_from(handles))
        own = self.variables[handle]
        value = self.draw(st.sampled_from(self.usable(own.time)))
        ways = [name for name in IN_PLACE if self._works(IN_PLACE[name], handle, value)]
        ways = [name for name in ways if ".heads." not in own.site or name not in NEEDS_ONE_LAYOUT]
        way = self.draw(st.sampled_from(ways))
        self.versions[own.site] = self.versions.get(own.site, 0) + 1
        own.alive = False
        given = (handle, value) if way in NEEDS_VALUE else (handle,)
        step = Step("in_place", own.time, site=own.site, what=way, given=given, out=self.next)
        return self.add(step, _Variable(own.sample, own.time, own.site, self.versions[own.site]))

    def skip(self) -> None:
        touched = {step.site for step in self.steps}
        layers = {n.removesuffix(".output") for n in self.map.order if ".layers." in f".{n}" and n.endswith(".output")}
        layers = {n for n in layers if n.rpartition(".")[2].isdigit()}
        free = [
            layer for layer in sorted(layers - self.skipped)
            if not any(s.startswith(f"{layer}.") and s not in (f"{layer}.input", f"{layer}.output") for s in touched)
        ]  # fmt: skip
        pairs = [(layer, n) for layer in free for n in self.fitting(f"{layer}.output")]
        if not pairs:
            return self.read()
        layer, value = self.draw(st.sampled_from(pairs))
        site = f"{layer}.output"
        self.skipped.add(layer)
        self.versions[site] = self.versions.get(site, 0) + 1
        return self.add(Step("skip", self.map.order[site], site=layer, given=(value,)))

    def save(self) -> None:
        if not (usable := self.usable(10**6)):
            return self.read()
        n = self.draw(st.sampled_from(usable))
        return self.add(Step("save", self.variables[n].time, given=(n,)))

    def finish(self) -> Experiment:
        used = {n for step in self.steps for n in step.given}
        saved = {step.given for step in self.steps if step.kind == "save"}
        for n, variable in list(self.variables.items()):
            if variable.alive and n not in used and (n,) not in saved and variable.time != BEFORE:
                self.add(Step("save", variable.time, given=(n,)))
        self.add(Step("read", self.map.order["logits"], site="logits", out=self.next), _Variable(torch.zeros(1), 0))
        self.add(Step("save", self.map.order["logits"], given=(self.next - 1,)))
        return Experiment(self.family, self.prompt, tuple(self.steps))


KINDS = ("read", "op", "op", "replace", "in_place", "in_place", "augment", "skip", "save")


@st.composite
def experiments(draw: Any, family: str, *, lines: int = 9, prompt: tuple[int, ...] | None = None) -> Experiment:
    """An experiment on one prompt."""
    own = prompt or tuple(draw(st.lists(st.integers(3, 96), min_size=2, max_size=7)))
    draft = _Draft(draw, family, own, map_of(family), {}, 0)
    draft.read()
    for _ in range(draw(st.integers(2, lines))):
        getattr(draft, draw(st.sampled_from(KINDS)))()
    return draft.finish()


@st.composite
def patches(draw: Any, family: str) -> tuple[Experiment, Experiment]:
    """Two experiments in one trace: the second uses values of the first."""
    first = draw(experiments(family, lines=4))
    own = tuple(draw(st.lists(st.integers(3, 96), min_size=2, max_size=7)))
    places = map_of(family)
    donor = _Draft(draw, family, first.prompt, places, {}, 0)
    reads = [s for s in first.steps if s.kind == "read" and s.site != "logits"]
    overwritten = {s.given[0] for s in first.steps if s.kind == "in_place"}
    variables = {
        s.out: _Variable(donor.sample(s.site)[:, -1:], BEFORE) for s in reads if s.out not in overwritten
    }  # fmt: skip
    draft = _Draft(draw, family, own, places, dict(variables), max((s.out for s in first.steps), default=0) + 1)
    draft.read()
    for _ in range(draw(st.integers(2, 5))):
        getattr(draft, draw(st.sampled_from(("op", "replace", "replace", "in_place", "save"))))()
    second = draft.finish()
    return first, Experiment(family, own, second.steps, tuple(variables))


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    try:
        return tuple(torch.broadcast_shapes(tuple(shape), tuple(to))) == tuple(to)
    except RuntimeError:
        return False


def _apply(name: str, given: Sequence[Any]) -> Any:
    return (UNARY if name in UNARY and len(given) == 1 else BINARY)[name](*given)


# Through the language.


def record(
    model: Any, experiment: Experiment, known: dict[int, Any], prefix: str = "", *, sorted_by_time: bool = False
) -> dict[int, Any]:
    """Write the lines into the block that is open; gives what was saved, by the number of the line.

    `sorted_by_time`: a line that uses a handle as it was may stand below one that moves it on.
    """
    saved = {}
    for number, step in enumerate(experiment.steps):
        given = [known[n] for n in step.given]
        match step.kind:
            case "read":
                known[step.out] = read(model, step.site)
            case "op":
                known[step.out] = _apply(step.what, given)
            case "replace":
                write(model, step.site, given[0])
            case "number":
                write(model, step.site, 0.5)
            case "in_place":
                if sorted_by_time:
                    known[step.given[0]] = given[0][...]
                IN_PLACE[step.what](given[0], given[-1])
                known[step.out] = given[0]
            case "augment" if step.what == "add":
                write(model, step.site, read(model, step.site).__iadd__(0.25))
            case "augment":
                write(model, step.site, read(model, step.site).__imul__(0.75))
            case "skip":
                _layer(model, step.site).skip(given[0])
            case "save":
                own = given[0][...] if any(given[0] is other for other in saved.values()) else given[0]
                saved[number] = own.save(f"{prefix}line {number}")
    return saved


def _layer(model: Any, name: str) -> Any:
    found = model
    for part in name.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def by_language(runtime: Runtime, experiment: Experiment, **options: Any) -> dict[int, torch.Tensor]:
    with runtime.model.trace(list(experiment.prompt), **runtime.arguments, **options):
        saved = record(runtime.model, experiment, {})
    return {number: value.value for number, value in saved.items()}


# By hooks.


def by_hooks(
    experiment: Experiment, known: dict[int, torch.Tensor] | None = None, **arguments: Any
) -> dict[int, torch.Tensor]:
    """What the saves of an experiment must be. `known` holds imported variables and receives its own."""
    runtime, places = local(experiment.family), map_of(experiment.family)
    known = {} if known is None else known
    for n in experiment.imports:
        known[n] = known[n][:, -1:]
    saved: dict[int, torch.Tensor] = {}
    _perform(experiment, BEFORE, None, known, saved)

    def at(time: int) -> Callable[[torch.Tensor], torch.Tensor | None]:
        return lambda tensor: _perform(experiment, time, tensor, known, saved)

    names = {place: name for name, place in places.order.items()}
    times = sorted({step.time for step in experiment.steps if step.time != BEFORE})
    actions = {names[time]: at(time) for time in times}
    hooked(
        runtime.bare, places.places, actions,
        lambda: runtime.forward(list(experiment.prompt), **(arguments or runtime.arguments)),
    )  # fmt: skip
    return saved


def _perform(
    experiment: Experiment, time: int, tensor: torch.Tensor | None, known: dict[int, Any], saved: dict[int, Any]
) -> torch.Tensor | None:
    """The lines of one place, in their order, on what passes there."""
    current, changed = tensor, False
    for number, step in enumerate(experiment.steps):
        if step.time != time:
            continue
        given = [known[n] for n in step.given]
        if step.kind == "read":
            known[step.out] = current.clone()
        elif step.kind == "op":
            known[step.out] = _apply(step.what, [g.clone() for g in given]).clone()
        elif step.kind == "save":
            saved[number] = given[0].clone()
        else:
            changed = True
            if step.kind in ("replace", "skip"):
                current = given[0].to(current.dtype).expand(current.shape).contiguous()
            elif step.kind == "number":
                current = torch.full_like(current, 0.5)
            elif step.kind == "augment":
                current = current + 0.25 if step.what == "add" else current * 0.75
            else:
                current = given[0].clone()
                IN_PLACE[step.what](current, given[-1].clone())
                known[step.out] = current.clone()
    return current.clone() if changed else None
