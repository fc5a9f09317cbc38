"""`model.run`: a stored graph over many prompts, a pass at a time.

This is the one loop over prompts: `run_over` joins its parts in memory, `stored` writes each to a file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from glassworks.errors import GraphError
from glassworks.graph.backend import Backend, Experiment, Generation, Inputs, Results, Rows, untaken
from glassworks.graph.graph import Graph
from glassworks.graph.logs import LogEntry
from glassworks.graph.sites import SiteTable
from glassworks.trace.forms import check_rows, forms_of
from glassworks.trace.pieces import NOT_TAKEN, Form, Ids, Part
from glassworks.trace.waiting import Awaited


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

    def forms(self) -> list[Form]:
        """The forms of the saves, in the order written.

        Raises:
            GraphError: rows of several passes could not be told apart.
        """
        found = forms_of(self.graph, self.table, generating=self.generation is not None)
        for n, form in found.items():
            check_rows(form, self.chunks, self.graph.where(n))
        return list(found.values())

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
    return _joined(job, job.forms(), job.passes(range(len(job.chunks))), done)


def submit_over(job: Job) -> Awaited:
    """Hand all passes over as one job, to be joined when somebody looks."""
    forms, numbers = job.forms(), range(len(job.chunks))

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
