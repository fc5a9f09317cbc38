"""What gradients are followed through: from the values whose gradients are asked for, and the tensors that train, on.

A forward pass builds what derivatives need from the first such node on, and not before; a value that crosses to a later
pass, or to rows that run apart, brings its history along. So a gradient across passes is right.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from glassworks.graph.flow import Flow

if TYPE_CHECKING:
    from glassworks.graph.place import Forward


def followed(
    flow: Flow, ordered: Sequence[int], bases: frozenset[int], *, pass_of: Sequence[int], event_of: Sequence[int]
) -> frozenset[int]:
    """Nodes that a gradient may pass; none if no derivatives are taken.

    A read counts if it stands at or after the first such node of its pass: the model leads from one to the other.
    """
    nodes = flow.nodes
    if not any(nodes[n].kind == "backward" for n in ordered):
        return frozenset()
    found: set[int] = set()
    first: dict[int, int] = {}
    for n in sorted(ordered, key=lambda m: (pass_of[m], event_of[m], m)):
        node = nodes[n]
        behind = node.kind == "read" and event_of[n] >= first.get(pass_of[n], event_of[n] + 1)
        source = n in bases or (node.kind == "constant" and bool(node.target))
        if source or behind or not found.isdisjoint(node.deps):
            found.add(n)
            if event_of[n] >= 0:
                first.setdefault(pass_of[n], event_of[n])
    return frozenset(found)


def following(forwards: Sequence["Forward"], reached: frozenset[int], *, held: frozenset[int]) -> tuple["Forward", ...]:
    """The forwards, up to the last that takes derivatives told from which event on to build what these need.

    A tensor that the model holds must have been made while gradients were followed: that is from the event before on.
    """
    last = max((k for k, forward in enumerate(forwards) if forward.has_backward), default=-1)
    found = []
    for k, forward in enumerate(forwards):
        events = [event for event, own in forward.actions if k <= last and not reached.isdisjoint(own)]
        start = min(events, default=None)
        actions = forward.actions
        if start is not None and start in held:
            start -= 1
            actions = tuple(sorted({start: (), **dict(actions)}.items()))
        found.append(replace(forward, follows_from=start, actions=actions))
    return tuple(found)
