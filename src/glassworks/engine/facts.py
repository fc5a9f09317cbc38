"""What a graph allows an engine to do with its request: static properties, read off its plan.

- A graph that touches step 0 sees its prompt whole: it is not cut into chunks, takes over no beginning that somebody
  else computed, and is never computed again (its nodes run once).
- A graph that writes shapes the keys and values that follow: they are swapped, never computed again, and nobody else
  takes them over.
- Only what is one row of tokens in one forward pass shares a packed step; the rest runs by itself, between others.
- So does a graph that writes whole numbers: the model looks things up by them, and one that is out of range would make
  the model fail for all that share its pass.
"""

from dataclasses import dataclass

from glassworks.graph.backend import Generation, Inputs
from glassworks.graph.flow import WRITES
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import Node
from glassworks.graph.place import Plan
from glassworks.graph.sites import SiteTable


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one experiment.

    Attributes:
        touches: it looks at some step, or writes there. touches_prompt: that is step 0.
        writes: it changes what the model computes, at any step.
        why_alone: why it shares no forward pass with others; None: it does.
    """

    touches: bool
    touches_prompt: bool
    writes: bool
    why_alone: str | None


def facts_of(
    graph: Graph, plan: Plan, table: SiteTable, inputs: Inputs, generation: Generation | None, *,
    unlike: frozenset[str] = frozenset(),
) -> Facts:  # fmt: skip
    """The facts of a graph on given rows.

    Args:
        unlike: sites that a shared pass does not show as a lone run does.
    """
    touched = [
        n for forward in plan.forwards for event, own in forward.actions if event < len(table.events) for n in own
    ]
    nodes = graph.nodes
    return Facts(
        touches=bool(touched),
        touches_prompt=any(_at_prompt(plan, n) for n in touched),
        writes=any(nodes[n].kind in WRITES for n in touched),
        why_alone=_why_alone(plan, table, inputs, generation, [nodes[n] for n in touched], unlike),
    )


def _at_prompt(plan: Plan, n: int) -> bool:
    scope = plan.steps[n]
    return scope is None or scope[0] == 0


def _why_alone(
    plan: Plan, table: SiteTable, inputs: Inputs, generation: Generation | None, touched: list[Node],
    unlike: frozenset[str],
) -> str | None:  # fmt: skip
    if table.plain:
        return "its model reads no tokens"
    if len(inputs.invokes) != 1 or len(inputs.invokes[0].ids) != 1:
        return "it has several rows"
    if len(plan.forwards) != 1:
        return "it takes several forward passes"
    if inputs.invokes[0].kwargs:
        return "it has arguments for the model"
    if generation is not None and generation.options.get("num_beams", 1) != 1:
        return "it searches with beams"
    if plan.forwards[0].has_backward:
        return "it takes derivatives"
    for node in touched:
        site = table.sites.get(node.target) if node.kind in ("read", *WRITES) else None
        if site is not None and not (site.can_be_shared and site.has_rows):
            return f"rows cannot be told apart at {node.target}"
        if site is not None and node.kind in WRITES and site.dtype.startswith(("int", "uint")):
            return f"it writes whole numbers, by which the model looks things up, to {node.target}"
        if site is not None and node.target in unlike:
            return f"{node.target} is not in a pass that is shared what it is alone"
    return None
