"""What stands inside a layer: the residual between its sublayers, attention's heads and probabilities, the neurons of
its MLP, the router of its experts.

Attention that goes through transformers' attention functions shows query, key and value; where such a function is
written out in plain operations, scores and probabilities as well. A family that computes attention in its own forward
shows its softmax as an operation there. What the last projection reads are the heads' outputs on every family.

Surprises this file settles:
- The residual between the sublayers is held by the model while a norm reads it: a write changes that very tensor in
  place, or it would reach the norm only.
- A router may return its logits beside the choice that it made from them: the site is the product inside it, which
  the choice follows.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from glassworks.graph.sites import Axis, Site, SiteTable
from glassworks.model.identity import Evidence
from glassworks.model.materialised import WHY_NONE
from glassworks.model.parts import Block, Candidate, Passage, Span, Stack

Chosen = Mapping[str, Candidate]
Found = tuple[dict[str, Site], dict[str, str], dict[str, str]]
"""Sites by standard name, native path of a standard module, and why a name is absent."""

_ROUTER = re.compile(r"gate$|router", re.IGNORECASE)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PARALLEL = "attention and MLP read the same residual, so nothing stands between them"
_OWN_ATTENTION = (
    "{kind} computes attention in its own forward, not through transformers' attention functions, so it is not shown"
)
_FUSED = "{kind} computes attention in one fused operation; load the model with attn_implementation='eager'"


def to_look_into(passage: Passage, stacks: Mapping[str, Stack]) -> frozenset[str]:
    """Modules whose own operations are to be recorded: routers, and attention that is not transformers' function."""
    found: set[str] = set()
    for stack in stacks.values():
        for block in stack.blocks:
            inner = passage.inside(block.span)
            attention = [span for span in inner if _attends(passage, span)]
            innermost = [s for s in attention if not any(s.start < o.start and o.end < s.end for o in attention)]
            found |= {s.path for s in innermost if (s.path, "query", s.call) not in passage.table.by_event}
            found |= {s.path for s in inner if _is_router(passage, s) and "tuple" in _returned(passage, s)}
    return frozenset(found)


def look_inside(
    layer: str, block: Block, chosen: Chosen, passage: Passage, stack: Stack, evidence: Evidence, *, adds_up: bool
) -> Found:
    """Everything inside one layer."""
    sites: dict[str, Site] = {}
    modules: dict[str, str] = {}
    absent: dict[str, str] = {}
    for role in ("attn", "cross_attn"):
        if role in chosen:
            _attention(f"{layer}.{role}", chosen[role], passage, stack, block, (sites, modules, absent))
    if "mlp" in chosen:
        _mlp(f"{layer}.mlp", block, chosen["mlp"], passage, stack, (sites, modules, absent))
    mid = _mid(block, chosen, passage, stack, evidence) if adds_up and {"attn", "mlp"} <= set(chosen) else None
    if mid is not None:
        sites[f"{layer}.mid"] = replace(mid, inplace=True)
    else:
        absent[f"{layer}.mid"] = _no_mid(chosen, adds_up=adds_up)
    return {name: replace(site, name=name) for name, site in sites.items()}, modules, absent


# The residual between the sublayers.


def _mid(block: Block, chosen: Chosen, passage: Passage, stack: Stack, evidence: Evidence) -> Site | None:
    added = [chosen[role].output for role in ("attn", "cross_attn") if role in chosen]
    start, end = max(site.order for site in added), chosen["mlp"].output.order
    for span in passage.spans:
        if not start < span.start < end:
            continue
        site = passage.stream(span.start, stack.tokens, stack.width)
        if site is not None and _stands_between(site, added, block, chosen, evidence):
            return site
    return None


def between(passage: Passage, stack: Stack, block: Block) -> Iterator[Site]:
    """Sites among which the residual between the sublayers is looked for."""
    for span in passage.inside(block.span):
        site = passage.stream(span.start, stack.tokens, stack.width)
        if site is not None:
            yield site


def _stands_between(site: Site, added: Sequence[Site], block: Block, chosen: Chosen, evidence: Evidence) -> bool:
    before = evidence.objection(site, [block.input, *added])
    return before is None and evidence.objection(block.output, [site, chosen["mlp"].output]) is None


def _no_mid(chosen: Chosen, *, adds_up: bool) -> str:
    if not {"attn", "mlp"} <= set(chosen):
        return "the layer has no attention and MLP to stand between"
    if not adds_up:
        return "input + attention + MLP is not the layer's output, so no residual stands between them"
    return _PARALLEL


# Attention.


def _attention(name: str, candidate: Candidate, passage: Passage, stack: Stack, block: Block, found: Found) -> None:
    sites, _, absent = found
    span = _innermost(passage, candidate.path)
    kind = passage.table.kinds[span.path]
    shown = {port: passage.table.sites.get(f"{span.path}.attention.{port}") for port in ("query", "key", "value")}
    for port, site in shown.items():
        if site is not None and len(site.axes) == 4:
            batch, heads, tokens, width = site.axes
            sites[f"{name}.heads.{port}"] = replace(site, axes=(batch, tokens, heads, width), swapped=True)
        else:
            absent[f"{name}.heads.{port}"] = _OWN_ATTENTION.format(kind=kind)
    _probabilities(name, span, kind, passage.table, found)
    _projection(name, span, passage, stack, block, found)


def _innermost(passage: Passage, path: str) -> Span:
    """The attention module at or inside a path that has no other in it."""
    inside = [s for s in passage.spans if s.path == path or s.path.startswith(f"{path}.")]
    attention = [span for span in inside if _attends(passage, span)] or inside
    return max(attention, key=lambda span: span.path.count("."))


def _attends(passage: Passage, span: Span) -> bool:
    """Whether a module is attention, and not one of its projections, which may be named after it."""
    return passage.is_attention(span) and passage.matrices(span) > 1


def _probabilities(name: str, span: Span, kind: str, table: SiteTable, found: Found) -> None:
    sites, _, absent = found
    for port, end in (("scores", "input"), ("probs", "output")):
        own = table.sites.get(f"{span.path}.attention.{port}")
        if own is None and f"{span.path}.op(softmax,1).output" not in table.sites:
            own = table.sites.get(f"{span.path}.op(softmax,0).{end}")
        if own is not None and len(own.axes) == 4 and own.has_rows:
            sites[f"{name}.{port}"] = own
            continue
        fused = (span.path, "query", span.call) not in table.by_event
        absent[f"{name}.{port}"] = _FUSED.format(kind=kind) if fused else WHY_NONE.format(kind=kind)


def _projection(name: str, span: Span, passage: Passage, stack: Stack, block: Block, found: Found) -> None:
    """What the first linear module after the heads were mixed reads, as heads."""
    sites, modules, absent = found
    mixed = _mixed(span, passage.table)
    linears = [s for s in passage.inside(block.span) if passage.matrices(s) == 1 and not _has_children(passage, s)]
    after = next((s for s in linears if mixed is not None and s.start > mixed.order), None)
    site = None if after is None else passage.stream(after.start, stack.tokens)
    heads = mixed.axes[1] if mixed is not None else None
    if after is None or site is None or not isinstance(heads, int) or int(site.axes[-1]) % heads:
        absent[f"{name}.heads.output"] = "no projection after its heads was found"
        return
    width = int(site.axes[-1]) // heads
    sites[f"{name}.heads.output"] = replace(site, axes=(*site.axes[:2], heads, width), heads=heads)
    modules[f"{name}.heads"] = after.path


def _mixed(span: Span, table: SiteTable) -> Site | None:
    """A tensor `[batch, heads, ...]` of the attention's own, after which its heads are mixed."""
    names = ("attention.probs", "attention.query", "op(softmax,0).output", "op(scaled_dot_product_attention,0).output")
    sites = (table.sites.get(f"{span.path}.{name}") for name in names)
    return next((site for site in sites if site is not None and len(site.axes) == 4), None)


def _has_children(passage: Passage, span: Span) -> bool:
    return any(passage.modules[span.path].children())


# The MLP.


def _mlp(name: str, block: Block, candidate: Candidate, passage: Passage, stack: Stack, found: Found) -> None:
    sites, modules, absent = found
    start = candidate.input.order if candidate.input is not None else block.span.start
    inner = [s for s in passage.inside(block.span) if start <= s.start and s.end <= candidate.output.order]
    router = next((span for span in inner if _is_router(passage, span)), None)
    if router is not None:
        absent[f"{name}.neurons"] = "it is a mixture of experts: each expert has neurons of its own"
        modules[f"{name}.router"] = router.path
        site = _logits_of(passage, router, stack)
        if site is not None:
            sites[f"{name}.router.output"] = site
        else:
            absent[f"{name}.router.output"] = f"{passage.table.kinds[router.path]} shows no logits of the experts"
        return
    absent[f"{name}.router"] = "it has no experts to choose from"
    down = [s for s in inner if passage.matrices(s) == 1 and not _has_children(passage, s)]
    last = next((s for s in reversed(down) if passage.stream(s.end, stack.tokens, stack.width)), None)
    neurons = None if last is None else passage.stream(last.start, stack.tokens)
    if neurons is not None:
        sites[f"{name}.neurons"] = neurons
    else:
        absent[f"{name}.neurons"] = "no projection back to the residual was found in it"


def _is_router(passage: Passage, span: Span) -> bool:
    count = _experts(passage.modules[""])
    named = _ROUTER.search(span.path.rpartition(".")[2]) or _ROUTER.search(passage.table.kinds[span.path])
    sites = passage.leaves.get(span.end, {}).values()
    return bool(named) and count > 0 and any(site.axes[-1:] == (count,) for site in sites)


def _experts(module: nn.Module) -> int:
    config: Any = getattr(module, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return next((int(n) for key in _EXPERTS if isinstance(n := getattr(config, key, None), int)), 0)


def _returned(passage: Passage, span: Span) -> Any:
    return passage.table.events[span.end].structure


def _logits_of(passage: Passage, router: Span, stack: Stack) -> Site | None:
    """Its output; of a router that chooses by itself, the product that it chooses by."""
    count: Axis = _experts(passage.modules[""])
    order = router.end
    if "tuple" in _returned(passage, router):
        order = passage.table.by_event.get((router.path, "op(linear,0).output", router.call), -1)
    return passage.stream(order, stack.tokens, count)
