"""`model.run`: a stored graph over many prompts, in batches, its saves joined row by row.

Which axis of a saved value holds rows and which holds tokens is worked out on meta tensors of two sizes; so padding can
be taken off, ragged rows come back as lists, and means count real rows and tokens only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from glassworks.errors import GraphError
from glassworks.graph.backend import Backend, Generation, Inputs, Results, Rows, untaken
from glassworks.graph.graph import Graph
from glassworks.graph.logs import LogEntry
from glassworks.graph.nodes import Node
from glassworks.graph.sites import SiteTable
from glassworks.trace.shapes import Shapes
from glassworks.trace.tensors import TensorConstant, as_tensor

_SIZES: tuple[Mapping[str, int | None], ...] = (
    {"batch": 3, "seq": 7, "source": 11, "context": 13},
    {"batch": 4, "seq": 9, "source": 14, "context": 17},
)
_LABELS = {(3, 4): "batch", (7, 9): "seq", (11, 14): "source", (13, 17): "context"}


@dataclass(frozen=True, slots=True)
class _Source:
    """A stored graph in the place of a recorder."""

    nodes: tuple[Node, ...]
    lines: tuple[Any, ...]
    constants: tuple[Any, ...]
    table: SiteTable


def axes_of_saves(graph: Graph, table: SiteTable) -> dict[str, tuple[Any, ...]]:
    """Save name -> labels of its axes: `batch`, `seq`, `source`, `context`, or a size. Of many steps: of the first."""
    constants = tuple(TensorConstant(as_tensor(constant)) for constant in graph.constants)
    source = _Source(graph.nodes, graph.lines, constants, table)
    pair = [Shapes(source, partial(_sizes_at, sizes)) for sizes in _SIZES]
    found: dict[str, tuple[Any, ...]] = {}
    for n, node in enumerate(graph.nodes):
        if node.kind == "save":
            try:
                first, second = (shapes(n).shape for shapes in pair)
            except GraphError:  # its shape is known only when it runs
                found[node.target] = ()
                continue
            sizes = zip(first, second, strict=True)
            found[node.target] = tuple(a if a == b else _LABELS.get((a, b), "?") for a, b in sizes)
    return found


def _sizes_at(sizes: Mapping[str, int | None], invoke: int, steps: Any) -> Mapping[str, int | None]:
    """Steps after the first read one token."""
    return {**sizes, "seq": 1} if steps is not None and steps[0] > 0 else sizes


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
    labels = axes_of_saves(graph, table)
    saves = {}
    for node in graph.nodes:
        if node.kind == "save":
            join = _Join(node.target, chunks, labels[node.target], "source" if table.encoder_decoder else "seq")
            join_of = join.chosen if node.when else join.all
            saves[node.target] = join_of(
                [results.get(node.target) for results in done], dict(node.kwargs).get("reduce")
            )
    alive = tuple(rows_alive for results in done for rows_alive in results.alive)
    missing = untaken(graph, {name: value for name, value in saves.items() if value is not None})
    return Results(
        {name: value for name, value in saves.items() if name not in missing},
        sum(results.forwards for results in done),
        alive,
        logs=[entry for k, results in enumerate(done) for entry in _moved(results.logs, k * rows)],
        untaken=missing,
    )


def _moved(entries: Sequence[LogEntry], by: int) -> list[LogEntry]:
    """Entries of a later pass, with the numbers of its rows among all prompts."""
    return [replace(entry, rows=tuple([row + by for row in entry.rows])) for entry in entries]


@dataclass(frozen=True, slots=True)
class _Join:
    """How the parts of one save, a part a pass, become one value. `tokens`: the axis of the prompts' tokens."""

    name: str
    chunks: Sequence[Sequence[tuple[int, ...]]]
    labels: tuple[Any, ...]
    tokens: str

    def all(self, parts: Sequence[Any], reduce: str | None) -> Any:
        if not any(isinstance(part, list) for part in parts):
            return self.one(parts, reduce) if any(part is not None for part in parts) else []
        steps = max(len(part or []) for part in parts)
        parts = [part or [] for part in parts]
        return [self.one([part[k] if k < len(part) else None for part in parts], reduce) for k in range(steps)]

    def chosen(self, parts: Sequence[Any], reduce: str | None) -> Any:
        """The same of a save in a branch, which some passes may not have taken: None for their rows."""
        if all(part is None for part in parts):
            return None
        if "batch" not in self.labels:
            return self.all([part for part in parts if part is not None], reduce)
        if reduce is not None or not any(part is None for part in parts) or any(isinstance(p, list) for p in parts):
            return self.all(parts, reduce)
        pieces = [piece for part, chunk in zip(parts, self.chunks, strict=True) for piece in self._by_row(part, chunk)]
        return [None if piece is None else piece.squeeze(self.labels.index("batch")) for piece in pieces]

    def one(self, parts: Sequence[Any], reduce: str | None) -> Any:
        """The value of one step; a part that had ended by then is None, and its rows hold zeros."""
        if all(part is None for part in parts):
            return None
        if "batch" not in self.labels:
            if len(parts) == 1 and reduce is None:
                return parts[0]
            raise GraphError(
                f"the save {self.name!r} has no axis of rows that could be joined or reduced over {len(parts)} passes; "
                f"give it one, or raise rows="
            )
        pieces = [piece for part, chunk in zip(parts, self.chunks, strict=True) for piece in self._by_row(part, chunk)]
        if reduce is not None:
            return _reduced([piece for piece in pieces if piece is not None], self.labels, reduce)
        like = next(piece for piece in pieces if piece is not None)
        full = [torch.zeros_like(like) if piece is None else piece for piece in pieces]
        axis = self.labels.index("batch")
        if len({tuple(piece.shape) for piece in full}) == 1:
            return torch.cat(full, dim=axis)
        return [piece.squeeze(axis) for piece in full]

    def _by_row(self, part: torch.Tensor | None, chunk: Sequence[tuple[int, ...]]) -> list[torch.Tensor | None]:
        """A tensor a row, of that row's own tokens."""
        if part is None:
            return [None] * len(chunk)
        axis, longest = self.labels.index("batch"), max(len(row) for row in chunk)
        pieces: list[torch.Tensor | None] = []
        for k, ids in enumerate(chunk):
            piece = part.narrow(axis, k, 1)
            for other, label in enumerate(self.labels):
                size, padding = piece.shape[other], longest - len(ids)
                if (label == self.tokens and size == longest) or (label == "context" and self.tokens == "seq"):
                    piece = piece.narrow(other, padding, size - padding)
            pieces.append(piece)
        return pieces


def _reduced(pieces: Sequence[torch.Tensor], labels: tuple[Any, ...], reduce: str) -> torch.Tensor:
    """Over rows, and over real tokens where the value has them; in float64, given back in the value's own format."""
    axes = [k for k, label in enumerate(labels) if label in ("batch", "seq", "source", "context")]
    total = torch.stack([piece.double().sum(dim=axes) for piece in pieces]).sum(dim=0)
    if reduce == "mean":
        total = total / sum(math.prod(piece.shape[axis] for axis in axes) for piece in pieces)
    return total.to(pieces[0].dtype) if pieces[0].is_floating_point() else total
