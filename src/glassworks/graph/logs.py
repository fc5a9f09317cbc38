"""What `gw.log` says: entries as plain data, and who hears them while a run goes on.

An entry is text already: tensors were made short where they were, so that nothing large travels. Who hears is a matter
of the context: a person's own run prints, a service keeps quiet and sends the entries with the results, and its client
prints them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from glassworks.errors import WireError

CHARACTERS = 2000
"""At most so many in one entry."""

ENTRIES = 10_000
"""At most so many of one run; what follows is not kept."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of a log.

    Attributes:
        text: what was said, on one line. node: which node of the graph said it.
        step: of a generation; None outside one. rows: their numbers, where there are several.
        line: `file:line` where it was written.
    """

    text: str
    node: int
    step: int | None = None
    rows: tuple[int, ...] = ()
    line: str = ""

    def __str__(self) -> str:
        place = [self.line.replace("\\", "/").rpartition("/")[2]]
        place += [f"step {self.step}"] if self.step is not None else []
        place += [_spelled(self.rows)] if self.rows else []
        return f"{', '.join(place)}: {self.text}"


def _spelled(rows: tuple[int, ...]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    if rows == tuple(range(rows[0], rows[-1] + 1)):
        return f"rows {rows[0]} to {rows[-1]}"
    return f"rows {', '.join(map(str, rows))}"


def one_line(text: str) -> str:
    """The text with what is not printable spelled out, cut at the limit."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: CHARACTERS + 1])
    return plain if len(plain) <= CHARACTERS else plain[: CHARACTERS - 4] + " ..."


def _print(entry: LogEntry) -> None:
    print(entry, flush=True)


_HEARS: ContextVar[Callable[[LogEntry], None]] = ContextVar("hears", default=_print)


def tell(entry: LogEntry) -> None:
    """Let whoever listens hear an entry; by default it is printed."""
    _HEARS.get()(entry)


@contextmanager
def heard_by(hear: Callable[[LogEntry], None]) -> Iterator[None]:
    """Entries of this context go to `hear` while this lasts."""
    token = _HEARS.set(hear)
    try:
        yield
    finally:
        _HEARS.reset(token)


def silence() -> AbstractContextManager[None]:
    """Nobody listens while this lasts; entries are kept all the same."""
    return heard_by(lambda entry: None)


def to_json(entry: LogEntry) -> list[Any]:
    """An entry without its line, which the sender of the graph knows."""
    return [entry.text, entry.node, entry.step, list(entry.rows)]


def from_json(value: Any, where: str) -> LogEntry:
    """The inverse of `to_json`. WireError names `where`."""
    good = isinstance(value, list) and len(value) == 4 and isinstance(value[0], str) and isinstance(value[3], list)
    numbers = [value[1], 0 if value[2] is None else value[2], *value[3]] if good else [None]
    if not all(type(number) is int and number >= 0 for number in numbers) or len(value[0]) > CHARACTERS:
        raise WireError(f"{where} must be [text of at most {CHARACTERS} characters, node, step, rows]")
    return LogEntry(one_line(value[0]), value[1], value[2], tuple(value[3]))
