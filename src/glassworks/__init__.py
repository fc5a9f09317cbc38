"""Glassworks: look inside large models, change what they compute, and run, share, train and shrink them.

    import glassworks as gw

    model = gw.load("toy")
    with model.trace("The Eiffel Tower is in the city of") as t:
        model.layers[1].mlp.output[:, -1] = 0
        top = model.logits[:, -1].argmax(-1).save()
    print(model.decode(top))

Importing this has no effects and imports no torch: names are looked up when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glassworks.errors import (
    BudgetExceeded,
    Cancelled,
    GlassworksError,
    GraphError,
    InputError,
    LimitExceeded,
    ModelError,
    NotSaved,
    NotTaken,
    OrderError,
    QuotaExceeded,
    RemoteError,
    ScopeError,
    Unauthorized,
    UnknownOperation,
    UnknownSite,
    WireError,
    WriteError,
)

if TYPE_CHECKING:
    from glassworks.engine.engine import Engine
    from glassworks.engine.requests import Reply, Request
    from glassworks.graph.graph import Graph
    from glassworks.graph.operations import operations
    from glassworks.loading import load, wrap
    from glassworks.measure.table import CostTable
    from glassworks.memory.budget import KVBudget
    from glassworks.schedule.arrivals import arrivals
    from glassworks.schedule.simulate import simulate
    from glassworks.serve.connect import connect
    from glassworks.trace.block import input
    from glassworks.trace.branches import cond
    from glassworks.trace.effects import apply, log
    from glassworks.trace.facade import Model
    from glassworks.trace.stored import results
    from glassworks.trace.structured import values
    from glassworks.trace.value import Value

__version__ = "0.1.0"

_HOMES = {
    "CostTable": "glassworks.measure.table",
    "Engine": "glassworks.engine.engine",
    "Graph": "glassworks.graph.graph",
    "KVBudget": "glassworks.memory.budget",
    "Model": "glassworks.trace.facade",
    "Reply": "glassworks.engine.requests",
    "Request": "glassworks.engine.requests",
    "Value": "glassworks.trace.value",
    "apply": "glassworks.trace.effects",
    "arrivals": "glassworks.schedule.arrivals",
    "cond": "glassworks.trace.branches",
    "connect": "glassworks.serve.connect",
    "input": "glassworks.trace.block",
    "load": "glassworks.loading",
    "log": "glassworks.trace.effects",
    "operations": "glassworks.graph.operations",
    "results": "glassworks.trace.stored",
    "simulate": "glassworks.schedule.simulate",
    "values": "glassworks.trace.structured",
    "wrap": "glassworks.loading",
}

__all__ = [
    "BudgetExceeded", "Cancelled", "CostTable", "Engine", "GlassworksError", "Graph", "GraphError", "InputError",
    "KVBudget", "LimitExceeded", "Model", "ModelError", "NotSaved", "NotTaken", "OrderError", "QuotaExceeded",
    "RemoteError", "Reply", "Request", "ScopeError", "Unauthorized", "UnknownOperation", "UnknownSite", "Value",
    "WireError", "WriteError", "apply", "arrivals", "cond", "connect", "input", "load", "log", "operations", "results",
    "simulate", "values", "wrap",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"glassworks has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext glassworks`: graphs, models, results and values are drawn in a notebook."""
    from glassworks.notebook import register

    register(ipython)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
