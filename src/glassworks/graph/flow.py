"""The flow of values through a graph: at which steps each node has a value, and what must come before what.

A reader sees the writes of its own rows that are upstream of it: at earlier events, or at earlier lines of its own
event. So a graph is ordered by its data and by the forward pass, never by the order of lines alone; a cycle is the
error of using a value before it can exist.
"""

from collections.abc import Iterable, Iterator

from glassworks.errors import OrderError, ScopeError, UnknownSite
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Steps
from glassworks.graph.sites import Site, SiteTable

SITES = ("read", "write", "skip")
WRITES = ("write", "skip")
REPEATED = (*WRITES, "stop")
"""What takes part in all later passes of its rows."""
EFFECTS = ("save", "log", "effect")
_EVERY_STEP: Steps = (0, None)


def effects(graph: Graph) -> Iterator[int]:
    """The nodes for whose sake a graph runs: saves, logs and other effects, and backwards that train captured
    tensors."""
    for n, node in enumerate(graph.nodes):
        if node.kind in EFFECTS or (node.kind == "backward" and _trains(graph)):
            yield n


def _trains(graph: Graph) -> bool:
    return any(node.kind == "constant" and node.target for node in graph.nodes)


class Flow:
    """Who needs whom in one graph on one model.

    Attributes:
        site: node -> its site. steps: node -> the steps in which it has a value; None outside a generation.
    """

    def __init__(self, graph: Graph, table: SiteTable, *, generating: bool) -> None:
        self.graph, self.table, self.generating = graph, table, generating
        self.nodes = graph.nodes
        self.site: dict[int, Site] = {n: self._site(n) for n, node in enumerate(self.nodes) if node.kind in SITES}
        self.writes = [n for n, node in enumerate(self.nodes) if node.kind in WRITES]
        self.writes_of: dict[int, list[int]] = {}
        for w in self.writes:
            self.writes_of.setdefault(self.nodes[w].invoke, []).append(w)
        self.carries = [n for n, node in enumerate(self.nodes) if node.kind == "carry"]
        self.stops = [n for n, node in enumerate(self.nodes) if node.kind == "stop"]
        self.steps = self._all_steps()
        self._seen: dict[int, tuple[list[int], list[int]]] = {}

    def _site(self, n: int) -> Site:
        try:
            return self.table[self.nodes[n].target]
        except UnknownSite as error:
            raise UnknownSite(f"{error}\n  at {self.graph.where(n)}") from None

    def _all_steps(self) -> list[Steps | None]:
        steps: list[Steps | None] = []
        for n, node in enumerate(self.nodes):
            if node.kind in SITES:
                steps.append((node.steps or _EVERY_STEP) if self.generating else None)
            elif node.kind == "backward" and self.generating:
                raise ScopeError(f"backward needs a trace; a generation takes no gradients\n  at {self.graph.where(n)}")
            elif node.kind in ("carried", "state"):
                steps.append(self._steps_of_state(n, steps))
            else:
                own = node.steps if self.generating and node.kind in ("log", "apply", "effect") else None
                found = self._joined(n, [own, *[steps[d] for d in node.deps]])
                if self.generating and node.kind in ("carry", "stop"):
                    found = self._within(n, found)
                steps.append(found)
        return steps

    def _steps_of_state(self, n: int, steps: list[Steps | None]) -> Steps | None:
        """A state has those of what it begins as, which is of one step; where it is read, it has those of the line."""
        node = self.nodes[n]
        begins = steps[node.deps[0]]
        if node.kind == "state":
            if begins is not None and begins[1] != begins[0] + 1:
                raise ScopeError(
                    f"a state begins as a value of one step, not of {spell_steps(begins)}: read it under t.prompt\n"
                    f"  at {self.graph.where(n)}"
                )
            return begins
        own = (node.steps or _EVERY_STEP) if self.generating else None
        if own is not None and begins is not None and begins[0] > own[0]:
            raise ScopeError(
                f"a state that begins as a value of step {begins[0]} does not exist yet at step {own[0]}\n"
                f"  at {self.graph.where(n)}"
            )
        return own

    def _within(self, n: int, found: Steps | None) -> Steps:
        """The steps of what takes effect at the end of a step: those of its line, in which its value must exist."""
        own = self.nodes[n].steps
        if own is None or found is None:
            return own or found or _EVERY_STEP
        single = found[1] == found[0] + 1
        if found[0] > own[0] if single else found != own:
            raise ScopeError(
                f"a value of {spell_steps(found)} is used at {spell_steps(own)}; a value that differs from step to "
                f"step can be used within its own steps only, one of a single step in that and later ones\n"
                f"  at {self.graph.where(n)}"
            )
        return own

    def _joined(self, n: int, given: Iterable[Steps | None]) -> Steps | None:
        """The steps of a computation: those of its inputs, aligned."""
        scopes = [scope for scope in given if scope is not None]
        many = {scope for scope in scopes if scope[1] != scope[0] + 1}
        if len(many) > 1:
            raise ScopeError(
                f"values of different steps meet: {' and '.join(map(spell_steps, sorted(many, key=str)))}; "
                f"unroll with `for step in t.steps[a:b]`, or save each\n  at {self.graph.where(n)}"
            )
        single = max((scope for scope in scopes if scope not in many), default=None)
        if not many:
            return single
        scope = many.pop()
        if single is not None and single[0] > scope[0]:
            raise ScopeError(
                f"a value of step {single[0]} does not exist yet at step {scope[0]}\n  at {self.graph.where(n)}"
            )
        return scope

    # What is needed, and what must come before what.

    def upstream(self, n: int) -> tuple[list[int], list[int]]:
        """Writes whose effect the reader `n` sees, in the same rows.

        The first come before it in its own step, or stand in steps that are over; the second stand later in the forward
        pass, but are performed in earlier steps of a scope that both share, and reach it through what is cached.
        """
        if n not in self._seen:
            node = self.nodes[n]
            own = self.writes if node.invoke == ALL_ROWS else self.writes_of.get(node.invoke, [])
            shared = [] if node.invoke == ALL_ROWS else self.writes_of.get(ALL_ROWS, [])
            before: list[int] = []
            earlier = self.stops_before(n)
            for w in (*own, *shared):
                if self._comes_before(w, n):
                    before.append(w)
                elif self._was_in_an_earlier_step(w, n):
                    earlier.append(w)
            self._seen[n] = before, earlier
        return self._seen[n]

    def _comes_before(self, w: int, n: int) -> bool:
        mine, its = self.steps[n], self.steps[w]
        if mine is not None and its is not None:
            if its[1] is not None and its[1] <= mine[0]:
                return True
            if mine[1] is not None and its[0] >= mine[1]:
                return False
        event, order = self.site[w].order, self.site[n].order
        return event < order or (event == order and w < n)

    def _was_in_an_earlier_step(self, w: int, n: int) -> bool:
        mine, its = self.steps[n], self.steps[w]
        return mine is not None and its is not None and (mine[1] is None or its[0] < mine[1] - 1)

    def before(self, n: int) -> list[int]:
        """Nodes that must have run before `n`."""
        node = self.nodes[n]
        if node.kind == "read":
            return self.upstream(n)[0]
        if node.kind == "result":
            return [w for w in (*self.writes, *self.stops) if self._same_rows(w, n)]
        return list(node.deps)

    def stops_before(self, n: int) -> list[int]:
        """What may have ended the rows of `n` in an earlier step."""
        return [w for w in self.stops if self._same_rows(w, n) and self._was_in_an_earlier_step(w, n)]

    def carries_before(self, n: int) -> list[int]:
        """What may have assigned, in an earlier step, the state that `n` reads."""
        state, invoke = self.nodes[n].deps[0], self.nodes[n].invoke
        mine = (w for w in self.carries if self.nodes[w].deps[0] == state and self.nodes[w].invoke == invoke)
        return [w for w in mine if self._was_in_an_earlier_step(w, n)]

    def _same_rows(self, one: int, other: int) -> bool:
        invokes = self.nodes[one].invoke, self.nodes[other].invoke
        return invokes[0] == invokes[1] or ALL_ROWS in invokes

    def _grad_writes(self, backward: int) -> list[int]:
        return [n for n, node in enumerate(self.nodes) if node.kind == "grad_write" and node.deps[1] == backward]

    def order(self) -> list[int]:
        """Needed nodes, each after what must come before it."""
        ordered: list[int] = []
        state = [0] * len(self.nodes)
        roots = list(effects(self.graph))
        while roots:
            start = len(ordered)
            for root in roots:
                self._visit(root, state, ordered)
            roots = [w for n in ordered[start:] for w in self._also(n)]
        return ordered

    def _also(self, n: int) -> list[int]:
        """What `n` needs without having to wait for it."""
        kind = self.nodes[n].kind
        if kind == "carried":
            return [*self.stops_before(n), *self.carries_before(n)]
        return self._grad_writes(n) if kind == "backward" else self.upstream(n)[1] if kind == "read" else []

    def _visit(self, root: int, state: list[int], ordered: list[int]) -> None:
        """Depth first, with a stack of our own: graphs are deeper than Python's. 1: on the stack, 2: done."""
        if state[root]:
            return
        state[root] = 1
        stack = [(root, iter(self.before(root)))]
        while stack:
            n, waiting = stack[-1]
            following = next(waiting, None)
            if following is None:
                stack.pop()
                state[n] = 2
                ordered.append(n)
            elif state[following] == 1:
                raise self._cycle([entry for entry, _ in stack], following)
            elif state[following] == 0:
                state[following] = 1
                stack.append((following, iter(self.before(following))))

    def _name(self, n: int) -> str:
        """A site as an error names it, with its steps in a generation."""
        steps = self.steps[n]
        return self.nodes[n].target + ("" if steps is None else f" ({spell_steps(steps)})")

    def _cycle(self, stack: list[int], back_to: int) -> OrderError:
        loop = stack[stack.index(back_to) :]
        if any(self.nodes[n].kind == "result" for n in loop):
            users = [n for n in loop if self.nodes[n].kind in (*WRITES, "stop")]
            return OrderError(
                "this depends on t.result, the new tokens, which exist only when the generation has ended: use "
                f"model.ids, the tokens that enter a step\n  at {self.graph.where(users[0])}"
            )
        write = next(n for n in loop if n in self.site and self.nodes[n].kind in WRITES)
        reads = [n for n in loop if self.nodes[n].kind == "read"]
        read = max(reads, key=lambda n: self.site[n].order)
        return OrderError(
            f"{self._name(write)} is written with a value that depends on {self._name(read)}, which the "
            f"forward pass computes only after that write: in one invoke a write is upstream of every later site. "
            f"Read the clean value in an invoke of its own.\n"
            f"  written at {self.graph.where(write)}\n  read at    {self.graph.where(read)}"
        )


def spell_steps(steps: Steps) -> str:
    first, end = steps
    if end is None:
        return f"steps {first}:"
    return f"step {first}" if end == first + 1 else f"steps {first}:{end}"
