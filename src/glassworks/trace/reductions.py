"""`save(reduce=)` in a block that runs: over the rows of the save's invoke, its tokens and its live steps.

What a backend gives is the value itself; it is reduced here, in the same way as `model.run` reduces over passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from glassworks.errors import GraphError
from glassworks.graph.backend import Results, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS
from glassworks.graph.sites import SiteTable
from glassworks.trace.forms import check_padding, check_rows, forms_of
from glassworks.trace.pieces import Form, Ids, together


@dataclass(frozen=True, slots=True)
class Reductions:
    """The saves of a block that are reduced, each with the invoke whose rows it has."""

    forms: tuple[tuple[Form, int], ...]
    rows: tuple[Ids, ...]

    def __call__(self, results: Results) -> Results:
        """The results, with the reduced values in their places."""
        saves = dict(results.saves)
        for form, invoke in self.forms:
            if form.name in saves:
                chunk = [ids for own in self._of(invoke, self.rows) for ids in own]
                alive = together(self._of(invoke, results.alive))
                saves[form.name] = form.join([form.cut(saves[form.name], chunk, alive)], [range(len(chunk))])
        return replace(results, saves=saves) if self.forms else results

    def _of(self, invoke: int, each: Sequence[Any]) -> Sequence[Any]:
        return each if invoke == ALL_ROWS else each[invoke : invoke + 1]


def reductions_of(graph: Graph, table: SiteTable, rows: Sequence[Rows], *, generating: bool) -> Reductions:
    """What a block is to reduce once it has run.

    Raises:
        GraphError: a value has no rows that could be told apart.
    """
    wanted = [
        n for n, node in enumerate(graph.nodes) if node.kwargs and node.kind == "save" and "reduce" in dict(node.kwargs)
    ]
    if not wanted:
        return Reductions((), ())
    forms = forms_of(graph, table, generating=generating)
    ids = tuple(own.ids for own in rows)
    found = []
    for n in wanted:
        invokes = _invokes(graph, n)
        if len(invokes) != 1:
            raise GraphError(
                f"the save {forms[n].name!r} is to be reduced over its rows, and it is not of the rows of one invoke: "
                f"save it without reduce=, and reduce it after the block\n  at {graph.where(n)}"
            )
        [invoke] = invokes
        mine = ids if invoke == ALL_ROWS else ids[invoke : invoke + 1]
        check_rows(forms[n], 1, graph.where(n))
        check_padding(forms[n], [row for own in mine for row in own], graph.where(n))
        found.append((forms[n], invoke))
    return Reductions(tuple(found), ids)


def _invokes(graph: Graph, n: int) -> set[int]:
    """The invokes whose sites a node is computed from."""
    found: set[int] = set()
    waiting, seen = [n], set[int]()
    while waiting:
        node = graph.nodes[m := waiting.pop()]
        if m not in seen:
            seen.add(m)
            found |= {node.invoke} if node.kind in ("read", "result") else set()
            waiting += node.deps
    return found
