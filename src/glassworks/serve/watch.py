"""What a service sees of a run under way: how far it is, whether to end it, and the nodes priced as they run."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glassworks.errors import Cancelled, LimitExceeded
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
        run_s: how long it may take, where it has the model for itself; None: somebody else counts.
        job: its name.

    Attributes:
        forwards: how many forward passes have begun. since_s: when the last did, by `time.perf_counter()`.
        number: of the experiment that is under way.
    """

    def __init__(
        self, late: Sequence[Sequence[int]], price: PriceNode, *, run_s: float | None = None, job: str = ""
    ) -> None:
        self.late: frozenset[int] = frozenset()
        self.forwards, self.number = 0, -1
        self.job = job
        self.since_s = self._began_s = time.perf_counter()
        self._price, self._run_s = price, run_s
        self._waiting = iter(late)
        self._graph = Graph(())
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the run before its next forward pass."""
        self._stopped.set()

    def experiment(self, graph: Graph) -> None:
        self._graph, self.number = graph, self.number + 1
        self.late = frozenset(next(self._waiting, ()))

    def forward(self) -> None:
        if self._stopped.is_set():
            raise Cancelled("the run was cancelled")
        self.since_s = time.perf_counter()
        if self._run_s is not None and self.since_s - self._began_s > self._run_s:
            raise too_long(self.since_s - self._began_s, self._run_s)
        self.forwards += 1

    def node(self, n: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._price(self._graph, n, args, kwargs)


def too_long(computed_s: float, run_s: float) -> LimitExceeded:
    """What ends a job that has computed for longer than one may."""
    return LimitExceeded(
        f"run_s: the job has computed for {computed_s:.1f} s, {run_s} s are allowed; ask for fewer tokens or steps, or "
        f"make several jobs of it"
    )
