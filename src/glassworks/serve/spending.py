"""The price of nodes whose size depends on numbers, right before they run.

The interpreter adds a node's line to what is raised here.
"""

from collections.abc import Mapping
from typing import Any

from glassworks.errors import UnknownOperation
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.price import Price
from glassworks.graph.sites import SiteTable
from glassworks.serve.pricing import NeedsValues, quote_now, tensors_in
from glassworks.serve.quote import Bill, module_price, within


class Spending:
    """What one request spends while it runs (a `watch.PriceNode`).

    Args:
        limits: what nodes and requests may cost; the sums here are of the nodes priced here.
        table: of the model.
    """

    def __init__(self, limits: Limits, table: SiteTable) -> None:
        self._bill, self._table = Bill(limits), table
        self._graph: Graph | None = None
        self._held: dict[int, int] = {}

    def __call__(self, graph: Graph, n: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """LimitExceeded: names the limit and both figures."""
        if graph is not self._graph:
            self._graph, self._held = graph, {}
        price = self._price(graph, n, args, kwargs)
        self._bill.node(price, 1, "")
        self._held[n] = price.bytes
        within("held_bytes", sum(self._held.values()), self._bill.limits.held_bytes, "")

    def _price(self, graph: Graph, n: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Price:
        node = graph.nodes[n]
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
