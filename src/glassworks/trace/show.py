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
    for name, shown, dtype, path in standard_rows(table):
        rows.append(f"  {name:<32} {shown:<28} {dtype:<9} {path}")
    if len(rows) == 1:
        rows += [f"  .{child}  ({table.kinds.get(child, '?')})" for child in table.children.get("", ())]
    return "\n".join([*rows, *(f"  no {name}: {reason}" for name, reason in absent_rows(table))])


def standard_rows(table: SiteTable) -> list[tuple[str, str, str, str]]:
    """Name, axes, number format and module of each standard site; those of the first layer stand for all."""
    shown = [(name, table.sites[name]) for name in table.standard_names if not _repeats(name)]
    return [(_generic(name, table), axes(s.axes), s.dtype, table.event_of(s).path) for name, s in shown]


def absent_rows(table: SiteTable) -> list[tuple[str, str]]:
    """Name of what the model lacks, and why."""
    return [(_generic(name, table), why) for name, why in sorted(table.absent.items()) if not _repeats(name)]


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
