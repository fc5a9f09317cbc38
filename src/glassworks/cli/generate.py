"""`glassworks generate`: many prompts through one engine, an object a line out.

The engine has a window of the prompts at a time, so that a file of any length takes the memory of the window. Objects
come in the order in which prompts end; each has its index. What an object says does not depend on the policy, on how
many rows share a step, or on the memory: those may differ between a run and the one that goes on with its file.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from glassworks.cli.outcomes import Outcomes, digest
from glassworks.cli.prompts import Settings, Wanted, given_prompts
from glassworks.errors import GlassworksError, InputError
from glassworks.schedule import NAMES

if TYPE_CHECKING:
    from glassworks.engine.engine import Engine
    from glassworks.engine.requests import Reply

_POLICIES = tuple(name for name in NAMES if name != "srpt")
"""Without the oracle, which has to be told how long each text will be."""
_WINDOW = 8
"""How many times the rows of a step the engine has prompts to choose from."""


def generate(
    model: Annotated[str, typer.Argument(help="toy, a Hugging Face id, or a folder.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts; without any, lines of standard input.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help='A text a line, or objects {"prompt": ...} (.jsonl).'),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write to this file; go on with it if it is there.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="At most so many for each prompt.")] = 64,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0: always the likeliest. Without: the model's own settings.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Prompt k draws from SEED + k.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text; repeat it for several.")] = None,
    policy: Annotated[str, typer.Option(help=f"Who goes first: {', '.join(_POLICIES)}.")] = "mlfq",
    rows: Annotated[int, typer.Option(min=1, help="At most so many prompts in a step.")] = 32,
    device_memory: Annotated[str, typer.Option(help="For keys and values, beside the weights.")] = "1GiB",
    host_memory: Annotated[str, typer.Option(help="For prompts whose turn it is not.")] = "2GiB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and run nothing.")] = False,
) -> None:
    """Example: glassworks generate toy "The Eiffel Tower is in the city of" --max-new-tokens 8

    Go on from prompts: an object a line, as each ends, with index, prompt, text, tokens, finish and seconds. A prompt
    that fails has an error in their place; the others go on, and the exit code is 1. The same command goes on with a
    file that was cut short.
    """
    if policy not in _POLICIES:
        raise InputError(f"expected a policy, one of {', '.join(_POLICIES)}; got {policy!r}")
    settings = Settings(max_new_tokens=max_new_tokens, stop=tuple(stop or ()), seed=seed, temperature=temperature)
    given = given_prompts(prompt or [], file)
    wanted = settings.wanted(given)
    run = {
        "model": model, "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed,
        "stop": list(settings.stop), "digest_of_prompts": digest(given),
    }  # fmt: skip
    outcomes = Outcomes(out, sys.stdout, run=run, count=len(wanted))
    left = [own for own in wanted if own.index not in outcomes.done]
    if not left:
        print(f"{len(wanted)} of {len(wanted)} prompts are in {out}", file=sys.stderr)
        return
    engine = _engine(model, policy=policy, rows=rows, device=device_memory, host=host_memory)
    if dry_run:
        print(_dry(engine, left, len(wanted)))
        return
    failed = _run(engine, left, outcomes, window=_WINDOW * rows, bar=out is not None)
    done = len(wanted) - failed
    print(_summary(engine, done, len(wanted), out), file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _engine(model: str, *, policy: str, rows: int, device: str, host: str) -> "Engine":
    import glassworks as gw

    kv = gw.KVBudget(device=device, host=host)
    return gw.Engine(gw.load(model), policy=policy, rows=rows, kv=kv)


# Running.


def _run(engine: "Engine", left: list[Wanted], outcomes: Outcomes, *, window: int, bar: bool) -> int:
    """All of them; gives how many failed."""
    failed = 0
    outcomes.open()
    try:
        with _progress(len(left), shown=bar and sys.stderr.isatty()) as progress:
            for own, reply in _ended(engine, left, window):
                found = _object(own, reply)
                failed += "error" in found
                outcomes.write(found)
                progress()
    except KeyboardInterrupt:
        print("glassworks: called off; the same command goes on with the file of --out", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        outcomes.close()
    return failed


def _ended(engine: "Engine", left: list[Wanted], window: int) -> Iterator[tuple[Wanted, "Reply | GlassworksError"]]:
    """Each prompt with what came of it, as it ends. A prompt that the engine refuses has ended at once."""
    waiting = iter(left)
    under_way: list[tuple[Wanted, Reply]] = []
    more = True
    while more or under_way:
        while more and len(under_way) < window:
            own = next(waiting, None)
            if own is None:
                more = False
                break
            try:
                under_way.append((own, engine.submit(own.request())))
            except GlassworksError as error:
                yield own, error
        engine.step()
        yield from [each for each in under_way if each[1].done]
        under_way = [each for each in under_way if not each[1].done]


def _object(own: Wanted, reply: "Reply | GlassworksError") -> dict[str, Any]:
    found: dict[str, Any] = {"index": own.index, **({} if own.id is None else {"id": own.id}), "prompt": own.prompt}
    error = reply if isinstance(reply, Exception) else reply.error
    if error is not None:
        return {**found, "error": f"{type(error).__name__}: {error}"}
    assert not isinstance(reply, Exception)
    seconds = round(reply.timing.latency_s or 0.0, 6)
    return {**found, "text": reply.text, "tokens": reply.tokens, "finish": reply.finish, "seconds": seconds}


@contextmanager
def _progress(count: int, *, shown: bool) -> Iterator[Any]:
    """A bar on standard error; gives what moves it by one prompt."""
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:
        task = progress.add_task("", total=count)
        yield lambda: progress.advance(task)


def _summary(engine: "Engine", done: int, count: int, out: Path | None) -> str:
    stats = engine.stats
    rate = stats.new_tokens / stats.seconds if stats.seconds else 0.0
    where = "" if out is None else f" in {out}"
    return f"{done} of {count} prompts{where}; {stats.new_tokens} new tokens, {rate:.0f} a second"


# What would run.


def _dry(engine: "Engine", left: list[Wanted], count: int) -> str:
    """In words, with what the engine would refuse."""
    refused, tokens = [], 0
    for own in left:
        try:
            engine.submit(own.request()).cancel()
            tokens += own.max_new_tokens
        except GlassworksError as error:
            refused.append(f"prompt {own.index}: {error}")
    lines = [f"{len(left)} of {count} prompts would run, for at most {tokens} new tokens", f"{engine!r}"]
    return "\n".join([*lines, f"{len(refused)} would be refused", *refused])
