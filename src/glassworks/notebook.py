"""How graphs, models, results and values look in a notebook: `%load_ext glassworks`.

Rendering stands apart from the data: nothing here is imported unless a notebook asks for it. Arrays are drawn by
treescope, if it is there; a mouse over a cell shows its number and its index.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import torch

import glassworks as gw
from glassworks.trace.show import absent_rows, standard_rows

_STYLE = (
    "border-collapse:collapse;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px;"
    "text-align:left;white-space:pre"
)
_CELL = "padding:1px 14px 1px 0;text-align:left;vertical-align:top"
_FAINT = "color:#767676"
_DRAWN = 100_000
"""Arrays of more elements are described, not drawn."""


def register(ipython: Any) -> None:
    """Tell a notebook how our objects look. What `%load_ext glassworks` calls."""
    html = ipython.display_formatter.formatters["text/html"]
    for kind, render in _RENDERERS.items():
        html.for_type(kind, render)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of texts, which are escaped."""
    top = "".join(f'<th style="{_CELL};{_FAINT};font-weight:normal">{escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}{";" + _FAINT if not k else ""}">{escape(cell)}</td>'
                         for k, cell in enumerate(row)) + "</tr>"
        for row in rows
    )  # fmt: skip
    return f'<table style="{_STYLE}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def folded(summary: str, inner: str, *, is_open: bool = False) -> str:
    """A line that opens: `inner` is HTML."""
    return f"<details{' open' if is_open else ''}><summary><code>{escape(summary)}</code></summary>{inner}</details>"


def of_graph(graph: gw.Graph) -> str:
    """The nodes of a graph, a row each, with the user's own lines at the right."""
    head, *lines = repr(graph).splitlines()
    rows = []
    for k, line in enumerate(lines):
        what = line.strip().partition(" ")[2].strip()
        known = graph.lines[k]
        where = "" if known is None else f"{known.file.replace(chr(92), '/').rpartition('/')[2]}:{known.number}"
        rows.append((f"%{k}", what.removesuffix(where).rstrip(), where))
    return folded(head, table(("", "node", "written at"), rows), is_open=len(rows) <= 40)


def of_model(model: gw.Model) -> str:
    """The standard sites of a model, those of its first layer standing for all; what it lacks, and why."""
    own, sites, absent = model.table, standard_rows(model.table), absent_rows(model.table)
    head = f"{own.family}: {len(own.sites)} sites on {len(own.events)} events"
    shown = folded(head, table(("site", "axes", "format", "module"), sites), is_open=True)
    return shown + (folded(f"what it lacks: {len(absent)}", table(("name", "why"), absent)) if absent else "")


def of_results(results: Any) -> str:
    """The saves by name; each opens to its numbers."""
    parts = [folded(f"{name}  {described(value)}", of_array(value)) for name, value in results.items()]
    return f"<div>{len(parts)} saved{''.join(parts)}</div>"


def of_value(value: Any) -> str:
    """A saved Value as its tensor; one of an open block, or one that was not saved, as text."""
    try:
        held = value.value
    except gw.GlassworksError:
        return f"<code>{escape(repr(value))}</code>"
    return folded(described(held), of_array(held), is_open=True)


def of_block(block: Any) -> str:
    """What a block was: its graph."""
    graph = getattr(block, "graph", None)
    return f"<code>{escape(repr(block))}</code>" + ("" if graph is None else of_graph(graph))


def described(value: Any) -> str:
    """`float32 [2, 5, 64]`, or how many entries a list has."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, list):
        return f"{len(value)} entries: " + ", ".join(dict.fromkeys(map(described, value)))
    return type(value).__name__


def of_array(value: Any) -> str:
    """A tensor, or a list of them, drawn."""
    if isinstance(value, list):
        return "".join(folded(f"{k}  {described(item)}", of_array(item)) for k, item in enumerate(value))
    if not isinstance(value, torch.Tensor) or value.numel() > _DRAWN or not value.numel():
        return f"<pre>{escape(repr(value))}</pre>"
    try:
        import treescope
    except ImportError:
        return f"<pre>{escape(repr(value))}</pre>"
    drawn = treescope.render_array(value.detach().cpu().float().numpy())
    return str(drawn._repr_html_())


def _kinds() -> dict[type, Callable[[Any], str]]:
    from glassworks.graph.backend import Results
    from glassworks.trace.block import Block

    return {gw.Graph: of_graph, gw.Model: of_model, gw.Value: of_value, Results: of_results, Block: of_block}


_RENDERERS = _kinds()
