"""What a model looks like in print: its parts, their sites, and what is absent and why."""

from glassworks.graph.sites import Axis, SiteTable


def render(table: SiteTable, standard: str | None = None, native: str | None = "") -> str:
    """A model (no names given) or one of its parts, as text."""
    if standard is None and not native:
        return _model(table)
    name = standard or native
    rows = [f"{name}" + (f"  ({native}, {table.kinds.get(native, '?')})" if native else "")]
    prefixes = [f"{p}." for p in dict.fromkeys((standard, native)) if p]
    for site in sorted(_own_sites(table, prefixes), key=lambda n: table.sites[n].order):
        rows.append(f"  {site:<36} {axes(table.sites[site].axes)} {table.sites[site].dtype}")
    for child in table.children.get(native or "", ()):
        rows.append(f"  .{child}  ({table.kinds.get(f'{native}.{child}', '?')})")
    return "\n".join(rows)


def _own_sites(table: SiteTable, prefixes: list[str]) -> list[str]:
    return [
        name for name in table.sites for p in prefixes if name.startswith(p) and "." not in name[len(p) :].split("[")[0]
    ]


def _model(table: SiteTable) -> str:
    rows = [f"{table.family}: {len(table.sites)} sites on {len(table.events)} events"]
    shown = [name for name in table.standard_names if not _repeats(name)]
    for name in shown:
        site = table.sites[name]
        rows.append(f"  {_generic(name, table):<32} {axes(site.axes):<24} {site.dtype:<9} {table.event_of(site).path}")
    if not shown:
        rows += [f"  .{child}  ({table.kinds.get(child, '?')})" for child in table.children.get("", ())]
    for name, reason in sorted(table.absent.items()):
        if not _repeats(name):
            rows.append(f"  no {name}: {reason}")
    return "\n".join(rows)


def _repeats(name: str) -> bool:
    """Whether the site is that of a layer after the first, which looks like the first."""
    parts = name.split(".")
    return "layers" in parts and parts[parts.index("layers") + 1 : parts.index("layers") + 2] not in (
        ["0"],
        [],
    )


def _generic(name: str, table: SiteTable) -> str:
    stack = name.split("layers.")[0].rstrip(".")
    count = len(table.layers.get(stack, ()))
    return name.replace("layers.0", f"layers[0:{count}]") if "layers.0" in name else name


def axes(labels: tuple[Axis, ...]) -> str:
    """`("batch", "seq", 64)` -> `[batch, seq, 64]`."""
    return f"[{', '.join(str(label) for label in labels)}]"
