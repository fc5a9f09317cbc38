"""`glassworks run`: a stored graph over prompts, here or on a service."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from glassworks import __version__
from glassworks.errors import InputError
from glassworks.graph.backend import Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.place import Forward, place_inputs
from glassworks.graph.sites import SiteTable

if TYPE_CHECKING:
    from glassworks.graph.backend import Results
    from glassworks.trace.facade import Model
    from glassworks.trace.stored import StoredResults


def run(
    graph: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A graph that graph.save(path) wrote.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts; without any, lines of standard input.")] = None,
    model: Annotated[str, typer.Option(help="toy, a Hugging Face id, a folder, or a model's name there.")] = "toy",
    url: Annotated[str | None, typer.Option(help="Run on the service at this address.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="GLASSWORKS_API_KEY", help="The key of the service.", show_envvar=True)
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file of prompts, one a line.")
    ] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the saves to a .safetensors file.")] = None,
    to: Annotated[
        Path | None, typer.Option(file_okay=False, help="Write each pass to this folder; go on where it ends.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="At most so many rows a forward pass.")] = 64,
    max_new_tokens: Annotated[int | None, typer.Option(min=0, help="Generate, for graphs that speak of steps.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Print whole numbers as the tokens they stand for.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and run nothing.")] = False,
) -> None:
    """Example: glassworks run lens.safetensors --model toy "The Eiffel Tower is in the city of"

    Run a stored graph over prompts and print what it saves. With --url only data travels: the graph, and token ids.
    """
    stored = Graph.load(graph)
    texts = list(_texts(prompt or [], prompts))
    found = _model(model, url, api_key)
    if dry_run:
        print(_dry(stored, found, texts, rows, max_new_tokens))
        return
    console = Console(stderr=True)
    with (
        console.status(f"{_count(len(texts), 'prompt')} through {model} ...")
        if console.is_terminal and to is None
        else nullcontext()
    ):
        results: Any = found.run(stored, texts, rows=rows, max_new_tokens=max_new_tokens, to=to)
    if to is not None:
        print(f"{_count(len(results), 'save')} of {_count(len(texts), 'prompt')} in {to}")
    if out is not None:
        _write(results, out, {"graph": stored.digest, "model": model, "prompts": json.dumps(texts)})
        print(f"{_count(len(results), 'save')} of {_count(len(texts), 'prompt')} in {out}")
    if to is not None or out is not None:
        return
    for name, value in results.items():
        _show(name, value, found if decode else None)
    print(_count(results.forwards, "forward pass"), file=sys.stderr)


def _texts(given: list[str], file: Path | None) -> Iterator[str]:
    """Prompts from the arguments, from a file, or else from standard input. Raises InputError where there are none."""
    if given and file is not None:
        raise InputError("prompts came as arguments and as a file; give one or the other")
    if not given and file is None and sys.stdin.isatty():
        raise InputError("no prompts: give them as arguments, with --prompts FILE, or one a line on standard input")
    lines = given or (sys.stdin.read() if file is None else file.read_text()).splitlines()
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise InputError(f"no prompts: {file or 'standard input'} has no lines with text")
    yield from texts


def _model(name: str, url: str | None, api_key: str | None) -> "Model":
    import glassworks as gw

    if url is None:
        return gw.load(name)
    return gw.connect(url, api_key=api_key).model(name)  # type: ignore[no-any-return]


# What would run.


def _dry(graph: Graph, model: "Model", texts: list[str], rows: int, max_new_tokens: int | None) -> str:
    """The plan in words. Raises what a run would refuse before it starts."""
    table, ids = model.table, [tuple(model.encode(text)) for text in texts]
    plan = place_inputs(graph, table, Inputs((Rows(ids=tuple(ids[:rows])),)), generating=max_new_tokens is not None)
    batches = -(-len(ids) // rows)
    tokens = sum(map(len, ids))
    lines = [
        f"{_count(len(ids), 'prompt')}, {tokens} tokens, {_count(batches, 'batch')} of at most {min(rows, len(ids))}",
        f"{len(plan.needed)} of {len(graph)} nodes are needed, for {_count(len(graph.saves), 'save')}: "
        + ", ".join(graph.saves),
    ]
    for number, forward in enumerate(plan.forwards, start=1):
        steps = (
            "" if max_new_tokens is None else f", at most {_count(_steps(forward.last_step, max_new_tokens), 'step')}"
        )
        lines.append(f"forward {number} of {len(plan.forwards)} for each batch{steps}: {_end(forward, model.table)}")
    return "\n".join(lines)


def _steps(last_step: int | None, max_new_tokens: int) -> int:
    """How many forwards a generation takes: one reads the prompt, and the last new token need not be read."""
    longest = max(max_new_tokens, 1)
    return longest if last_step is None else min(last_step + 1, longest)


def _end(forward: Forward, table: SiteTable) -> str:
    """Where a forward pass ends, by the standard name of the place if it has one."""
    spared = f"; {', '.join(sorted(forward.spared))} need not run" if forward.spared else ""
    order = max((event for event, _ in forward.actions), default=len(table.events) - 1)
    event = table.events[order]
    standard = [name for name in table.standard_names if table.sites[name].order == order]
    name = standard[-1] if standard else f"{event.path}.{event.port}".lstrip(".")
    return f"ends at {name}, event {order + 1} of {len(table.events)}{spared}"


def _count(number: int, what: str) -> str:
    plural = "" if number == 1 else "es" if what.endswith(("s", "ch")) else "s"
    return f"{number} {what}{plural}"


# What came of it.


def _show(name: str, value: Any, model: "Model | None") -> None:
    if isinstance(value, list):
        print(f"{name}: {len(value)} entries")
        for number, entry in enumerate(value):
            _show(f"  {name}.{number}", entry, model)
        return
    if value is None:
        print(f"{name}: in a branch that was not taken")
        return
    body = _tokens(value, model) if model is not None and not value.is_floating_point() else _numbers(value)
    kind = str(value.dtype).removeprefix("torch.")
    print(f"{name}: {kind} {list(value.shape)}  {body}")


def _tokens(value: Any, model: "Model") -> str:
    strings = [model.decode(token) for token in value.flatten()[:_SHOWN].tolist()]
    return " ".join(map(repr, strings)) + _more(value)


_SHOWN = 12


def _numbers(value: Any) -> str:
    first = value.flatten()[:_SHOWN].tolist()
    shown = ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in first)
    own = f"[{shown}{_more(value)}]"
    if value.is_floating_point() and value.numel() > 1:
        plain = value.double()
        own += f"  mean {plain.mean():.4g}, std {plain.std():.4g}, max |x| {plain.abs().max():.4g}"
    return own


def _more(value: Any) -> str:
    return " ..." if value.numel() > _SHOWN else ""


def _write(results: "Results | StoredResults", out: Path, metadata: dict[str, str]) -> None:
    """Tensors by save name; those of a list by name and number. What ran is in the metadata."""
    from safetensors.torch import save_file

    tensors = {}
    for name, value in results.items():
        entries = {f"{name}.{k}": entry for k, entry in enumerate(value)} if isinstance(value, list) else {name: value}
        tensors.update({key: entry.contiguous().cpu() for key, entry in entries.items() if entry is not None})
    save_file(tensors, out, metadata={**metadata, "glassworks": __version__})
