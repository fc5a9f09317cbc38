"""What an engine's iterations cost on this machine, as a table for engines and simulations.

The iterations are an engine's own: requests of random tokens are submitted, prompts are computed and steps are decoded,
and what each iteration computed is read off what the scheduler decided. A round is some requests of equal prompts, from
their prompts to their last tokens. Each round is run several times, the first of which does not count, and an
iteration's seconds are the median of its repetitions.

Seconds are the clock's or the processor's. Use the clock's for an engine on a real clock, on a quiet machine or an
accelerator; the processor's for a virtual clock, which counts them too, and on a machine that is shared (with one
thread: those of all threads are added up).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch

from glassworks.engine.engine import Engine
from glassworks.engine.requests import Request
from glassworks.errors import BudgetExceeded, InputError
from glassworks.measure.clock import RealClock, VirtualClock
from glassworks.measure.hardware import Hardware, fingerprint
from glassworks.measure.table import CostTable, Point
from glassworks.memory.budget import KVBudget
from glassworks.schedule import scheduler
from glassworks.schedule.base import Decision, Job, Limits, Memory, Scheduler
from glassworks.schedule.cost import WHAT
from glassworks.trace.facade import Model

NEW = 4
"""New tokens of a round: an iteration reads the prompts, and the others decode."""


class Features(NamedTuple):
    """What an iteration computed."""

    rows: int
    context_tokens: int
    prefill_tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """So many requests, each with a prompt of so many tokens."""

    rows: int
    prompt_tokens: int

    @property
    def tokens(self) -> int:
        """Whose keys and values there are at its end, at most."""
        return self.rows * (self.prompt_tokens + NEW)


class _Recording:
    """A scheduler that does as another does, and remembers what it decided."""

    def __init__(self, inner: Scheduler) -> None:
        self.arrive, self.charge, self.finish = inner.arrive, inner.charge, inner.finish
        self._inner, self.last = inner, Features(0, 0, 0)

    def decide(self, jobs: Sequence[Job], *, now_s: float, limits: Limits, memory: Memory) -> Decision:
        decision = self._inner.decide(jobs, now_s=now_s, limits=limits, memory=memory)
        context = sum(job.computed_tokens for job, _ in decision.run)
        prefill = sum(count for _, count in decision.run if count > 1)
        self.last = Features(len(decision.run), context, prefill)
        return decision


def rounds(model: Model, rows: Sequence[int], prompt_tokens: Sequence[int]) -> list[Round]:
    """All rounds of so many rows and such prompts that the model has positions for.

    Raises:
        InputError: too few are left to tell the costs apart.
    """
    most = model.table.positions - NEW if model.table.positions else max(prompt_tokens, default=0)
    for name, sizes, least in (("rows", rows, 1), ("prompt_tokens", prompt_tokens, 2)):
        if any(type(size) is not int or size < least for size in sizes):
            raise InputError(f"{name} are ints of at least {least}, got {list(sizes)}")
    lengths = sorted({length for length in prompt_tokens if length <= most})
    if len(set(rows)) < 2 or len(lengths) < 2:
        raise InputError(
            f"costs are told apart by at least two numbers of rows and two lengths of prompts, of at most {most} "
            f"tokens here; got rows {list(rows)} and prompt_tokens {list(prompt_tokens)}"
        )
    return [Round(own, length) for own in sorted(set(rows)) for length in lengths]


def measure(
    model: Model, *, rows: Sequence[int] = (1, 4, 16), prompt_tokens: Sequence[int] = (8, 32, 128), repeats: int = 5,
    cpu_seconds: bool = False, kv: KVBudget | None = None, progress: Callable[[Round], None] | None = None,
) -> CostTable:  # fmt: skip
    """The costs of a model's iterations.

    Args:
        rows, prompt_tokens: of rounds, each number with each; see `rounds`.
        repeats: how many repetitions count, of each round.
        cpu_seconds: count the processor's seconds, not the clock's.
        kv: as for an engine. progress: is called with each round as it begins.

    Raises:
        InputError: too few rounds. BudgetExceeded: the requests of a round do not fit the budget together; says by how
            much.

    Example:
        table = measure(gw.load("toy"))
        engine = gw.Engine(model, cost=table)
    """
    if type(repeats) is not int or repeats < 1:
        raise InputError(f"repeats is an int of at least 1, got {repeats!r}")
    planned = rounds(model, rows, prompt_tokens)
    recording = _Recording(scheduler("fcfs"))
    engine = Engine(
        model, policy=recording, rows=max(rows), tokens=max(own.tokens for own in planned), share=False,
        kv=KVBudget() if kv is None else kv, clock=VirtualClock() if cpu_seconds else RealClock(),
    )  # fmt: skip
    _check_room(engine, planned)
    points: list[Point] = []
    for own in planned:
        if progress is not None:
            progress(own)
        points += _points(engine, recording, own, vocab=model.table.vocab, repeats=repeats)
    return CostTable(tuple(points), _hardware(model, cpu_seconds=cpu_seconds))


def _check_room(engine: Engine, planned: Sequence[Round]) -> None:
    """BudgetExceeded: a round would have to take turns, whose iterations are others than those that are meant."""
    memory = engine._admission.memory(kept_blocks=0)
    for own in planned:
        row = -(-(own.prompt_tokens + NEW) // memory.block_tokens)
        if own.rows * row > memory.total_blocks:
            raise BudgetExceeded(
                f"{own.rows} requests of {own.prompt_tokens} tokens take {own.rows * row} blocks of keys and values; "
                f"the budget has {memory.total_blocks}, and requests that take turns would be measured instead: give "
                f"KVBudget(device=...) more, fewer rows or shorter prompts"
            )


def _points(engine: Engine, recording: _Recording, own: Round, *, vocab: int, repeats: int) -> Iterator[Point]:
    """The iterations of a round, each with the median of its seconds."""
    timed: dict[Features, list[float]] = {}
    for repetition in range(repeats + 1):
        for features, seconds in _iterations(engine, recording, own, vocab):
            if repetition:
                timed.setdefault(features, []).append(seconds)
    for features, found in timed.items():
        yield Point(WHAT, features._asdict(), median(found))


def _iterations(engine: Engine, recording: _Recording, own: Round, vocab: int) -> Iterator[tuple[Features, float]]:
    """One round: what each iteration computed, and the seconds that the engine counts for it."""
    draw = random.Random(0)
    options = {"do_sample": False, "eos_token_id": []}  # so that every row goes on to its last token
    for _ in range(own.rows):
        prompt = [draw.randrange(vocab) for _ in range(own.prompt_tokens)]
        engine.submit(Request(prompt, max_new_tokens=NEW, options=options))
    while engine.pending:
        before = engine.stats.seconds
        engine.step()
        yield recording.last, engine.stats.seconds - before


def _hardware(model: Model, *, cpu_seconds: bool) -> Hardware:
    device = model.device
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        **fingerprint(), "accelerator": accelerator, "threads": torch.get_num_threads(), "model": model._core.name,
        "seconds": "of the processor" if cpu_seconds else "of the clock",
    }  # fmt: skip
