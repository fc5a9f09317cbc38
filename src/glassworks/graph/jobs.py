"""Experiments that were handed over to be run while their author goes on: what is known of them, and their results.

A backend that is at hand has no queue: it runs them at once, and what it gives is a job that has ended.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from glassworks.errors import InputError
from glassworks.graph import tree, wire
from glassworks.graph.backend import Results

VERSION = 1
QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
"""What a job may be. A service may say another word: it is for reading."""
ENDED = frozenset({DONE, FAILED, CANCELLED})


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job.

    Attributes:
        number: counts from 1, without gaps.
        kind: a word: `queued`, `started`, `log`, `token`, `progress`, `retried` and others; the last is how it ended.
        data: more about it, as JSON has it.
    """

    number: int
    kind: str
    data: Any = None


class Job(Protocol):
    """Experiments under way, in order, as one job."""

    @property
    def id(self) -> str:
        """Under which its service knows it."""

    @property
    def status(self) -> str:
        """`queued`, `running`, `done`, `failed` or `cancelled`."""

    @property
    def position(self) -> int | None:
        """How many jobs are before it; 0 while it runs, None once it has ended."""

    @property
    def progress(self) -> float:
        """How far it is, from 0 to 1: forward passes that have run, of those that may."""

    @property
    def expected_start_s(self) -> float | None:
        """In how many seconds it may begin, as things stand; None: it has begun, or nobody can tell."""

    def wait(self, *, timeout_s: float | None = None) -> None:
        """Until it has ended, however it ends. TimeoutError: it has not, within that time."""

    def cancel(self) -> None:
        """Call it off: at once if it waits, before its next forward pass if it runs; nothing if it has ended."""

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """What happens to it, as it happens, to its end. `after`: the number of the last that is known."""

    def each(self) -> list[Results]:
        """Wait, and give the results of each experiment. What the run raised is raised here."""

    def results(self, to: str | Path | None = None) -> Results | list[Results]:
        """Wait, and give the results: of several experiments a list. What the run raised is raised here.

        Args:
            to: a folder, or the name of a `.safetensors` file, that they are written to as well (see `write`).
        """

    # The same for tasks of an event loop, which goes on meanwhile.

    async def wait_async(self, *, timeout_s: float | None = None) -> None: ...
    async def status_async(self) -> str: ...
    async def cancel_async(self) -> None: ...
    async def each_async(self) -> list[Results]: ...
    def events_async(self, *, after: int = 0) -> AsyncIterator[Event]: ...


_NUMBERS = count(1)


class EndedJob:
    """A job of a backend that is at hand: it has run."""

    position = None
    expected_start_s = None

    def __init__(self, run: Callable[[], list[Results]], *, as_leaf: tree.AsLeaf = tree.own_leaf) -> None:
        self.id, self._as_leaf = f"local-{next(_NUMBERS)}", as_leaf
        self._found: list[Results] | Exception
        try:
            self._found = run()
        except Exception as error:  # noqa: BLE001 - raised where the results are asked for, as a service's is
            self._found = error

    @property
    def status(self) -> str:
        return FAILED if isinstance(self._found, Exception) else DONE

    @property
    def progress(self) -> float:
        return 1.0

    def wait(self, *, timeout_s: float | None = None) -> None:
        pass

    def cancel(self) -> None:
        pass

    def events(self, *, after: int = 0) -> Iterator[Event]:
        return iter([Event(1, self.status)][after:])

    def each(self) -> list[Results]:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def results(self, to: str | Path | None = None) -> Results | list[Results]:
        return given(self.each(), to, as_leaf=self._as_leaf)

    async def wait_async(self, *, timeout_s: float | None = None) -> None:
        pass

    async def status_async(self) -> str:
        return self.status

    async def cancel_async(self) -> None:
        pass

    async def each_async(self) -> list[Results]:
        return self.each()

    async def events_async(self, *, after: int = 0) -> AsyncIterator[Event]:
        for event in self.events(after=after):
            yield event

    def __repr__(self) -> str:
        return f"<job {self.id} {self.status}>"


def given(results: list[Results], to: str | Path | None, *, as_leaf: tree.AsLeaf) -> Results | list[Results]:
    """The results as `Job.results` gives them, written first if so asked."""
    if to is not None:
        write(results, to, as_leaf=as_leaf)
    return results[0] if len(results) == 1 else results


def write(results: Sequence[Results], to: str | Path, *, as_leaf: tree.AsLeaf = tree.own_leaf) -> Path:
    """Write saves as one safetensors file, `results.safetensors` in a folder, or a file of that ending.

    A tensor has the name of its save; of an entry a step, `name[k]`; of the k-th of several experiments, `k.name`.

    Raises:
        InputError: two of these names are one; or the file cannot be written.
    """
    blobs: dict[str, wire.Blob] = {}
    for k, result in enumerate(results):
        for name, value in result.saves.items():
            spelled = f"{k}.{name}" if len(results) > 1 else name
            entries = {f"{spelled}[{n}]": item for n, item in enumerate(value)} if isinstance(value, list) else None
            for own, item in ({spelled: value} if entries is None else entries).items():
                _add(blobs, own, item, as_leaf)
    message = {"version": VERSION, "forwards": [r.forwards for r in results], "alive": [list(r.alive) for r in results]}
    path = Path(to)
    path = path if path.suffix == ".safetensors" else path / "results.safetensors"
    unfinished = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(wire.pack({"job": message}, blobs))
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"the results cannot be written to {str(path)!r}: {error}") from None
    return path


def _add(blobs: dict[str, wire.Blob], name: str, value: Any, as_leaf: tree.AsLeaf) -> None:
    if value is None:  # a step whose branch was not taken
        return
    leaf = as_leaf(value)
    if leaf is None or name in blobs or name == "__metadata__":
        raise InputError(f"the save {name!r} cannot be written under its name: give it, or the other, another one")
    blobs[name] = leaf.blob()
