"""The outer seam: a backend answers `sites()` and `run(...)`, and nobody above it can tell which one it is.

What goes in and comes out is plain data: prompts are token ids, tensors are constants (see `wire`).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from glassworks.errors import InputError, NotTaken
from glassworks.graph.graph import Graph
from glassworks.graph.logs import LogEntry
from glassworks.graph.nodes import Node
from glassworks.graph.sites import SiteTable

if TYPE_CHECKING:
    from glassworks.graph.jobs import Job


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one invoke.

    Attributes:
        ids: token ids, a tuple a row; empty for a module that reads no tokens.
        args: positional arguments of a plain module; tensors, numbers, and lists, tuples or dicts of them.
        kwargs: keyword arguments that go to the model.
    """

    ids: tuple[tuple[int, ...], ...] = ()
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a graph runs on: `invokes` in the order of the graph's, `named` tensors for its inputs.

    `rows` bounds the rows of one forward pass. `numbers` are those of the rows where these are some of many, else they
    count from 0: random nodes draw by them.
    """

    invokes: tuple[Rows, ...]
    named: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None
    numbers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and (type(self.rows) is not int or self.rows < 1):
            raise InputError(f"rows must be a positive int, got {self.rows!r}")


@dataclass(frozen=True, slots=True)
class Generation:
    """How to generate: at most `max_new_tokens` new tokens a row, and transformers' names for the rest."""

    max_new_tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 0:
            raise InputError(f"max_new_tokens must be an int of at least 0, got {self.max_new_tokens!r}")


@dataclass(frozen=True, slots=True)
class Results(Mapping[str, Any]):
    """Saved values by name: a tensor, or a list with an entry a step.

    Attributes:
        saves: what was kept.
        forwards: how many forward passes were run (a generation counts one a step).
        alive: of a generation, for each invoke, which rows were live at each step (a list of lists of bools).
        gradients: number of a captured tensor that trains -> what the backwards add to its `.grad`.
        logs: what `gw.log` said, in order.
        untaken: save of a branch that was not taken -> where it was written.
    """

    saves: Mapping[str, Any]
    forwards: int = 0
    alive: Sequence[Sequence[Sequence[bool]]] = ()
    gradients: Mapping[int, Any] = field(default_factory=dict)
    logs: Sequence[LogEntry] = ()
    untaken: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        if name in self.untaken:
            raise NotTaken(f"{name!r} was saved in a branch of gw.cond that was not taken\n  at {self.untaken[name]}")
        return self.saves[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.saves)

    def __len__(self) -> int:
        return len(self.saves)


def untaken(graph: Graph, saves: Mapping[str, Any]) -> dict[str, str]:
    """Saves that stand in a branch and are missing from the results -> where they were written."""
    named = [(n, node.target) for n, node in enumerate(graph.nodes) if node.when and node.kind == "save"]
    return {name: graph.where(n) for n, name in named if name not in saves}


class Backend(Protocol):
    """Where graphs run."""

    def sites(self, inputs: Inputs | None = None, *, within: frozenset[str] = frozenset()) -> SiteTable:
        """The model's site table; of a plain module, for inputs of these shapes.

        `within`: native paths of modules whose own operations are to be sites too.
        """

    def run(self, graph: Graph, inputs: Inputs, generation: Generation | None = None) -> Results:
        """Run an experiment and give its saves."""

    def run_session(self, experiments: Sequence["Experiment"]) -> list[Results]:
        """Run several, in order, as one job."""

    def submit(self, experiments: Sequence["Experiment"]) -> "Job":
        """Hand several over, to be run in order as one job; what is at hand runs them at once."""

    async def run_session_async(self, experiments: Sequence["Experiment"]) -> list[Results]:
        """As `run_session`, in a task: its event loop goes on meanwhile."""

    async def submit_async(self, experiments: Sequence["Experiment"]) -> "Job":
        """As `submit`, in a task."""

    def live(self, draft: "Draft", inputs: Inputs, *, within: frozenset[str] = frozenset()) -> "Live":
        """Begin to run an experiment while it is written. `within`: as for `sites`.

        Raises:
            GlassworksError: this backend cannot.
        """


class AtHand(ABC):
    """A backend of this process: a task lets a thread run what it has, so that its event loop goes on."""

    @abstractmethod
    def run_session(self, experiments: Sequence["Experiment"]) -> list[Results]:
        """See `Backend`."""

    @abstractmethod
    def submit(self, experiments: Sequence["Experiment"]) -> "Job":
        """See `Backend`."""

    async def run_session_async(self, experiments: Sequence["Experiment"]) -> list[Results]:
        """See `Backend`."""
        return await asyncio.to_thread(self.run_session, experiments)

    async def submit_async(self, experiments: Sequence["Experiment"]) -> "Job":
        """See `Backend`."""
        return await asyncio.to_thread(self.submit, experiments)


class Draft(Protocol):
    """A graph, or one that is still being written: what it has so far."""

    @property
    def nodes(self) -> Sequence[Node]: ...
    @property
    def lines(self) -> Sequence[Any]: ...
    @property
    def constants(self) -> Sequence[Any]: ...
    @property
    def invokes(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def functions(self) -> Sequence[Any]: ...
    def where(self, node: int) -> str: ...


class Live(Protocol):
    """One forward pass that stands still while its experiment is written.

    Attributes:
        event: where the pass stands; before the first event -1, after its end their number.
        table: the site table, whose events the pass goes through.
    """

    @property
    def event(self) -> int: ...
    @property
    def table(self) -> SiteTable: ...

    def look(self, table: SiteTable) -> None:
        """Go on with a table in which somebody looked into more modules; it numbers events anew."""

    def perform(self, n: int) -> None:
        """Run the draft's newest node; a site's, once the pass has come to its event, which must not lie behind."""

    def value(self, n: int) -> Any:
        """What a node has given; it is the run's own, not to be changed."""

    def results(self) -> Results:
        """Leave the pass where it stands, and the model as it was; gives what was saved."""

    def stop(self, *, from_finalizer: bool = False) -> None:
        """Leave the pass where it stands, and the model as it was; again does nothing."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One run of a session. `links`: name of an input -> (number of an earlier experiment, name of its save)."""

    graph: Graph
    inputs: Inputs
    generation: Generation | None = None
    links: Mapping[str, tuple[int, str]] = field(default_factory=dict)


def run_in_order(backend: Backend, experiments: Sequence[Experiment]) -> list[Results]:
    """A session on a backend that is at hand: one run after the other, values handed on."""
    done: list[Results] = []
    for experiment in experiments:
        done.append(backend.run(experiment.graph, linked(experiment, done), experiment.generation))
    return done


def linked(experiment: Experiment, done: Sequence[Results]) -> Inputs:
    """What an experiment of a session runs on, with the values that those before it hand on."""
    if not experiment.links:
        return experiment.inputs
    found = {name: done[number][save] for name, (number, save) in experiment.links.items()}
    return replace(experiment.inputs, named={**experiment.inputs.named, **found})
