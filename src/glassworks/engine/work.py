"""Experiments on their way through an engine: what shares packed steps, and what runs by itself.

A `Work` joins three records of one request: the scheduler's (`job`), the experiment's (`run`) and the memory's. It
performs what the engine was told to do with it, and knows nothing of the others.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from glassworks.engine.caches import Held
from glassworks.engine.facts import Facts
from glassworks.engine.local import ExperimentRun
from glassworks.engine.loop import Generating
from glassworks.graph.backend import Generation, Results
from glassworks.graph.place import Plan
from glassworks.memory.kv import KVStore, Table, Where
from glassworks.run.joined import Row, cut_back
from glassworks.run.packing import Part
from glassworks.schedule.base import Job, Place

_PLACES = {Where.HERE: Place.DEVICE, Where.LEAVING: Place.LEAVING, Where.AWAY: Place.HOST, Where.COMING: Place.COMING}


class Work(ABC):
    """One experiment.

    Attributes:
        job: as the scheduler sees it. run, plan: the experiment. facts: what its graph allows.
        reported: how many of its tokens have been handed on.
        frame_bytes: taken for what it saves. frame_reserved: how much of that it has from the beginning.
        ended: it has all been computed.
    """

    def __init__(self, job: Job, run: ExperimentRun, plan: Plan, facts: Facts) -> None:
        self.job, self.run, self.plan, self.facts = job, run, plan, facts
        self.reported = self.frame_bytes = self.frame_reserved = 0
        self.frame_size = FrameSize()
        self.ended = False

    @property
    def new(self) -> list[int]:
        """The tokens so far, of the first row."""
        return [] if self.run.rows is None else self.run.rows.new[0]

    @property
    def finish(self) -> str:
        """Why it has ended, if no stop text did it: see `Reply.finish`."""
        new, rows = self.new, self.run.rows
        if new and rows is not None and new[-1] in rows.sampler.eos:
            return "eos"
        return "length" if len(new) >= self.job.max_new_tokens else "graph"

    def stop(self) -> None:
        """It ends here, at a stop text: what its graph makes of the tokens, it makes of those that there are."""
        assert self.run.rows is not None
        self.run.generated(self.run.rows)
        self.ended = True

    def results(self) -> Results:
        """What came of it."""
        return self.run.results()

    @abstractmethod
    def observe(self) -> None:
        """Bring the job's place and blocks up to what the memory says."""

    @abstractmethod
    def leave(self) -> bool:
        """Begin to leave the device; whether there is room."""

    @abstractmethod
    def come(self) -> bool:
        """Begin to come back; whether there is room."""

    @abstractmethod
    def drop(self) -> None:
        """Forget what can be computed again."""

    @abstractmethod
    def close(self) -> None:
        """It has ended, whatever the way: its memory is free."""


class PackedWork(Work):
    """One row of tokens that shares packed steps."""

    def __init__(
        self, job: Job, run: ExperimentRun, plan: Plan, facts: Facts, *, store: KVStore, table: Table,
        generation: Generation | None,
    ) -> None:  # fmt: skip
        super().__init__(job, run, plan, facts)
        self.store, self.table = store, table
        self._forward = plan.forwards[0]
        self._generates = generation is not None
        self.rows: Generating = run.generating(self._forward, generation or Generation(0))
        self._prompt = list(run.inputs.invokes[0].ids[0])
        self._heads = run.reads_prompt_logits(self._forward)
        self._gave_token = False

    @property
    def ids(self) -> list[int]:
        """The prompt and the tokens so far."""
        return self._prompt + self.new

    def part(self, count: int) -> tuple[Part, bool] | None:
        """So many of its pending tokens for the next step, and whether they end a step of the generation.

        None: there are no blocks for them.
        """
        rows, pending = self.rows, self.ids[self.table.tokens :]
        if rows.step and len(pending) > 1 and count >= len(pending) and self._looks_on():
            count = len(pending) - 1  # computed again: the graph is to see the last token alone
        count = min(count, len(pending))
        if not self.store.grow(self.table, self.table.tokens + count):
            return None
        ends = count == len(pending)
        part = Part(pending[:count], self.table, None, keep=0)
        if ends:
            rows.begin()
            assert rows.interpreter is not None
            looks = bool(rows.interpreter.actions)
            part.interpreter = rows.interpreter if looks else None
            part.keep = count if looks and self._heads and rows.step == 0 else int(rows.samples or self._heads)
        return part, ends

    def undo(self, part: Part, tokens: int, *, ends: bool) -> bool:
        """A step was broken off before which it had so many `tokens`: it takes part in another; whether it can. Not if
        its graph may have run."""
        if part.interpreter is not None or (ends and not self.rows.take_back()):
            return False
        self.table.tokens = tokens
        return True

    def _looks_on(self) -> bool:
        return bool(self._forward.actions)

    def adopt(self) -> int:
        """Take over a beginning that somebody else has computed; gives how many tokens."""
        if self.table.tokens or self.facts.touches_prompt:
            return 0
        return self.store.adopt(self.table, self.ids)

    def publish(self) -> None:
        """Let others take over its beginning, unless a graph has shaped it, or its last pass ended before the last
        layer: only one that gave a token surely did not."""
        if not self.facts.writes and self._gave_token:
            self.store.publish(self.table, self.ids)

    def took(self, token: int | None) -> None:
        """A step of the generation has ended, with a token or without."""
        self._gave_token = token is not None
        self.rows.took(None if token is None else [token])
        self.ended = self.rows.ended
        if self.ended and self._generates:
            self.run.generated(self.rows)
        elif self.ended:
            self.run.forwards = 1

    def observe(self) -> None:
        job, table = self.job, self.table
        job.computed_tokens, job.produced_tokens = table.tokens, len(self.new)
        nothing = table.where is Where.HERE and not table.blocks
        job.place = Place.NOWHERE if nothing else _PLACES[table.where]
        job.held_blocks, job.own_blocks = len(table.blocks), self.store.own_blocks(table)
        if table.where is Where.AWAY:
            job.own_blocks = len(table.away)

    def leave(self) -> bool:
        return self.store.leave(self.table)

    def come(self) -> bool:
        return self.store.come(self.table)

    def drop(self) -> None:
        self.store.drop(self.table)

    def close(self) -> None:
        self.store.close(self.table)


class AloneWork(Work):
    """An experiment whose forward passes are its own, with transformers' cache between them."""

    def __init__(
        self, job: Job, run: ExperimentRun, plan: Plan, facts: Facts, *, held: Held, make_room: Callable[[int], None]
    ) -> None:
        super().__init__(job, run, plan, facts)
        self._held, self._make_room = held, make_room
        self._passes = run.passes(plan)
        self._blocks = job.whole_blocks or 0
        self.dropped = False

    @property
    def _cache(self) -> Any:
        return self.run.cache

    def start(self) -> bool:
        """Take what it may need of the device; whether it was there."""
        if not self._held.is_here:
            self._make_room(self._held.size_bytes)
            if self._held.size_bytes > self._held.free_bytes:
                return False
            self._held.take()
        return True

    def step(self) -> None:
        """One forward pass. What the model or the graph raises is raised."""
        with torch.inference_mode(False), torch.no_grad():
            self.ended = next(self._passes, True)
        self.dropped = False

    # Decoding together with others (see `run.joined`).

    @property
    def can_join(self) -> bool:
        """Whether its next step is one token of one row, after keys and values of its own."""
        rows = self.run.rows
        return self.facts.why_alone is None and rows is not None and rows.step > 0 and bool(rows.computed)

    def row(self) -> Row:
        """Its next step, begun."""
        rows = self.run.rows
        assert rows is not None
        rows.begin()
        looks = rows.interpreter if rows.interpreter is not None and rows.interpreter.actions else None
        return Row(rows.new[0][-1], self._cache["past_key_values"], looks)

    def took(self, logits: torch.Tensor) -> None:
        """The step has been performed; `logits`: of its token, `[1, vocab]`."""
        rows = self.run.rows
        assert rows is not None
        rows.take(logits)
        self.ended = rows.ended
        if self.ended:
            self._cache.clear()
            self.run.generated(rows)

    def undo(self, row: Row) -> bool:
        """The step was broken off: see `PackedWork.undo`."""
        rows = self.run.rows
        assert rows is not None
        if row.interpreter is not None or not rows.take_back():
            return False
        cut_back(row.cache, rows.computed)
        return True

    @property
    def logits(self) -> torch.Tensor | None:
        """That the newest token was chosen by, `[batch, vocab]`; None: there are none."""
        return None if self.run.rows is None else self.run.rows.logits

    def observe(self) -> None:
        job, rows = self.job, self.run.rows
        job.produced_tokens = 0 if rows is None else len(rows.new[0])
        computed = 0 if rows is None or self.dropped else rows.computed
        job.computed_tokens = min(computed, job.prompt_tokens + job.produced_tokens)
        if self._held.fence is not None:
            job.place = Place.LEAVING if self._held.is_here else Place.COMING
        elif self._held.is_away:
            job.place = Place.HOST
        else:
            job.place = Place.DEVICE if self._held.is_here else Place.NOWHERE
        job.held_blocks = self._blocks if job.place in (Place.DEVICE, Place.LEAVING, Place.COMING) else 0
        job.own_blocks = self._blocks

    def leave(self) -> bool:
        return self._held.leave(self._cache)

    def come(self) -> bool:
        self._make_room(self._held.size_bytes)
        return self._held.come(self._cache, self.run.backend.runtime.device or torch.device("cpu"))

    def poll(self) -> bool:
        """Whether a copy is under way."""
        return self._held.poll()

    def drop(self) -> None:
        assert self.run.rows is not None
        self._cache.clear()
        self.run.rows.computed, self.dropped = 0, True
        self._held.release()

    def close(self) -> None:
        self._passes.close()
        self._cache.clear()
        self._held.release()


class FrameSize:
    """What an experiment holds between two steps besides keys and values: saves, and values that later steps need.

    Entries of a save are looked at once: they stay what they are.
    """

    def __init__(self) -> None:
        self._counted: dict[str, tuple[int, int]] = {}

    def now_bytes(self, work: Work) -> int:
        """Bytes now."""
        frame, rows = work.run.frame, work.run.rows
        states = None if rows is None or rows.interpreter is None else rows.interpreter.states
        saved = sum(self._saved(name, value) for name, value in frame.saves.items())
        held = [own for n, own in enumerate(frame.values) if frame.nodes[n].kind != "parameter"]  # the model's is not
        return saved + _size([*held, frame.history, states])

    def _saved(self, name: str, value: Any) -> int:
        if not isinstance(value, list):
            return _size(value)
        count, size = self._counted.get(name, (0, 0))
        size += _size(value[count:])
        self._counted[name] = len(value), size
        return size


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
