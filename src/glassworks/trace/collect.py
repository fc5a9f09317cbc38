"""`model.run`: a stored graph over many prompts, a pass at a time.

This is the one loop over prompts: `run_over` joins its parts in memory, `stored` writes each to a file. Which axis of a
saved value holds rows and which holds tokens is worked out before anything runs, on meta tensors of two sizes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from glassworks.errors import GraphError
from glassworks.graph.backend import Backend, Experiment, Generation, Inputs, Results, Rows, untaken
from glassworks.graph.flow import Flow
from glassworks.graph.graph import Graph
from glassworks.graph.logs import LogEntry
from glassworks.graph.nodes import Node
from glassworks.graph.sites import SiteTable
from glassworks.trace.pieces import NOT_TAKEN, Form, Ids, Label, Part, Tokens
from glassworks.trace.shapes import Shapes
from glassworks.trace.tensors import TensorConstant, as_tensor
from glassworks.trace.waiting import Awaited

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


@dataclass(frozen=True, kw_only=True)
class Job:
    """A graph of one invoke over rows of ids, at most `rows` a pass."""

    backend: Backend
    graph: Graph
    prompts: Ids
    rows: int
    named: Mapping[str, Any]
    kwargs: Mapping[str, Any]
    generation: Generation | None

    def __post_init__(self) -> None:
        if self.graph.invokes != 1:
            raise GraphError(
                f"a graph to be run over prompts has one implicit invoke; this one has {self.graph.invokes}"
            )

    @cached_property
    def table(self) -> SiteTable:
        """The site table, with the operations that the graph names."""
        return self.backend.sites(within=self.graph.within)

    @cached_property
    def chunks(self) -> list[Ids]:
        """The rows of each pass."""
        return [self.prompts[start : start + self.rows] for start in range(0, len(self.prompts), self.rows)]

    def experiment(self, number: int) -> Experiment:
        """One of the passes."""
        own = (Rows(ids=tuple(self.chunks[number]), kwargs=self.kwargs),)
        inputs = Inputs(own, named=self.named, first_row=number * self.rows)
        return Experiment(self.graph, inputs, self.generation)

    def passes(self, numbers: Iterable[int]) -> Iterator[tuple[int, Ids, Results]]:
        """Run these passes, one after the other; gives the number of each, its rows and what came of it."""
        for number in numbers:
            own = self.experiment(number)
            yield number, self.chunks[number], self.backend.run(own.graph, own.inputs, own.generation)

    def parts(self, forms: Sequence[Form], chunk: Ids, results: Results) -> Iterator[tuple[Form, Part]]:
        """What one pass gave, save by save."""
        alive = results.alive[0] if self.generation is not None and results.alive else ()
        for form in forms:
            yield form, form.cut(results.get(form.name), chunk, alive)


def run_over(job: Job, done: Callable[[int], None]) -> Results:
    """Run a job and hold what comes of it in memory. `done` is told how many rows have been run."""
    return _joined(job, forms_of(job), job.passes(range(len(job.chunks))), done)


def submit_over(job: Job) -> Awaited:
    """Hand all passes over as one job, to be joined when somebody looks."""
    forms, numbers = forms_of(job), range(len(job.chunks))

    def join(found: list[Results]) -> Results:
        return _joined(job, forms, zip(numbers, job.chunks, found, strict=True), lambda rows: None)

    return Awaited(job.backend.submit([job.experiment(number) for number in numbers]), join)


def _joined(
    job: Job, forms: Sequence[Form], passes: Iterable[tuple[int, Ids, Results]], done: Callable[[int], None]
) -> Results:
    parts: dict[str, list[Part]] = {form.name: [] for form in forms}
    counts, alive, logs, forwards = list[int](), list[Any](), list[LogEntry](), 0
    for _, chunk, results in passes:
        for form, part in job.parts(forms, chunk, results):
            form.gather(parts[form.name], part)
        counts.append(len(chunk))
        alive += results.alive
        logs += results.logs
        forwards += results.forwards
        done(sum(counts))
    found = {form.name: form.join(parts[form.name], counts) for form in forms}
    saves = {name: value for name, value in found.items() if value is not NOT_TAKEN}
    return Results(saves, forwards, tuple(alive), logs=logs, untaken=untaken(job.graph, saves))


# What is known of the saves.


def forms_of(job: Job) -> list[Form]:
    """The forms of a graph's saves, in the order written.

    Raises:
        GraphError: rows of several passes could not be told apart.
    """
    graph, table = job.graph, job.table
    labels = _labels(graph, table)
    steps = Flow(graph, table, generating=True).steps if job.generation is not None else [None] * len(graph)
    found = []
    for n, node in enumerate(graph.nodes):
        if node.kind == "save":
            scope = steps[n]
            found.append(
                Form(
                    node.target, labels[n], "source" if table.encoder_decoder else "seq",
                    dict(node.kwargs).get("reduce"), scope[0] if scope is not None else None,
                    graph.nodes[node.deps[0]].kind == "result", bool(node.when),
                )
            )  # fmt: skip
            _check(found[-1], job, graph.where(n))
    return found


def _check(form: Form, job: Job, line: str) -> None:
    if form.axis is None and ((len(job.chunks) > 1 and not form.is_branch) or form.reduce is not None):
        raise GraphError(
            f"the save {form.name!r} has no axis of rows that could be joined or reduced over {len(job.chunks)} "
            f"passes; give it one, or raise rows=\n  at {line}"
        )
    is_padded = any(len(set(map(len, chunk))) > 1 for chunk in job.chunks)
    if form.axis is not None and is_padded and not form.start and "?" in (form.labels or ()):
        raise GraphError(
            f"the save {form.name!r} has an axis that depends on the length of the prompt in a way from which padding "
            f"cannot be taken off; keep its tokens on an axis of their own, or give rows=1\n  at {line}"
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
