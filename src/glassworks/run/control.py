"""What decides, while a run goes on, which nodes run and how far: guards, states that steps hand on, rows that stop.

Nothing here looks at the model. States live in the interpreter of one generation, by state and invoke; they change when
a step has ended, so that a step in two stages sees one state.
"""

from typing import TYPE_CHECKING, Any

import torch

from glassworks.errors import GraphError
from glassworks.graph.nodes import Node

if TYPE_CHECKING:
    from glassworks.run.interpret import Interpreter


class NotTakenType:
    """The value of a node in a branch that was not taken."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<in a branch that was not taken>"


NOT_TAKEN = NotTakenType()

CLOSING = frozenset({"carry", "stop"})
"""Kinds that take effect when their step has ended."""


def holds(predicate: torch.Tensor) -> bool:
    """Whether a predicate holds.

    Raises:
        GraphError: it has several elements.
    """
    if predicate.numel() != 1:
        raise GraphError(
            f"the predicate of gw.cond has one element, got shape {list(predicate.shape)}: reduce it (.any(), .all()), "
            f"or choose for each row with torch.where(pred, a, b)"
        )
    return bool(predicate)


def is_taken(node: Node, value_of: Any) -> bool:
    """Whether all guards of a node hold, asked from the outermost inwards."""
    for predicate, wanted in node.when:
        found = value_of(predicate)
        if found is NOT_TAKEN or holds(found) != wanted:
            return False
    return True


def chosen(node: Node, value_of: Any) -> Any:
    """The value of a condition; the other one is not touched."""
    predicate, a, b = node.operands
    return value_of(a if holds(value_of(predicate)) else b)


def carried(interpreter: "Interpreter", node: Node) -> Any:
    """A state now: the last assignment above that holds in this step, else what came into the step."""
    plan, step = interpreter.frame.plan, interpreter.step
    state, *carries = node.deps
    for carry in reversed(carries):
        scope = plan.steps[carry]
        if scope is None or (scope[0] <= step and (scope[1] is None or step < scope[1])):
            return interpreter.value(carry)
    found = interpreter.states.get((state, node.invoke))
    return interpreter.value(state) if found is None else found


def commit(interpreter: "Interpreter") -> None:
    """At the end of a step: what was assigned is what the next step starts with."""
    nodes = interpreter.frame.nodes
    for n in interpreter.closing:
        if nodes[n].kind == "carry":
            interpreter.states[nodes[n].deps[0], nodes[n].invoke] = interpreter.frame.values[n]


def stopped(interpreter: "Interpreter", like: torch.Tensor) -> torch.Tensor:
    """bool `[batch]`, in the form of `like`: the rows that a stop ended in this step."""
    found = torch.zeros_like(like)
    frame = interpreter.frame
    for n in interpreter.closing:
        if frame.nodes[n].kind == "stop" and frame.values[n] is not NOT_TAKEN:
            slot = interpreter.slots[frame.nodes[n].invoke]
            found[slot.start : slot.start + slot.count] |= frame.values[n].to(like.device)
    return found


def one_a_row(value: torch.Tensor, rows: int) -> torch.Tensor:
    """What `t.stop` was given as bool `[rows]`.

    Raises:
        GraphError: it is no truth value a row.
    """
    fits = value.numel() == rows and (value.ndim == 0 or value.shape[0] == rows or rows == 1)
    if value.dtype != torch.bool or not fits:
        raise GraphError(
            f"t.stop(when=) takes a truth value for each row, bool [batch] or [batch, 1]; got "
            f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} for {rows} row{'' if rows == 1 else 's'}. "
            f"Compare, and reduce the other axes: (value > 1).any(-1)"
        )
    return value.reshape(rows)
