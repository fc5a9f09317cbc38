"""Whether the parts of a model are what they are taken for: sums of recorded values, not names, decide.

`input + attention + MLP == output`, element by element, with an error of a few roundings of what is added. A
bound relative to the largest element would not do: in trained models a few elements of the residual are a
thousand times the rest, and would hide a wrong part. A model without numbers is judged by what its tensors
are sums of.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from glassworks.graph.sites import Site, SiteTable
from glassworks.model.parts import Block, Candidate
from glassworks.model.record import Item, listening, pick, undisturbed
from glassworks.model.runs import small_runs
from glassworks.model.terms import Combination, Ledger, combine

Place = tuple[int, Item]

_SCALED = "the layer multiplies what it adds to the residual by {:.4g}"
_OTHERWISE = (
    "input + attention + MLP is not the layer's output: the family normalises or scales after it adds, so "
    "what it adds to the residual is no module's output"
)


class Evidence(Protocol):
    """What is known of the tensors at some sites."""

    def objection(self, target: Site, parts: Sequence[Site]) -> str | None:
        """Why the tensors at `parts` do not add up to that at `target`; None: they do."""
        ...


class Numbers:
    """Copies of the tensors at some sites during one run."""

    def __init__(self, values: Mapping[Place, Tensor]) -> None:
        self._values = values

    def __getitem__(self, site: Site) -> Tensor:
        return self._values[site.order, site.item]

    def objection(self, target: Site, parts: Sequence[Site]) -> str | None:
        whole = self[target].double()
        first, *rest = [self[part].double().reshape(whole.shape) for part in parts]
        given, added = sum(rest, torch.zeros_like(whole)), whole - first
        bound = tolerance(self[target]) * sum((term.abs() for term in (first, *rest)), whole.abs())
        if bool(((added - given).abs() <= bound).all()):
            return None
        scale = float((added * given).sum() / given.square().sum().clamp_min(1e-30))
        close = bool(((added - scale * given).abs() <= bound).all())
        return _SCALED.format(scale) if close and rest else _OTHERWISE


class Terms:
    """What the tensors at some sites were sums of, each at its event."""

    def __init__(self, terms: Mapping[Place, Combination]) -> None:
        self._terms = terms

    def objection(self, target: Site, parts: Sequence[Site]) -> str | None:
        whole, first, *rest = (self._terms[site.order, site.item] for site in (target, *parts))
        given: Combination = {}
        for term in rest:
            given = combine(given, term, 1.0)
        added = combine(whole, first, -1.0)
        if not combine(added, given, -1.0):
            return None
        ratios = [added.get(atom, 0.0) / value for atom, value in given.items()]
        scaled = bool(ratios) and not combine(added, given, -ratios[0])
        return _SCALED.format(ratios[0]) if scaled else _OTHERWISE


def tolerance(tensor: Tensor) -> float:
    """Error allowed for each unit that is added: 1e-4 in float32, and a few roundings of coarser types."""
    return max(1e-4, 4 * torch.finfo(tensor.dtype).eps) if tensor.is_floating_point() else 0.0


def gather(module: nn.Module, table: SiteTable, sites: Iterable[Site]) -> tuple[Numbers, Any]:
    """Copies of what passes at the sites, and what the model returns, on a small run."""
    values: dict[Place, Tensor] = {}
    result = _visit(module, table, sites, lambda place, tensor: values.__setitem__(place, tensor.detach().clone()))
    return Numbers(values), result


def gather_terms(module: nn.Module, table: SiteTable, sites: Iterable[Site]) -> Terms:
    """What the tensors at the sites are sums of, on a small run; needs no numbers."""
    terms: dict[Place, Combination] = {}
    with Ledger() as ledger:
        _visit(module, table, sites, lambda place, tensor: terms.__setitem__(place, ledger.of(tensor)))
    return Terms(terms)


def _visit(module: nn.Module, table: SiteTable, sites: Iterable[Site], take: Callable[[Place, Tensor], None]) -> Any:
    wanted: dict[int, set[Item]] = {}
    for site in sites:
        wanted.setdefault(site.order, set()).add(site.item)

    def listener(path: str, port: str, call: int, value: Any) -> None:
        order = table.by_event.get((path, port, call), -1)
        for item in wanted.get(order, ()):
            take((order, item), pick(value, item))

    with undisturbed(module), listening(module, listener):
        return small_runs(module)[0].call(module)


def sites_of(block: Block) -> Iterator[Site]:
    """All sites that `solve` compares."""
    yield block.input
    yield block.output
    for candidates in (*block.roles.values(), *block.others):
        yield from (candidate.output for candidate in candidates)


def solve(evidence: Evidence, block: Block) -> tuple[dict[str, Candidate], str | None]:
    """The candidate of each role with which the layer adds up; or the first of each, and why none does."""
    objection: str | None = None
    for chosen in product(*block.roles.values(), *block.others):
        found = evidence.objection(block.output, [block.input, *(candidate.output for candidate in chosen)])
        if found is None:
            return dict(zip(block.roles, chosen, strict=False)), None
        if objection is None or found != _OTHERWISE:
            objection = found
    return {role: candidates[0] for role, candidates in block.roles.items()}, objection


def check_identities(module: nn.Module, table: SiteTable) -> dict[str, str]:
    """What does not hold of a model's standard sites, by the name of a site; empty if all is well.

    On a small run: input + attn.output (+ cross_attn.output) + mlp.output is the layer's output; each layer's
    output is the next one's input; `logits` is what the model returns. A layer without both sublayers is not
    judged.
    """
    sums, steps = _sums(table), _steps(table)
    names = {name for parts in sums.values() for name in parts} | {*sums, *steps, *steps.values(), "logits"}
    sites = {name: table.sites[name] for name in names if name in table.sites}
    evidence, result = gather(module, table, sites.values())
    reasons: dict[str, str] = {}
    for name, parts in sums.items():
        objection = evidence.objection(sites[name], [sites[part] for part in parts])
        if objection is not None:
            reasons |= dict.fromkeys((part for part in parts if part.endswith(".output")), objection)
    for name, before in steps.items():
        if {name, before} <= set(sites) and not torch.equal(evidence[sites[name]], evidence[sites[before]]):
            reasons[name] = f"it is not {before}: the model changes the residual between the two layers"
    if "logits" in sites and not torch.equal(evidence[sites["logits"]], result["logits"]):
        reasons["logits"] = "it is not what the model returns as its logits"
    return reasons


def check_in_place(module: nn.Module, table: SiteTable) -> dict[str, str]:
    """Which sites that are written in place the model does not go on with, by name, with the reason.

    On a small run every such site is changed; the layer's output must be the changed residual + MLP.
    """
    mids = {name: site for name, site in table.sites.items() if site.inplace}
    parts = {name: (f"{name[:-4]}.output", f"{name[:-4]}.mlp.output") for name in mids}
    values: dict[Place, Tensor] = {}

    def take(place: Place, tensor: Tensor) -> None:
        if any((site.order, site.item) == place for site in mids.values()):
            tensor.mul_(1.25)
        values[place] = tensor.detach().clone()

    if mids:
        names = {*mids, *(name for pair in parts.values() for name in pair)}
        _visit(module, table, [table.sites[name] for name in sorted(names)], take)
    evidence = Numbers(values)
    return {
        name: "the model does not go on with the tensor that stands there"
        for name, (whole, added) in parts.items()
        if evidence.objection(table.sites[whole], [table.sites[name], table.sites[added]]) is not None
    }


def unembed_is_plain(module: nn.Module, table: SiteTable) -> bool:
    """Whether lm_head(norm(last layer's output)) are the logits, within 1e-6, with nothing in between."""
    stack = "decoder" if table.encoder_decoder else ""
    prefix = f"{stack}." if stack else ""
    layers = layer_names(table, stack)
    ends = [f"{prefix}norm.input", f"{prefix}norm.output", "lm_head.input", "lm_head.output", "logits"]
    names = [f"{layers[-1]}.output", *ends] if layers else []
    if not names or not set(names) <= set(table.sites):
        return False
    evidence, _ = gather(module, table, (table.sites[name] for name in names))
    last, *values = (evidence[table.sites[name]] for name in names)
    return all(_same(*pair) for pair in zip((last, values[1], values[3]), values[::2], strict=True))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-6, atol=1e-6)


def layer_names(table: SiteTable, stack: str) -> list[str]:
    """Standard names of the layers of one stack."""
    prefix = f"{stack}." if stack else ""
    return [f"{prefix}layers.{i}" for i in range(len(table.layers.get(stack, ())))]


def _sums(table: SiteTable) -> dict[str, list[str]]:
    """Output of each layer -> its input and what it adds, where both attention and MLP are known."""
    sums = {}
    for layer in (name for stack in table.layers for name in layer_names(table, stack)):
        roles = [role for role in ("attn", "cross_attn", "mlp") if f"{layer}.{role}.output" in table.sites]
        if {"attn", "mlp"} <= set(roles):
            sums[f"{layer}.output"] = [f"{layer}.input", *(f"{layer}.{role}.output" for role in roles)]
    return sums


def _steps(table: SiteTable) -> dict[str, str]:
    """Input of each layer but the first -> output of the layer before."""
    pairs = [pair for stack in table.layers for pair in pairwise(layer_names(table, stack))]
    return {f"{after}.input": f"{before}.output" for before, after in pairs}
