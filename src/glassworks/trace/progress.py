"""A bar on standard error for long runs: on a terminal, or where somebody asks for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nothing(rows: int) -> None:
    pass


@contextmanager
def shown_progress(rows: int, *, wanted: bool | None, worth_it: bool) -> Iterator[Callable[[int], None]]:
    """A function that is told how many of `rows` have been run.

    Args:
        wanted: None leaves it to `worth_it` and to whether standard error is a terminal.
    """
    if wanted is False or (wanted is None and not worth_it):
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if wanted is None and not console.is_terminal:
        yield _nothing
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("rows", total=rows)
        yield lambda done: bar.update(task, completed=done)
