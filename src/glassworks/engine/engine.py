"""An engine: many requests over one model, one iteration at a time, each iteration's company chosen anew.

Before an iteration the scheduler is asked who runs (`schedule`); the memory moves (`memory`); one packed step computes
the tokens of all that share it, and what cannot share runs by itself (`work`); then tokens are chosen and handed on.
Nothing here decides: policies do. Nothing here computes: runtimes do.

Surprises:
- There is no thread. Whoever waits for a reply drives the engine, one iteration at a time, for everybody; several
  threads take turns.
- Time is a clock's. On a virtual one an iteration takes the processor's seconds, so that a trace of arrivals means the
  same on a busy machine.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import RLock
from typing import Any

import torch

from glassworks.engine.admission import Admission
from glassworks.engine.backend import EngineBackend
from glassworks.engine.handing import Replies
from glassworks.engine.local import HasLocal
from glassworks.engine.options import Now, Stats, check_inputs, check_options
from glassworks.engine.requests import Reply, Request, Timing
from glassworks.engine.steps import Computed, broken_off, compute
from glassworks.engine.work import AloneWork, PackedWork, Work
from glassworks.errors import BudgetExceeded, Cancelled, InputError, ModelError, ScopeError
from glassworks.graph.backend import Generation, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.measure.clock import Clock, RealClock, VirtualClock
from glassworks.measure.table import CostTable
from glassworks.memory.budget import KVBudget
from glassworks.memory.kv import KVStore
from glassworks.memory.links import Link
from glassworks.run.eager import EagerRuntime
from glassworks.run.frame import Frame
from glassworks.run.joined import JoinedRuntime
from glassworks.run.packing import PackedRuntime
from glassworks.schedule import IterationCost, Predictor, scheduler
from glassworks.schedule.base import Decision, Job, Limits, Memory, Place, Scheduler
from glassworks.trace.facade import Model
from glassworks.trace.prompts import prompt_rows
from glassworks.trace.results import with_results

_PAUSE_S = 1e-4
"""How long to wait for a copy when nothing else can be done."""
_PATIENCE = 1000
"""Iterations in a row in which nothing runs, moves or is dropped."""


class Engine:
    """Runs requests of any length, with graphs or without, over one model that stays as it is.

    Args:
        model: of `gw.load` or `gw.wrap`; an edited one runs its edits in every request.
        policy: who goes first: `fcfs`, `srpt`, `srpt-predicted`, `mlfq` or `fair`; or a `Scheduler` of your own.
        kv: how much memory keys, values and what is saved may take, on each tier.
        rows: how many requests an iteration has at most. tokens: how many tokens it computes at most; longer prompts
            are cut into chunks, unless a graph looks at them.
        block_tokens: tokens in a block of the store.
        starvation_s: whoever was not served for so long goes first; None: there is no bound.
        predictor: of lengths, for `srpt-predicted`. cost: measured by `glassworks measure`; what iterations cost is
            learnt from there on. inner: with `fair`: the policy among the requests of one user.
        share: whether requests of one user that begin alike compute their beginning once. Whoever changes the weights
            calls `engine.forget()`.
        clock: `VirtualClock` for experiments on schedules. out, back: the links from the device and to it.
        poison: fill memory that nobody may read with NaN, to show that nobody does.

    Attributes:
        why_not_packed: why this model's requests are not packed; None: they are. They then decode together in padded
            passes, or run one by one.
        limits: what an iteration has at most. stats: what was done so far.

    Raises:
        InputError: the model is not in this process, or is no model of tokens; an unknown policy.
        BudgetExceeded: the budget does not hold two blocks.

    Example:
        engine = gw.Engine(model, kv=gw.KVBudget(device="64MiB", host="256MiB"))
        for token in engine.submit(gw.Request("The Eiffel Tower is in the city of")):
            print(token.text, end="", flush=True)
    """

    def __init__(
        self, model: Model, *, policy: str | Scheduler = "mlfq", kv: KVBudget | None = None, rows: int = 32,
        tokens: int = 512, block_tokens: int = 16, starvation_s: float | None = None,
        predictor: Predictor | None = None, cost: CostTable | None = None, inner: str | None = None, share: bool = True,
        clock: Clock | None = None, out: Link | None = None, back: Link | None = None, poison: bool = False,
    ) -> None:  # fmt: skip
        for name, value in {"rows": rows, "tokens": tokens, "block_tokens": block_tokens}.items():
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is an int of at least 1, got {value!r}")
        if not isinstance(model, Model) or not isinstance(model.backend, HasLocal) or model.table.plain:
            raise InputError(
                "an engine runs a language model of this process, of gw.load or gw.wrap; for one that is elsewhere, "
                "its service has an engine"
            )
        check_options(policy, kv, clock, cost, starvation_s, predictor, inner)
        self._local = model.backend.local
        if not isinstance(self._local.runtime, EagerRuntime):
            raise InputError("an engine runs a model in one piece: load it without stages")
        self._model, self._core = model, model._core
        self._share, self.limits = share, Limits(rows=rows, tokens=tokens)
        self.clock: Clock = RealClock() if clock is None else clock
        self._timer = time.process_time if isinstance(self.clock, VirtualClock) else time.perf_counter
        self._cost = IterationCost(cost)
        self._scheduler = (
            scheduler(policy, cost=self._cost, starvation_s=starvation_s, predictor=predictor, inner=inner)
            if isinstance(policy, str)
            else policy
        )
        self.why_not_packed: str | None = None
        packed: PackedRuntime | None = None
        joined: JoinedRuntime | None = None
        try:
            packed = PackedRuntime(self._local.runtime, model.table)
        except ModelError as error:
            self.why_not_packed = str(error)
            with suppress(ModelError):
                joined = JoinedRuntime(self._local.runtime, model.table)
        self._shared_steps = packed or joined
        unlike = frozenset() if self._shared_steps is None else self._shared_steps.unlike
        self._admission = Admission(
            self._local, model.table, packed, KVBudget() if kv is None else kv, unlike=unlike, rows=rows,
            block_tokens=block_tokens, out=out, back=back, poison=poison,
        )  # fmt: skip
        self.stats = Stats()
        self._numbers = itertools.count()
        self._waiting: deque[Work] = deque()
        self._works: dict[Job, Work] = {}
        own = self._admission
        self._replies = Replies(self._core.text, own.frames, own.make_room_for_frames, self.clock.now_s)
        self._ran: set[Job] = set()
        self._idle = 0
        self._iterating = self._computing = False
        self._called_off: list[Work] = []
        self._lock = RLock()
        self._began_s: float | None = None
        self._at: tuple[Frame, ...] = ()
        self._by_itself: Frame | None = None

    # What people call.

    def submit(self, request: Request, *, alone: bool = False) -> Reply:
        """Take a request in. Whoever iterates over the reply, or waits for it, drives the engine.

        Args:
            alone: it shares no forward pass with others.

        Raises:
            InputError: the prompt, the options or the graph cannot be. BudgetExceeded: it could never fit; says by how
            much.
        """
        with self._lock:
            return self._taken(request, self._work_of(request, alone=alone))

    def start(
        self, graph: Graph, inputs: Inputs, generation: Generation | None = None, *, user: str = "",
        weight: float = 1.0, alone: bool = False,
    ) -> Reply:  # fmt: skip
        """Take an experiment in, of any form that a backend runs; `reply.results` is what it gives.

        Args:
            user, weight, alone: as for requests.

        Raises:
            InputError: it cannot be. GraphError: the graph cannot be placed. BudgetExceeded: it could never fit.
        """
        with self._lock:
            work = self.work(graph, inputs, generation, user=user, weight=weight, alone=alone)
            return self._taken(Request((), max_new_tokens=work.job.max_new_tokens, user=user), work)

    def run(self, requests: Iterable[Request], *, progress: Callable[[Reply], None] | None = None) -> list[Reply]:
        """All of them to the end. What ends one before its time is its reply's `error`, and leaves the others alone.

        Args:
            progress: is called with each reply as it ends.

        Raises:
            InputError: one of them cannot be; then none has begun.
        """
        with self._lock:
            if isinstance(requests, Request):
                raise InputError("engine.run takes several requests: engine.run([request]), or engine.submit(request)")
            made = [(request, self._work_of(request)) for request in requests]
            replies = [self._taken(request, work) for request, work in made]
        left = list(replies)
        try:
            while left:
                self._drive(left[0])
                for reply in [own for own in left if own.done]:
                    left.remove(reply)
                    if progress is not None:
                        progress(reply)
        except BaseException:
            for reply in left:  # nobody will ever hold them
                reply.cancel()
            raise
        return replies

    def step(self) -> bool:
        """One iteration; whether there is anything left to do."""
        with self._lock:
            return self._iterate()

    def forget(self) -> None:
        """Forget the beginnings that requests share: after the model's weights have changed, say."""
        with self._lock:
            if self.store is not None:
                self.store.forget()

    def drain(self) -> None:
        """Run everything that was submitted to its end."""
        while self.step():
            pass

    @property
    def backend(self) -> EngineBackend:
        """Where `model.on(engine)` runs its blocks."""
        return EngineBackend(self, self._local)

    def runs(self, model: Model) -> bool:
        """Whether this is the engine's model, or an edit of it."""
        return isinstance(model.backend, HasLocal) and model.backend.local is self._local

    @property
    def store(self) -> KVStore | None:
        """Keys and values; None if the model is not packed."""
        return self._admission.store

    @property
    def arenas(self) -> dict[str, Any]:
        """By tier: how much is used, and of how much."""
        return {arena.name: arena for arena in self._admission.arenas}

    @property
    def cost(self) -> CostTable:
        """What iterations have cost so far, as a table: for `gw.simulate`, and for the next engine."""
        own = self._cost
        return CostTable.of_iterations(
            iteration_s=own.iteration_s, row_s=own.row_s, context_token_s=own.context_token_s,
            prefill_token_s=own.prefill_token_s,
        )  # fmt: skip

    def spell(self, token: int) -> str:
        """The text of one token by itself; nothing without a tokenizer."""
        return "" if self._core.text is None else self._core.text.decode([token])

    def now(self) -> Now:
        """What is going on at this moment; any thread may ask, also during a step."""
        shared = None if self._shared_steps is None else self._shared_steps.speaking.frame
        own = self._by_itself or shared
        return Now(self._began_s, self._at or (() if own is None else (own,)), own)

    @property
    def pending(self) -> int:
        """How many requests have not ended."""
        return len(self._replies)

    def __repr__(self) -> str:
        packing = "packed" if self.why_not_packed is None else f"not packed: {self.why_not_packed}"
        tiers = ", ".join(str(arena)[1:-1] for arena in self._admission.arenas)
        return f"<engine of {self._core.name}, {self.pending} requests under way, {packing}; {tiers}>"

    # Taking in.

    def _work_of(self, request: Request, *, alone: bool = False) -> Work:
        """A request as an experiment that is checked and has not begun."""
        core = self._core
        if not isinstance(request, Request):
            raise InputError(f"an engine takes requests, gw.Request(prompt); got {type(request).__name__}")
        if request.options.get("num_beams", 1) != 1:
            raise InputError(
                "a request has one row, and beams are several: use model.on(engine).generate(num_beams=...)"
            )
        ids = prompt_rows(request.prompt, core.text, vocab=core.table.vocab, positions=core.table.positions)
        if len(ids) != 1:
            raise InputError(f"a request has one prompt, got {len(ids)}: make a request of each")
        if request.stop and core.text is None:
            raise InputError("stop texts need a tokenizer; this model has none")
        graph = Graph((), invokes=1) if request.graph is None else request.graph
        if graph.invokes != 1:
            raise InputError(f"a request's graph has one invoke, got {graph.invokes}: model.on(engine) takes those")
        check_inputs(graph, request)
        graph = with_results(self._model.with_edits(graph))  # all steps run, whatever the graph needs
        graph = replace(graph, seed=graph.seed if request.seed is None else request.seed)
        inputs = Inputs((Rows(ids),), named=request.inputs)
        generation = Generation(request.max_new_tokens, request.options)
        return self.work(
            graph, inputs, generation, user=request.user, weight=request.weight,
            expected_tokens=request.expected_tokens, alone=alone,
        )  # fmt: skip

    def work(
        self, graph: Graph, inputs: Inputs, generation: Generation | None, *, user: str = "",
        weight: float = 1.0, expected_tokens: float | None = None, alone: bool = False,
    ) -> Work:  # fmt: skip
        """An experiment, checked; see `submit` for what is raised."""
        with self._lock:
            return self._admission.work(
                graph, inputs, generation, number=next(self._numbers), now_s=self.clock.now_s(), user=user,
                expected_tokens=expected_tokens, alone=alone, weight=weight,
            )  # fmt: skip

    def _taken(self, request: Request, work: Work) -> Reply:
        timing = Timing(work.job.arrival_s)
        reply = Reply(request, timing, drive=lambda: self._drive(reply), cancel=lambda: self._cancel(work))
        self.add(work, reply)
        return reply

    def add(self, work: Work, reply: Reply) -> None:
        """An experiment takes its place among the others."""
        with self._lock:
            self._replies.add(work, reply)
            self._waiting.append(work)

    def _drive(self, reply: Reply) -> None:
        with self._lock:
            if not reply.done:
                self._iterate()

    def _refuse_inside(self) -> None:
        if self._iterating:
            raise ScopeError(
                "a graph's function runs inside an iteration of this engine, and cannot wait for another: call it off, "
                "or ask for it from outside"
            )

    def _cancel(self, work: Work) -> None:
        with self._lock:
            if work in self._replies:
                self._fail(work, Cancelled("the request was called off"))

    # One iteration.

    def _iterate(self) -> bool:
        self._refuse_inside()
        self._iterating, self._began_s = True, time.perf_counter()
        try:
            with torch.inference_mode(False):
                return self._iteration()
        finally:
            self._iterating, self._began_s, self._at, self._by_itself = False, None, (), None

    def _iteration(self) -> bool:
        self._admit()
        moving = self._poll()
        if not self._works:
            return bool(self._waiting) and self._nothing(moving)
        now_s = self.clock.now_s()
        decision = self._scheduler.decide(list(self._works), now_s=now_s, limits=self.limits, memory=self._memory())
        began = self._timer()
        self._at = tuple([self._works[job].run.frame for job, _ in decision.run])
        self._move(decision)
        found = self._compute(decision.run)
        seconds = max(self._timer() - began, 1e-9)
        self.clock.advance(seconds)  # first: what came, came when the iteration had ended
        self.stats.iterations += 1
        self.stats.seconds += seconds
        if found.ran:
            self._idle = 0
            self._cost.observe(
                rows=len(found.ran), context_tokens=found.context_tokens, prefill_tokens=found.prefill_tokens,
                seconds=seconds,
            )  # fmt: skip
            self._account(found.ran, seconds)
            for work, share_s in found.shares(seconds).items():
                if work in self._replies:
                    self._replies.timing(work).compute_s += share_s
        self._hand_on(found)
        if found.interrupted is not None:
            raise found.interrupted
        if not (found.ran or found.failed or decision.leave or decision.come or decision.drop):
            return self._nothing(moving)
        return bool(self._replies)

    def _memory(self) -> Memory:
        here = [own for own in self._works.values() if isinstance(own, PackedWork) and own.job.place is Place.DEVICE]
        return self._admission.memory(kept_blocks=sum(own.table.reserved for own in here))

    def _admit(self) -> None:
        """Take in what came. What must be promised room first waits for it in order, and holds up nobody else."""
        short = False
        for _ in range(len(self._waiting)):
            work = self._waiting.popleft()
            if work not in self._replies:
                continue
            try:
                if self._admission.needs_promise(work) and (short or not self._admission.promised(work)):
                    short = True
                    self._waiting.append(work)
                    continue
                if work.plan.prelude:
                    self._prepare(work)
                if work in self._replies:  # its own functions may have called it off
                    self._scheduler.arrive(work.job, self.clock.now_s())
                    self._works[work.job] = work
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's
                self._fail(work, error)
            except BaseException as error:
                self._fail(work, broken_off(error))
                raise

    def _prepare(self, work: Work) -> None:
        """What runs before its first pass is its own."""
        began = self._timer()
        self._begin_by_itself(work)
        try:
            self._admission.prepare(work)
        finally:
            self._begin_by_itself(None)
            seconds = self._timer() - began
            self.stats.seconds += seconds
            self._replies.timing(work).compute_s += seconds

    def _begin_by_itself(self, work: Work | None) -> None:
        self._by_itself, self._began_s = None if work is None else work.run.frame, time.perf_counter()

    def _poll(self) -> bool:
        """Let copies that have ended count; whether others are under way."""
        moving = self._admission.poll()
        for work in self._works.values():
            if isinstance(work, AloneWork):
                moving = work.poll() or moving
            work.observe()
        return moving

    def _nothing(self, moving: bool) -> bool:
        """Nothing ran: a copy has to end first, or a scheduler let everybody wait."""
        self._idle = 0 if moving else self._idle + 1
        if self._idle > _PATIENCE:
            self._idle = 0
            self._fail_stuck()
        self.clock.sleep(_PAUSE_S)
        return bool(self._replies)

    def _fail_stuck(self) -> None:
        """The oldest cannot go on, though all others would make way for it: it ends, and they go on."""
        work = min([*self._works.values(), *self._waiting], key=lambda own: (own.job.arrival_s, own.job.id))
        job, memory = work.job, self._memory()
        reason = (
            f"this request could not go on for {_PATIENCE} iterations, and nor could anybody else: it has "
            f"{job.held_blocks} blocks ({job.place.value}), {memory.free_blocks} of {memory.total_blocks} are free on "
            f"the device and {memory.host_free_blocks} off it"
        )
        self._fail(work, BudgetExceeded(reason))

    def _move(self, decision: Decision) -> None:
        now_s = self.clock.now_s()
        for job in decision.drop:
            if job.place in (Place.DEVICE, Place.HOST) and job.recomputable:
                work = self._works[job]
                self._replies.timing(work).recomputed_tokens += job.computed_tokens
                work.drop()
                work.observe()
                self._scheduler.arrive(job, now_s)
                self.stats.drops += 1
        for job in decision.leave:
            if job.place is Place.DEVICE and self._works[job].leave():
                self._replies.timing(self._works[job]).swapped += 1
                self.stats.swaps_out += 1
        if decision.leave or decision.drop:
            self._poll()
        for job in decision.come:
            if job.place is Place.HOST and self._works[job].come():
                self.stats.swaps_in += 1
        if decision.come:
            self._poll()

    def _compute(self, run: Sequence[tuple[Job, int]]) -> Computed:
        self._computing = True
        try:
            found = compute(
                run, self._works, self._shared_steps, self._admission.store, share=self._share,
                by_itself=self._begin_by_itself, timer=self._timer,
            )  # fmt: skip
        finally:
            self._computing = False
            while self._called_off:
                self._called_off.pop().close()
        self.stats.steps += found.steps
        self.stats.rows += found.rows
        self.stats.alone_steps += found.alone_steps
        self.stats.prompt_tokens += found.prefill_tokens
        for work, tokens in found.shared_tokens.items():
            self.stats.shared_tokens += tokens
            if work in self._replies:
                self._replies.timing(work).shared_tokens += tokens
        return found

    def _hand_on(self, found: Computed) -> None:
        """Tokens go to their replies, failures to theirs; who has ended is let go of."""
        for work, error in found.failed:
            self._fail(work, error, in_company=work in found.company)
        for work, logits in found.came:
            if work not in self._replies:
                continue
            try:
                count, ended = self._replies.hand_on(work, logits)
                self.stats.new_tokens += count
                if ended:
                    self._replies.end(work)
                    self._let_go(work)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's
                self._fail(work, error)

    def _account(self, ran: Sequence[Job], seconds: float) -> None:
        now_s = self.clock.now_s()
        for job in ran:
            if job in self._works:  # not called off meanwhile
                self._works[job].observe()
                self._scheduler.charge(job, seconds, now_s)
        runs = set(ran)
        for job in self._ran - runs:
            if job in self._works:
                self._replies.timing(self._works[job]).preempted += 1
        self._ran = runs

    # Ending.

    def _fail(self, work: Work, error: Exception, *, in_company: bool = False) -> None:
        if work in self._replies:
            self._replies.fail(work, error, in_company=in_company)
            self._let_go(work)

    def _let_go(self, work: Work) -> None:
        if self._works.pop(work.job, None) is not None:  # otherwise the scheduler has not heard of it
            self._scheduler.finish(work.job, self.clock.now_s())
        if self._computing:  # called off by a graph's function: the pass under way still uses its memory
            self._called_off.append(work)
        else:
            work.close()
