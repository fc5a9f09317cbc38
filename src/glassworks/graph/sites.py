"""The site table: every place of a model that an experiment can name, as plain data.

A forward pass is a sequence of *events*: a module is about to run (`input`) or has run (`output`). An event has one
current value, often a structure; a *site* is a lens on it: which item of the structure, and with which axes. Two
names for one tensor are two sites on one event, so that a write through one name is seen through the other.

Axes are labelled: an int is a constant size, a string says what the size depends on:

    batch        rows                       seq          tokens (of the decoder, where there are two)
    source       tokens of the encoder      batch*seq    rows and tokens folded into one axis, rows first
    context      tokens that attention looks back at: those of `seq` and, in a generation, all before them
    ?            not proven: the site can be read and written only where nobody shares the pass
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from glassworks.errors import UnknownSite

Axis = int | str
Port = str
"""What passes at an event: `input` and `output` of a module; inside an attention module `query`, `key`, `value` (what
attention is computed from), `scores`, `probs`; of an operation in a module's forward, `op(softmax,0).input`, say."""
ATTENTION_PORTS = ("query", "key", "value", "scores", "probs")
FOLDED = {"batch*seq": ("batch", "seq"), "batch*source": ("batch", "source")}
UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Event:
    """A module (by path) is about to run or has run, or something passes inside it, in its `call`-th call of a pass.

    `structure` spells what passes there: `{"leaf": site name}` for a tensor, `{"tuple": [...]}`, `{"list": [...]}`,
    `{"dict": {...}}` for a mapping or a `ModelOutput`, `{"other": type name}` for anything else.
    """

    path: str
    port: Port
    call: int
    structure: Any


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor at an event. `order` is the event's place in the forward pass, `item` the keys that lead to it.

    `unfold`: the event holds rows and tokens folded into one axis and the site shows two. `heads`: the event's last
    axis is shown as so many heads. `swapped`: the event has heads before tokens, the site after. `mutated`: the model
    changes the tensor in place after the event, so that whoever keeps it must copy it. `inplace`: the model goes on
    with this very tensor elsewhere, so a write changes it in place. `storage`: sites of one number share memory, so
    that one of them may be given away uncopied; -1: memory of the model's, the caller's, or unknown.
    """

    name: str
    order: int
    item: tuple[int | str, ...]
    axes: tuple[Axis, ...]
    dtype: str
    unfold: bool = False
    mutated: bool = False
    storage: int = -1
    heads: int = 0
    swapped: bool = False
    inplace: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the site shows what passes at its event as it is, and may be kept as it is."""
        return not (self.mutated or self.unfold or self.heads or self.swapped)

    @property
    def can_be_shared(self) -> bool:
        """Whether rows of one request can be told from those of another by the axes alone.

        An operation inside a module is seen with whatever axes the family gave it there: nobody shares its pass.
        """
        return UNKNOWN not in self.axes and ".op(" not in self.name

    @property
    def has_rows(self) -> bool:
        return any(axis == "batch" or axis in FOLDED for axis in self.axes)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Sizes of the axes, given those of `batch`, `seq`, `source`. KeyError names one that is not known."""
        return tuple(axis if isinstance(axis, int) else _size(axis, sizes) for axis in self.axes)


def _size(axis: str, sizes: Mapping[str, int]) -> int:
    if axis in FOLDED:
        rows, tokens = FOLDED[axis]
        return sizes[rows] * sizes[tokens]
    return sizes[axis]


@dataclass(frozen=True)
class SiteTable:
    """All events in the order of a forward pass, and all sites by name.

    Attributes:
        family: what the model calls itself.
        layers: path of each layer by stack (`""`, or `encoder` and `decoder`).
        modules: standard module name -> native path.
        absent: site or module name -> why it cannot be had.
        calls: native path -> how often a forward pass calls it (0: never).
        children: native path -> names of its children, in the order of definition.
        kinds: native path -> name of the module's class.
        parameters: name -> (dtype, shape).
        widths: native path of a module with one tensor in and one out -> (size of the last axis in, out).
        encoder_decoder: whether a forward pass reads two sequences.
        plain: the axes are those of one input, not symbols; each invoke is a pass of its own.
        shareable: whether strangers may share a batch. `vocab`: number of tokens, 0 where there are none.
        within: native paths of modules whose own operations are sites too.
        positions: how many tokens a row may have, 0 where there is no end.
        arguments: what the forward takes by name; empty where that is not known.
    """

    family: str
    events: tuple[Event, ...]
    sites: Mapping[str, Site]
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    children: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    encoder_decoder: bool = False
    plain: bool = False
    shareable: bool = True
    vocab: int = 0
    within: tuple[str, ...] = ()
    positions: int = 0
    arguments: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Site:
        site = self.sites.get(name)
        if site is None:
            raise UnknownSite(self.why_not(name))
        return site

    def event_of(self, site: Site) -> Event:
        return self.events[site.order]

    @cached_property
    def by_event(self) -> Mapping[tuple[str, str, int], int]:
        """(path, port, call) -> order."""
        return {(event.path, event.port, event.call): order for order, event in enumerate(self.events)}

    @cached_property
    def plans(self) -> dict[Any, Any]:
        """Placements computed for this table so far, by the structure of the graph (see `place`)."""
        return {}

    def why_not_argument(self, name: str) -> str | None:
        """What to tell a person who gave the model an argument that its forward does not take; None: it does."""
        if not self.arguments or name in self.arguments:
            return None
        near = difflib.get_close_matches(name, self.arguments, n=3, cutoff=0.5) or sorted(self.arguments)
        return (
            f"the forward of {self.family} takes no argument {name[:40]!r}; it takes, among others, {', '.join(near)}"
        )

    def why_not(self, name: str) -> str:
        """What to tell a person who asked for a site that is not there."""
        for part in (name, name.rpartition(".")[0]):
            if part in self.absent:
                return f"{self.family} has no {name!r}: {self.absent[part]}"
        path, _, port = name.rpartition(".")
        calls = self.calls.get(path)
        if calls == 0:
            return f"{name!r}: the module {path!r} exists in {self.family} but its forward pass never calls it"
        if calls is not None and calls > 1 and port in ("input", "output", "inputs"):
            return f"{name!r}: {path!r} is called {calls} times in a forward pass; write .call(k).{port}, k from 0"
        names = {*self.sites, *self.modules, *self.children}
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"; the nearest: {', '.join(near)}" if near else ""
        return f"{self.family} has no site {name!r}{hint} (print the model for what it has)"

    @cached_property
    def standard_names(self) -> tuple[str, ...]:
        """Names of the standard sites, in the order of the forward pass."""
        names = [site.name for name, site in self.sites.items() if _is_standard(name, self)]
        return tuple(sorted(names, key=lambda name: self.sites[name].order))


def _is_standard(name: str, table: SiteTable) -> bool:
    module = name.rpartition(".")[0]
    return name in ("ids", "logits") or (module in table.modules and ".inputs[" not in name)


_OPERATION = re.compile(r"(?:(?P<path>.*?)\.)?(?:call\(\d+\)\.)?op\(")


def module_of_operation(name: str) -> str | None:
    """The path of the module whose operation a site is, of `h.0.attn.op(softmax,0).output`; None of other sites."""
    found = _OPERATION.match(name)
    return None if found is None else found["path"] or ""


def to_json(table: SiteTable) -> dict[str, Any]:
    """The table as JSON values; `from_json` gives an equal table back."""
    return {
        "family": table.family,
        "events": [[e.path, e.port, e.call, e.structure] for e in table.events],
        "sites": {
            name: [
                s.name,
                s.order,
                list(s.item),
                list(s.axes),
                s.dtype,
                s.unfold,
                s.mutated,
                s.storage,
                s.heads,
                s.swapped,
                s.inplace,
            ]
            for name, s in table.sites.items()
        },
        "layers": {stack: list(paths) for stack, paths in table.layers.items()},
        "modules": dict(table.modules),
        "absent": dict(table.absent),
        "calls": dict(table.calls),
        "children": {path: list(names) for path, names in table.children.items()},
        "kinds": dict(table.kinds),
        "parameters": {name: [dtype, list(shape)] for name, (dtype, shape) in table.parameters.items()},
        "widths": {path: list(pair) for path, pair in table.widths.items()},
        "encoder_decoder": table.encoder_decoder,
        "plain": table.plain,
        "shareable": table.shareable,
        "vocab": table.vocab,
        "within": list(table.within),
        "positions": table.positions,
        "arguments": list(table.arguments),
    }


def from_json(data: Mapping[str, Any]) -> SiteTable:
    """The inverse of `to_json`."""
    return SiteTable(
        family=data["family"],
        events=tuple(Event(path, port, call, structure) for path, port, call, structure in data["events"]),
        sites={
            name: Site(own, order, tuple(item), tuple(axes), *rest)
            for name, (own, order, item, axes, *rest) in data["sites"].items()
        },
        layers={stack: tuple(paths) for stack, paths in data["layers"].items()},
        modules=data["modules"],
        absent=data["absent"],
        calls=data["calls"],
        children={path: tuple(names) for path, names in data["children"].items()},
        kinds=data["kinds"],
        parameters={name: (dtype, tuple(shape)) for name, (dtype, shape) in data["parameters"].items()},
        widths={path: (pair[0], pair[1]) for path, pair in data["widths"].items()},
        encoder_decoder=data["encoder_decoder"],
        plain=data["plain"],
        shareable=data["shareable"],
        vocab=data["vocab"],
        within=tuple(data["within"]),
        positions=data["positions"],
        arguments=tuple(data["arguments"]),
    )
