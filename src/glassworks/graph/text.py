"""The text form of a graph: one line a node, as a person would read it aloud.

%0  layers.1.mlp.output                      example.py:12
%1  setitem_(%0, [:, -1], 0)
%2  layers.1.mlp.output = %1
%3  save(%2) as 'lens'
"""

from typing import TYPE_CHECKING, Any

from glassworks.graph.nodes import Dtype, Listed, Node, Ref, Slice

if TYPE_CHECKING:
    from glassworks.graph.graph import Graph

_WIDTH = 64


def render(graph: "Graph") -> str:
    """The whole graph, with file and line at the right."""
    plural = "" if graph.invokes == 1 else "s"
    rows = [f"Graph of {len(graph.nodes)} nodes over {graph.invokes} invoke{plural}"]
    for position, node in enumerate(graph.nodes):
        line = graph.lines[position]
        where = f"{line.file.rpartition('/')[2]}:{line.number}" if line is not None else ""
        rows.append(f"  %{position:<3} {_node(node, graph):<{_WIDTH}} {where}".rstrip())
    return "\n".join(rows)


def _node(node: Node, graph: "Graph") -> str:
    scope = "" if node.invoke < 0 or graph.invokes == 1 else f"  invoke {node.invoke}"
    if node.steps is not None:
        scope += f"  steps {node.steps[0]}:{'' if node.steps[1] is None else node.steps[1]}"
    guards = [f"{'if' if wanted else 'unless'} %{predicate}" for predicate, wanted in node.when]
    return " ".join([_body(node, graph), *guards]) + scope


def _body(node: Node, graph: "Graph") -> str:
    given = [argument(item) for item in node.args]
    match node.kind:
        case "read":
            return node.target
        case "write":
            return f"{node.target} = {given[0]}"
        case "grad":
            return f"grad of {given[0]} by {given[1]}"
        case "grad_write":
            return f"grad of {given[0]} by {given[1]} = {given[2]}"
        case "item":
            return f"{given[0]}[{given[1]}]"
        case "constant":
            constant = graph.constants[node.args[0]]
            return f"constant {str(constant.dtype).removeprefix('torch.')}{list(constant.shape)}"
        case "save":
            options = "".join(f", {name}={value!r}" for name, value in node.kwargs if value not in (None, False))
            return f"save({given[0]}{options}) as {node.target!r}"
        case "cond":
            return f"{given[1]} if {given[0]} else {given[2]}"
        case "state":
            return f"state, at first {given[0]}"
        case "carried":
            return f"{given[0]} now"
        case "carry":
            return f"{given[0]} = {given[1]}"
        case "stop":
            return f"stop when {given[0]}"
        case "log":
            return f"log({', '.join(given)})"
        case "apply" | "effect":
            return f"{node.kind} {node.target}({', '.join(given[1:])})"
        case "call" if node.target.rstrip("_") in ("getitem", "setitem"):
            return f"{node.target}({given[0]}, [{index(node.args[1])}]{''.join(f', {g}' for g in given[2:])})"
        case "call" | "module":
            named = [f"{name}={argument(value)}" for name, value in node.kwargs]
            prefix = "model." if node.kind == "module" else ""
            return f"{prefix}{node.target}({', '.join(given + named)})"
    return " ".join([node.kind, *([node.target] if node.target else []), *given])


def argument(value: Any) -> str:
    """An argument as one would write it in Python, with `%n` for node n."""
    if type(value) is Ref:
        return f"%{value.node}"
    if type(value) is Slice:
        return ":".join("" if part is None else argument(part) for part in value[: 3 if value.step is not None else 2])
    if type(value) is Dtype:
        return value.name
    if value is Ellipsis:
        return "..."
    if type(value) is Listed:
        return f"[{', '.join(argument(item) for item in value)}]"
    if type(value) is tuple:
        return f"({', '.join(argument(item) for item in value)}{',' if len(value) == 1 else ''})"
    return repr(value)


def index(value: Any) -> str:
    """An index without its outer parentheses."""
    return ", ".join(argument(item) for item in value) if type(value) is tuple and value else argument(value)
