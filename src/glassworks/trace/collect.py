"""`model.run`: a stored graph over many prompts, in batches, its saves joined row by row.

Which axis of a saved value holds rows and which holds tokens is worked out on meta tensors of two sizes; so padding can
be taken off, ragged rows come back as lists, and means count real rows and tokens only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from glassworks.errors import GraphError
from glassworks.graph.backend import Backend, Generation, Inputs, Results, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import Node
from glassworks.graph.sites import SiteTable
from glassworks.trace.shapes import Shapes
from glassworks.trace.tensors import TensorConstant, as_tensor

_SIZES: tuple[Mapping[str, int | None], ...] = (
    {"batch": 3, "seq": 7, "source": 11},
    {"batch": 4, "seq": 9, "source": 14},
)
_LABELS = {(3, 4): "batch", (7, 9): "seq", (11, 14): "source"}


@dataclass(frozen=True, slots=True)
class _Source:
    """A stored graph in the place of a recorder."""

    nodes: tuple[Node, ...]
    lines: tuple[Any, ...]
    constants: tuple[Any, ...]
    table: SiteTable


def axes_of_saves(graph: Graph, table: SiteTable) -> dict[str, tuple[Any, ...]]:
    """Save name -> the labels of its axes: `batch`, `seq`, `source`, or a size."""
    constants = tuple(TensorConstant(as_tensor(constant)) for constant in graph.constants)
    source = _Source(graph.nodes, graph.lines, constants, table)
    pair = [Shapes(source, partial(_always, sizes)) for sizes in _SIZES]
    found = {}
    for n, node in enumerate(graph.nodes):
        if node.kind == "save":
            first, second = (shapes(n).shape for shapes in pair)
            found[node.target] = tuple(
                a if a == b else _LABELS.get((a, b), "?") for a, b in zip(first, second, strict=True)
            )
    return found


def _always(sizes: Mapping[str, int | None], invoke: int, steps: Any) -> Mapping[str, int | None]:
    return sizes


def run_over(
    backend: Backend, table: SiteTable, graph: Graph, prompts: Sequence[tuple[int, ...]], *,
    rows: int, named: Mapping[str, Any], kwargs: Mapping[str, Any], generation: Generation | None,
) -> Results:  # fmt: skip
    """Run a graph of one invoke over rows of ids, at most `rows` a pass."""
    if graph.invokes != 1:
        raise GraphError(f"a graph to be run over prompts has one implicit invoke; this one has {graph.invokes}")
    chunks = [prompts[start : start + rows] for start in range(0, len(prompts), rows)]
    done = [
        backend.run(graph, Inputs((Rows(ids=tuple(chunk), kwargs=kwargs),), named=named), generation)
        for chunk in chunks
    ]
    labels = axes_of_saves(graph, table) if generation is None else {}
    values = {}
    for node in graph.nodes:
        if node.kind == "save":
            parts = [results[node.target] for results in done]
            options = dict(node.kwargs)
            values[node.target] = _join(node.target, parts, chunks, labels.get(node.target), options.get("reduce"))
    alive = tuple(rows_alive for results in done for rows_alive in results.alive)
    return Results(values, sum(results.forwards for results in done), alive)


def _join(
    name: str, parts: Sequence[Any], chunks: Sequence[Any], labels: tuple[Any, ...] | None, reduce: str | None
) -> Any:
    if labels is None or "batch" not in labels:
        if len(parts) == 1 and reduce is None:
            return parts[0]
        raise GraphError(
            f"the save {name!r} has no axis of rows that could be joined or reduced over {len(chunks)} passes; "
            f"give it one, or raise rows="
        )
    pieces = [piece for part, chunk in zip(parts, chunks, strict=True) for piece in _by_row(part, chunk, labels)]
    if reduce is not None:
        return _reduced(pieces, labels, reduce)
    axis = labels.index("batch")
    if len({tuple(piece.shape) for piece in pieces}) == 1:
        return torch.cat(pieces, dim=axis)
    return [piece.squeeze(axis) for piece in pieces]


def _by_row(part: torch.Tensor, chunk: Sequence[tuple[int, ...]], labels: tuple[Any, ...]) -> list[torch.Tensor]:
    """A tensor a row, of that row's own tokens."""
    axis = labels.index("batch")
    tokens = "source" if "source" in labels else "seq"
    pieces = []
    for k, ids in enumerate(chunk):
        piece = part.narrow(axis, k, 1)
        for other, label in enumerate(labels):
            if label == tokens and piece.shape[other] == max(len(row) for row in chunk):
                piece = piece.narrow(other, piece.shape[other] - len(ids), len(ids))
        pieces.append(piece)
    return pieces


def _reduced(pieces: Sequence[torch.Tensor], labels: tuple[Any, ...], reduce: str) -> torch.Tensor:
    """Over rows, and over real tokens where the value has them; in float64, given back in the value's own format."""
    axes = [k for k, label in enumerate(labels) if label in ("batch", "seq", "source")]
    total = torch.stack([piece.double().sum(dim=axes) for piece in pieces]).sum(dim=0)
    if reduce == "mean":
        count = 0
        for piece in pieces:
            own = 1
            for axis in axes:
                own *= piece.shape[axis]
            count += own
        total = total / count
    return total.to(pieces[0].dtype) if pieces[0].is_floating_point() else total
