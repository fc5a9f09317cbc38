"""What a graph may come to hold between steps, told from shapes before it begins: saves, kept values, states.

Whoever is let in has that much kept for it, so that nothing that others do later leaves it without room for what it
saves. What has no shape before it runs (a function of the user's, a mask) counts as nothing here, and when it comes.
"""

from typing import Any, NamedTuple

import torch

from glassworks.errors import GlassworksError
from glassworks.graph.backend import Generation, Inputs
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Steps
from glassworks.graph.place import Plan
from glassworks.graph.sites import SiteTable
from glassworks.trace.shapes import Shapes
from glassworks.trace.tensors import as_tensor


class _Constant(NamedTuple):
    tensor: torch.Tensor


class _Source(NamedTuple):
    """A graph in the place of a recorder."""

    nodes: Any
    lines: Any
    constants: Any
    table: SiteTable


def worst_bytes(graph: Graph, plan: Plan, table: SiteTable, inputs: Inputs, generation: Generation | None) -> int:
    """Bytes of its frame at most, as far as shapes are known."""
    if not plan.needed or table.plain:
        return 0
    return _Worst(graph, plan, table, inputs, 1 if generation is None else max(1, generation.max_new_tokens)).total()


class _Worst:
    """One experiment of so many steps."""

    def __init__(self, graph: Graph, plan: Plan, table: SiteTable, inputs: Inputs, steps: int) -> None:
        self._graph, self._plan, self._steps = graph, plan, steps
        self._rows = [own.ids for own in inputs.invokes]
        constants = tuple(_Constant(as_tensor(own)) for own in graph.constants)
        source = _Source(graph.nodes, tuple(map(graph.where, range(len(graph)))), constants, table)
        self._shapes = [
            Shapes(source, lambda invoke, own, later=later: self._sizes(invoke, own, later=later))  # type: ignore[misc]
            for later in (False, True)
        ]
        for n, node in enumerate(graph.nodes):
            if node.kind == "input":
                self._given(n, as_tensor(inputs.named[node.target]).to("meta"))
            elif node.kind == "result":
                rows = len(self._own(node.invoke)) or 1
                self._given(n, torch.empty(rows, steps, dtype=torch.int64, device="meta"))

    def _given(self, n: int, value: torch.Tensor) -> None:
        for own in self._shapes:
            own.given(n, value)

    def total(self) -> int:
        """All of it."""
        held = self._plan.kept.union(self._plan.prelude, self._plan.crossing)
        return sum(self._of(n, held) for n in self._plan.needed)

    def _of(self, n: int, held: frozenset[int]) -> int:
        node = self._graph.nodes[n]
        if node.kind == "save":
            single = self._plan.steps[n] is None or ("single", True) in node.kwargs
            return max(self._size(n, 0), self._size(n, 1)) if single else self._entries(n)
        if node.kind == "carry":
            return max(self._size(n, 0), self._size(n, 1))
        if n not in held or node.kind == "parameter":
            return 0
        return self._entries(n) if n in self._plan.crossing else max(self._size(n, 0), self._size(n, 1))

    def _entries(self, n: int) -> int:
        """One a step."""
        start, end = self._plan.steps[n] or (0, None)
        last = self._steps if end is None else min(end, self._steps)
        return (self._size(n, 0) if start == 0 else 0) + max(0, last - max(1, start)) * self._size(n, 1)

    def _size(self, n: int, phase: int) -> int:
        try:
            found = self._shapes[phase].settled(n)
        except (GlassworksError, RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, KeyError):
            return 0  # it has none before it runs, or fails when it does
        return sum(own.nbytes for own in (found if isinstance(found, list | tuple) else [found]))

    def _own(self, invoke: int) -> list[Any]:
        """The rows of an invoke."""
        return [row for k, rows in enumerate(self._rows) if invoke in (ALL_ROWS, k) for row in rows]

    def _sizes(self, invoke: int, steps: Steps | None, *, later: bool) -> dict[str, int | None]:
        """Sizes of the axes of a site, over the prompt or at the last step."""
        own = self._own(invoke)
        longest = max(map(len, own), default=1)
        beyond = (later and steps != (0, 1)) or (steps is not None and steps[0] > 0)
        context = longest + (self._steps - 1 if beyond else 0)
        return {"batch": len(own) or 1, "seq": 1 if beyond else longest, "source": longest, "context": context}
