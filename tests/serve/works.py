"""Work of every kind that people give a service, drawn from a number: what it is here is what it must come to there.

A work opens a block on a model and gives what it saved, to be taken once the job has ended. Those that fail do so while
they run: no check can know it before.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import glassworks as gw
from laws.equal import close, same_bits

LAYERS, WIDTH, VOCAB = 6, 128, 991
MARGIN = 1e-4
"""A token whose logit leads by less may be another one in other company."""
Take = Callable[[], list[Any]]


class Draw(random.Random):
    """What a work is made of."""

    def prompt(self) -> list[int]:
        return [self.randrange(3, VOCAB) for _ in range(self.choice([1, 2, 3, 5, 8, 13]))]

    def layer(self) -> int:
        return self.randrange(LAYERS)

    def vector(self) -> torch.Tensor:
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(self.randrange(2**31)))


def reads(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    with model.trace(draw.prompt(), **how) as t:
        found = [model.layers[draw.layer()].output.save(), model.layers[draw.layer()].mlp.output.save()]
        found.append(model.logits.save())
    return t, lambda: [value.value for value in found]


def writes(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    """Loud ones: whoever sees them in rows of his own notices."""
    steer = draw.vector()
    with model.trace(draw.prompt(), **how) as t:
        layer = model.layers[draw.layer()]
        match draw.randrange(3):
            case 0:
                layer.output = layer.output * -20
            case 1:
                layer.output[:, -1] += 30 * steer
            case 2:
                layer.mlp.output[:] = 7.0
        found = [model.layers[-1].output.save(), model.logits.save()]
    return t, lambda: [value.value for value in found]


def not_a_number(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    with model.trace(draw.prompt(), **how) as t:
        layer = model.layers[draw.layer()]
        layer.output = layer.output * float("nan")
        found = model.logits.save()
    return t, lambda: [found.value]


def patches(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    k = draw.layer()
    with model.trace(**how) as t:
        with t.invoke(draw.prompt()):
            clean = model.layers[k].output[:, -1]
        with t.invoke(draw.prompt()):
            model.layers[k].output[:, -1] = clean
            found = model.logits[:, -1].save()
    return t, lambda: [found.value]


def derives(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    with model.trace(draw.prompt(), **how) as t:
        h = model.layers[draw.layer()].output
        t.backward(model.logits[:, -1].logsumexp(-1).sum())
        found = h.grad.save()
    return t, lambda: [found.value]


def generates(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    steer = draw.vector()
    with model.generate(draw.prompt(), max_new_tokens=draw.randrange(2, 9), **how) as t:
        with t.steps[:]:
            seen = model.logits[:, -1].save()
        if draw.random() < 0.5:
            with t.steps[1:]:
                model.layers[draw.layer()].output[:] += 3 * steer
    return t, lambda: [Steps(t.result, seen.value)]


def samples(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    options = {"do_sample": True, "top_k": 20, "seed": draw.randrange(2**31)}
    with model.generate(draw.prompt(), max_new_tokens=draw.randrange(2, 9), **options, **how) as t:
        pass
    return t, lambda: [t.result]


def says(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    """What it says is saved too; the job's events have it as well, each line once."""
    with model.generate(draw.prompt(), max_new_tokens=6, **how) as t, t.steps[:]:
        top = model.logits[:, -1].argmax(-1)
        gw.log("the next is", top)
        seen = model.logits[:, -1].save()
    return t, lambda: [Steps(t.result, seen.value)]


def sessions(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    with model.session(**how) as s:
        with model.trace(draw.prompt()):
            first = model.layers[0].output[:, -1].save()
        with model.trace(draw.prompt()):
            model.layers[2].output[:, -1] += first
            second = model.logits[:, -1].save()
    return s, lambda: [first.value, second.value]


def fails(model: Any, draw: Draw, **how: Any) -> tuple[Any, Take]:
    number = draw.randrange(1000)
    with model.trace(draw.prompt(), **how) as t:
        ids = model.ids
        if number % 2:
            found = torch.repeat_interleave(ids, ids[0] - 10**6, dim=1).sum().save()
        else:
            found = model.layers[0].output.index_select(1, ids[0] + 10_000 + number).save()
    return t, lambda: [found.value]


KINDS: tuple[Callable[..., tuple[Any, Take]], ...] = (
    reads, writes, not_a_number, patches, derives, generates, generates, samples, says, sessions, fails,
)  # fmt: skip
BY_ITSELF = frozenset({"derives"})
"""Kinds that share no pass with anybody: the same bits, whoever is there."""


@dataclass(frozen=True)
class Steps:
    """A greedy generation: its tokens, and the logits `[1, vocab]` of each step."""

    tokens: torch.Tensor
    logits: Sequence[torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """What a work came to: values, or the error."""

    kind: str
    values: list[Any]
    error: Exception | None = None


def kind_of(number: int) -> Callable[..., tuple[Any, Take]]:
    return KINDS[Draw(number).randrange(len(KINDS))]


def begin(model: Any, number: int, **how: Any) -> tuple[Any, Callable[[], Outcome]]:
    """Open the block of a work; gives the block, None if it failed, and what to call for the outcome."""
    work = kind_of(number)
    try:
        block, take = work(model, Draw(-number - 1), **how)
    except Exception as error:  # noqa: BLE001 - a work that waits, and fails
        return None, lambda error=error: Outcome(work.__name__, [], error)
    return block, lambda: _taken(work.__name__, take)


def _taken(kind: str, take: Take) -> Outcome:
    try:
        return Outcome(kind, take())
    except Exception as error:  # noqa: BLE001 - it is compared
        return Outcome(kind, [], error)


def outcome(model: Any, number: int) -> Outcome:
    """What a work comes to."""
    return begin(model, number)[1]()


def check_equal(found: Outcome, expected: Outcome, *, bits: bool = False) -> None:
    """Equal in the sense of the laws. `bits`: the computation has the same shapes."""
    assert (type(found.error), str(found.error)) == (type(expected.error), str(expected.error)), found.kind
    assert len(found.values) == len(expected.values)
    for ours, theirs in zip(found.values, expected.values, strict=True):
        if isinstance(theirs, Steps):
            _check_steps(ours, theirs)
        else:
            (same_bits if bits else close)(ours, theirs)


def _check_steps(found: Steps, expected: Steps) -> None:
    """Up to the first token that could as well be another."""
    assert len(found.logits) >= 1
    first = expected.tokens.shape[1] - len(expected.logits)
    for k, (ours, theirs) in enumerate(zip(found.logits, expected.logits, strict=False)):
        close(ours, theirs)
        best = theirs[0].topk(2).values
        if float(best[0] - best[1]) <= MARGIN:
            return
        assert torch.equal(found.tokens[:, : first + k + 1], expected.tokens[:, : first + k + 1])
    assert torch.equal(found.tokens, expected.tokens)
