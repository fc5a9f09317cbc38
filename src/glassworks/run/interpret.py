"""The one place where nodes run.

An interpreter runs one graph's nodes during one forward pass: it is told of events in order, reads and writes the sites
there, and computes what has become computable. At one event nodes run in program order. A node's failure carries the
user's line and keeps its type.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from glassworks.errors import WriteError
from glassworks.graph.nodes import ALL_ROWS, Dtype, Ref, replace_refs
from glassworks.graph.operations import OPERATIONS
from glassworks.graph.place import Forward
from glassworks.graph.sites import Site, SiteTable
from glassworks.run import control, effects, gradients
from glassworks.run.control import NOT_TAKEN
from glassworks.run.frame import Frame
from glassworks.run.random import draw
from glassworks.run.rows import Leaf, Slot
from glassworks.run.structures import item_at, replaced
from glassworks.trace import binding

_OF_LINE_AND_INPUTS = frozenset({"log", "apply", "effect"})
_NEVER_QUICK = frozenset({"write", "skip", "backward", "grad", "grad_write"})
_DIRECT = frozenset({int, float, bool, str, type(None), torch.Tensor})


class Callee(Protocol):
    """What can call a module of the model as a pure function."""

    def call_module(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A module by path, or `unembed`."""


class Interpreter:
    """One graph in one forward pass.

    Attributes:
        actions: event -> nodes, for the current step.
        last: the last event that is needed in this step; None: the model's own return is.
        states: what steps hand on, by (state, invoke). closing: nodes of this step that take effect when it ends.
        places: in a packed batch, event -> slots and sizes there; None: they are the same at every event.
    """

    def __init__(
        self,
        frame: Frame,
        forward: Forward,
        table: SiteTable,
        *,
        slots: Mapping[int, Slot],
        rows: Sequence[int],
        callee: Callee,
    ) -> None:
        self.frame, self.forward, self.table, self.callee = frame, forward, table, callee
        self.slots, self.rows = slots, rows
        self.sizes: Mapping[str, int] = {}
        self.step = 0
        self.places: Callable[[int], tuple[Mapping[int, Slot], Mapping[str, int]]] | None = None
        self.states: dict[tuple[int, int], Any] = {}
        self.closing: tuple[int, ...] = ()
        self._follows = forward.follows_from
        notes = forward.notes
        if "actions" not in notes:
            notes["actions"] = dict(forward.actions)
            notes["changed"] = self._changed_in_place()
            notes["quick"] = self._quick_events()
        self.actions: Mapping[int, Sequence[int]] = notes["actions"]
        self.last: int | None = forward.actions[-1][0] if forward.actions else -1
        whole = all(slot.whole for slot in slots.values()) and bool(slots)
        self._quick: Mapping[int, Any] = notes["quick"] if whole else {}

    def begin(
        self,
        step: int,
        *,
        sizes: Mapping[str, int],
        slots: Mapping[int, Slot],
        live: frozenset[int] | None,
        complete: bool,
    ) -> None:
        """Start a step of a generation: which rows it has, and which invokes still have live ones."""
        self.step, self.sizes, self.slots = step, sizes, slots
        self._quick = {}
        if self.frame.watch is not None:
            self.frame.watch.forward()
        frame = self.frame
        found = {}
        for event, members in self.forward.actions:
            own = tuple(n for n in members if self._is_active(n, step, live))
            if own and event < len(self.table.events):
                found[event] = own
        self.actions = found
        self.closing = tuple(sorted(n for own in found.values() for n in own if frame.nodes[n].kind in control.CLOSING))
        self.last = None if complete else max(found, default=-1)
        frame.early.clear()

    def _is_active(self, n: int, step: int, live: frozenset[int] | None) -> bool:
        scope = self.frame.plan.steps[n]
        if scope is not None and (step < scope[0] or (scope[1] is not None and step >= scope[1])):
            return False
        return live is None or self._invokes(n).intersection(self.forward.invokes) <= live

    def _invokes(self, n: int, *, guards: bool = True) -> frozenset[int]:
        """The invokes that a node concerns, by itself, its inputs and (if so asked) its predicates."""
        known = self.forward.notes.setdefault("invokes" if guards else "invokes of inputs", {})
        if n not in known:
            node = self.frame.nodes[n]
            own = {node.invoke} if node.invoke >= 0 else set()
            deps = node.deps if guards else node.operands
            if node.invoke >= 0 and node.kind not in _OF_LINE_AND_INPUTS:
                deps = ()
            known[n] = frozenset(own).union(*[self._invokes(d, guards=guards) for d in deps])
        return known[n]  # type: ignore[no-any-return]

    # Events.

    def at(self, event: int, raw: Any) -> Any:
        """Run the nodes of an event on what passes there; gives what the model goes on with."""
        if event == self._follows:
            torch.set_grad_enabled(True)
        quick = self._quick.get(event)
        return self._edit(event, raw) if quick is None else self._look(quick, raw)

    def _edit(self, event: int, raw: Any) -> Any:
        """Any nodes at all; sites go through leaves."""
        frame = self.frame
        nodes, values, releases = frame.nodes, frame.values, frame.plan.releases
        leaves: dict[Any, Leaf] = {}
        n = -1
        try:
            for n in self.actions[event]:
                kind = nodes[n].kind
                if kind == "read" or kind == "write" or kind == "skip":
                    self.touch(n, leaves, raw)
                elif n not in frame.early:
                    self._perform(n)
                for d in releases.get(n, ()):
                    values[d] = None
        except Exception as error:
            blame(error, frame, n)
            raise
        return self.settled(raw, leaves)

    def touch(self, n: int, leaves: dict[Any, Leaf], raw: Any) -> None:
        """Read or write the site of a node, at its event; `leaves` holds what has been touched of what passes there."""
        frame = self.frame
        node = frame.nodes[n]
        leaf = self._leaf(leaves, raw, node.target)
        if node.kind != "read":
            leaf.write(node.invoke, self.value(node.deps[0]))
            return
        if n in frame.plan.bases:
            frame.values[n] = gradients.as_base(leaf, node.invoke)
        else:
            frame.values[n] = self._snapshot(leaf, node.invoke)
        if n in frame.plan.crossing:
            frame.history.setdefault(n, {})[self.step] = frame.values[n]

    def settled(self, raw: Any, leaves: Mapping[Any, Leaf]) -> Any:
        """What passes at an event, with everything that was written there."""
        for leaf in leaves.values():
            if leaf.changed and not leaf.site.inplace:
                raw = replaced(raw, leaf.site.item, leaf.result())
        return raw

    def _snapshot(self, leaf: Leaf, invoke: int) -> torch.Tensor:
        """The site's value; a copy if it is changed in place later on."""
        value, site, changed = leaf.read(invoke), leaf.site, self.forward.notes["changed"]
        copied = (changed and (site.inplace or site.storage in changed)) or (site.inplace and site.mutated)
        return value.clone() if copied else value

    def _look(self, program: Sequence[tuple[int, Any, tuple[int, ...], int]], raw: Any) -> Any:
        """The same, where nothing is written and each site is one whole unpadded tensor."""
        frame = self.frame
        values = frame.values
        n = -1
        try:
            for n, item, releases, storage in program:
                if item is None:
                    node = frame.nodes[n]
                    if storage >= 0 and storage not in frame.given:
                        frame.given.add(storage)
                        frame.saves[node.target] = values[node.deps[0]]
                    else:
                        self._run(n, node)
                elif item:
                    values[n] = item_at(raw, item)
                else:
                    values[n] = raw
                for d in releases:
                    values[d] = None
        except Exception as error:
            blame(error, frame, n)
            raise
        return raw

    def _quick_events(self) -> dict[int, list[tuple[int, Any, tuple[int, ...], int]]]:
        """Event -> (node, path to its tensor or None, what it releases, memory that it gives away) for `_look`."""
        plan, nodes, sites = self.frame.plan, self.frame.nodes, self.table.sites
        if self.forward.notes["changed"]:
            return {}
        found = {}
        for event, members in self.forward.actions:
            own = []
            for n in members:
                site = sites[nodes[n].target] if nodes[n].kind == "read" else None
                plain = site is None or (site.is_plain and n not in plan.bases and n not in plan.crossing)
                if not plain or nodes[n].kind in _NEVER_QUICK or nodes[n].when:
                    break
                item = None if site is None else site.item
                own.append((n, item, plan.releases.get(n, ()), self._gives(n)))
            else:
                found[event] = own
        return found

    def _changed_in_place(self) -> frozenset[int]:
        """Memory that a write of this pass changes in place, by its numbers; -1 is memory of unknown number."""
        nodes, sites = self.frame.nodes, self.table.sites
        written = [sites[nodes[n].target] for _, own in self.forward.actions for n in own if nodes[n].kind == "write"]
        return frozenset(site.storage for site in written if site.inplace)

    def _gives(self, n: int) -> int:
        """The memory that a save of a whole site gives away uncopied, by its number; -1: it copies."""
        node = self.frame.nodes[n]
        if node.kind != "save" or self.frame.plan.steps[n] is not None or self.forward.follows_from is not None:
            return -1
        read = self.frame.nodes[node.deps[0]]
        return self.table.sites[read.target].storage if read.kind == "read" else -1

    def _leaf(self, leaves: dict[Any, Leaf], raw: Any, name: str) -> Leaf:
        site = self.table.sites[name]
        key = (site.item, site.inplace)  # what the model holds is not what a module is given in its place
        leaf = leaves.get(key)
        if leaf is None:
            tensor = item_at(raw, site.item)
            if site.mutated and not site.inplace:
                tensor = tensor.clone()
            slots, sizes = (self.slots, self.sizes) if self.places is None else self.places(site.order)
            leaf = leaves[key] = Leaf(tensor, site, slots, sizes)
        elif leaf.site is not site and _lens(leaf.site) != _lens(site):
            leaf = leaves[key] = leaf.seen_as(site)
        return leaf

    # Nodes.

    def prelude(self) -> None:
        """Run what needs no forward pass."""
        n = -1
        try:
            for n in self.frame.plan.prelude:
                self._perform(n)
        except Exception as error:
            blame(error, self.frame, n)
            raise

    def end(self) -> None:
        """A step has ended: what no later one needs is let go of, and what is kept has memory of its own. A view would
        hold on to a batch, which may be everybody's."""
        frame, crossing, kept = self.frame, self.frame.plan.crossing, self.frame.plan.kept
        for own in self.actions.values():
            for n in own:
                if n in kept or n in crossing:
                    frame.values[n] = _of_its_own(frame.values[n])
                else:
                    frame.values[n] = None
                if n in crossing and self.step in frame.history.get(n, ()):
                    frame.history[n][self.step] = frame.values[n]
        for key, state in self.states.items():
            self.states[key] = _of_its_own(state)

    def finish(self, tokens: Mapping[int, torch.Tensor]) -> None:
        """Run what follows from the new tokens of a generation: for each invoke int64 `[rows, new]`."""
        n = -1
        try:
            for event, members in self.forward.actions:
                for n in members if event == len(self.table.events) else ():
                    if self.frame.nodes[n].kind == "result":
                        self.frame.values[n] = tokens[self.frame.nodes[n].invoke]
                    else:
                        self._perform(n)
        except Exception as error:
            blame(error, self.frame, n)
            raise

    def value(self, n: int) -> Any:
        """A node's value in this step."""
        history = self.frame.history.get(n)
        if history is not None and self.frame.plan.steps[n] is not None and self.step in history:
            return history[self.step]
        return self.frame.values[n]

    def _perform(self, n: int) -> None:
        """Run a node, unless it stands in a branch that is not taken."""
        node = self.frame.nodes[n]
        if not node.when or control.is_taken(node, self.value):
            self._run(n, node)
            return
        self.frame.values[n] = NOT_TAKEN
        if n in self.frame.plan.crossing:
            self.frame.history.setdefault(n, {})[self.step] = NOT_TAKEN
        if node.kind == "save" and self._has_entries(n):
            self.frame.saves.setdefault(node.target, []).append(None)

    def _run(self, n: int, node: Any) -> None:
        frame = self.frame
        if frame.watch is not None and n in frame.watch.late:
            frame.watch.node(n, *self.arguments(n))
        match node.kind:
            case "call":
                frame.values[n] = self._call(n)
            case "item":
                frame.values[n] = self.value(node.deps[0])[node.args[1]]
            case "save":
                self._save(n)
            case "update":
                frame.values[n] = _updated(self.value(node.deps[0]), *_resolved(node.args[1:], self.value))
            case "constant":
                frame.values[n] = frame.constant(n)
            case "module":
                frame.values[n] = self.callee.call_module(node.target, *self.arguments(n))
            case "parameter":
                frame.values[n] = frame.parameter(node.target).detach()
            case "input":
                frame.values[n] = frame.input(node.target)
            case "backward":
                gradients.run_backward(self, n)
            case "grad" | "grad_write":
                pass  # the backward has given it its value
            case "cond":
                frame.values[n] = control.chosen(node, self.value)
            case "state" | "carry":
                frame.values[n] = self.value(node.operands[-1])
            case "carried":
                frame.values[n] = control.carried(self, node)
            case "stop":
                frame.values[n] = control.one_a_row(self.value(node.operands[0]), self.slots[node.invoke].count)
            case "log":
                effects.say(self, n)
            case "apply" | "effect":
                frame.values[n] = effects.applied(self, n)
        if self._follows is not None and n in frame.plan.bases:
            frame.values[n] = gradients.as_leaf(frame.values[n])
        if n in frame.plan.crossing:
            frame.history.setdefault(n, {})[self.step] = frame.values[n]

    def compute(self, n: int) -> Any:
        """A node's value, computed now with what it needs if it has not been (inside a backward)."""
        frame = self.frame
        if (
            frame.values[n] is None
            and n not in frame.early
            and frame.nodes[n].kind in ("call", "item", "update", "module", "cond", "apply", "effect")
        ):
            for d in frame.nodes[n].deps:
                self.compute(d)
            self._perform(n)
            frame.early.add(n)
        return frame.values[n]

    def arguments(self, n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A node's arguments, with values for references."""
        node = self.frame.nodes[n]
        args = tuple([self._argument(item) for item in node.args])
        return args, {name: self._argument(item) for name, item in node.kwargs} if node.kwargs else {}

    def _argument(self, item: Any) -> Any:
        kind = type(item)
        if kind is Ref:
            return self.value(item.node)
        if kind in _DIRECT:
            return item
        return _resolved(item, self.value)

    def _call(self, n: int) -> Any:
        args, kwargs = self.arguments(n)
        name = self.frame.nodes[n].target
        operation = OPERATIONS.get(name)
        if operation is not None and operation.random:
            key = (self.frame.graph.seed, n, self.step)
            return draw(name, args, kwargs, key=key, rows=self.rows_of(n))
        return binding.bound(name)(*args, **kwargs)

    def rows_of(self, n: int) -> Sequence[int]:
        """Numbers, in the experiment, of the rows that a node concerns."""
        numbers: list[int] = []
        for invoke in sorted(self._invokes(n, guards=False)) or [ALL_ROWS]:
            slot = self.slots.get(invoke)
            if slot is not None:
                numbers += self.rows[slot.start : slot.start + slot.count]
        return numbers

    def _save(self, n: int) -> None:
        frame = self.frame
        node = frame.nodes[n]
        value = _kept(self.value(node.deps[0]), frame.nodes[node.deps[0]])
        if self._has_entries(n):
            frame.saves.setdefault(node.target, []).append(value)
        else:
            frame.saves[node.target] = value

    def _has_entries(self, n: int) -> bool:
        """Whether a save is a list, with an entry a step."""
        return self.frame.plan.steps[n] is not None and ("single", True) not in self.frame.nodes[n].kwargs


def _lens(site: Site) -> tuple[Any, ...]:
    return site.unfold, site.heads, site.swapped, site.inplace


def _kept(value: torch.Tensor, node: Any) -> torch.Tensor:
    """A tensor of its own memory: what a save may give away. A view would pin, or be changed with, the whole batch."""
    if node.kind == "call" and value._base is None:
        operation = OPERATIONS.get(node.target)
        if operation is not None and operation.aliasing == "never":
            return value.detach()
    return value.detach().clone() if value.requires_grad else value.clone()


def _of_its_own(value: Any) -> Any:
    """The same value in memory that holds no more than it."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, list | tuple):
        return tuple(map(_of_its_own, value))
    return value


def _resolved(item: Any, value_of: Any) -> Any:
    found = replace_refs(item, value_of)
    return _formats(found) if type(found) in (tuple, Dtype) else found


def _formats(found: Any) -> Any:
    if type(found) is Dtype:
        return getattr(torch, found.name)
    return tuple(_formats(item) for item in found) if type(found) is tuple else found


def _updated(base: torch.Tensor, views: Sequence[Any], value: torch.Tensor) -> torch.Tensor:
    """A copy of `base` in which the view that `views` lead to holds `value`."""
    whole = base.clone(memory_format=torch.contiguous_format)
    part = whole
    for name, args, kwargs, *which in views:
        part = binding.bound(name)(part, *args, **dict(kwargs))
        part = part[which[0]] if which else part
        if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            raise WriteError(
                f"{name} gives a copy of this tensor, not a view, so a write to it would not reach the site: write to "
                f"the site itself, `part.output[...] = value`, or through views only (index, transpose, unflatten)"
            )
    part.copy_(value)
    return whole


def blame(error: BaseException, frame: Frame, n: int) -> None:
    """Add the user's line to an error that a node raised."""
    if n >= 0 and not getattr(error, "_glassworks_blamed", False):
        error.add_note(f"  at {frame.graph.where(n)}")
        error._glassworks_blamed = True  # type: ignore[attr-defined]
