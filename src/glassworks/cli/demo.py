"""`glassworks demo`: the bundled model, looked into, changed, and shared; every claim that it prints is checked.

The experiments themselves are in `experiments`, the pictures in `pictures`; here is the order, the talk and the checks.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glassworks.cli.extras import need

if TYPE_CHECKING:
    from glassworks.cli.experiments import Lens, Sweep
    from glassworks.trace.facade import Model

PROMPT, OTHER = "The Eiffel Tower is in the city of", "The Colosseum is in the city of"
ANSWER, OTHER_ANSWER = " Paris", " Rome"
QUESTIONS = (
    PROMPT,
    OTHER,
    "The keys near the cabinet",
    "red moon dog tree red moon dog",
    "When Mary and John went to the store, John gave a drink to",
)
CLIENTS = 4


def demo(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the pictures and the graphs.")] = Path("demo"),
) -> None:
    """Example: glassworks demo --out demo

    In a minute: ask the bundled model, look inside it, change its mind, and do the same through a service that four
    clients use at once. Ends with code 1 if any check fails.
    """
    need("fastapi", "uvicorn", extra="serve")
    need("matplotlib", extra="plot")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the toy loads at once; the service inherits this
    begun = time.monotonic()
    show = _Show()
    import glassworks as gw

    out.mkdir(parents=True, exist_ok=True)
    model = gw.load("toy")
    _answers(show, model)
    lens = _lens(show, model, out)
    sweep = _patch(show, model, out)
    _shared(show, lens, sweep, out)
    _end(show, out, time.monotonic() - begun)
    if show.failed:
        raise typer.Exit(1)


class _Show:
    """What is printed, and which checks did not hold."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.checked = 0
        self.failed: list[str] = []

    def title(self, text: str) -> None:
        self.console.print(f"\n[bold cyan]{text}[/]")

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def check(self, claim: str, holds: bool) -> None:
        self.checked += 1
        self.console.print(f"  [green]✓[/] {claim}" if holds else f"  [bold red]✗ not so: {claim}[/]")
        if not holds:
            self.failed.append(claim)


def _answers(show: _Show, model: "Model") -> None:
    show.title("1  A small language model, bundled with the package")
    for prompt in QUESTIONS:
        show.say(f"  {escape(prompt)}[bold green]{escape(str(model.complete(prompt, max_new_tokens=3)))}[/]")
    first = [model.complete(prompt, max_new_tokens=1).text for prompt in (PROMPT, OTHER)]
    show.check(f"it knows where the two landmarks are:{ANSWER} and{OTHER_ANSWER}", first == [ANSWER, OTHER_ANSWER])


def _lens(show: _Show, model: "Model", out: Path) -> "Lens":
    from glassworks.cli import pictures
    from glassworks.cli.experiments import Lens

    show.title("2  A logit lens: what each layer would say next, had it the last word")
    lens = Lens.of(model, PROMPT)
    lens.graph.save(out / "lens.safetensors")
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("after", style="dim")
    for token in lens.tokens[1:]:
        table.add_column(escape(token.strip()), header_style="dim", no_wrap=True)
    for name, words, sure in reversed(lens.rows()):
        table.add_row(name, *[_word(word, p) for word, p in zip(words[1:], sure[1:], strict=True)])
    show.say(f"  {PROMPT} ...\n")
    show.console.print(table)
    show.say("")
    show.check(f"the last layer ends with the model's own answer,{ANSWER}", lens.answer == ANSWER)
    pictures.draw_lens(lens, out / "lens.png", prompt=PROMPT, answer=ANSWER)
    return lens


def _word(word: str, p: float) -> str:
    style = "bold green" if word == ANSWER else "bold" if p > 0.7 else "" if p > 0.3 else "dim"
    return f"[{style}]{escape(word.strip())}[/]" if style else escape(word.strip())


def _patch(show: _Show, model: "Model", out: Path) -> "Sweep":
    from glassworks.cli import pictures
    from glassworks.cli.experiments import Sweep

    show.title("3  Activation patching: where the fact is, layer by layer and token by token")
    show.say(
        f"  from: {OTHER} ...\n  into: {PROMPT} ...\n"
        f"  Each cell moves one vector of the first run into the second; a dot is still {ANSWER.strip()}.\n"
    )
    sweep = Sweep.of(model, (PROMPT, OTHER), (ANSWER, OTHER_ANSWER))
    sweep.graph.save(out / "patch.safetensors")
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("after", style="dim")
    for token, other in list(zip(*sweep.tokens, strict=True))[1:]:
        name = token.strip() if token == other else f"{token.strip()}←{other.strip()}"
        table.add_column(escape(name), header_style="dim", no_wrap=True)
    for layer, words in reversed(list(enumerate(sweep.words))):
        table.add_row(f"layer {layer}", *[_flip(word) for word in words[1:]])
    show.console.print(table)
    show.say("")
    at, last = sweep.landmark, len(sweep.words) - 1
    words = [row[at] for row in sweep.words]
    show.check(f"unpatched, it says{ANSWER}", sweep.clean == ANSWER)
    show.check(f"one vector at the landmark's last token, early, and it says{OTHER_ANSWER}", words[0] == OTHER_ANSWER)
    show.check(f"there it is too late after layer {last}: it still says{ANSWER}", words[last] == ANSWER)
    runs = sum(map(len, sweep.words))
    show.check(f"{runs} patched runs and 2 clean ones took {sweep.forwards} forward pass", sweep.forwards == 1)
    pictures.draw_sweep(sweep, out / "patch.png", answers=(ANSWER, OTHER_ANSWER))
    return sweep


def _flip(word: str) -> str:
    return "[dim]·[/]" if word == ANSWER else f"[bold green]{escape(word.strip())}[/]"


def _shared(show: _Show, lens: "Lens", sweep: "Sweep", out: Path) -> None:
    from glassworks.serve.supervise import running_service

    show.title(f"4  The same as data: a service on this machine, {CLIENTS} clients at once")
    (out / "graph.txt").write_text(f"{lens.graph}\n\n{sweep.graph}\n")
    size_kib = len(sweep.graph.encode()) / 1024
    show.say(f"  What travels is the graph: {len(sweep.graph)} nodes, {size_kib:.0f} KiB. No code does.")
    with running_service("toy") as running, ThreadPoolExecutor(CLIENTS) as pool:
        show.say(f"  {running.url}")
        begun = time.monotonic()
        equal = list(pool.map(lambda _: _client(running.url, running.key, lens, sweep), range(CLIENTS)))
        took_s = time.monotonic() - begun
    same_lens, same_sweep = ([own[k] for own in equal] for k in range(2))
    show.check(f"the stored lens gave all {CLIENTS} the same bits as here (torch.equal)", all(same_lens))
    show.check(f"the sweep gave all {CLIENTS} the same bits as here (torch.equal)", all(same_sweep))
    show.say(f"  {CLIENTS} clients, {2 * CLIENTS} experiments, {took_s:.1f} s")


def _client(url: str, key: str, lens: "Lens", sweep: "Sweep") -> tuple[bool, bool]:
    """One client with a connection of its own: both experiments, compared with the local runs."""
    import glassworks as gw

    model: Any = gw.connect(url, api_key=key).model("toy")
    return lens.equals(lens.again(model)), sweep.equals(sweep.again(model))


def _end(show: _Show, out: Path, took_s: float) -> None:
    show.title(f"{show.checked - len(show.failed)} of {show.checked} checks hold, in {took_s:.0f} s")
    for name, what in (
        ("lens.png", "picture of part 2"),
        ("patch.png", "picture of part 3"),
        ("lens.safetensors", f'a graph; try: glassworks run {out}/lens.safetensors --decode "The Louvre is in"'),
        ("patch.safetensors", "a graph, as it was sent"),
        ("graph.txt", "both graphs as text"),
    ):
        show.say(f"  {out / name}  [dim]{what}[/]")
