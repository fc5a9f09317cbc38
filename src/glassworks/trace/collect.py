"""`model.run`: a stored graph over many prompts, a pass at a time.

This is the one loop over prompts: `run_over` joins its parts in memory, `stored` writes each to a file. The prompts of
a pass have one length: padding reads as 0, so that in a graph that mixes tokens a row would depend on the rows beside
it. What comes of it is in the order of the prompts; logs are in that of the passes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch

from glassworks.errors import GraphError
from glassworks.graph.backend import Backend, Experiment, Generation, Inputs, Results, Rows, untaken
from glassworks.graph.check_inputs import ROW_KEYWORDS
from glassworks.graph.graph import Graph
from glassworks.graph.logs import LogEntry
from glassworks.graph.sites import SiteTable
from glassworks.trace.forms import check_rows, forms_of
from glassworks.trace.pieces import NOT_TAKEN, Alive, Form, Ids, Part, alive_in_order


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
    def numbers(self) -> list[tuple[int, ...]]:
        """The rows of each pass, by number: of one length, in their order.

        The longest are first, so that a pass that does not fit into memory is met at once.
        """
        lengths = [len(ids) for ids in self.prompts]
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        equal = [list(own) for _, own in groupby(order, key=lambda row: lengths[row])]
        return [tuple(own[k : k + self.rows]) for own in equal for k in range(0, len(own), self.rows)]

    def chunk(self, number: int) -> Ids:
        """The rows of one pass."""
        return [self.prompts[row] for row in self.numbers[number]]

    def forms(self) -> list[Form]:
        """The forms of the saves, in the order written.

        Raises:
            GraphError: rows of several passes could not be told apart.
        """
        found = forms_of(self.graph, self.table, generating=self.generation is not None)
        for n, form in found.items():
            check_rows(form, len(self.numbers), self.graph.where(n))
        return list(found.values())

    def experiment(self, number: int) -> Experiment:
        """One of the passes."""
        kwargs = {name: self._argument(name, value, number) for name, value in self.kwargs.items()}
        own = (Rows(ids=tuple(self.chunk(number)), kwargs=kwargs),)
        inputs = Inputs(own, named=self.named, numbers=self.numbers[number])
        return Experiment(self.graph, inputs, self.generation)

    def passes(self, numbers: Iterable[int]) -> Iterator[tuple[int, Ids, Results]]:
        """Run these passes, one after the other; gives the number of each, its rows and what came of it."""
        for number in numbers:
            own = self.experiment(number)
            yield number, self.chunk(number), self.backend.run(own.graph, own.inputs, own.generation)

    def _argument(self, name: str, value: Any, number: int) -> Any:
        """What a pass is given of an argument of the model: its own rows of a tensor that has all on its first axis.

        Where there is a place for each token of the prompts, padded at the left, these are cut to the pass's own.
        """
        if not isinstance(value, torch.Tensor) or not value.ndim or len(value) != len(self.prompts):
            return value
        own = value[list(self.numbers[number])]
        return own[:, -len(self.chunk(number)[0]) :] if name in ROW_KEYWORDS and own.ndim > 1 else own

    def parts(self, forms: Sequence[Form], chunk: Ids, results: Results) -> Iterator[tuple[Form, Part]]:
        """What one pass gave, save by save."""
        alive = results.alive[0] if self.generation is not None and results.alive else ()
        for form in forms:
            yield form, form.cut(results.get(form.name), chunk, alive)


def run_over(job: Job, done: Callable[[int], None]) -> Results:
    """Run a job and hold what comes of it in memory. `done` is told how many rows have been run."""
    return _joined(job, job.forms(), job.passes(range(len(job.numbers))), done)


def handed_over(job: Job) -> tuple[list[Experiment], Callable[[list[Results]], Results]]:
    """All passes, to be run in order as one, and what makes one of their results."""
    forms, numbers = job.forms(), range(len(job.numbers))

    def join(found: list[Results]) -> Results:
        return _joined(job, forms, zip(numbers, map(job.chunk, numbers), found, strict=True), lambda rows: None)

    return [job.experiment(number) for number in numbers], join


def _joined(
    job: Job, forms: Sequence[Form], passes: Iterable[tuple[int, Ids, Results]], done: Callable[[int], None]
) -> Results:
    parts: dict[str, list[Part]] = {form.name: [] for form in forms}
    alive, logs, forwards, rows = list[Alive](), list[LogEntry](), 0, 0
    for _, chunk, results in passes:
        for form, part in job.parts(forms, chunk, results):
            form.gather(parts[form.name], part)
        rows += len(chunk)
        alive += results.alive
        logs += results.logs
        forwards += results.forwards
        done(rows)
    found = {form.name: form.join(parts[form.name], job.numbers) for form in forms}
    saves = {name: value for name, value in found.items() if value is not NOT_TAKEN}
    return Results(saves, forwards, (alive_in_order(alive, job.numbers),), logs=logs, untaken=untaken(job.graph, saves))
