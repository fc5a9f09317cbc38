"""What a service does while an experiment runs: it prices the nodes that nobody could price before.

The interpreter adds a node's line to what is raised here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from glassworks.errors import UnknownOperation
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.price import Price
from glassworks.graph.sites import SiteTable
from glassworks.serve.pricing import NeedsValues, quote_now, tensors_in
from glassworks.serve.quote import Bill, module_price, within


class RunWatch:
    """Watches one request.

    Args:
        limits: what nodes and requests may cost; the sums here are of the nodes priced here.
        late: for each experiment, the nodes to be priced as they run.
        table: of the model.
    """

    def __init__(self, limits: Limits, late: Sequence[Sequence[int]], table: SiteTable) -> None:
        self.late: frozenset[int] = frozenset()
        self._bill, self._table = Bill(limits), table
        self._waiting = iter(late)
        self._graph = Graph(())
        self._held: dict[int, int] = {}

    def experiment(self, graph: Graph) -> None:
        self._graph, self._held = graph, {}
        self.late = frozenset(next(self._waiting, ()))

    def forward(self) -> None:
        pass

    def node(self, n: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Price a node on what it is about to run on. LimitExceeded names the limit and both figures."""
        price = self._price(n, args, kwargs)
        self._bill.node(price, 1, "")
        self._held[n] = price.bytes
        within("held_bytes", sum(self._held.values()), self._bill.limits.held_bytes, "")

    def _price(self, n: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Price:
        node = self._graph.nodes[n]
        if node.kind == "module":
            return module_price(self._table, node.target, list(tensors_in((args, tuple(kwargs.values())))))
        if node.kind == "update":
            return Price(args[0].numel(), args[0].numel() * args[0].element_size())
        try:
            return quote_now(node.target, args, kwargs)
        except NeedsValues:
            raise UnknownOperation(
                f"{node.target}: what this call gives cannot be priced; give numbers where it takes sizes"
            ) from None
