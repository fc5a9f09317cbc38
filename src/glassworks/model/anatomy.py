"""The standard sites of a Hugging Face model: the same names on every family, each a lens on a native event.

`parts` finds candidates in the table of native sites, `identity` chooses among them by numbers, and this file
gives them their names. What the numbers do not bear out is not named: it goes to `absent`, with the reason.

Surprises this file settles:
- A model without a head may have a native module whose path is a standard name (`layers.0.mlp` of a bare
  decoder). If the two mean different tensors, the name is the standard one, and the native site is spelled
  with `.call(0)`.
- The logits are what the model returns, not what its last linear module does: some families scale or cap it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from glassworks.graph.sites import Site, SiteTable
from glassworks.model.contexts import with_contexts
from glassworks.model.identity import (
    Evidence,
    check_identities,
    check_in_place,
    gather,
    gather_terms,
    sites_of,
    solve,
)
from glassworks.model.inside import Found, between, look_inside, to_look_into
from glassworks.model.materialised import with_probabilities
from glassworks.model.parts import (
    Block,
    Candidate,
    Passage,
    Span,
    Stack,
    find_embedding,
    find_norm,
    find_stacks,
    with_sublayers,
)
from glassworks.model.record import fake_model
from glassworks.model.runs import accepted, is_encoder_decoder, learned_positions, vocabulary
from glassworks.model.scan import scan

_STRETCHED = {"dynamic", "longrope"}
"""Rotary types whose numbers depend on the longest position in the batch."""

_TWO_STACKS = "the model has two stacks, encoder.layers and decoder.layers; write encoder.{name} or decoder.{name}"


@dataclass
class _Names:
    """Standard names found so far."""

    sites: dict[str, Site] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, site: Site | None) -> None:
        if site is not None:
            self.sites[name] = replace(site, name=name)

    def take(self, found: Found) -> None:
        """What stands inside a layer."""
        sites, modules, absent = found
        self.sites |= sites
        self.modules |= modules
        self.absent |= absent


def build_table(module: nn.Module, *, within: frozenset[str] = frozenset()) -> SiteTable:
    """The site table of a Hugging Face model, standard and native sites.

    Where no layers are found, only native sites are there, and `absent` says why. `within`: paths of modules whose own
    operations are sites too.

    Raises:
        ModelError: the model does not run on token ids.
    """
    table = _build(module, lambda native, sites: gather(module, native, sites)[0], within)
    return _without(table, {**check_identities(module, table), **check_in_place(module, table)})


def build_table_fake(build: Callable[[], nn.Module]) -> SiteTable:
    """The table of a model that is not loaded; `build` makes it, under a fake tensor mode.

    The same as `build_table` of the loaded model, where `terms` follows how its layers add.

    Raises:
        ModelError: the model needs numbers to run; load the weights and use `build_table`.
    """
    with fake_model(build) as module:
        return _build(module, lambda native, sites: gather_terms(module, native, sites), frozenset())


def _build(
    module: nn.Module, evidence_at: Callable[[SiteTable, list[Site]], Evidence], within: frozenset[str]
) -> SiteTable:
    two = is_encoder_decoder(module)
    native = scan(module, within=within)
    passage, stacks = _parts(module, native, two=two)
    more = to_look_into(passage, stacks) - within
    if more:
        native = scan(module, within=within | more)
    native = with_probabilities(module, with_contexts(module, native))
    passage, stacks = _parts(module, native, two=two)
    evidence = evidence_at(native, list(_compared(passage, stacks)))
    names = _Names()
    for name, stack in stacks.items():
        prefix = f"{name}." if name else ""
        for i, block in enumerate(stack.blocks):
            layer, (chosen, objection) = f"{prefix}layers.{i}", solve(evidence, block)
            _name_layer(names, layer, block, native, chosen, objection)
            adds_up = objection is None
            names.take(look_inside(layer, block, chosen, passage, stack, evidence, adds_up=adds_up))
    _name_ends(names, module, passage, stacks)
    _name_absent(names, module, native, stacks, two=two)
    return replace(
        _joined(native, names),
        family=str(getattr(module.config, "model_type", native.family)),
        layers={name: tuple(block.span.path for block in stack.blocks) for name, stack in stacks.items()},
        encoder_decoder=two,
        vocab=vocabulary(module),
        positions=learned_positions(module),
        arguments=accepted(module),
        shareable=not _is_stretched(module.config),
    )


def _parts(module: nn.Module, native: SiteTable, *, two: bool) -> tuple[Passage, dict[str, Stack]]:
    passage = Passage(module, native)
    stacks = find_stacks(passage, encoder_decoder=two)
    return passage, {name: with_sublayers(passage, stack) for name, stack in stacks.items()}


def _compared(passage: Passage, stacks: Mapping[str, Stack]) -> Iterator[Site]:
    """Sites whose values are compared."""
    for stack in stacks.values():
        for block in stack.blocks:
            yield from sites_of(block)
            yield from between(passage, stack, block)


def _name_layer(
    names: _Names,
    layer: str,
    block: Block,
    native: SiteTable,
    chosen: Mapping[str, Candidate],
    objection: str | None,
) -> None:
    names.modules[layer] = block.span.path
    names.add(f"{layer}.input", block.input)
    names.add(f"{layer}.output", block.output)
    for role, candidate in chosen.items():
        names.modules[f"{layer}.{role}"] = candidate.path
        names.add(f"{layer}.{role}.input", candidate.input)
        if objection is None:
            names.add(f"{layer}.{role}.output", candidate.output)
        else:
            names.absent[f"{layer}.{role}.output"] = objection
    kind = native.kinds[block.span.path]
    for role, what in (("attn", "attention"), ("mlp", "MLP")):
        if role in chosen:
            continue
        instead = ", ".join(candidates[0].path for candidates in block.others)
        hint = f"; it has {instead}" if instead else ""
        names.absent[f"{layer}.{role}"] = f"its {kind} has no {what} module{hint}"


def _name_ends(names: _Names, module: nn.Module, passage: Passage, stacks: Mapping[str, Stack]) -> None:
    """Embedding, final norm, head and logits."""
    since, preferred = 0, _path_of(module, _called(module, "get_input_embeddings"))
    for name, stack in stacks.items():
        prefix = f"{name}." if name else ""
        embed = find_embedding(passage, stack, vocabulary(module), preferred=preferred, since=since)
        if embed is None:
            names.absent[f"{prefix}embed"] = "no embedding of token ids runs before its layers"
        else:
            names.modules[f"{prefix}embed"] = embed.path
            names.add(f"{prefix}embed.output", passage.stream(embed.end, stack.tokens))
            if name != "encoder":
                names.add("ids", passage.table.sites.get(f"{embed.path}.input"))
        _name_norm(names, prefix, passage, stack, find_norm(passage, stack))
        since = stack.blocks[-1].span.end
    head = _path_of(module, _called(module, "get_output_embeddings"))
    if head is not None and passage.table.calls.get(head) == 1:
        names.modules["lm_head"] = head
        for port in ("input", "output"):
            names.add(f"lm_head.{port}", passage.table.sites.get(f"{head}.{port}"))
    else:
        names.absent["lm_head"] = f"{passage.table.kinds['']} has no head that maps to tokens"
    names.add("logits", passage.table.sites.get("output['logits']"))


def _name_norm(names: _Names, prefix: str, passage: Passage, stack: Stack, norm: Span | None) -> None:
    if norm is None:
        names.absent[f"{prefix}norm"] = "no norm runs after its last layer"
        return
    names.modules[f"{prefix}norm"] = norm.path
    names.add(f"{prefix}norm.input", passage.stream(norm.start, stack.tokens, stack.width))
    names.add(f"{prefix}norm.output", passage.stream(norm.end, stack.tokens, stack.width))


def _name_absent(
    names: _Names, module: nn.Module, native: SiteTable, stacks: Mapping[str, Stack], *, two: bool
) -> None:
    if "logits" not in names.sites:
        names.absent["logits"] = (
            f"{type(module).__name__} returns none; a model with a head does (AutoModelForCausalLM)"
        )
    for name in ("encoder", "decoder") if two else ("",):
        if name in stacks:
            continue
        prefix = f"{name}." if name else ""
        for part in ("layers", "embed", "norm"):
            names.absent[f"{prefix}{part}"] = (
                f"no list of modules in {native.family} maps a residual stream [batch, tokens, d] to another "
                f"one; use native paths"
            )
    if two:
        names.absent |= {name: _TWO_STACKS.format(name=name) for name in ("layers", "embed", "norm")}


def _joined(native: SiteTable, names: _Names) -> SiteTable:
    """Native and standard sites. A native site gives way to a standard name that means another tensor."""
    moved = {
        name: f"{name.rpartition('.')[0]}.call(0).{name.rpartition('.')[2]}"
        for name, site in native.sites.items()
        if ((standard := names.sites.get(name)) is not None and standard != site) or name in names.absent
    }
    sites = {moved.get(name, name): replace(s, name=moved.get(name, name)) for name, s in native.sites.items()}
    events = (
        tuple(replace(e, structure=_respelled(e.structure, moved)) for e in native.events) if moved else native.events
    )
    return replace(
        native,
        events=events,
        sites=sites | names.sites,
        modules=names.modules,
        absent={**native.absent, **names.absent},
    )


def _respelled(structure: Any, moved: Mapping[str, str]) -> Any:
    (kind, inner), *_ = structure.items()
    match kind:
        case "leaf":
            return {"leaf": moved.get(inner, inner)}
        case "tuple" | "list":
            return {kind: [_respelled(part, moved) for part in inner]}
        case "dict":
            return {kind: {key: _respelled(part, moved) for key, part in inner.items()}}
    return structure


def _without(table: SiteTable, reasons: Mapping[str, str]) -> SiteTable:
    """The table without the sublayers' outputs and the logits that a check refuted."""
    refuted = {
        name: why
        for name, why in reasons.items()
        if name == "logits" or name.endswith(".mid") or (name.endswith(".output") and _is_part(name))
    }
    if not refuted:
        return table
    sites = {name: site for name, site in table.sites.items() if name not in refuted}
    return replace(table, sites=sites, absent={**table.absent, **refuted})


def _is_part(name: str) -> bool:
    return name.rpartition(".")[0].rpartition(".")[2] in ("attn", "cross_attn", "mlp")


def _called(module: nn.Module, method: str) -> nn.Module | None:
    """What the method returns; some families raise instead of saying that they have none."""
    try:
        found = getattr(module, method)()
    except (NotImplementedError, AttributeError):
        return None
    return found if isinstance(found, nn.Module) else None


def _path_of(module: nn.Module, part: nn.Module | None) -> str | None:
    return next((path for path, child in module.named_modules() if child is part), None)


def _is_stretched(config: Any) -> bool:
    """Whether a configuration asks for a rotary type that depends on the longest position."""
    values = [getattr(config.get_text_config(), name, None) for name in ("rope_parameters", "rope_scaling")]
    return any(_mentions(value) for value in values)


def _mentions(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    kinds = {value.get("rope_type"), value.get("type")}
    return bool(kinds & _STRETCHED) or any(_mentions(inner) for inner in value.values())
