"""The pictures of the demo. matplotlib draws on a canvas of its own: no windows, no global state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glassworks.cli.experiments import Lens, Sweep

_INK, _FAINT = "#22252b", "#737985"


def draw_lens(lens: "Lens", path: Path, *, prompt: str, answer: str) -> None:
    """Places by positions: the most likely next token of each, coloured by its probability."""
    rows = lens.rows()
    figure, axes = _canvas(len(rows), len(lens.tokens))
    image = axes.imshow([sure for _, _, sure in rows], cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    for y, (_, words, sure) in enumerate(rows):
        for x, (word, p) in enumerate(zip(words, sure, strict=True)):
            weight = "bold" if word == answer else "normal"
            axes.text(x, y, _shown(word), ha="center", va="center", color=_on(p > 0.55), fontsize=9, weight=weight)
    _grid(axes, [_shown(token) for token in lens.tokens], [name for name, _, _ in rows])
    _titles(axes, "What each layer would say next", f"Logit lens on “{prompt}”: the most likely token at each place")
    _scale(figure, image, axes, "probability of that token")
    figure.savefig(path)


def draw_sweep(sweep: "Sweep", path: Path, *, answers: tuple[str, str]) -> None:
    """Layers by positions: how far moving that one vector moves the answer."""
    moved = sweep.moved.tolist()
    ours, theirs = (answer.strip() for answer in answers)
    figure, axes = _canvas(len(moved), len(moved[0]))
    image = axes.imshow(moved, cmap="Reds", vmin=0, vmax=1, origin="lower", aspect="auto")
    for y, row in enumerate(moved):
        for x, share in enumerate(row):
            word = sweep.words[y][x]
            percent = f"{round(100 * share) + 0}%"
            shown = percent if word in answers else f"{percent}\n{_shown(word)}"
            weight = "bold" if word == answers[1] else "normal"
            axes.text(x, y, shown, ha="center", va="center", color=_on(share > 0.6), fontsize=9, weight=weight)
    names = [
        _shown(own) if own == other else f"{_shown(own)}\n← {_shown(other)}"
        for own, other in zip(*sweep.tokens, strict=True)
    ]
    _grid(axes, names, [f"layer {k}" for k in range(len(moved))])
    _titles(
        axes,
        f"Which vectors turn {ours} into {theirs}",
        f"One residual vector moved from “{sweep.prompts[1]}” into “{sweep.prompts[0]}”",
    )
    _scale(figure, image, axes, f"share of the way, in log p({theirs}) − log p({ours})")
    figure.savefig(path)


def _canvas(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 0.92 * columns, 1.9 + 0.5 * rows), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _grid(axes: Any, columns: list[str], rows: list[str]) -> None:
    axes.set_xticks(range(len(columns)), columns, fontsize=9.5, color=_INK)
    axes.set_yticks(range(len(rows)), rows, fontsize=9.5, color=_INK)
    axes.set_xticks([k - 0.5 for k in range(1, len(columns))], minor=True)
    axes.set_yticks([k - 0.5 for k in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="#e8eaee", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _titles(axes: Any, title: str, subtitle: str) -> None:
    axes.set_title(f"{title}\n", loc="left", fontsize=13, color=_INK, weight="bold")
    note = axes.text(0, 1.03, subtitle, transform=axes.transAxes, fontsize=9.5, color=_FAINT)
    note.set_in_layout(False)  # or a long one would squeeze the axes


def _scale(figure: Any, image: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=28)
    bar.set_label(label, fontsize=9.5, color=_FAINT)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=_FAINT)


def _on(dark: bool) -> str:
    return "white" if dark else _INK


def _shown(token: str) -> str:
    return token.strip() or "·"
