"""`glassworks show`: a model's sites, or a stored graph, without reading weights."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from glassworks.errors import InputError, UnknownSite
from glassworks.graph.graph import Graph
from glassworks.graph.sites import Site, SiteTable

if TYPE_CHECKING:
    from glassworks.trace.facade import Model


def show(
    what: Annotated[str, typer.Argument(metavar="MODEL|GRAPH", help="toy, a Hugging Face id, a folder, or a file.")],
    part: Annotated[str | None, typer.Option(help="Show a part only, such as layers.0.attn.")] = None,
    native: Annotated[bool, typer.Option("--native", help="Show the model's own module paths too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Example: glassworks show toy --part layers.0

    Print the sites of a model, or the text of a graph that was stored as a file. No weights are read.
    """
    if is_graph(what):
        if part is not None or native:
            raise InputError("--part and --native concern models; a graph is shown whole")
        graph = Graph.load(what)
        print(json.dumps(graph.to_message()[0], indent=1) if as_json else graph)
        return
    import glassworks as gw

    view = View.of(gw.load(what), name=what, part=part, native=native)
    if as_json:
        print(json.dumps(view.as_json(), indent=1))
    else:
        view.show(Console() if sys.stdout.isatty() else Console(width=160))


def is_graph(what: str) -> bool:
    """Whether a word names a stored graph: a file, not a folder or an id."""
    path = Path(what)
    if path.suffix == ".safetensors" and not path.is_file():
        raise InputError(f"there is no file {what!r}; a graph is stored with graph.save(path)")
    return path.is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is to be shown of a model: the sites of one of its parts, in the order of a forward pass."""

    name: str
    part: str | None
    table: SiteTable
    sites: tuple[Site, ...]
    folded: bool

    @classmethod
    def of(cls, model: "Model", *, name: str, part: str | None, native: bool) -> "View":
        """Raises UnknownSite: no such part."""
        table = model.table
        names = list(table.sites) if native else [*table.standard_names]
        prefixes = _prefixes(table, part)
        chosen = [table.sites[n] for n in names if not prefixes or n.startswith(prefixes)]
        if not chosen:
            raise UnknownSite(f"{part} has no standard sites; --native shows the model's own")
        chosen.sort(key=lambda site: site.order)
        folded = not native and not part
        return cls(name=name, part=part, table=table, sites=tuple(chosen), folded=folded)

    def as_json(self) -> dict[str, Any]:
        """Names, axes, number formats and modules."""
        return {
            "model": self.name,
            "family": self.table.family,
            "layers": {stack or "layers": len(paths) for stack, paths in self.table.layers.items()},
            "sites": {
                site.name: {"axes": list(site.axes), "dtype": site.dtype, "module": self.table.event_of(site).path}
                for site in self.sites
            },
            "absent": dict(self.table.absent),
        }

    def show(self, console: Console) -> None:
        """As a table; layers that look alike are one row each."""
        table = self.table
        stacks = ", ".join(f"{len(paths)} {stack or 'layers'}" for stack, paths in table.layers.items())
        console.print(f"[bold]{self.name}[/]: {table.family}, {stacks or 'no layers'}, {len(table.sites)} sites")
        rows = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2))
        for title in ("site", "axes", "dtype", "module"):
            rows.add_column(title, overflow="fold")
        for site in self.sites:
            if self.folded and _repeats(site.name):
                continue
            rows.add_row(
                _folded(site.name, table) if self.folded else _escaped(site.name),
                _escaped(f"[{', '.join(map(str, site.axes))}]"),
                site.dtype,
                f"[dim]{table.event_of(site).path}[/]",
            )
        console.print(rows)
        for name, reason in sorted(table.absent.items()):
            if self.folded and not _repeats(name):
                console.print(f"[dim]no {name}: {_escaped(reason)}[/]")


def _prefixes(table: SiteTable, part: str | None) -> tuple[str, ...]:
    """Names that sites of the part begin with: its standard name, and its native path."""
    if part is None:
        return ()
    if part not in table.modules and part not in table.children:
        raise UnknownSite(table.why_not(part))
    return tuple(f"{name}." for name in {part, table.modules.get(part) or part})


def _repeats(name: str) -> bool:
    """Whether a site is that of a layer after the first."""
    words = name.split(".")
    after = words[words.index("layers") + 1 :] if "layers" in words else []
    return bool(after) and after[0].isdecimal() and after[0] != "0"


def _folded(name: str, table: SiteTable) -> str:
    if "layers.0" not in name:
        return _escaped(name)
    count = len(table.layers.get(name.partition("layers.")[0].rstrip("."), ()))
    return _escaped(name.replace("layers.0", f"layers[0:{count}]"))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
