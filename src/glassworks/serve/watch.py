"""What a service sees of a run under way: how far it is, whether to end it, and the nodes priced as they run."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glassworks.errors import Cancelled
from glassworks.graph.graph import Graph

PriceNode = Callable[[Graph, int, tuple[Any, ...], Mapping[str, Any]], None]
"""(graph, node, arguments, keywords): refuses a node that costs too much on what it is about to run on."""


def free(graph: Graph, n: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """The price of a node where nobody computes."""


class RunWatch:
    """Watches one request (a `run.watch.Watch`).

    Args:
        late: for each experiment, the nodes to be priced as they run.
        price: prices them.

    Attributes:
        forwards: how many forward passes have begun.
    """

    def __init__(self, late: Sequence[Sequence[int]], price: PriceNode) -> None:
        self.late: frozenset[int] = frozenset()
        self.forwards = 0
        self._price = price
        self._waiting = iter(late)
        self._graph = Graph(())
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the run before its next forward pass."""
        self._stopped.set()

    def experiment(self, graph: Graph) -> None:
        self._graph = graph
        self.late = frozenset(next(self._waiting, ()))

    def forward(self) -> None:
        if self._stopped.is_set():
            raise Cancelled("the run was cancelled")
        self.forwards += 1

    def node(self, n: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._price(self._graph, n, args, kwargs)
