"""What a generate block needs besides its own saves: the new tokens, and a second run that says nothing twice."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from glassworks.graph.flow import effects
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, NOTHING, Node, Ref

RESULT = "result"
"""The new tokens of invoke k are saved as `result.k`."""


def needs_all_steps(graph: Graph) -> bool:
    """Whether something is kept or said at every step, however many there will be."""
    endless: list[bool] = []
    for node in graph.nodes:
        own = node.steps is not None and node.steps[1] is None
        endless.append(own or (node.kind != "carried" and any(endless[d] for d in node.deps)))
    return any(endless[n] for n in effects(graph))


def with_results(graph: Graph) -> Graph:
    """The same graph that also saves the new tokens of each invoke."""
    nodes, lines = list(graph.nodes), list(graph.lines)
    for invoke in range(graph.invokes):
        nodes.append(Node("result", "", (), (), (), invoke, None))
        own = (Ref(len(nodes) - 1),)
        nodes.append(Node("save", f"{RESULT}.{invoke}", own, (("single", True),), (len(nodes) - 1,), ALL_ROWS, None))
        lines += [None, None]
    return replace(graph, nodes=tuple(nodes), lines=tuple(lines))


def without_effects(graph: Graph) -> Graph:
    """The same graph for a second run: what was said and done is not said and done again.

    Nodes keep their numbers, by which random ones draw.
    """
    quiet: dict[str, Callable[[Node], Node]] = {
        "log": lambda node: NOTHING,
        "effect": lambda node: node._replace(kind="apply"),
    }
    return replace(graph, nodes=tuple([quiet[node.kind](node) if node.kind in quiet else node for node in graph.nodes]))


def stacked(results: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of several invokes under each other; shorter ones are filled at the right with -1."""
    width = max(result.shape[1] for result in results)
    padded = [torch.nn.functional.pad(result, (0, width - result.shape[1]), value=-1) for result in results]
    return torch.cat(padded)
