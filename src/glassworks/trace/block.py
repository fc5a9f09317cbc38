"""The blocks in which experiments are written: `with model.trace(...) as t:`, `generate`, `record`, `edit`.

One class serves them all: a block collects rows and nodes, and when it ends without an error hands a graph to the
backend and the results to the saved Values. Nothing runs before that, and nothing at all if nothing was saved.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from glassworks.errors import GraphError, InputError, NotSaved, ScopeError
from glassworks.graph.backend import Experiment, Generation, Inputs, Results, Rows, untaken
from glassworks.graph.flow import effects
from glassworks.graph.graph import Graph
from glassworks.graph.jobs import Job
from glassworks.graph.logs import LogEntry
from glassworks.graph.nodes import ALL_ROWS, Line, Node, Ref, Steps
from glassworks.graph.sites import SiteTable
from glassworks.trace.author import author
from glassworks.trace.cache import Cache
from glassworks.trace.parts import Core, Part
from glassworks.trace.positions import Positions
from glassworks.trace.recorder import Recorder, caller
from glassworks.trace.reductions import Reductions, reductions_of
from glassworks.trace.results import RESULT, needs_all_steps, stacked, with_results, without_effects
from glassworks.trace.rows import decoder_length, make_rows
from glassworks.trace.scopes import Backward, Invoke, StepIndex, StepScope
from glassworks.trace.shapes import Shapes
from glassworks.trace.state import State
from glassworks.trace.tensors import as_tensor, dtype_name
from glassworks.trace.value import Value
from glassworks.trace.waiting import Submitted

_OPEN: dict[Hashable, list[Recorder]] = {}
"""The open blocks of each author, of whichever model; the last is the innermost."""


class Block:
    """An open experiment, and after it what came of it.

    Attributes:
        graph: what was written, as data, once the block has ended.
        forwards: how many forward passes the run took.
    """

    graph: Graph
    forwards: int = 0
    _reduced: Reductions
    _kind: type[Recorder] = Recorder
    _lost = "so nothing was computed"

    def __init__(
        self,
        core: Core,
        *,
        rows: Sequence[Rows] = (),
        at_most: int | None = None,
        generation: Generation | None = None,
        seed: int = 0,
        finish: Callable[["Block"], None] | None = None,
        has_edits: bool = True,
        wait: bool = True,
    ) -> None:
        self._core = core
        self._has_edits = has_edits
        self._rows = list(rows)
        self._at_most = at_most
        self._generation = generation
        if type(seed) is not int or seed < 0:
            raise InputError(f"a seed is an int of at least 0, got {seed!r}\n  at {caller()}")
        self._seed = seed
        self._finish = finish
        self._wait = wait
        self._job: Submitted | None = None
        self._recorder: Recorder | None = None
        self._results: Results | None = None
        self._root: Any = None

    # Opening and closing.

    def __enter__(self) -> "Block":
        self._check_alone()
        table = self._core.table
        if self._asks_for_sites:
            table = self._core.backend.sites(Inputs(tuple(self._rows)))
        return self._begin(table)

    async def __aenter__(self) -> "Block":
        table = self._core.table
        if self._asks_for_sites:
            self._check_alone()
            table = await asyncio.to_thread(self._core.backend.sites, Inputs(tuple(self._rows)))
        self._check_alone()
        return self._begin(table)

    @property
    def _asks_for_sites(self) -> bool:
        """Whether the sites depend on the rows."""
        return self._core.table.plain and bool(self._rows) and self._finish is None

    def _check_alone(self) -> None:
        if author() in self._core.blocks:
            raise ScopeError(
                f"a block of this model is open already; one at a time in a thread, or in a task\n  at {caller()}"
            )

    def _begin(self, table: SiteTable) -> "Block":
        core, own = self._core, author()
        recorder = self._kind(table, Value, core.prefix if self._has_edits else None)
        recorder.seed = self._seed
        recorder.invokes = len(self._rows)
        recorder.invoke = 0 if self._rows else ALL_ROWS
        recorder.needs_steps = self._generation is not None
        recorder.partner = core.sessions.get(own)
        shapes = Shapes(recorder, self._sizes)
        recorder.shape_of, recorder.structure_of = shapes, shapes.structure
        recorder.may_pad = self._may_pad
        recorder.inputs = lambda: self.inputs
        recorder.frozen = core.frozen
        self._recorder = core.blocks[own] = recorder
        _OPEN.setdefault(own, []).append(recorder)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._is_to_run(error):
            try:
                self._run()
                self._own().failure = None
            finally:
                self._own().close()

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._is_to_run(error):
            try:
                await self._run_async()
                self._own().failure = None
            finally:
                self._own().close()

    def _is_to_run(self, error: BaseException | None) -> bool:
        """End the block: what was written is fixed. Whether it is to run now; if that fails, nothing is saved."""
        recorder = self._own()
        forget(self._core, author(), recorder)
        if error is not None:
            recorder.failure = f"the block ended with an error ({type(error).__name__}), {self._lost}"
            recorder.close()
            return False
        self.graph = recorder.graph()
        self._saved = recorder.saved
        if self._finish is not None:
            self._finish(self)
            recorder.close()
            return False
        try:
            self._reduced = reductions_of(
                self.graph, recorder.table, self._rows, generating=self._generation is not None
            )
        except GraphError:
            recorder.failure = "the block ended with an error, so nothing was computed"
            recorder.close()
            raise
        if recorder.partner is not None:
            recorder.sealed = True
            recorder.partner.adopt(self)
            return False
        recorder.failure = "the run of the block ended with an error, so nothing was computed"
        return True

    def __repr__(self) -> str:
        recorder = self._recorder
        if recorder is None or not recorder.closed:
            return f"<{'open' if recorder else 'unopened'} block of {self._core.name}>"
        count = len(self.graph) if "graph" in self.__dict__ else 0
        return f"<block of {self._core.name} that has ended: {count} nodes, {self.forwards} forward passes>"

    @property
    def runs_once(self) -> bool:
        """Whether the block is over one forward pass, and so has no steps."""
        return self._generation is None and self._finish is None

    def _own(self) -> Recorder:
        if self._recorder is None:
            raise ScopeError(f"open the block first: `with model.trace(...) as t:`\n  at {caller()}")
        return self._recorder

    def _open(self) -> Recorder:
        recorder = self._own()
        if recorder.closed:
            raise ScopeError(f"this belongs inside the block, which has ended\n  at {caller()}")
        return recorder

    def _run(self) -> None:
        if not self._wait:
            self._job = self._submitted(self._core.backend.submit(self._experiments(with_tokens=True)))
            return
        for own in self._experiments(with_tokens=False):
            self.deliver(self._core.backend.run(own.graph, own.inputs, own.generation))

    async def _run_async(self) -> None:
        """A generation gives its new tokens too, so that `t.result` need not run it again while a loop stands still."""
        own = self._experiments(with_tokens=True)
        if not self._wait:
            self._job = self._submitted(await self._core.backend.submit_async(own))
        elif own:
            self.deliver(*await self._core.backend.run_session_async(own))

    def _experiments(self, *, with_tokens: bool) -> list[Experiment]:
        """What is to be run, if anything needs a run. `with_tokens`: a generation is to give its new tokens."""
        graph, generation = self.graph, self._generation
        if generation is not None and with_tokens:
            graph = with_results(graph)
        if next(effects(graph), None) is None:
            return []
        if generation is not None and not with_tokens and needs_all_steps(graph):
            graph = with_results(graph)
        return [Experiment(graph, self.inputs, generation)]

    def _submitted(self, job: Job) -> Submitted:
        return Submitted(job, self.awaiting, lambda found: self.deliver(*found) if found else None)

    @property
    def awaiting(self) -> list[Value]:
        """The Values that the results are delivered to."""
        return [value for kept, value, _ in self._saved for value in dict.fromkeys((kept, value))]

    @property
    def job(self) -> Submitted:
        """With `wait=False`: the job that runs the block."""
        if self._job is None:
            raise ScopeError(f"a block has a job once it has ended, if it was opened with wait=False\n  at {caller()}")
        return self._job

    def _settled(self) -> Results | None:
        """The results, waited for if need be; None: nothing has run."""
        if self._job is not None:
            self._job.settle()
        return self._results

    def deliver(self, results: Results) -> None:
        """Hand the backend's answer to the saved Values."""
        results = self._reduced(results)
        found, absent = results.saves, untaken(self.graph, results.saves)
        for kept, value, name in self._saved:
            if name in found:
                kept.deliver(found[name], value)
            elif name in absent:
                kept.was_not_taken(value, absent[name])
            elif any(n.kind == "save" and n.target == name and ("single", True) not in n.kwargs for n in self.graph):
                kept.deliver([], value)
            else:
                kept.never_came(value)
        # All in one pass: captured tensors may share what they were computed from, which a pass frees.
        leaves = [as_tensor(self.graph.constants[number]) for number in results.gradients]
        if leaves:
            gradients = [
                gradient.to(leaf.device) for leaf, gradient in zip(leaves, results.gradients.values(), strict=True)
            ]
            torch.autograd.backward(leaves, gradients)
        self.forwards = results.forwards
        self._results = results

    @property
    def inputs(self) -> Inputs:
        """The rows of the block, as the backend takes them."""
        return Inputs(tuple(self._rows), rows=self._at_most)

    # Rows.

    @contextmanager
    def invoke(self, *prompt: Any, **arguments: Any) -> Iterator[Invoke]:
        """Add rows; sites inside mean these rows.

        Args:
            prompt: as for `trace`. arguments: go to the model.
        """
        recorder = self._open()
        self._refuse_in_a_branch(recorder, "rows cannot depend on a condition: open the invoke around gw.cond")
        if recorder.invoke != ALL_ROWS:
            already = "trace(...) was given a prompt" if recorder.invokes == 1 and self._rows else "another is open"
            raise ScopeError(f"an invoke adds rows to a block that has none of its own; {already}\n  at {caller()}")
        self._rows.append(make_rows(self._core, prompt, arguments))
        if self._core.table.plain and not recorder.table.sites:
            recorder.table = self._core.backend.sites(self.inputs)
        recorder.invoke = recorder.invokes
        recorder.invokes += 1
        try:
            yield Invoke(self, recorder.invoke)
        finally:
            recorder.invoke = ALL_ROWS

    def _here(self) -> int:
        invoke = self._own().invoke if self._recorder else 0
        if invoke == ALL_ROWS:
            if len(self._rows) == 1:
                return 0
            raise ScopeError(
                f"this block has {len(self._rows)} invokes: ask inside one, or the invoke itself\n  at {caller()}"
            )
        return invoke

    @property
    def tokens(self) -> list[list[str]]:
        """Strings of the tokens, a list a row."""
        return self._tokens(self._here())

    def _tokens(self, invoke: int) -> list[list[str]]:
        text = self._core.text
        if text is None:
            raise InputError(f"this model has no tokenizer\n  at {caller()}")
        return [text.strings(row) for row in self._rows[invoke].ids]

    @property
    def mask(self) -> torch.Tensor:
        """bool `[batch, seq]`: where a row has a token of its own (rows are padded at the left)."""
        return self._mask(self._here())

    def _mask(self, invoke: int) -> torch.Tensor:
        lengths = torch.tensor([len(row) for row in self._rows[invoke].ids])
        width = int(lengths.max())
        return torch.arange(width)[None] >= (width - lengths)[:, None]

    def find(self, text: str, which: str = "last") -> Positions:
        """The position of the last token of `text` in each row, so that `value[:, t.find(s)]` is `[batch, d]`.

        Args:
            which: the `"last"` or the `"first"` time that the text occurs.

        Raises:
            InputError: a row does not hold the text, or it ends inside a token.
        """
        return self._find(self._here(), text, which)

    def _find(self, invoke: int, text: str, which: str) -> Positions:
        tokenizer = self._core.text
        if tokenizer is None:
            raise InputError(f"this model has no tokenizer\n  at {caller()}")
        if not isinstance(text, str):
            raise InputError(f"t.find looks for a text, such as t.find(' city'); got {text!r}\n  at {caller()}")
        if which not in ("first", "last"):
            raise InputError(f"which must be 'first' or 'last', got {which!r}\n  at {caller()}")
        ids = self._rows[invoke].ids
        width = max(len(row) for row in ids)
        try:
            return Positions(width - len(row) + tokenizer.find(row, text, which) for row in ids)
        except InputError as error:
            raise InputError(f"{error}\n  at {caller()}") from None

    def _may_pad(self, invoke: int) -> bool:
        """Whether rows of several lengths stand in an invoke; of a recorded graph and an edit, nobody knows yet."""
        if self._finish is not None:
            return not self._core.table.plain
        own = self._rows if invoke == ALL_ROWS else [self._rows[invoke]]
        return len({len(row) for rows in own for row in rows.ids}) > 1

    def _sizes(self, invoke: int, steps: Steps | None) -> dict[str, int | None]:
        """Sizes of the axes at a place written in `invoke` under `steps`; None: it differs."""
        table = self._own().table
        if not self._rows or not all(rows.ids for rows in self._rows):
            return {"batch": None, "seq": None, "source": None, "context": None}
        own = self._rows if invoke == ALL_ROWS else [self._rows[invoke]]
        longest = max((len(row) for rows in own for row in rows.ids), default=1)
        seq: int | None = decoder_length(own) if table.encoder_decoder else longest
        context = seq
        if self._generation is not None and steps != (0, 1):
            single = steps is not None and steps[1] == steps[0] + 1
            context = context + steps[0] if single and steps is not None and context is not None else None
            seq = 1 if steps is not None and steps[0] > 0 else (1 if table.encoder_decoder and seq == 1 else None)
        return {"batch": sum(len(rows.ids) for rows in own), "seq": seq, "source": longest, "context": context}

    # Steps.

    @property
    def steps(self) -> StepIndex:
        """`with t.steps[a:b]:` scopes its body to those steps, `t.steps[k]` to one; a loop over it unrolls."""
        return StepIndex(self)

    @property
    def prompt(self) -> StepScope:
        """`t.steps[0]`: the forward over the prompt."""
        return StepScope(self, (0, 1), True)

    # What steps hand on, and when they end.

    def state(self, init: Any) -> State:
        """A value that is carried from step to step, for each row: read and assign its `.value` under steps.

        Args:
            init: what it is at the first step: a Value, a tensor or a number.
        """
        return State(self._many_steps("t.state", "a Python variable will do"), init, caller())

    def stop(self, when: Any) -> None:
        """End a row: it keeps the token that this step gives it, as it keeps an end token, and has no further steps.

        Args:
            when: bool, `[batch]` or `[batch, 1]`, or one element for a lone row.
        """
        line = caller()
        recorder = self._many_steps("t.stop", "save what you need of it; the pass ends after the last site needed")
        node = recorder.node_of(when, line)
        known = recorder.known(node)
        if known is not None and known.dtype != torch.bool:
            raise GraphError(
                f"t.stop takes a truth value for each row, got {known.dtype}: compare it first\n  at {line}"
            )
        own = Node("stop", "", (Ref(node),), (), (node,), recorder.invoke, recorder.steps)
        recorder.add(own, line)

    def _many_steps(self, what: str, instead: str) -> Recorder:
        if self.runs_once or self._own().table.plain:
            raise ScopeError(
                f"{what} belongs to model.generate(...), whose steps follow each other; a trace is one forward pass: "
                f"{instead}\n  at {caller()}"
            )
        return self._open()

    @property
    def logs(self) -> list[LogEntry]:
        """What `gw.log` said in this block, in order; each entry has `.text`, `.line`, `.step` and `.rows`."""
        found = self._settled()
        return [] if found is None else list(found.logs)

    # Gradients, results, caches.

    def backward(self, loss: Value) -> Backward:
        """Take derivatives of `loss`, which has one element: `value.grad` then reads and writes them."""
        recorder, line = self._open(), caller()
        node = recorder.node_of(loss, line)
        return Backward(recorder.add(Node("backward", "", (Ref(node),), (), (node,), ALL_ROWS, None), line))

    @property
    def seed(self) -> int:
        """The seed of random nodes and of sampling."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        if type(seed) is not int or seed < 0:
            raise InputError(f"a seed is an int of at least 0, got {seed!r}")
        self._open().seed = self._seed = seed

    @property
    def result(self) -> Any:
        """In `trace`: the model's own return. In `generate`: the new tokens, int64 `[batch, new]`.

        After a generate block it needs no save, and runs all steps if they have not been run.
        """
        recorder = self._own()
        if self._core.blocks.get(author()) is recorder:
            return self._result_inside(recorder)
        return self._result_after(None)

    def _result_inside(self, recorder: Recorder) -> Any:
        if self._generation is None:
            if self._root is None:
                self._root = Part(self._core, None, "").output
            return self._root
        return self._tokens_node(recorder, recorder.invoke, caller())

    def _tokens_node(self, recorder: Recorder, invoke: int, line: Line) -> Value:
        return Value(recorder, recorder.add(Node("result", "", (), (), (), invoke, None), line), line)

    def _result_after(self, invoke: int | None) -> Any:
        if self._generation is None:
            raise NotSaved(f"write t.result.save() inside the block, and use what it gives\n  at {caller()}")
        first = results = self._settled()
        if results is None or f"{RESULT}.0" not in results:
            again = self.graph if first is None else without_effects(self.graph)
            results = self._core.backend.run(with_results(again), self.inputs, self._generation)
            self._results = results if first is None else replace(results, logs=first.logs)
            self.forwards = results.forwards
        found = [results[f"{RESULT}.{k}"] for k in range(self.graph.invokes)]
        return stacked(found) if invoke is None else found[invoke]

    @property
    def alive(self) -> list[torch.Tensor]:
        """Of a generation, after the block: for each step that ran, bool `[batch]`, which rows were live."""
        found = self._settled()
        if found is None:
            raise NotSaved(f"nothing has run yet: save something, or read t.result first\n  at {caller()}")
        steps = max((len(rows) for rows in found.alive), default=0)
        return [
            torch.tensor([live and k < len(rows) for rows in found.alive for live in rows[min(k, len(rows) - 1)]])
            for k in range(steps)
        ]

    def cache(self, sites: str | Sequence[str] = "layers.*.output", *, device: str = "cpu", dtype: Any = None) -> Cache:
        """Keep the final values of many sites, by name; after the block it is a mapping to tensors.

        Args:
            sites: a pattern, or several; `*` stands for one part of a name, `**` for any number.
            device: where the values are kept. dtype: their format; None leaves it.
        """
        recorder = self._open()
        self._refuse_in_a_branch(recorder, "a cache is of the whole block: write t.cache outside of gw.cond")
        return Cache(recorder, sites, device=device, dtype=dtype, line=caller())

    def _refuse_in_a_branch(self, recorder: Recorder, why: str) -> None:
        if recorder.branches is not None and recorder.branches.guard:
            raise ScopeError(f"{why}\n  at {caller()}")


def forget(core: Core, own: Hashable, recorder: Recorder) -> None:
    """The block of this recorder, which its author has open, is open no more."""
    if core.blocks.get(own) is recorder:
        del core.blocks[own]
        _OPEN[own].remove(recorder)
        if not _OPEN[own]:
            del _OPEN[own]


def check_graph(value: Any) -> Graph:
    """A graph, or an error that says what is one."""
    if isinstance(value, Block):
        return value.graph
    if not isinstance(value, Graph):
        raise GraphError(f"expected a graph (t.graph, or gw.Graph.load(path)), got {type(value).__name__}")
    return value


def open_recorder(what: str, line: Line) -> Recorder:
    """The innermost block that is open here, of whichever model. ScopeError: `what` was written outside of one."""
    opened = _OPEN.get(author())
    if not opened:
        raise ScopeError(f"{what} belongs inside a block, `with model.trace(prompt) as t:`\n  at {line}")
    return opened[-1]


def input(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Value:
    """A tensor that `model.run(graph, prompts, name=tensor)` will be given; inside a block.

    Args:
        shape: its sizes. dtype: its number format.
    """
    line = caller()
    recorder = open_recorder("gw.input", line)
    node = Node("input", name, (tuple(shape), dtype_name(dtype)), (), (), ALL_ROWS, None)
    return Value(recorder, recorder.add(node, line), line)
