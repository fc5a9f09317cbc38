"""The local backend: a graph meets a model that is here.

Splits an experiment into forward passes (`graph.place`), makes a padded batch of each, lets a runtime perform it while
one interpreter a graph looks on, and gathers the saves.
"""

import inspect
import itertools
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch

from glassworks.engine.batch import Batch, padded, placed
from glassworks.engine.beams import refuse_sites, search
from glassworks.engine.live import LiveRun, plan_of_edits, read_to_the_end
from glassworks.engine.loop import Generated, Generating, perform
from glassworks.engine.sampling import Sampler, start_of
from glassworks.errors import InputError, ModelError, UnknownSite
from glassworks.graph.backend import AtHand, Draft, Experiment, Generation, Inputs, Results, run_in_order
from glassworks.graph.graph import Graph
from glassworks.graph.jobs import EndedJob, Job
from glassworks.graph.nodes import ALL_ROWS
from glassworks.graph.place import Forward, Plan, place_inputs
from glassworks.graph.sites import SiteTable
from glassworks.run.base import Runtime
from glassworks.run.eager import EagerRuntime
from glassworks.run.frame import Frame
from glassworks.run.interpret import Interpreter
from glassworks.run.live import LiveInterpreter, LivePass
from glassworks.run.lockstep import step_in_parts
from glassworks.run.rows import Slot
from glassworks.trace.tensors import as_leaf

Prepared = tuple[Sequence[Any], Mapping[str, Any], Interpreter]

_WHOLE = Slot(0, 1, {}, {}, True)
_NONE: frozenset[str] = frozenset()
_NOTHING = Forward(0, (), (), frozenset(), 0, False)


class HasLocal(AtHand):
    """A backend whose model is in this process."""

    @property
    @abstractmethod
    def local(self) -> "LocalBackend":
        """What runs it."""


class LocalBackend(HasLocal):
    """Runs graphs on a runtime.

    Args:
        runtime: performs forward steps. table: gives the site table, for inputs (of a plain module), with the
            operations inside some modules.
        defaults: the model's generation settings.
    """

    def __init__(
        self,
        runtime: Runtime,
        table: Callable[[Inputs | None, frozenset[str]], SiteTable],
        *,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.runtime = runtime
        self._table = table
        self.defaults = defaults or {}
        forward = inspect.signature(runtime.module.forward).parameters
        self.takes = frozenset(forward)

    @property
    def local(self) -> "LocalBackend":
        """Itself."""
        return self

    def sites(self, inputs: Inputs | None = None, *, within: frozenset[str] = frozenset()) -> SiteTable:
        """The site table; of a plain module for inputs of these shapes (without any: its modules only)."""
        return self._table(inputs, within)

    def run_session(self, experiments: Sequence[Experiment]) -> list[Results]:
        """Several experiments in order, values handed on."""
        return run_in_order(self, experiments)

    def submit(self, experiments: Sequence[Experiment]) -> Job:
        """The same, at once; a job that has ended."""
        return EndedJob(lambda: self.run_session(experiments), as_leaf=as_leaf)

    def run(self, graph: Graph, inputs: Inputs, generation: Generation | None = None) -> Results:
        """Run a graph; its saves by name. Errors of nodes keep their type and carry the user's line."""
        if graph.invokes != len(inputs.invokes):
            raise InputError(f"the graph has {graph.invokes} invokes and was given rows for {len(inputs.invokes)}")
        table, plan = self.placed(graph, inputs, generating=generation is not None)
        run = self.begun(graph, inputs, generation, table=table, plan=plan)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                run.everything(plan)
        else:
            with torch.no_grad():
                run.everything(plan)
        return run.results()

    def begun(
        self, graph: Graph, inputs: Inputs, generation: Generation | None, *, table: SiteTable, plan: Plan
    ) -> "ExperimentRun":
        """An experiment that has run nothing yet; who watches this context watches it."""
        frame = Frame(graph, plan, named=inputs.named, device=self.runtime.device, parameter=self.runtime.parameter)
        if frame.watch is not None:
            frame.watch.experiment(graph)
        return ExperimentRun(self, table, frame, inputs, generation)

    def placed(self, graph: Graph, inputs: Inputs, *, generating: bool) -> tuple[SiteTable, Plan]:
        """The plan of a graph, and the table with the operations that it names, if any."""
        table = self._table(inputs, _NONE)
        try:
            return table, place_inputs(graph, table, inputs, generating=generating)
        except UnknownSite:
            if graph.within <= set(table.within):
                raise
        table = self._table(inputs, graph.within)
        return table, place_inputs(graph, table, inputs, generating=generating)

    def live(self, draft: Draft, inputs: Inputs, *, within: frozenset[str] = frozenset()) -> LiveRun:
        """Begin to run an experiment while it is written. ModelError: this runtime's passes cannot be paused."""
        if not isinstance(self.runtime, EagerRuntime):
            raise ModelError("the forward pass of a pipeline cannot stand still: load the model in one stage")
        edits = read_to_the_end(draft, self._table(inputs, _NONE))
        table = self._table(inputs, within | edits.within)
        plan = plan_of_edits(place_inputs(edits, table, inputs, generating=False), len(draft.nodes))
        frame = Frame(draft, plan, named={}, device=self.runtime.device, parameter=self.runtime.parameter)
        run = ExperimentRun(self, table, frame, inputs, None)
        run.kind = LiveInterpreter
        with torch.inference_mode(False), torch.no_grad():
            args, own, interpreter = run.prepared(plan.forwards[0])
        assert isinstance(interpreter, LiveInterpreter)
        return LiveRun(self, inputs, interpreter, LivePass(self.runtime, args, own, interpreter))


class ExperimentRun:
    """One experiment on its way through its forward passes.

    Attributes:
        kind: what performs its nodes. rows: of the generation under way. cache: what transformers keeps for it.
    """

    kind: type[Interpreter] = Interpreter

    def __init__(
        self,
        backend: LocalBackend,
        table: SiteTable,
        frame: Frame,
        inputs: Inputs,
        generation: Generation | None,
    ) -> None:
        self.backend, self.table, self.frame = backend, table, frame
        self.inputs, self.generation = inputs, generation
        self.forwards = 0
        self.alive: list[Any] = [[] for _ in inputs.invokes]
        self.cache: dict[str, Any] = {}
        self.rows: Generating | None = None

    def results(self) -> Results:
        """What has come of it."""
        frame = self.frame
        return Results(frame.saves, self.forwards, self.alive, frame.gradients, frame.logs)

    def everything(self, plan: Plan) -> None:
        """All forward passes."""
        for _ in self.passes(plan):
            pass

    def passes(self, plan: Plan) -> Generator[bool]:
        """The same, standing still after each of them: whether it was the last."""
        self.prelude(plan)
        for forward in plan.forwards:
            last = forward is plan.forwards[-1]
            if self.generation is not None and not self.table.plain:
                for ended in self._generate(forward, self.generation):
                    yield last and ended
            else:
                self._step(*self.prepared(forward))
                yield last

    def prelude(self, plan: Plan) -> None:
        """What needs no forward pass."""
        if plan.prelude:
            with torch.set_grad_enabled(self.frame.takes_gradients):
                self.interpreter(_NOTHING, {}, ()).prelude()

    def _step(self, args: Sequence[Any], inputs: Mapping[str, Any], interpreter: Interpreter) -> None:
        """One forward pass, in parts if it has more rows than a pass may have."""
        runtime, rows = self.backend.runtime, self.inputs.rows
        if rows is None or self.table.plain or len(interpreter.rows) <= rows:
            self._count()
            runtime.step(args, inputs, [interpreter])
            return
        if not isinstance(runtime, EagerRuntime):
            raise InputError(
                f"{len(interpreter.rows)} rows belong together and a pass has at most rows={rows}; a pipeline cannot "
                f"divide them: give a larger rows=, or invokes of their own"
            )
        for _ in range(0, len(interpreter.rows), rows):
            self._count()
        step_in_parts(runtime, args, inputs, interpreter, rows=rows)

    def prepared(self, forward: Forward) -> Prepared:
        """What the model is called with in one forward pass, and the interpreter that looks on."""
        return self._plain(forward) if self.table.plain else self._trace(forward)

    def interpreter(self, forward: Forward, slots: Mapping[int, Slot], rows: Sequence[int]) -> Interpreter:
        return self.kind(self.frame, forward, self.table, slots=slots, rows=rows, callee=self.backend.runtime)

    def _plain(self, forward: Forward) -> Prepared:
        [invoke] = forward.invokes
        own = self.inputs.invokes[invoke]
        interpreter = self.interpreter(forward, {invoke: _WHOLE, ALL_ROWS: _WHOLE}, (invoke,))
        device = self.backend.runtime.device
        return placed(list(own.args), device), placed(dict(own.kwargs), device), interpreter

    def _count(self) -> None:
        """One more forward pass."""
        if self.frame.watch is not None:
            self.frame.watch.forward()
        self.forwards += 1

    def _batch(self, forward: Forward) -> Batch:
        own = {invoke: self.inputs.invokes[invoke] for invoke in forward.invokes}
        numbers = iter(itertools.count() if self.inputs.numbers is None else self.inputs.numbers)
        each = [tuple(itertools.islice(numbers, len(rows.ids))) for rows in self.inputs.invokes]
        return padded(own, each, device=self.backend.runtime.device, pad=self._pad())

    def _pad(self) -> int:
        return int(self.backend.defaults.get("pad_token_id") or 0)

    def _trace(self, forward: Forward) -> Prepared:
        batch = self._batch(forward)
        two = self.table.encoder_decoder
        inputs = dict(batch.kwargs)
        inputs["input_ids"] = batch.ids
        sizes = {"batch": len(batch.numbers), "seq": batch.ids.shape[1], "source": batch.ids.shape[1]}
        if two:
            start = start_of(self.backend.defaults)
            inputs.setdefault("decoder_input_ids", torch.full((len(batch.numbers), 1), start, device=batch.ids.device))
            sizes["seq"] = inputs["decoder_input_ids"].shape[1]
            slots = batch.slots("source", tokens=sizes["seq"])
        else:
            slots = batch.slots("seq")
            if "position_ids" in self.backend.takes:
                inputs.setdefault("position_ids", batch.positions)
        if batch.padded:
            inputs.setdefault("attention_mask", batch.mask.long())
        if "use_cache" in self.backend.takes:
            inputs.setdefault("use_cache", False)
        interpreter = self.interpreter(forward, slots, batch.numbers)
        interpreter.sizes = {**sizes, "context": sizes["seq"]}
        return (), inputs, interpreter

    def _generate(self, forward: Forward, generation: Generation) -> Iterator[bool]:
        if generation.options.get("num_beams", 1) != 1:
            batch, found = self._searched(forward, generation)
            self.keep(batch, found, self.interpreter(forward, {}, batch.numbers))
            yield True
            return
        own = self.generating(forward, generation)
        while not own.ended:
            perform(self.backend.runtime, own, self.cache)
            if own.ended:
                self.cache.clear()
                self.generated(own)
            yield own.ended

    def generating(self, forward: Forward, generation: Generation) -> Generating:
        """The rows of a forward that generates, before their first step."""
        batch = self._batch(forward)
        sampler = Sampler(
            self.backend.defaults, generation.options, prompt_length=batch.ids.shape[1], device=batch.ids.device
        )
        self.rows = Generating(
            batch, self.interpreter(forward, {}, batch.numbers), sampler, max_new_tokens=generation.max_new_tokens,
            seed=self.frame.graph.seed, encoder_decoder=self.table.encoder_decoder,
            last_token_only=self.last_token_only(forward), positions=self.table.positions,
        )  # fmt: skip
        return self.rows

    def generated(self, own: Generating) -> None:
        """The rows of a forward that generates, after their last step."""
        assert own.interpreter is not None
        self.keep(own.batch, own.generated(), own.interpreter)

    def _searched(self, forward: Forward, generation: Generation) -> tuple[Batch, Generated]:
        batch = self._batch(forward)
        refuse_sites(self.frame.graph, forward, self.table)
        sampler = Sampler(
            self.backend.defaults, generation.options, prompt_length=batch.ids.shape[1], device=batch.ids.device
        )
        options = {k: v for k, v in generation.options.items() if k not in ("eos_token_id", "pad_token_id")}
        return batch, search(
            self.backend.runtime.module, batch, options, max_new_tokens=generation.max_new_tokens,
            seed=self.frame.graph.seed, eos=sampler.eos, pad=sampler.pad,
        )  # fmt: skip

    def last_token_only(self, forward: Forward) -> bool:
        """Whether the model can leave out the prompt's logits before the last, and nobody looks at them."""
        return "logits_to_keep" in self.backend.takes and not self.reads_prompt_logits(forward)

    def reads_prompt_logits(self, forward: Forward) -> bool:
        """Whether a graph looks at what follows from all tokens at the end of a forward."""
        ends = [self.table.sites[name].order for name in ("lm_head.input", "logits") if name in self.table.sites]
        return any(min(ends) <= event < len(self.table.events) for event, _ in forward.actions)

    def _own(self, batch: Batch, invoke: int, tokens: torch.Tensor) -> torch.Tensor:
        if invoke == ALL_ROWS:
            return tokens
        start = batch.starts[invoke]
        own = tokens[start : start + len(batch.lengths[invoke])]
        steps = len(self.alive[invoke])
        return own[:, :steps]

    def keep(self, batch: Batch, found: Generated, interpreter: Interpreter) -> None:
        """A generation has ended: what follows from its tokens, and which rows were live when."""
        self.forwards += found.steps
        for invoke, start in batch.starts.items():
            count = len(batch.lengths[invoke])
            rows = [live[start : start + count].tolist() for live in found.alive]
            self.alive[invoke] = [own for own in rows if any(own)]
        interpreter.finish({invoke: self._own(batch, invoke, found.tokens) for invoke in (*batch.lengths, ALL_ROWS)})
