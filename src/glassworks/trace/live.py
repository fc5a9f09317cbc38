"""`with model.live(prompt) as t:` the language of `trace`, run line by line.

Each node runs as it is recorded, on a forward pass that stands at the site it concerns (see `graph.backend.Live`). So
a Value has numbers, and the lines must come in the order of the forward pass. What is recorded is the same graph as a
trace of the same lines would be, and gives the same results wherever it is run.

Surprises this file settles:
- Numbers leave a block as copies: a tensor of the model's that somebody changed would change what the graph says.
- Tensors from outside are copied when they are captured, for the body may change them afterwards; those that train are
  held by reference, as in a trace, so that gradients reach them.
- What waits for the final value of a site (`t.cache`) reads it when the pass is about to leave it.
- The pass is stopped where it stands when the block ends, is left by an error, or is dropped without having been ended.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch

from glassworks.errors import GlassworksError, OrderError, ScopeError
from glassworks.graph.backend import Live, Rows
from glassworks.graph.flow import SITES
from glassworks.graph.nodes import Line, Node
from glassworks.graph.operations import OPERATIONS
from glassworks.trace.author import author
from glassworks.trace.block import Block, forget
from glassworks.trace.parts import Core
from glassworks.trace.recorder import Recorder, caller, never

_REFUSED = {
    "input": "gw.input belongs to model.record(): in a live block use the tensor itself",
    "result": "a live block is one forward pass; new tokens belong to model.generate(...)",
}


class LiveRecorder(Recorder):
    """Runs each node as it is added.

    Attributes:
        run: the paused forward pass.
    """

    __slots__ = ("_edits", "_line", "_originals", "_site", "_waiting", "run")
    is_live = True
    run: Live

    def begin(self, run: Live) -> None:
        """The pass that nodes run on."""
        self.run = run
        self.table = run.table
        self.shape_of = self.structure_of = run.value
        self._originals: dict[tuple[int, int], torch.Tensor] = {}
        self._waiting: list[tuple[str, Callable[[Recorder], None]]] = []
        self._edits = len(self.nodes)
        self._site: str | None = None
        self._line: Line | None = None

    def add(self, node: Node, line: Line) -> int:
        """Append a node and run it; gives its position. A node that fails is taken back."""
        if node.kind in _REFUSED:
            raise ScopeError(f"{_REFUSED[node.kind]}\n  at {line}")
        if node.kind in SITES and not self.closed:
            self._come_to(node, line)
        n = super().add(node, line)
        try:
            self.run.perform(n)
        except BaseException:
            del self.nodes[n:], self.lines[n:]
            raise
        return n

    def write(self, name: str, node: int, line: Line, kind: str = "write") -> int:
        """Record that a site takes the value of a node; not where that cannot be done."""
        place = self._place(name)
        before = self._written.get(place, 0)
        try:
            return super().write(name, node, line, kind)
        except BaseException:
            self._written[place] = before
            raise

    def capture(self, tensor: torch.Tensor, line: Line) -> int:
        """The node of a tensor from outside, as it is now."""
        if tensor.requires_grad:
            return super().capture(tensor, line)
        if tensor.is_inference():  # nobody counts its changes
            return super().capture(tensor.clone(), line)
        now = (id(tensor), tensor._version)
        node = self._captured.get(now)  # type: ignore[call-overload]
        if node is None:
            self._originals[now] = tensor  # so that its id stays its own
            node = self._captured[now] = super().capture(tensor.detach().clone(), line)  # type: ignore[index]
        return node  # type: ignore[no-any-return]

    def numbers(self, n: int, what: str) -> torch.Tensor:
        """A copy of what a node has given."""
        found = self.run.value(n)
        return found.detach().clone() if isinstance(found, torch.Tensor) else found  # type: ignore[no-any-return]

    def later(self, name: str, action: Callable[[Recorder], None], line: Line) -> None:
        """Do something when the pass is about to leave a site."""
        if self.table[name].order < self._event:
            raise self._passed(name, line)
        self._waiting.append((name, action))

    def graph(self) -> Any:
        """What was written, frozen; what waits for sites comes first."""
        self._leave(len(self.table.events))
        return super().graph()

    def close(self) -> None:
        """End the block: the pass is stopped, and its numbers are gone."""
        self._end(from_finalizer=False)

    def abandon(self) -> None:
        """The same for a block that was dropped while it was open."""
        self.failure = "the block was dropped before it ended, so what it computed is gone"
        self._end(from_finalizer=True)

    def _end(self, *, from_finalizer: bool) -> None:
        if self.closed:
            return
        try:
            self.run.stop(from_finalizer=from_finalizer)
        finally:
            super().close()
            del self.run
            self._originals, self._waiting = {}, []

    # Where the pass stands.

    @property
    def _event(self) -> int:
        """Where the pass stands, in the numbers of the block's table, which somebody may have looked into further."""
        if self.table is not self.run.table:
            self.run.look(self.table)
        return self.run.event

    def _come_to(self, node: Node, line: Line) -> None:
        """Let the pass stand at a node's site, or say why it cannot."""
        order = self.table[node.target].order
        self._check_skips(node, line)
        if order < self._event:
            raise self._passed(node.target, line)
        if order > self._event:
            self._leave(order)
            self._site, self._line = node.target, line

    def _leave(self, order: int) -> None:
        """Do what waits for sites before an event."""
        waiting = sorted(self._waiting, key=lambda entry: self.table[entry[0]].order)
        due = [entry for entry in waiting if self.table[entry[0]].order < order]
        self._waiting = waiting[len(due) :]
        for _, action in due:
            action(self)

    def _passed(self, name: str, line: Line) -> OrderError:
        ended = self._event >= len(self.table.events)
        where = f"it ended on its way to {self._site}" if ended else f"it stands at {self._site}"
        return OrderError(
            f"the forward pass has left {name} behind: {where}. In a live block sites are touched in the order of the "
            f"forward pass; in model.trace the order of lines is free\n  touched at {line}\n  passed at  {self._line}"
        )

    def _check_skips(self, node: Node, line: Line) -> None:
        """A module that is skipped has not been looked into, and is not now."""
        if node.kind == "skip":
            for n, other in enumerate(self.nodes):
                self._check_apart(node, line, other, self.lines[n])
        elif node.kind == "read":
            for n in range(self._edits):
                self._check_apart(self.nodes[n], self.lines[n], node, line)

    def _check_apart(self, skip: Node, skipped_at: Any, read: Node, read_at: Any) -> None:
        if skip.kind != "skip" or read.kind != "read":
            return
        table = self.table
        end = table[skip.target].order
        event = table.events[end]
        if table.by_event[(event.path, "input", event.call)] < table[read.target].order < end:
            raise ScopeError(
                f"{read.target} lies inside {skip.target}, which is skipped\n  read at    {read_at}\n"
                f"  skipped at {skipped_at}"
            )


class LiveBlock(Block):
    """An open experiment that has run as far as it is written, and after it what came of it."""

    _kind = LiveRecorder
    _lost = "so what it computed is gone"

    def __init__(self, core: Core, rows: Rows, *, seed: int) -> None:
        super().__init__(core, rows=[rows], seed=seed)

    def __enter__(self) -> "LiveBlock":
        if author() in self._core.sessions:
            raise ScopeError(f"a session runs when it ends, a live block at once: open it outside\n  at {caller()}")
        super().__enter__()
        recorder = self._live
        try:
            inputs = self.inputs
            recorder.begin(self._core.backend.live(recorder, inputs, within=frozenset(recorder.table.within)))
        except BaseException as error:
            forget(self._core, author(), recorder)
            recorder.closed = True
            if isinstance(error, GlassworksError):
                raise type(error)(f"{error}\n  at {caller()}") from None
            raise
        recorder.inputs = lambda: inputs  # without a hold on this block
        recorder.may_pad = _always if self._may_pad(0) else never
        self._drop = weakref.finalize(self, _abandon, self._core, author(), recorder)
        self._drop.atexit = False
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._drop.detach()
        try:
            super().__exit__(kind, error, traceback)
        except BaseException as failed:
            self._live.failure = f"the block ended with an error ({type(failed).__name__}), {self._lost}"
            raise
        finally:
            self._live.close()

    async def __aenter__(self) -> "LiveBlock":
        raise ScopeError(
            f"a live block stops the model at each line, in this thread, so an event loop would stand still with it: "
            f"open it with `with`, or write it with model.trace\n  at {caller()}"
        )

    @property
    def _live(self) -> LiveRecorder:
        recorder = self._own()
        assert isinstance(recorder, LiveRecorder)
        return recorder

    def _run(self) -> None:
        self.deliver(self._live.run.results())

    # What one forward pass that runs at once cannot have.

    def invoke(self, *prompt: Any, **arguments: Any) -> Any:
        """Refused: a live block has the rows that it was opened with."""
        raise ScopeError(
            f"a live block has the rows it was opened with; several prompts go in one list, model.live([a, b]), and "
            f"invokes into model.trace()\n  at {caller()}"
        )

    @property
    def steps(self) -> Any:
        """Refused: a live block is one forward pass."""
        raise ScopeError(f"a live block is one forward pass; steps belong to model.generate(...)\n  at {caller()}")

    @property
    def prompt(self) -> Any:
        """Refused: a live block is one forward pass."""
        return self.steps

    @property
    def seed(self) -> int:
        """The seed of random nodes; it can be set until the first of them has drawn."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        drawn = [
            n for n, node in enumerate(self._live.nodes) if node.target in OPERATIONS and OPERATIONS[node.target].random
        ]
        if drawn:
            raise ScopeError(
                f"random numbers have been drawn already; set the seed before that\n"
                f"  drawn at {self._live.lines[drawn[0]]}\n  set at   {caller()}"
            )
        Block.seed.fset(self, seed)  # type: ignore[attr-defined]


def _abandon(core: Core, own: Hashable, recorder: LiveRecorder) -> None:
    """A block was dropped while it was open."""
    forget(core, own, recorder)
    recorder.abandon()


def _always(invoke: int) -> bool:
    return True
