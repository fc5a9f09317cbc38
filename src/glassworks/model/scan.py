"""The table of a model's native sites, learned by running it.

Two forward passes of different sizes are recorded. What differs between the two says what each axis depends
on; nothing is read from source code, configurations or the order of `named_modules`.

Surprises this file settles:
- A module that is registered under two paths is one module; its sites exist under both.
- How often an expert of a mixture runs depends on the tokens, so what is inside `experts` has no place in a
  fixed order unless it runs exactly once; its rows are sorted by expert, so its axes are unknown even if
  sizes agree.
- Some families change a tensor in place after a module returned it (views share version counters: they tell).
- Hooks see calls of modules. A family that calls `child.forward(...)` directly, or uses a child's weights
  only, shows no call of it.

Knows nothing of layers or attention: that is `anatomy`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from glassworks.errors import ModelError
from glassworks.graph.sites import ATTENTION_PORTS, FOLDED, UNKNOWN, Axis, Event, Port, Site, SiteTable
from glassworks.model.record import Item, Seen, fake_model, record
from glassworks.model.runs import Run, small_runs

_EXPERTS = "experts"
_OTHER_OPERATIONS = "the operations of its forward depend on the tokens, so they have no fixed place"
_DATA_DEPENDENT = "how often it runs depends on the tokens, so it has no fixed place in the forward pass"


def scan(
    module: nn.Module,
    *,
    inputs: tuple[Sequence[Any], Mapping[str, Any]] | None = None,
    plain: bool = False,
    within: Collection[str] = (),
) -> SiteTable:
    """The table of a module's native sites.

    Args:
        within: paths of modules whose own operations are sites too.
        module: left as it was: no hook, mode, gradient or random state is changed. inputs: `(args, kwargs)`
        of one call, needed if `plain`. A Hugging Face model is run on token ids of ours. plain: run once, on
        `inputs` as they are; every axis is then the size seen.

    Raises:
        ModelError: no inputs; or the model did not run on ours, or orders its modules by its input.
    """
    if not plain:
        runs = small_runs(module)
        table = _table(module, [record(module, run, within) for run in runs], runs)
        return replace(table, within=tuple(sorted(within)))
    if inputs is None:
        raise ModelError("expected the inputs of one call, as (args, kwargs), to scan a plain module; got none")
    run = Run(tuple(inputs[0]), dict(inputs[1]), {})
    table = _table(module, [record(module, run, within)], [run])
    return replace(table, plain=True, within=tuple(sorted(within)))


def scan_fake(build: Callable[[], nn.Module]) -> SiteTable:
    """The table of a model that is not loaded: `build` makes it, under a fake tensor mode.

    Raises:
        ModelError: the model needs numbers to run; load the weights and `scan` it.
    """
    with fake_model(build) as module:
        return scan(module)


def _table(module: nn.Module, records: list[list[Seen]], runs: Sequence[Run]) -> SiteTable:
    paths = _paths(module)
    named = list(module.named_modules(remove_duplicate=False))
    parameters = module.named_parameters(remove_duplicate=False)
    records, unsteady = _steady(records)
    calls, absent = _calls(module, records, paths)
    absent |= unsteady
    kept = [[event for event in events if calls[event.path]] for events in records]
    if any([event.key for event in events] != [event.key for event in kept[0]] for events in kept):
        raise ModelError(
            f"expected {type(module).__name__} to run its modules in one order, got one that depends on the "
            f"input; wrap it as a plain module, with the inputs of one call"
        )
    events: list[Event] = []
    sites: dict[str, Site] = {}
    for order, same in enumerate(zip(*kept, strict=True)):
        event, found = _merge(same, runs, order, once=calls[same[0].path] == 1)
        events.append(event)
        for alias in paths[event.path]:
            sites |= _under(alias, event.path, found)
    return SiteTable(
        family=type(module).__name__,
        events=tuple(events),
        sites=sites,
        absent=absent,
        calls={path: calls[aliases[0]] for aliases in paths.values() for path in aliases},
        children={path: tuple(name for name, _ in child.named_children()) for path, child in named},
        kinds={path: type(child).__name__ for path, child in named},
        parameters={name: (_dtype(parameter), tuple(parameter.shape)) for name, parameter in parameters},
        widths=_widths(events, sites, paths),
    )


def _steady(records: list[list[Seen]]) -> tuple[list[list[Seen]], dict[str, str]]:
    """The records without the operations of modules that call others for other tokens; and which those are."""
    keys = [[event.key for event in events if event.port.startswith("op(")] for events in records]
    paths = {path for own in keys for path, _, _ in own}
    moving = {path for path in paths if any([k for k in own if k[0] == path] != [k for k in keys[0] if k[0] == path]
                                            for own in keys)}  # fmt: skip
    kept = [[e for e in events if not (e.path in moving and e.port.startswith("op("))] for events in records]
    return kept, {f"{path}.op": _OTHER_OPERATIONS for path in moving}


def _paths(module: nn.Module) -> dict[str, list[str]]:
    """First path of each module -> all its paths, the first one included."""
    first = {child: path for path, child in module.named_modules()}
    paths: dict[str, list[str]] = {path: [] for path in first.values()}
    for path, child in module.named_modules(remove_duplicate=False):
        paths[first[child]].append(path)
    return paths


def _under(alias: str, path: str, sites: Sequence[Site]) -> dict[str, Site]:
    """The sites of a module under another of its paths."""
    renamed = (replace(site, name=alias + site.name.removeprefix(path)) for site in sites)
    return {site.name: site for site in (sites if alias == path else renamed)}


def _calls(
    module: nn.Module, records: list[list[Seen]], paths: Mapping[str, list[str]]
) -> tuple[dict[str, int], dict[str, str]]:
    """How often each module is called; and which have no fixed number, with the reason."""
    counts = [Counter(event.path for event in events if event.port == "output") for events in records]
    modules = dict(module.named_modules())
    calls: dict[str, int] = {}
    absent: dict[str, str] = {}
    for path, aliases in paths.items():
        numbers = {count[path] for count in counts}
        fixed = len(records) == 1 or _is_fixed(path, numbers, modules)
        calls[path] = counts[0][path] if fixed else 0
        absent |= {} if fixed else dict.fromkeys(aliases, _DATA_DEPENDENT)
    return calls, absent


def _is_fixed(path: str, numbers: set[int], modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module is called equally often for any tokens, and not by chance, inside `experts`."""
    if not _is_routed(path) or numbers == {0}:
        return len(numbers) == 1
    parts = path.split(".")
    holder = modules.get(".".join(parts[: parts.index(_EXPERTS) + 1]))
    return numbers == {1} and not isinstance(holder, nn.ModuleList)


def _is_routed(path: str) -> bool:
    return _EXPERTS in path.split(".")[:-1]


def _merge(same: Sequence[Seen], runs: Sequence[Run], order: int, *, once: bool) -> tuple[Event, list[Site]]:
    """One event out of its records in each run, and its sites."""
    first = same[0]
    base = (f"{first.path}." if first.path else "") + ("" if once else f"call({first.call}).")
    names: dict[Item, str] = {}

    base, port = _spelled(base, first.port)

    def name(item: Item) -> str:
        names[item] = base + port + "".join(f"[{key!r}]" for key in item)
        return names[item]

    structure = _common([event.structure for event in same], name)
    sites = [_site(name, order, item, same, runs) for item, name in names.items()]
    arguments = [item for item in names if len(item) == 2]
    if port == "inputs" and arguments:
        sites.append(_site(f"{base}input", order, arguments[0], same, runs))
    return Event(first.path, first.port, first.call, structure), sites


def _spelled(base: str, port: Port) -> tuple[str, str]:
    """What the names of an event's sites begin with, and what comes after it."""
    if port in ATTENTION_PORTS:
        return f"{base}attention.", port
    inner, _, end = port.rpartition(".")
    return f"{base}{inner}." if inner else base, "inputs" if end == "input" else end


def _common(structures: Sequence[Any], name: Callable[[Item], str]) -> Any:
    """What the structures have in common, with names at the leaves; parts that differ are `other`."""
    (kind, first), *_ = structures[0].items()
    inners = [structure.get(kind) for structure in structures]
    if any(inner is None for inner in inners):
        return {"other": "of several types"}
    if kind == "leaf":
        return {"leaf": name(first)}
    if kind == "other":
        return {"other": first}
    if kind == "dict" and len({tuple(inner) for inner in inners}) == 1:
        return {"dict": {key: _common([inner[key] for inner in inners], name) for key in first}}
    if kind != "dict" and len({len(inner) for inner in inners}) == 1:
        return {kind: [_common(parts, name) for parts in zip(*inners, strict=True)]}
    return {"other": f"{kind} of several sizes"}


def _site(name: str, order: int, item: Item, same: Sequence[Seen], runs: Sequence[Run]) -> Site:
    leaves = [event.leaves[item] for event in same]
    axes = _axes([leaf.tensor.shape for leaf in leaves], runs, routed=_is_routed(same[0].path))
    if same[0].port in ("key", "value") and len(axes) == 4 and axes[2] == "seq":
        axes = (*axes[:2], "context", axes[3])
    return Site(
        name=name,
        order=order,
        item=item,
        axes=axes,
        dtype=_dtype(leaves[0].tensor),
        mutated=any(leaf.mutated for leaf in leaves),
        storage=min((leaf.storage for leaf in leaves), key=lambda number: number >= 0) if leaves else -1,
    )


def _axes(shapes: Sequence[Sequence[int]], runs: Sequence[Run], *, routed: bool) -> tuple[Axis, ...]:
    if len({len(shape) for shape in shapes}) > 1:
        return (UNKNOWN,) * len(shapes[0])
    labels = [_label(sizes, runs) for sizes in zip(*shapes, strict=True)]
    return tuple(UNKNOWN if routed and isinstance(label, str) else label for label in labels)


def _label(sizes: tuple[int, ...], runs: Sequence[Run]) -> Axis:
    if len(set(sizes)) == 1:
        return sizes[0]
    for name in runs[0].sizes:
        if sizes == tuple(run.sizes[name] for run in runs):
            return name
    for name, (rows, tokens) in FOLDED.items():
        if tokens in runs[0].sizes and sizes == tuple(run.sizes[rows] * run.sizes[tokens] for run in runs):
            return name
    return UNKNOWN


def _widths(
    events: Sequence[Event], sites: Mapping[str, Site], paths: Mapping[str, list[str]]
) -> dict[str, tuple[int, int]]:
    """Sizes of the last axis, in and out, of modules with one tensor each way."""
    leaves: dict[tuple[str, Port], dict[Item, Site]] = {}
    for site in sites.values():
        event = events[site.order]
        if event.call == 0:
            leaves.setdefault((event.path, event.port), {})[site.item] = site
    widths: dict[str, tuple[int, int]] = {}
    for path, aliases in paths.items():
        into, out = _width(leaves.get((path, "input"))), _width(leaves.get((path, "output")))
        if into is not None and out is not None:
            widths |= dict.fromkeys(aliases, (into, out))
    return widths


def _width(leaves: Mapping[Item, Site] | None) -> int | None:
    axes = [site.axes for site in (leaves or {}).values()]
    return axes[0][-1] if len(axes) == 1 and axes[0] and isinstance(axes[0][-1], int) else None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
