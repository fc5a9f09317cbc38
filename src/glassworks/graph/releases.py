"""When values can be let go of."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from glassworks.graph.nodes import Node, Steps

if TYPE_CHECKING:
    from glassworks.graph.place import Forward


def releases(
    nodes: Sequence[Node], prelude: tuple[int, ...], forwards: Sequence["Forward"], bases: frozenset[int]
) -> dict[int, tuple[int, ...]]:
    """For each node the values that nothing needs once it has run (for the last time)."""
    last: dict[int, tuple[int, int, int]] = {}
    sequence = [(-1, 0, n) for n in prelude]
    sequence += [(k, event, n) for k, f in enumerate(forwards) for event, members in f.actions for n in members]
    kept = {n for n in prelude if nodes[n].kind == "constant" and nodes[n].target} | bases
    kept |= {d for _, _, n in sequence if nodes[n].kind in ("grad", "grad_write", "backward") for d in nodes[n].deps}
    final = {n: moment for moment in sequence for n in [moment[2]]}
    for moment in sequence:
        for d in nodes[moment[2]].deps:
            last[d] = moment
    found: dict[int, list[int]] = {}
    repeated = {n for n, times in Counter(n for _, _, n in sequence).items() if times > 1}
    for value, moment in last.items():
        if value not in kept and moment[2] not in repeated and final[moment[2]] == moment:
            found.setdefault(moment[2], []).append(value)
    return {n: tuple(values) for n, values in found.items()}


def kept_after_steps(
    nodes: Sequence[Node], forwards: Sequence["Forward"], steps: Sequence[Steps | None], *, result_event: int
) -> frozenset[int]:
    """Values of steps of a generation that are needed when their step has ended: those of one step that other steps
    use too, what another forward needs, and whatever meets the new tokens, which exist when all steps have ended."""
    found: set[int] = set()
    for forward in forwards:
        own = {n for _, members in forward.actions for n in members}
        for event, members in forward.actions:
            for user in members:
                for d in nodes[user].deps:
                    scope = steps[d]
                    single = scope is not None and scope[1] == scope[0] + 1
                    if event >= result_event or d not in own or (single and steps[user] != scope):
                        found.add(d)
    return frozenset(found)
