"""An experiment that runs while it is written: each node at once, on a forward pass that stands at its event.

The pass runs without gradients. A gradient is taken when it is asked for: what has been written so far is run once
more, by the backend that runs everything else, and the gradients of all sites read so far are kept until one is
written. So they are exact, written ones included, and a block that asks for none pays for none. Captured tensors that
train get theirs from one more such run when the block ends.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from glassworks.errors import OrderError, WriteError
from glassworks.graph.backend import Backend, Draft, Inputs, Results
from glassworks.graph.flow import SITES
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, NOTHING, Node, Ref
from glassworks.graph.place import Forward, Plan, can_be_spared
from glassworks.graph.sites import Site, SiteTable
from glassworks.graph.views import base_of
from glassworks.run.frame import Frame
from glassworks.run.gradients import through, views_between
from glassworks.run.interpret import blame
from glassworks.run.live import LiveInterpreter, LivePass


class LiveRun:
    """The live half of a local backend; see `graph.backend.Live`."""

    def __init__(self, backend: Backend, inputs: Inputs, interpreter: LiveInterpreter, forward_pass: LivePass) -> None:
        self._backend, self._inputs, self._interpreter, self._pass = backend, inputs, interpreter, forward_pass
        self._frame: Frame = interpreter.frame
        self._draft: Draft = interpreter.frame.graph
        self._has_begun, self._replays = False, 0
        self._gradients: dict[tuple[int, int], torch.Tensor] = {}
        with forward_pass.coroutine.inside():
            interpreter.prelude()

    @property
    def event(self) -> int:
        """Where the pass stands: before the first event -1, after its end their number."""
        return self._pass.event

    @property
    def table(self) -> SiteTable:
        """The site table, whose events the pass goes through."""
        return self._pass.table

    def look(self, table: SiteTable) -> None:
        """Go on with a table in which somebody looked into more modules; it numbers events anew."""
        self._pass.look(table)

    def value(self, n: int) -> Any:
        """What a node has given: a tensor of the run's own, not to be changed."""
        return self._frame.values[n]

    def perform(self, n: int) -> None:
        """Run the newest node; a site's, once the pass has come to it. Errors keep their type and carry the line."""
        frame, node = self._frame, self._draft.nodes[n]
        frame.values += [None] * (n + 1 - len(frame.values))
        try:
            if node.kind in SITES:
                self._come_to(node)
            if node.kind in ("backward", "grad", "grad_write"):
                self._differentiate(n, node)
            else:
                with self._pass.coroutine.inside():
                    self._interpreter.perform(n)
        except Exception as error:
            blame(error, frame, n)
            raise

    def _come_to(self, node: Node) -> None:
        site = self.table[node.target]
        if node.kind == "skip":
            self._spare(site)
        if self.event != site.order:
            self._has_begun = True
            self._pass.go_to(site.order)

    def _spare(self, site: Site) -> None:
        """Let a module that is skipped not run, where it has not begun and its output can be made without it."""
        event = self.table.event_of(site)
        ahead = self.event <= self.table.by_event[(event.path, "input", event.call)]
        if ahead and can_be_spared(self.table, site):
            self._pass.skip(event.path)

    def stop(self, *, from_finalizer: bool = False) -> None:
        """Leave the pass where it stands, and the model as it was."""
        self._pass.stop(from_finalizer=from_finalizer)

    def results(self) -> Results:
        """What was saved, and what the backwards give to captured tensors. The pass is left where it stands."""
        self.stop()
        nodes = self._draft.nodes
        trains = any(node.kind == "constant" and node.target for node in nodes)
        learns = trains and any(node.kind == "backward" for node in nodes)
        gradients = self._again(()).gradients if learns else {}
        return Results(self._frame.saves, self._has_begun + self._replays, (), gradients, self._frame.logs)

    # Gradients.

    def _differentiate(self, n: int, node: Node) -> None:
        values = self._frame.values
        match node.kind:
            case "backward":
                if values[node.deps[0]].numel() != 1:
                    raise ValueError(
                        f"a loss has one element; this one has shape {list(values[node.deps[0]].shape)}. Reduce it: "
                        f".sum() or .mean()"
                    )
            case "grad":
                values[n] = self._gradient(*node.deps)
            case "grad_write":
                value, backward, new = node.deps
                _check_fits(values[new], values[value])
                self._check_upstream(value, backward)
                self._gradients = {key: g for key, g in self._gradients.items() if key[0] != backward}

    def _gradient(self, value: int, backward: int) -> torch.Tensor:
        nodes = self._draft.nodes
        base = base_of(nodes, value)
        if (backward, base) not in self._gradients:
            latest = self._latest(backward)
            reads = (m for m in range(backward) if nodes[m].kind == "read")
            wanted = {base, *(m for m in reads if self.table[nodes[m].target].order <= latest)}
            saves = self._again([(m, backward) for m in sorted(wanted)]).saves
            self._gradients.update({(backward, m): saves[str(m)] for m in wanted})
        whole = self._gradients[(backward, base)]
        with self._pass.coroutine.inside():
            return through(self._interpreter, whole, views_between(nodes, value, base)).clone()  # type: ignore[no-any-return]

    def _check_upstream(self, value: int, backward: int) -> None:
        """A gradient that is written changes those that follow from it, so none of them has been read."""
        nodes, draft = self._draft.nodes, self._draft
        own = self._place(base_of(nodes, value))
        for n, node in enumerate(nodes):
            if node.kind == "grad" and node.deps[1] == backward and self._place(base_of(nodes, node.deps[0])) < own:
                raise OrderError(
                    f"a gradient that follows from this one has been read already. In a live block gradients are "
                    f"touched from the end of the forward pass to its beginning\n  read at {draft.where(n)}"
                )

    def _place(self, base: int) -> tuple[int, int]:
        """Where in the forward pass a value is made."""
        return self._latest(base), base

    def _latest(self, n: int) -> int:
        """The last event that a node's value comes from."""
        nodes, seen, waiting = self._draft.nodes, {n}, [n]
        while waiting:
            fresh = set(nodes[waiting.pop()].deps) - seen
            seen |= fresh
            waiting += fresh
        return max((self.table[nodes[m].target].order for m in seen if nodes[m].kind == "read"), default=-1)

    def _again(self, wanted: Sequence[tuple[int, int]]) -> Results:
        """Run what has been written so far once more, for the gradients of (value, backward) by the value's number."""
        draft = self._draft
        nodes = [_kept_by_nobody(node) for node in draft.nodes]
        for value, backward in wanted:
            own = (value, backward)
            nodes.append(Node("grad", "", tuple(Ref(n) for n in own), (), own, ALL_ROWS, None))
            n = len(nodes) - 1
            nodes.append(Node("save", str(value), (Ref(n),), (), (n,), ALL_ROWS, None))
        lines = [*draft.lines, *[draft.lines[-1]] * (len(nodes) - len(draft.nodes))]
        written = (tuple(nodes), tuple(lines), tuple(draft.constants))
        graph = Graph(*written, draft.invokes, draft.seed, tuple(draft.functions))
        with self._pass.coroutine.as_at_first():
            results = self._backend.run(graph, self._inputs)
        self._replays += results.forwards
        return results


def _kept_by_nobody(node: Node) -> Node:
    """A save, a log or another effect as a node for whose sake nothing runs."""
    match node.kind:
        case "save":
            return node._replace(kind="call", target="detach", kwargs=())
        case "log":
            return NOTHING
        case "effect":
            return node._replace(kind="apply")
    return node


def _check_fits(new: torch.Tensor, value: torch.Tensor) -> None:
    try:
        new.expand(value.shape)
    except RuntimeError:
        raise WriteError(
            f"a gradient of shape {list(new.shape)} does not broadcast to the value's {list(value.shape)}"
        ) from None


class _OneStep(Sequence[None]):
    """The steps of every node of a forward pass, however many there will be: none."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, n: Any) -> Any:
        return None


def read_to_the_end(draft: Draft, table: SiteTable) -> Graph:
    """The edits of a model, which a draft begins with, as if everything after them were read.

    Nobody knows yet what will be, and what nobody reads is not placed.
    """
    if not draft.nodes:
        return Graph((), (), (), draft.invokes, 0)
    last, count = max(table.sites.values(), key=lambda site: site.order), len(draft.nodes)
    nodes = [*draft.nodes, Node("read", last.name, (), (), (), ALL_ROWS, None)]
    nodes.append(Node("save", "", (Ref(count),), (), (count,), ALL_ROWS, None))
    own = (tuple(nodes), (*draft.lines, None, None), tuple(draft.constants))
    return Graph(*own, draft.invokes, draft.seed, tuple(draft.functions))


def plan_of_edits(plan: Plan, count: int) -> Plan:
    """Of the plan of `read_to_the_end`: what the first `count` nodes do in their one forward pass."""
    forward = plan.forwards[0] if plan.forwards else Forward(0, (0,), (), frozenset(), 0, False)
    own = [(event, tuple(n for n in members if n < count)) for event, members in forward.actions]
    actions = tuple((event, members) for event, members in own if members)
    return replace(plan, forwards=(replace(forward, actions=actions, notes={}),), releases={}, steps=_OneStep())
