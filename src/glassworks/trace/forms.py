"""What is known of saves before anything runs: which of their axes are rows or tokens, and at which step they begin.

Shapes are worked out on meta tensors, twice, with sizes by whose differences the axes are told apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from glassworks.errors import GraphError
from glassworks.graph.flow import Flow
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import Node
from glassworks.graph.sites import SiteTable
from glassworks.trace.pieces import Form, Ids, Label, Tokens
from glassworks.trace.shapes import Shapes
from glassworks.trace.tensors import TensorConstant, as_tensor

_SIZES: tuple[Mapping[str, int], ...] = (
    {"batch": 31, "seq": 1009, "source": 2003, "context": 3001},
    {"batch": 37, "seq": 1013, "source": 2011, "context": 3013},
)
"""Large, so that a graph may speak of the twelfth token; their differences tell the axes apart."""
_SHORTER_BY = 256


@dataclass(frozen=True, slots=True)
class _Source:
    """A stored graph in the place of a recorder."""

    nodes: tuple[Node, ...]
    lines: tuple[Any, ...]
    constants: tuple[Any, ...]
    table: SiteTable


def forms_of(graph: Graph, table: SiteTable, *, generating: bool) -> dict[int, Form]:
    """The form of each save, by its node."""
    labels = _labels(graph, table)
    steps = Flow(graph, table, generating=True).steps if generating else [None] * len(graph)
    return {
        n: Form(
            name=node.target,
            labels=labels[n],
            tokens="source" if table.encoder_decoder else "seq",
            reduce=dict(node.kwargs).get("reduce"),
            start=None if (scope := steps[n]) is None else scope[0],
            is_result=graph.nodes[node.deps[0]].kind == "result",
            is_branch=bool(node.when),
        )
        for n, node in enumerate(graph.nodes)
        if node.kind == "save"
    }


def check_rows(form: Form, passes: int, line: str) -> None:
    """Refuse a save whose rows could not be joined over so many passes, before any is run.

    Raises:
        GraphError: with the line.
    """
    if form.axis is None and ((passes > 1 and not form.is_branch) or form.reduce is not None):
        raise GraphError(
            f"the save {form.name!r} has no axis of rows that could be joined or reduced over {passes} "
            f"pass{'' if passes == 1 else 'es'}; give it one, or run prompts of one length in one pass (rows=)"
            f"\n  at {line}"
        )


def check_padding(form: Form, chunk: Ids, line: str) -> None:
    """Refuse a save that padding could not be taken off, of rows that share a pass.

    Raises:
        GraphError: with the line.
    """
    is_padded = len(set(map(len, chunk))) > 1
    if form.axis is not None and is_padded and not form.start and "?" in (form.labels or ()):
        raise GraphError(
            f"the save {form.name!r} has an axis that depends on the length of the prompt in a way from which padding "
            f"cannot be taken off; keep its tokens on an axis of their own, or use model.run\n  at {line}"
        )


def _labels(graph: Graph, table: SiteTable) -> dict[int, tuple[Label, ...] | None]:
    """Node of a save -> the labels of its axes; of many steps as in the first."""
    constants = tuple(TensorConstant(as_tensor(constant)) for constant in graph.constants)
    source = _Source(graph.nodes, graph.lines, constants, table)
    pair = [Shapes(source, partial(_sizes_at, sizes)) for sizes in _SIZES]
    return {n: _labels_of(n, pair) for n, node in enumerate(graph.nodes) if node.kind == "save"}


def _sizes_at(sizes: Mapping[str, int], invoke: int, steps: Any) -> Mapping[str, int | None]:
    """Steps after the first read one token."""
    return {**sizes, "seq": 1} if steps is not None and steps[0] > 0 else sizes


def _labels_of(n: int, pair: Sequence[Shapes]) -> tuple[Label, ...] | None:
    """None where the shape depends on values, or only fits prompts of one size."""
    try:
        first, second = (shapes(n).shape for shapes in pair)
    except (GraphError, RuntimeError, IndexError, ValueError):
        return None
    return tuple(_label(a, b) for a, b in zip(first, second, strict=True))


def _label(first: int | None, second: int | None) -> Label:
    small, large = _SIZES
    if first == second:
        return first
    for name in ("batch", "batch*seq", "batch*source"):
        if (first, second) == (_size(name, small), _size(name, large)):
            return name
    for name in ("seq", "source", "context"):
        short = small[name] - first if first is not None else -1
        if 0 <= short < _SHORTER_BY and second == large[name] - short:
            return Tokens(name, short)
    return "?"


def _size(axis: str, sizes: Mapping[str, int]) -> int:
    product = 1
    for part in axis.split("*"):
        product *= sizes[part]
    return product
