"""`glassworks measure`: what an engine's iterations cost here, as a file for engines and simulations."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from glassworks.cli.outcomes import check_folder
from glassworks.errors import InputError

if TYPE_CHECKING:
    from glassworks.engine.measuring import Round
    from glassworks.measure.table import CostTable

_COSTS = {
    "": "an iteration",
    "rows": "a row of it",
    "context_tokens": "a token that is attended to",
    "prefill_tokens": "a token of a prompt",
}


def measure(
    model: Annotated[str, typer.Argument(help="toy, a Hugging Face id, or a folder.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="Write the table to this file (JSON).")],
    rows: Annotated[str, typer.Option(help="How many requests share a step.")] = "1,4,16",
    prompt_tokens: Annotated[str, typer.Option(help="Lengths of prompts.")] = "8,32,128",
    repeats: Annotated[int, typer.Option(min=1, help="Each is the median of so many.")] = 5,
    cpu_seconds: Annotated[
        bool, typer.Option("--cpu-seconds", help="The processor's seconds, not the clock's: for a shared machine.")
    ] = False,
    device_memory: Annotated[str, typer.Option(help="For keys and values, beside the weights.")] = "1GiB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be measured, and run nothing.")] = False,
) -> None:
    """Example: glassworks measure toy --out cost.json

    Measure an engine's iterations and print what they cost. gw.Engine(model, cost=gw.CostTable.load("cost.json")) then
    knows from its first request what it would have learnt, and gw.simulate(..., cost=...) simulates this machine.
    """
    import glassworks as gw
    from glassworks.engine import measuring

    check_folder(out)
    counts, lengths = _numbers(rows, "--rows"), _numbers(prompt_tokens, "--prompt-tokens")
    kv, loaded = gw.KVBudget(device=device_memory), gw.load(model)
    planned = measuring.rounds(loaded, counts, lengths)
    if dry_run:
        print(_dry(planned, repeats))
        return
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("measuring", total=len(planned))
        table = measuring.measure(
            loaded, rows=counts, prompt_tokens=lengths, repeats=repeats, cpu_seconds=cpu_seconds, kv=kv,
            progress=lambda own: bar.update(task, advance=1, description=f"{own.rows} x {own.prompt_tokens} tokens"),
        )  # fmt: skip
    table.save(out)
    print(_fitted(table))
    print(f"{len(table.points)} points in {out}")


def _numbers(text: str, flag: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} is whole numbers with commas between them, such as 1,4,16; got {text!r}") from None


def _dry(planned: "Sequence[Round]", repeats: int) -> str:
    own = "\n".join(f"  {each.rows} requests of {each.prompt_tokens} tokens" for each in planned)
    computed = (repeats + 1) * sum(each.tokens for each in planned)
    return f"{len(planned)} rounds, {repeats + 1} times each, at most {computed} tokens in all:\n{own}"


def _fitted(table: "CostTable") -> str:
    """The costs, and how far what they predict is from what was measured."""
    from glassworks.schedule.cost import WHAT

    lines = [f"{_COSTS[name]:<30}{1e6 * cost:>12.2f} us" for name, cost in table.costs_s(WHAT).items()]
    errors = [abs(table.predict_s(WHAT, **point.features) / point.seconds - 1) for point in table.points]
    lines.append(f"{'error of the fit, median':<30}{100 * median(errors):>12.1f} %")
    lines.append(f"{'error of the fit, most':<30}{100 * max(errors):>12.1f} %")
    return "\n".join([f"seconds {table.hardware['seconds']}, {table.hardware['cpu']}", *lines])
