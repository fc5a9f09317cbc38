"""Who may come into an engine, with how much memory: requests become experiments with a table or a cache of their own.

What could never fit is refused with the sizes. What may not be computed again (its graph writes, or has seen its
prompt) is promised room off the device for all that it may come to, before it begins, so that it can always leave; and
every graph is promised room for all that it may come to save (`frames`), so that no company can take it.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from glassworks.engine.caches import Held, measured
from glassworks.engine.facts import Facts, facts_of
from glassworks.engine.frames import worst_bytes
from glassworks.engine.local import ExperimentRun, LocalBackend
from glassworks.engine.work import AloneWork, PackedWork, Work
from glassworks.errors import BudgetExceeded, InputError
from glassworks.graph.backend import Generation, Inputs
from glassworks.graph.graph import Graph
from glassworks.graph.options import beams_of
from glassworks.graph.place import Plan
from glassworks.graph.sites import SiteTable
from glassworks.memory.arena import Arena
from glassworks.memory.budget import KVBudget
from glassworks.memory.kv import FRAMES, KVStore, arenas_of
from glassworks.memory.links import Link, link_for
from glassworks.run.packing import PackedRuntime
from glassworks.schedule.base import Job, Memory
from glassworks.units import spelled


class Admission:
    """Makes experiments of one engine, and knows its memory.

    Attributes:
        arenas: of each tier, the device first. frames: the arena that saved values count in. store: of packed requests.
    """

    def __init__(
        self, local: LocalBackend, table: SiteTable, packed: PackedRuntime | None, budget: KVBudget, *,
        unlike: frozenset[str], rows: int, block_tokens: int, out: Link | None, back: Link | None, poison: bool,
    ) -> None:  # fmt: skip
        self._rows, self._unlike = rows, unlike
        self._local, self._table, self._block_tokens, self._poison = local, table, block_tokens, poison
        device = local.runtime.device or torch.device("cpu")
        self._out, self._back = out or link_for(device), back or link_for(device)
        self.arenas = arenas_of(budget)
        others = {arena.name: arena for arena in self.arenas[1:]}
        self._host: Arena | None = others.get("host", others.get("disk"))
        self.frames = self._host or self.arenas[0]
        self._late: list[Held] = []
        self.store: KVStore | None = None
        self._measured: tuple[int, int] | None = None
        if packed is not None:
            with torch.inference_mode(False):  # steps write to it, in whatever mode
                self.store = KVStore(
                    packed.geometry, self.arenas, block_tokens=block_tokens, device=device, out=self._out,
                    back=self._back, poison=poison,
                )  # fmt: skip
            self._block_bytes = self.store.pool.block_bytes
        else:
            self._block_bytes = max(self.cache_sizes[0], 1) * block_tokens

    @property
    def cache_sizes(self) -> tuple[int, int]:
        """Bytes of a token in a transformers cache, and of a row besides."""
        if self._measured is None:
            runtime: Any = self._local.runtime
            self._measured = measured(runtime, vocab=self._table.vocab)
        return self._measured

    def memory(self, *, kept_blocks: int) -> Memory:
        """As the scheduler sees it. `kept_blocks`: off the device, promised to those that are on it: a scheduler keeps
        that room free by itself."""
        device, store = self.arenas[0], self.store
        away = 0 if self._host is None else self._host.free_bytes // self._block_bytes
        return Memory(
            block_tokens=self._block_tokens,
            total_blocks=self._total_blocks,
            free_blocks=device.free_bytes // self._block_bytes if store is None else store.free_blocks,
            host_free_blocks=away if store is None else store.away_free_blocks + kept_blocks,
            instant=self._out.instant and self._back.instant,
        )

    @property
    def _total_blocks(self) -> int:
        """Of the device: what a scheduler has to give, in whole blocks."""
        return self.arenas[0].budget_bytes // self._block_bytes if self.store is None else self.store.total_blocks

    def poll(self) -> bool:
        """Let copies that have ended count; whether others are under way."""
        self._late[:] = [held for held in self._late if held.poll()]
        return (self.store is not None and self.store.poll()) or bool(self._late)

    # Making an experiment.

    def work(
        self, graph: Graph, inputs: Inputs, generation: Generation | None, *, number: int, now_s: float, user: str,
        expected_tokens: float | None, alone: bool, weight: float,
    ) -> Work:  # fmt: skip
        """An experiment that has not begun. `alone`: it shares no pass, whatever it is.

        Raises:
            InputError: it cannot be. BudgetExceeded: it could never fit; says by how much.
        """
        if graph.invokes != len(inputs.invokes):
            raise InputError(f"the graph has {graph.invokes} invokes and was given rows for {len(inputs.invokes)}")
        table, plan = self._local.placed(graph, inputs, generating=generation is not None)
        facts = facts_of(graph, plan, table, inputs, generation, unlike=self._unlike)
        if alone:
            facts = replace(facts, why_alone="it was asked to run by itself")
        run = self._local.begun(graph, inputs, generation, table=table, plan=plan)
        rows = [row for own in inputs.invokes for row in own.ids]
        job = Job(
            id=number, arrival_s=now_s, prompt_tokens=max(map(len, rows), default=0), user=user, weight=weight,
            max_new_tokens=0 if generation is None else generation.max_new_tokens, rows=min(len(rows), self._rows),
            expected_tokens=expected_tokens,
        )  # fmt: skip
        if self.store is not None and facts.why_alone is None:
            work = self._packed_work(job, run, plan, facts, generation)
        else:
            work = self._alone_work(job, run, plan, facts, generation)
        if facts.touches:
            work.frame_reserved = worst_bytes(graph, plan, table, inputs, generation)
            self._check_frame(work)
        return work

    def _check_frame(self, work: Work) -> None:
        """BudgetExceeded: what a graph may come to save could never fit beside its own keys and values."""
        own = work.job.blocks(work.job.prompt_tokens + max(work.job.max_new_tokens - 1, 0), self._block_tokens)
        beside = own if self._host is None or self._must_leave(work) else 0
        pools = [] if self.store is None else [self.store.pool, *self.store.tiers]
        zeros = sum(pool.block_bytes for pool in pools if pool.arena is self.frames)
        room = self.frames.budget_bytes - zeros - beside * self._block_bytes
        if work.frame_reserved > room:
            raise BudgetExceeded(
                f"what the graph of this request saves may come to {spelled(work.frame_reserved)}; the "
                f"{self.frames.name} has {spelled(max(room, 0))} for it: give KVBudget({self.frames.name}=...) more, "
                f"ask for fewer new tokens, or save less"
            )

    def _packed_work(
        self, job: Job, run: ExperimentRun, plan: Plan, facts: Facts, generation: Generation | None
    ) -> Work:
        assert self.store is not None
        store, most = self.store, job.prompt_tokens + max(job.max_new_tokens - 1, 0)
        self._check_size(store.blocks(most), most)
        job.chunkable = not facts.touches_prompt
        job.recomputable = not (facts.touches_prompt or facts.writes)
        if not job.recomputable and generation is not None and generation.max_new_tokens:
            room = max((tier.count for tier in store.tiers), default=0)
            if store.blocks(most) > room:
                raise BudgetExceeded(
                    f"the graph of this request writes or looks at its prompt, so it is never computed again and must "
                    f"be able to leave the device: that takes {store.blocks(most)} blocks of {self._block_tokens} "
                    f"tokens off the device, where {room} are; give KVBudget(host=...) "
                    f"{spelled((store.blocks(most) + 2) * store.pool.block_bytes * FRAMES // (FRAMES - 1))}"
                )
        table = store.open(job.user)
        return PackedWork(job, run, plan, facts, store=store, table=table, generation=generation)

    def _check_size(self, blocks: int, tokens: int) -> None:
        """BudgetExceeded: so many tokens could never be on the device, whose memory is given out in whole blocks."""
        if blocks <= self._total_blocks:
            return
        raise BudgetExceeded(
            f"this request may come to {tokens} tokens in {blocks} blocks, whose keys and values take "
            f"{spelled(blocks * self._block_bytes)}; the device has {spelled(self.arenas[0].budget_bytes)} for them, "
            f"{self._total_blocks} blocks: give KVBudget(device=...) more, ask for fewer new tokens, or shorten the "
            f"prompt"
        )

    def _alone_work(
        self, job: Job, run: ExperimentRun, plan: Plan, facts: Facts, generation: Generation | None
    ) -> Work:
        job.chunkable = False
        touched = any(event < len(run.table.events) for forward in plan.forwards for event, _ in forward.actions)
        job.recomputable = not (touched or run.table.encoder_decoder or len(plan.forwards) != 1)
        size_bytes = 0
        if generation is not None and not run.table.plain:
            token_bytes, besides_bytes = self.cache_sizes
            tokens = job.prompt_tokens + job.max_new_tokens
            rows = sum(len(own.ids) for own in run.inputs.invokes) * beams_of(generation.options)
            # of an encoder-decoder: measured with as many tokens on either side, and neither side has more than these
            size_bytes = rows * (tokens * token_bytes + besides_bytes)
            self._check_size(math.ceil(size_bytes / self._block_bytes), tokens * rows)
        if run.table.encoder_decoder:
            job.prompt_tokens = 1  # what the decoder reads
        job.whole_blocks = math.ceil(size_bytes / self._block_bytes)
        held = Held(size_bytes, self.arenas[0], self._host, self._out, self._back, poison=self._poison, late=self._late)
        return AloneWork(job, run, plan, facts, held=held, make_room=self._make_room)

    def _make_room(self, size_bytes: int) -> None:
        """Forget beginnings that nobody uses, where what runs by itself needs their bytes."""
        if self.store is not None:
            self.store.make_room(size_bytes)

    # Letting it in.

    def needs_promise(self, work: Work) -> bool:
        """Whether room has to be kept for it before it begins."""
        return work.frame_reserved > 0 or self._must_leave(work)

    def _must_leave(self, work: Work) -> bool:
        """Whether it needs room off the device, since it may not be computed again."""
        return isinstance(work, PackedWork) and not work.job.recomputable and work.job.max_new_tokens > 0

    def promised(self, work: Work) -> bool:
        """Keep that room; whether there is enough now."""
        self.make_room_for_frames(work.frame_reserved)
        if work.frame_reserved > self.frames.free_bytes:
            return False
        self.frames.take(work.frame_reserved, "what the graph of a request may save")
        work.frame_bytes = work.frame_reserved
        if not self._must_leave(work) or self._can_leave(work):
            return True
        self.frames.give(work.frame_bytes)
        work.frame_bytes = 0
        return False

    def _can_leave(self, work: Work) -> bool:
        assert isinstance(work, PackedWork)
        return work.store.promise(work.table, work.job.prompt_tokens + work.job.max_new_tokens - 1)

    def make_room_for_frames(self, size_bytes: int) -> None:
        """Forget beginnings that nobody uses, where what graphs save needs their bytes."""
        if self._host is None:
            self._make_room(size_bytes)

    def prepare(self, work: Work) -> None:
        """What needs no forward pass, computed before the first."""
        if isinstance(work, PackedWork) and work.plan.prelude:
            with torch.no_grad():
                work.run.prelude(work.plan)
