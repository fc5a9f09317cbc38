"""What a stranger's experiments may ask for: decided from the request, the site table and the limits alone.

Everything is refused before any model work: what is over a limit, with both figures; what is not permitted or
not there, with the user's own line. Order errors are found by placing the graph, as it will be placed when it
runs.

Surprises:
- A string is an argument only where it is short (`reduction="mean"`, an einsum equation).
"""

from collections.abc import Callable
from typing import Any

from glassworks.errors import GlassworksError, GraphError, InputError, LimitExceeded, UnknownOperation
from glassworks.graph.arguments import plain_values, refusal
from glassworks.graph.backend import Experiment
from glassworks.graph.check_inputs import check_generation, check_inputs, leaves
from glassworks.graph.graph import Graph
from glassworks.graph.guards import check_branches, check_state
from glassworks.graph.limits import TEXT_CHARACTERS, Limits, check_text, within
from glassworks.graph.logs import CHARACTERS
from glassworks.graph.messages import Request
from glassworks.graph.nodes import Dtype, Node, Ref
from glassworks.graph.operations import look_up
from glassworks.graph.place import place_inputs
from glassworks.graph.sites import SiteTable
from glassworks.graph.wire import ITEM_BYTES, Absent, Blob

_KEYWORDS = "out device generator memory_format pin_memory requires_grad layout inplace max_norm"
REFUSED_KEYWORDS = frozenset(_KEYWORDS.split())
_ARGUMENTS = {
    "read": "", "write": "R", "skip": "R", "item": "Ri", "parameter": "", "constant": "i",
    "result": "", "backward": "R", "grad": "RR", "grad_write": "RRR", "save": "R",
    "cond": "RRR", "state": "R", "carry": "RR", "stop": "R",
}  # fmt: skip
"""Arguments by kind: R a node, i a number."""
_SAVE_KEYWORDS: dict[str, tuple[Any, ...]] = {
    "reduce": (None, "mean", "sum"),
    "single": (True, False),
    "each": (True, False),
}


def check_request(
    request: Request,
    table: SiteTable,
    limits: Limits,
    *,
    table_of: Callable[[Experiment], SiteTable] | None = None,
) -> None:
    """Refuse what is over a limit or cannot be; give nothing if all is well.

    `table_of` gives the site table for an experiment whose inputs are within the limits: of a plain module, by their
    shapes; with the operations that its graph names.

    Raises:
        LimitExceeded: names the limit and both figures.
        GraphError: a node that cannot be, with its line.
        InputError: prompts or arguments that cannot be used.
    """
    experiments = request.experiments
    within("experiments", len(experiments), limits.experiments, "send them in several requests")
    within(
        "nodes",
        sum(len(e.graph) for e in experiments),
        limits.nodes,
        "split the experiment into several requests",
    )
    taken = sum(node.kind == "backward" for e in experiments for node in e.graph.nodes)
    within("backwards", taken, limits.backwards, "take derivatives in several requests")
    _check_bytes(experiments, limits)
    for number, experiment in enumerate(experiments):
        try:
            _check_experiment(experiment, table, limits)
            _check_links(experiments, number)
            _check_graph(experiment, table_of(experiment) if table_of else table)
        except GlassworksError as error:
            if len(experiments) == 1:
                raise
            raise type(error)(f"experiment {number} of {len(experiments)}: {error}") from None


def _check_bytes(experiments: tuple[Experiment, ...], limits: Limits) -> None:
    sizes: dict[int, int] = {}
    for experiment in experiments:
        held: list[Any] = [*experiment.graph.constants, experiment.inputs.named]
        held += [part for rows in experiment.inputs.invokes for part in (rows.args, rows.kwargs)]
        sizes.update((id(blob), blob.size_bytes) for blob in leaves(held) if isinstance(blob, Blob | Absent))
    within(
        "constants_bytes",
        sum(sizes.values()),
        limits.constants_bytes,
        "send smaller tensors, or a narrower dtype",
    )


# Experiments.


def _check_experiment(experiment: Experiment, table: SiteTable, limits: Limits) -> None:
    graph, inputs = experiment.graph, experiment.inputs
    if len(inputs.invokes) != graph.invokes:
        raise InputError(f"the graph has {graph.invokes} invokes, and inputs for {len(inputs.invokes)} came with it")
    check_inputs(inputs, table, limits)
    if experiment.generation is not None:
        check_generation(experiment.generation, limits)
    given = {*inputs.named, *experiment.links}
    for n, node in enumerate(graph.nodes):
        if node.kind == "input" and node.target not in given:
            raise InputError(f"the input {node.target!r} is missing; given: {sorted(given)}\n  at {graph.where(n)}")


def _check_links(experiments: tuple[Experiment, ...], number: int) -> None:
    for name, (source, save) in experiments[number].links.items():
        if not 0 <= source < number:
            raise InputError(
                f"the input {name!r} is linked to experiment {source}; only those below {number} come earlier"
            )
        if save not in experiments[source].graph.saves:
            raise InputError(f"the input {name!r} is linked to {save!r}, which experiment {source} does not save")


# Graphs.


def _check_graph(experiment: Experiment, table: SiteTable) -> None:
    graph = experiment.graph
    for n, node in enumerate(graph.nodes):
        try:
            _check_node(node, graph, table)
        except (GraphError, LimitExceeded) as error:
            raise type(error)(f"{error}\n  at {graph.where(n)}") from None
    _check_names(graph)
    place_inputs(graph, table, experiment.inputs, generating=experiment.generation is not None)


def _check_names(graph: Graph) -> None:
    seen: dict[str, int] = {}
    for n, node in enumerate(graph.nodes):
        first = seen.setdefault(node.target, n) if node.kind == "save" else n
        if first != n:
            raise GraphError(f"two saves are named {node.target!r}\n  at {graph.where(first)}\n  at {graph.where(n)}")


def _check_node(node: Node, graph: Graph, table: SiteTable) -> None:
    if node.invoke >= graph.invokes:
        raise GraphError(f"invoke {node.invoke} is not among the graph's {graph.invokes}")
    _check_shape(node)
    check_branches(node, graph)
    for value in plain_values(node.args, node.kwargs):
        if isinstance(value, str):
            check_text(value, node.kind, CHARACTERS + 1 if node.kind == "log" else TEXT_CHARACTERS)
        if type(value) is Dtype and value.name not in ITEM_BYTES:
            raise GraphError(f"{value.name[:40]!r} is not a known dtype; known: {', '.join(ITEM_BYTES)}")
    check = _CHECKS.get(node.kind)
    if check is not None:
        check(node, graph, table)


def _check_shape(node: Node) -> None:
    """Whether the arguments are of the number and kind that nodes of this kind have."""
    pattern = _ARGUMENTS.get(node.kind)
    if pattern is None:
        return
    given = "".join("R" if type(item) is Ref else "i" if type(item) is int else "?" for item in node.args)
    if given != pattern:
        expected = pattern or "none"
        raise GraphError(f"a {node.kind} takes the arguments {expected} (R a node, i a number), got {given or 'none'}")
    if node.kwargs and node.kind != "save":
        raise GraphError(f"a {node.kind} takes no keywords, got {sorted(name for name, _ in node.kwargs)}")


def _check_call(node: Node, graph: Graph, table: SiteTable) -> None:
    _check_operation(node.target, node.args, node.kwargs)


def _check_operation(name: str, args: tuple[Any, ...], keywords: tuple[tuple[str, Any], ...]) -> None:
    """An operation and its arguments, the tensor that it works on first."""
    look_up(name)
    _check_keywords(name, keywords)
    refused = refusal(name, args, keywords)
    if refused is not None:
        raise UnknownOperation(refused)


def _check_keywords(name: str, keywords: tuple[tuple[str, Any], ...]) -> None:
    for keyword, value in keywords:
        if keyword in REFUSED_KEYWORDS and value not in (None, False):
            raise UnknownOperation(f"{name}: the argument {keyword[:40]}= is not permitted")


def _check_update(node: Node, graph: Graph, table: SiteTable) -> None:
    """`args` are (base, views, value); each view is (operation, arguments, keywords) and, of several results,
    which."""
    base_and_value = len(node.args) == 3 and type(node.args[0]) is Ref and type(node.args[2]) is Ref
    views = node.args[1] if base_and_value else None
    if type(views) is not tuple or not views or node.kwargs or not all(map(_is_view_step, views)):
        raise GraphError("an update takes a node, its views and a node; a view is (operation, arguments, keywords)")
    for view in views:
        if look_up(view[0]).cost != "view":
            raise GraphError(f"an update goes through views only, {view[0]!r} is none")
        _check_operation(view[0], (node.args[0], *view[1]), view[2])


def _is_view_step(view: Any) -> bool:
    if type(view) is not tuple or len(view) not in (3, 4) or not isinstance(view[0], str):
        return False
    if type(view[1]) is not tuple or type(view[2]) is not tuple or (len(view) == 4 and type(view[3]) is not int):
        return False
    return all(type(pair) is tuple and len(pair) == 2 and isinstance(pair[0], str) for pair in view[2])


def _check_site(node: Node, graph: Graph, table: SiteTable) -> None:
    event = table.event_of(table[node.target])
    if node.kind == "skip" and (event.port != "output" or (event.path, "input", event.call) not in table.by_event):
        raise GraphError(f"{node.target} is no output of a module, and cannot be skipped")


def _check_module(node: Node, graph: Graph, table: SiteTable) -> None:
    known = node.target in table.modules or node.target in table.children or node.target in table.kinds
    if node.target != "unembed" and not (node.target and known):
        raise GraphError(f"{table.family} has no module {node.target!r} (print the model for what it has)")
    _check_keywords(node.target, node.kwargs)


def _check_parameter(node: Node, graph: Graph, table: SiteTable) -> None:
    if node.target not in table.parameters:
        raise GraphError(f"{table.family} has no parameter {node.target!r} (print the model for what it has)")


def _check_input(node: Node, graph: Graph, table: SiteTable) -> None:
    """`args` are nothing, or the shape and the dtype that the author expects."""
    if node.kwargs or not (node.args == () or _is_shape_and_dtype(node.args)):
        raise GraphError(f"an input takes a shape and the name of a dtype, got {node.args!r}"[:200])


def _is_shape_and_dtype(args: tuple[Any, ...]) -> bool:
    if len(args) != 2 or type(args[0]) is not tuple or not isinstance(args[1], str):
        return False
    return args[1] in ITEM_BYTES and all(size is None or type(size) is int for size in args[0])


def _check_constant(node: Node, graph: Graph, table: SiteTable) -> None:
    if node.target not in ("", "trains"):
        raise GraphError(f"a constant is a captured tensor, which trains or not; got {node.target[:40]!r}")


def _check_save(node: Node, graph: Graph, table: SiteTable) -> None:
    for name, value in node.kwargs:
        if name not in _SAVE_KEYWORDS or not any(value is known or value == known for known in _SAVE_KEYWORDS[name]):
            raise GraphError(f"a save cannot have {name[:40]}={value!r}; known: {', '.join(_SAVE_KEYWORDS)}")


def _check_carried(node: Node, graph: Graph, table: SiteTable) -> None:
    if not node.args or node.kwargs or not all(type(item) is Ref for item in node.args):
        raise GraphError("a carried takes a state, and nodes that assign it")
    check_state(node, graph)


def _check_carry(node: Node, graph: Graph, table: SiteTable) -> None:
    check_state(node, graph)


def _check_log(node: Node, graph: Graph, table: SiteTable) -> None:
    if node.kwargs:
        raise GraphError(f"a log takes no keywords, got {sorted(name for name, _ in node.kwargs)}")


def _check_gradient(node: Node, graph: Graph, table: SiteTable) -> None:
    if graph.nodes[node.args[1].node].kind != "backward":
        raise GraphError("a gradient belongs to a backward, and this one names another node")


_Check = Callable[[Node, Graph, SiteTable], None]
_CHECKS: dict[str, _Check] = {
    "read": _check_site,
    "write": _check_site,
    "skip": _check_site,
    "call": _check_call,
    "update": _check_update,
    "input": _check_input,
    "module": _check_module,
    "parameter": _check_parameter,
    "constant": _check_constant,
    "save": _check_save,
    "carried": _check_carried,
    "carry": _check_carry,
    "log": _check_log,
    "grad": _check_gradient,
    "grad_write": _check_gradient,
}
