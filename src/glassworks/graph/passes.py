"""Graphs out of graphs."""

from dataclasses import replace
from typing import Any

from glassworks.graph.graph import Graph
from glassworks.graph.nodes import Listed, Node, Ref, Slice


def joined(first: Graph, second: Graph) -> Graph:
    """The nodes of `first`, then those of `second`: how an edit stands before a block."""
    by = (len(first.nodes), len(first.constants), len(first.functions))
    nodes = [*first.nodes, *[_moved(node, *by) for node in second.nodes]]
    return replace(
        second,
        nodes=tuple(nodes),
        lines=(*first.lines, *second.lines),
        constants=(*first.constants, *second.constants),
        functions=(*first.functions, *second.functions),
    )


def _moved(node: Node, by: int, constants: int, functions: int) -> Node:
    if node.kind == "constant":
        return node._replace(args=(node.args[0] + constants,))
    args = tuple(_shifted(item, by) for item in node.args)
    if node.kind in ("apply", "effect"):
        args = (args[0] + functions, *args[1:])
    kwargs = tuple((name, _shifted(item, by)) for name, item in node.kwargs)
    when = tuple((predicate + by, wanted) for predicate, wanted in node.when)
    return node._replace(args=args, kwargs=kwargs, deps=tuple(dep + by for dep in node.deps), when=when)


def _shifted(value: Any, by: int) -> Any:
    kind = type(value)
    if kind is Ref:
        return Ref(value.node + by)
    if kind is Slice:
        return Slice(*[_shifted(item, by) for item in value])
    if kind is tuple or kind is Listed:
        return kind(_shifted(item, by) for item in value)
    return value
