"""Who watches a run from outside: a service that prices what could not be priced before, and may call the run off.

A watch is set for the time of a run and belongs to the thread and context that runs; without one nothing is asked.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from glassworks.graph.graph import Graph


class Watch(Protocol):
    """What is told of a run as it goes. Whatever a method raises ends the run.

    Attributes:
        late: nodes of the experiment under way that are to be shown before they run.
    """

    late: frozenset[int]

    def experiment(self, graph: Graph) -> None:
        """An experiment begins."""

    def forward(self) -> None:
        """A forward pass, or a step of a generation, is about to run."""

    def node(self, n: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """One of the `late` nodes is about to run on these arguments."""


_WATCH: ContextVar[Watch | None] = ContextVar("glassworks_watch", default=None)


def watch() -> Watch | None:
    """The watch of this context."""
    return _WATCH.get()


@contextmanager
def watched(own: Watch) -> Iterator[None]:
    """Runs of the body are watched by `own`."""
    token = _WATCH.set(own)
    try:
        yield
    finally:
        _WATCH.reset(token)
