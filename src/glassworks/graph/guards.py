"""Whether the control nodes of a graph make sense: branches that keep their values, states that are states.

What a branch computes exists only if the branch is taken. So a node may use a value of a branch only if it stands in
that branch itself, or is the condition that chooses between the two.
"""

from glassworks.errors import GraphError
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import Guards, Node


def check_branches(node: Node, graph: Graph) -> None:
    """Refuse a node that uses what may not exist. GraphError."""
    for k, used in enumerate(node.operands):
        allowed = _inside(node, k)
        own = graph.nodes[used].when
        if own != allowed[: len(own)]:
            raise GraphError(f"node {used} stands in a branch that may not be taken, and is used outside of it")
    for depth, (predicate, _) in enumerate(node.when):
        own = graph.nodes[predicate].when
        if own != node.when[:depth][: len(own)]:
            raise GraphError(f"the predicate {predicate} stands in a branch that may not be taken")


def _inside(node: Node, k: int) -> Guards:
    """The guards under which a node's k-th operand is looked at."""
    if node.kind == "cond" and k > 0:
        return (*node.when, (node.operands[0], k == 1))
    return node.when


def check_state(node: Node, graph: Graph) -> None:
    """Refuse a `carried` or a `carry` that does not belong to a state. GraphError."""
    state, *others = node.operands
    if graph.nodes[state].kind != "state":
        raise GraphError(
            f"a {node.kind} belongs to a state, and this one names node {state}, a {graph.nodes[state].kind}"
        )
    for other in others if node.kind == "carried" else ():
        own = graph.nodes[other]
        if own.kind != "carry" or own.deps[0] != state or own.invoke != node.invoke:
            raise GraphError(f"a state is read after its own assignments, and node {other} is none of them")
