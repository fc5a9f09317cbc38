"""Placement: when each node of a graph runs, in as few forward passes as its data flow requires.

A node's time is (pass, step, event). A site's event is its own; a computation is placed at the latest of its inputs.
The pass is assigned to each node, not to each invoke: a write needs a later pass than its value only if the value
appears after the write's event, so one invoke may take part in two passes. What nothing needs is dropped, and each
pass ends after the last event that it needs. A cycle is the error of using a value before it can exist.

Knows nothing of tensors. The result depends only on the structure of the graph and on the table, and is kept there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glassworks.errors import GraphError, InputError, OrderError, ScopeError
from glassworks.graph.backend import Inputs
from glassworks.graph.flow import EFFECTS, REPEATED, SITES, WRITES, Flow, spell_steps
from glassworks.graph.followed import followed, following
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Steps
from glassworks.graph.releases import kept_after_steps, releases
from glassworks.graph.sites import Site, SiteTable
from glassworks.graph.views import base_of

BEFORE = -1
"""The event of what needs no forward pass: constants, inputs, weights, and what follows from them."""

_KEPT = 256
_KEPT_NODES = 100_000


@dataclass(frozen=True)
class Forward:
    """One forward pass (in a generation: one generation) over the rows of some invokes.

    Attributes:
        number: which pass; several forwards may share one (rows that cannot or may not run together).
        invokes: whose rows take part, ascending.
        actions: (event, nodes) in the order of the forward pass; the nodes of one event in program order.
        spared: paths of modules that need not run, because every row skips them.
        last_step: the last generation step that is needed; None: as long as rows live.
        has_backward: whether derivatives are taken.
        follows_from: the event from which the pass builds what derivatives need, its own or those of a later one.
    """

    number: int
    invokes: tuple[int, ...]
    actions: tuple[tuple[int, tuple[int, ...]], ...]
    spared: frozenset[str]
    last_step: int | None
    has_backward: bool
    follows_from: int | None = None
    notes: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Plan:
    """Everything decided before anything runs.

    Attributes:
        prelude: nodes that need no forward pass, in order.
        forwards: in the order in which they run.
        needed: nodes that run at all.
        releases: node -> nodes whose values nothing needs once it has run.
        steps: node -> the steps in which it has a value; None outside a generation.
        crossing: nodes of many steps whose values a later pass needs.
        kept: nodes whose values are needed when their step has ended.
        bases: nodes whose tensors gradients are taken at.
    """

    prelude: tuple[int, ...]
    forwards: tuple[Forward, ...]
    needed: frozenset[int]
    releases: dict[int, tuple[int, ...]]
    steps: Sequence[Steps | None]
    crossing: frozenset[int]
    bases: frozenset[int]
    kept: frozenset[int] = frozenset()


def place(
    graph: Graph,
    table: SiteTable,
    *,
    row_counts: Sequence[int],
    rows: int | None = None,
    generating: bool = False,
    alone: frozenset[int] = frozenset(),
) -> Plan:
    """The plan of a graph over invokes of so many rows each.

    Args:
        rows: at most so many rows a forward. alone: invokes that share a forward with no other.

    Raises:
        OrderError: a value is used before it can exist; names both lines.
        ScopeError: an inner site of a skipped module is read; values of different steps meet.
        UnknownSite: a site that the model lacks, with the line.
    """
    counts = tuple(row_counts) if rows is not None else len(row_counts)
    key = (graph.structure, counts, rows, generating, alone)
    plan = table.plans.get(key)
    if plan is None:
        if len(table.plans) >= _KEPT or sum(len(kept[0]) for kept in table.plans) + len(graph) > _KEPT_NODES:
            table.plans.clear()
        plan = table.plans[key] = _Placer(graph, table, generating, alone).plan(row_counts, rows)
    return plan  # type: ignore[no-any-return]


def place_inputs(graph: Graph, table: SiteTable, inputs: Inputs, *, generating: bool) -> Plan:
    """The plan of a graph over given rows. Rows with arguments of their own share a forward with no others."""
    own = [] if table.plain else [k for k, rows in enumerate(inputs.invokes) if rows.kwargs]
    counts = [len(rows.ids) or 1 for rows in inputs.invokes]
    return place(graph, table, row_counts=counts, rows=inputs.rows, generating=generating, alone=frozenset(own))


class _Placer:
    def __init__(self, graph: Graph, table: SiteTable, generating: bool, alone: frozenset[int]) -> None:
        self.graph, self.table, self.generating, self.alone = graph, table, generating, alone
        self.nodes = graph.nodes
        self.flow = Flow(graph, table, generating=generating)
        self.site, self.steps = self.flow.site, self.flow.steps
        self.pass_of = [0] * len(self.nodes)
        self.event_of = [BEFORE] * len(self.nodes)
        self.everywhere = [False] * len(self.nodes)
        # Reads of a state by (state, invoke); what needs the forward pass of its rows, whatever its inputs.
        self.readers: dict[tuple[int, int], list[int]] = {}
        self.of_rows = {n for n, node in enumerate(self.nodes) if node.kind in ("read", "result", "carried")}

    # When.

    def _assign(self, ordered: list[int]) -> None:
        """Passes and events. A write of an earlier step may move a reader to a later pass, so until nothing moves."""
        for _ in range(len(ordered) + 1):
            before = list(self.pass_of)
            self._assign_once(ordered)
            if before == self.pass_of:
                return
        moving = next(n for n in ordered if before[n] != self.pass_of[n])
        raise OrderError(f"a value is needed in an earlier step than it can exist\n  at {self.graph.where(moving)}")

    def _assign_once(self, ordered: list[int]) -> None:
        for n in ordered:
            node = self.nodes[n]
            match node.kind:
                case "read":
                    before, earlier = self.flow.upstream(n)
                    self.pass_of[n] = max((self.pass_of[w] for w in (*before, *earlier)), default=0)
                    self.event_of[n] = self.site[n].order
                    self.everywhere[n] = node.invoke == ALL_ROWS
                case "write" | "skip":
                    self._assign_write(n)
                case "result":
                    self.pass_of[n] = max((self.pass_of[w] for w in self.flow.before(n)), default=0)
                    self.event_of[n] = len(self.table.events)
                case "carried":
                    self._assign_carried(n)
                case "carry" | "stop":
                    self._assign_end_of_step(n)
                case _:
                    self._latest(n, node.deps)
                    self._settle_effect(n)
                    if node.kind in ("grad", "grad_write"):
                        self._check_gradient(n)

    def _latest(self, n: int, deps: Iterable[int]) -> None:
        deps = [d for d in deps if self.event_of[d] != BEFORE]
        self.pass_of[n] = max((self.pass_of[d] for d in deps), default=0)
        self.event_of[n] = max((self.event_of[d] for d in deps if self.pass_of[d] == self.pass_of[n]), default=BEFORE)
        self.everywhere[n] = any(self.everywhere[d] for d in deps)

    def _assign_write(self, n: int) -> None:
        [value] = self.nodes[n].deps
        order, mine, its = self.site[n].order, self.steps[n], self.steps[value]
        late = self.event_of[value] > order
        if mine is not None and its is not None and its[1] == its[0] + 1 and mine != its:
            late = its[0] > mine[0] or (its[0] == mine[0] and late)
        elif mine is not None and its is not None and mine != its:
            raise ScopeError(
                f"a value of {spell_steps(its)} is written at {spell_steps(mine)}; a value that differs from step to "
                f"step can be used within its own steps only\n  at {self.graph.where(n)}"
            )
        own = 0 if self.event_of[value] == BEFORE else self.pass_of[value] + late
        if late and self.everywhere[value] and self.event_of[value] != BEFORE:
            raise OrderError(
                f"{self.nodes[n].target} comes before its value in the forward pass, and a value of all rows does not "
                f"cross passes\n  at {self.graph.where(n)}"
            )
        self.pass_of[n], self.event_of[n] = own, order
        self.everywhere[n] = self.nodes[n].invoke == ALL_ROWS

    def _assign_carried(self, n: int) -> None:
        """At the beginning of a step, or where what it may be in this step exists."""
        state, *carries = self.nodes[n].deps
        begins, mine = self.steps[state], self.steps[n]
        at_once = begins is None or mine is None or begins[0] == mine[0]
        self._latest(n, [*([state] if at_once else []), *carries])
        earlier = (state, *self.flow.stops_before(n), *self.flow.carries_before(n))
        number = max(self.pass_of[w] for w in (n, *earlier))
        self.event_of[n] = max(self.event_of[n] if number == self.pass_of[n] else 0, 0)
        self.pass_of[n] = number
        self.everywhere[n] = self.nodes[n].invoke == ALL_ROWS

    def _assign_end_of_step(self, n: int) -> None:
        """Where the value of what takes effect at the end of a step exists; a state, in the pass that reads it."""
        node = self.nodes[n]
        self._latest(n, node.deps)
        if self.event_of[n] >= len(self.table.events):
            raise OrderError(
                f"the new tokens exist when the generation has ended, not in its steps: use model.ids, the tokens that "
                f"enter a step\n  at {self.graph.where(n)}"
            )
        number = self.pass_of[n]
        if node.kind == "carry":
            readers = self.readers.get((node.deps[0], node.invoke), ())
            number = max([number, *[self.pass_of[m] for m in readers]])
        self.event_of[n] = max(self.event_of[n] if number == self.pass_of[n] else 0, 0)
        self.pass_of[n] = number
        self.everywhere[n] = node.invoke == ALL_ROWS

    def _settle_effect(self, n: int) -> None:
        """An effect of certain steps that depends on nothing in them has its place at their beginning."""
        node = self.nodes[n]
        scoped = node.kind in ("log", "apply", "effect") and self.generating and node.steps is not None
        if scoped and self.event_of[n] == BEFORE:
            self.event_of[n], self.everywhere[n] = 0, node.invoke == ALL_ROWS
            self.of_rows.add(n)

    def _check_gradient(self, n: int) -> None:
        value, backward = self.nodes[n].deps[:2]
        elsewhere = self.event_of[value] == BEFORE or self.pass_of[value] != self.pass_of[backward]
        if elsewhere or self.event_of[value] > self.event_of[backward]:
            raise GraphError(
                f"a gradient reaches only values of the pass that computed the loss: this value belongs to another "
                f"forward pass, comes after the loss, or to no pass\n"
                f"  value at {self.graph.where(value)}\n  loss at  {self.graph.where(backward)}"
            )

    # The forwards.

    def plan(self, row_counts: Sequence[int], rows: int | None) -> Plan:
        ordered = self.flow.order()
        for n in ordered:
            if self.nodes[n].kind == "carried":
                self.readers.setdefault((self.nodes[n].deps[0], self.nodes[n].invoke), []).append(n)
        self._assign(ordered)
        self._check_skips(ordered)
        needed = frozenset(ordered)
        prelude = tuple(n for n in sorted(needed) if self.event_of[n] == BEFORE and self.nodes[n].kind not in SITES)
        inner = sorted(needed.difference(prelude))
        groups = self._groups(inner, row_counts, rows)
        crossing = self._crossing(inner)
        gradients = [n for n in needed if self.nodes[n].kind in ("grad", "grad_write")]
        bases = frozenset(base_of(self.nodes, self.nodes[n].deps[0]) for n in gradients)
        reached = followed(self.flow, ordered, bases, pass_of=self.pass_of, event_of=self.event_of)
        forwards = tuple(self._forward(number, invokes, inner, groups, crossing) for number, invokes in groups)
        forwards = following(forwards, reached, held=self._held())
        return Plan(
            prelude=prelude,
            forwards=forwards,
            needed=needed,
            releases={} if self.generating else releases(self.nodes, prelude, forwards, bases),
            steps=tuple(self.steps),
            crossing=crossing,
            bases=bases,
            kept=self._kept(forwards) if self.generating else frozenset(),
        )

    def _kept(self, forwards: Sequence[Forward]) -> frozenset[int]:
        return kept_after_steps(self.nodes, forwards, self.steps, result_event=len(self.table.events))

    def _held(self) -> frozenset[int]:
        """Events of tensors that the model holds, and that are written in place."""
        return frozenset(site.order for site in self.site.values() if site.inplace)

    def _crossing(self, inner: list[int]) -> frozenset[int]:
        """Values of steps that a later pass needs, or may need: writes and stops are performed in later passes too."""
        last = max((self.pass_of[n] for n in inner), default=0)
        found: set[int] = set()
        for n in inner:
            user = last if self.nodes[n].kind in REPEATED else self.pass_of[n]
            own = (d for d in self.nodes[n].deps if self.steps[d] is not None and self.event_of[d] != BEFORE)
            found.update(d for d in own if self.pass_of[d] < user)
        return frozenset(found)

    def _participants(self, inner: list[int]) -> dict[int, set[int]]:
        everyone = set(range(self.graph.invokes))
        taking_part: dict[int, set[int]] = {}
        for n in inner:
            if n not in self.of_rows:
                continue
            own = everyone if self.nodes[n].invoke == ALL_ROWS else {self.nodes[n].invoke}
            taking_part.setdefault(self.pass_of[n], set()).update(own)
        return taking_part

    def _groups(
        self, inner: list[int], row_counts: Sequence[int], rows: int | None
    ) -> list[tuple[int, tuple[int, ...]]]:
        """(pass, invokes) of each forward: together where the sites allow it and the bound on rows does.

        Rows that belong together, those of one invoke or all, stay so: a runtime divides what is more than the bound.
        """
        groups: list[tuple[int, tuple[int, ...]]] = []
        for number, invokes in sorted(self._participants(inner).items()):
            alone = self._alone(inner, number)
            bound = None if not self.generating and self._saves_all_rows(inner, number) else rows
            current: list[int] = []
            for invoke in sorted(invokes):
                if rows is not None and self.generating and row_counts[invoke] > rows:
                    raise InputError(
                        f"one invoke has {row_counts[invoke]} rows and a generation at most rows={rows}: give the "
                        f"prompts to invokes of their own, or run a recorded graph over them with model.run"
                    )
                full = bound is not None and sum(row_counts[i] for i in (*current, invoke)) > bound
                if current and (full or alone is True or invoke in alone or current[-1] in alone):  # type: ignore[operator]
                    groups.append((number, tuple(current)))
                    current = []
                current.append(invoke)
            groups.append((number, tuple(current)))
        return groups

    def _saves_all_rows(self, inner: list[int], number: int) -> bool:
        """Whether a value of all rows of this pass is kept."""
        return any(self.pass_of[n] == number and self.nodes[n].kind == "save" and self.everywhere[n] for n in inner)

    def _alone(self, inner: list[int], number: int) -> set[int] | bool:
        """Invokes that may not share this pass; True for all of them."""
        if self.table.plain or not self.table.shareable:
            return True
        alone = set(self.alone)
        for n in inner:
            if n in self.site and (self.pass_of[n] == number or self.nodes[n].kind in WRITES):
                site = self.site[n]
                good = site.can_be_shared and (self.nodes[n].kind == "read" or site.has_rows)
                if not good and self.nodes[n].invoke == ALL_ROWS:
                    return True if not site.can_be_shared else alone
                if not good:
                    alone.add(self.nodes[n].invoke)
        return alone

    def _forward(
        self,
        number: int,
        invokes: tuple[int, ...],
        inner: list[int],
        groups: list[tuple[int, tuple[int, ...]]],
        crossing: frozenset[int],
    ) -> Forward:
        of_pass = [members for other, members in groups if other == number]
        homes = self._homes(inner, number, of_pass)
        mine = [n for n in inner if self._runs_in(n, number, invokes, homes)]
        self._check_all_rows(mine, len(of_pass))
        by_event: dict[int, list[int]] = {}
        for n in mine:
            by_event.setdefault(self.event_of[n], []).append(n)
        return Forward(
            number=number,
            invokes=invokes,
            actions=tuple((event, tuple(by_event[event])) for event in sorted(by_event)),
            spared=self._spared(mine, invokes),
            last_step=self._last_step(mine, crossing),
            has_backward=any(self.nodes[n].kind == "backward" for n in mine),
        )

    def _runs_in(self, n: int, number: int, invokes: tuple[int, ...], homes: dict[int, int]) -> bool:
        node = self.nodes[n]
        if node.invoke != ALL_ROWS and (n in self.of_rows or node.kind in ("carry", *REPEATED)):
            reached = number >= self.pass_of[n] if node.kind in REPEATED else number == self.pass_of[n]
            return reached and node.invoke in invokes
        if self.everywhere[n] and node.kind not in EFFECTS:
            return number >= self.pass_of[n]
        if number != self.pass_of[n]:
            return False
        return self.everywhere[n] or invokes[0] == homes[n]

    def _homes(self, inner: list[int], number: int, of_pass: list[tuple[int, ...]]) -> dict[int, int]:
        """Node of a pass -> the first invoke of the forward in which it runs: the one that gives its last input."""
        first = {invoke: members[0] for members in of_pass for invoke in members}
        homes: dict[int, int] = {}
        for n in inner:
            if self.pass_of[n] == number:
                node = self.nodes[n]
                if node.invoke != ALL_ROWS and n in self.of_rows:
                    homes[n] = first[node.invoke]
                else:
                    homes[n] = max((homes[d] for d in node.deps if d in homes), default=of_pass[-1][0])
        return homes

    def _check_all_rows(self, mine: list[int], parts: int) -> None:
        for n in mine:
            if parts > 1 and self.nodes[n].kind == "save" and self.everywhere[n]:
                raise ScopeError(
                    f"outside an invoke a site means all rows, but these rows run in {parts} forward passes; read it "
                    f"inside the invokes\n  at {self.graph.where(n)}"
                )

    def _last_step(self, mine: list[int], crossing: frozenset[int]) -> int | None:
        """The last step in which something is kept, said or handed to a later pass; all else serves these."""
        if not self.generating:
            return 0
        last = 0
        for n in mine:
            scope = self.steps[n]
            if self.nodes[n].kind == "result":
                return None
            if self.nodes[n].kind in EFFECTS or n in crossing:
                if scope is not None and scope[1] is None:
                    return None
                last = max(last, scope[1] - 1 if scope is not None and scope[1] is not None else 0)
        return last

    # Skipped modules.

    def _span(self, n: int) -> tuple[int, int]:
        """The events between which the module of a skip runs."""
        event = self.table.event_of(self.site[n])
        return self.table.by_event[(event.path, "input", event.call)], self.site[n].order

    def _check_skips(self, ordered: list[int]) -> None:
        for skip in (n for n, node in enumerate(self.nodes) if node.kind == "skip"):
            start, end = self._span(skip)
            for n in ordered:
                inside = n in self.site and start < self.site[n].order < end
                if inside and self.nodes[n].kind == "read" and self.nodes[n].invoke == self.nodes[skip].invoke:
                    raise ScopeError(
                        f"{self.nodes[n].target} lies inside {self.nodes[skip].target}, which is skipped\n"
                        f"  read at    {self.graph.where(n)}\n  skipped at {self.graph.where(skip)}"
                    )

    def _spared(self, mine: list[int], invokes: tuple[int, ...]) -> frozenset[str]:
        if self.generating:
            return frozenset()
        skipping: dict[str, set[int]] = {}
        for n in mine:
            if self.nodes[n].kind != "skip":
                continue
            start, _ = self._span(n)
            [value] = self.nodes[n].deps
            ready = self.pass_of[value] < self.pass_of[n] or self.event_of[value] <= start
            if ready and can_be_spared(self.table, self.site[n]):
                own = set(invokes) if self.nodes[n].invoke == ALL_ROWS else {self.nodes[n].invoke}
                skipping.setdefault(self.table.event_of(self.site[n]).path, set()).update(own)
        for n in mine:
            if self.nodes[n].kind == "read" and self._precedes_a_skip(n, mine):
                skipping.pop(self.table.event_of(self.site[n]).path, None)
        full = {path for path, rows in skipping.items() if rows == set(invokes)}
        return frozenset(path for path in full if not self._looked_into(path, mine))

    def _precedes_a_skip(self, n: int, mine: list[int]) -> bool:
        """Whether a read stands above the line of a skip at its event: it reads the module's own output."""
        order = self.site[n].order
        return any(self.nodes[s].kind == "skip" and self.site[s].order == order and n < s for s in mine)

    def _looked_into(self, path: str, mine: list[int]) -> bool:
        span = self.table.by_event[(path, "input", 0)], self.table.by_event[(path, "output", 0)]
        return any(n in self.site and span[0] < self.site[n].order < span[1] for n in mine)


def can_be_spared(table: SiteTable, output: Site) -> bool:
    """Whether what a module gives can be made without running it. One that is called again has to run."""
    event = table.event_of(output)
    return _one_leaf(event.structure) and output.can_be_shared and table.calls.get(event.path, 1) == 1


def _one_leaf(structure: Any) -> bool:
    """Whether one tensor is all that a module gives, so that it can be built without running the module."""
    match structure:
        case {"leaf": _}:
            return True
        case {"tuple": items} | {"list": items}:
            return sum(_one_leaf(item) for item in items) == 1 and all(
                _one_leaf(item) or item == {"other": "NoneType"} for item in items
            )
    return False
