"""The file that `glassworks generate` writes: an object a line, each written whole as its prompt ends.

Beside it stands `FILE.run.json`, which says of which model, prompts and settings the file is. A run that was cut short
goes on from there: prompts that have a whole line are not run again, a half-written last line is cut off, and prompts
that failed are tried again. A file that belongs to other prompts or settings is refused and left as it is.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from glassworks import __version__
from glassworks.errors import InputError

FORMAT = "glassworks generate 1"


def check_folder(to: Path) -> None:
    """InputError: no file can be written there. Asked before anything is computed."""
    if not to.parent.is_dir():
        raise InputError(f"{to} cannot be written: there is no folder {to.parent}; make it, or give another --out")
    if not os.access(to if to.exists() else to.parent, os.W_OK):
        raise InputError(f"{to} cannot be written: it is not permitted; give another --out")


class Outcomes:
    """Where objects go: a file that can be gone on with, or a stream.

    Args:
        to: the file; None: `stream`. run: what makes the outcome what it is, as plain data. count: of prompts.

    Attributes:
        done: the indices of prompts whose outcome is there already.

    Raises:
        InputError: the file belongs to another run, or cannot be written.
    """

    def __init__(self, to: Path | None, stream: TextIO, *, run: Mapping[str, Any], count: int) -> None:
        self._to, self._stream, self._run = to, stream, {**run, "prompts": count}
        self.done: set[int] = set() if to is None else self._checked(to)

    def open(self) -> None:
        """Begin to write: cut off what is not whole, and say whose file it is."""
        if self._to is None:
            return
        beside = _beside(self._to)
        if not beside.exists():
            _replace(beside, json.dumps({"format": FORMAT, "glassworks": __version__, **self._run}, indent=1) + "\n")
        if self._to.exists():
            lines = [line for _, line in _whole_lines(self._to, self._run["prompts"])]
            if "".join(lines).encode() != self._to.read_bytes():
                _replace(self._to, "".join(lines))
        self._stream = self._to.open("a", encoding="utf-8")

    def write(self, found: Mapping[str, Any]) -> None:
        """One object, at once, so that whoever kills the process loses no more than this line."""
        self._stream.write(_line(found))
        self._stream.flush()

    def close(self) -> None:
        """No more will be written."""
        if self._to is not None:
            self._stream.close()

    def _checked(self, to: Path) -> set[int]:
        check_folder(to)
        beside = _beside(to)
        if not beside.exists():
            if to.exists() and to.stat().st_size:
                raise InputError(
                    f"{to} is there, and no {beside.name} says what it is: it is left alone; give another --out, or "
                    f"remove it"
                )
            return set()
        theirs = _loaded(beside)
        for name, own in self._run.items():
            if theirs.get(name) != own:
                raise InputError(
                    f"{to} belongs to another run: {name} was {theirs.get(name)!r} and is {own!r} now; give another "
                    f"--out, or remove {to.name} and {beside.name}"
                )
        return {index for index, _ in _whole_lines(to, self._run["prompts"])} if to.exists() else set()


def _line(found: Mapping[str, Any]) -> str:
    """Readable in every language; half a surrogate pair, which JSON may hold and a file may not, is escaped."""
    line = json.dumps(found, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(found)
    return line + "\n"


def digest(data: Any) -> str:
    """Of plain data: a short name for prompts, which are too many to write out."""
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=12).hexdigest()


def _beside(to: Path) -> Path:
    return to.with_name(f"{to.name}.run.json")


def _loaded(beside: Path) -> dict[str, Any]:
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{beside} is not of `glassworks generate`: give another --out, or remove it")
    return found


def _whole_lines(path: Path, count: int) -> list[tuple[int, str]]:
    """(index, line) of each prompt that has an outcome, once; failures are none."""
    found: dict[int, str] = {}
    for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        try:
            own = json.loads(line)
        except ValueError:
            continue  # it was cut off while it was written
        if isinstance(own, dict) and "error" not in own and own.get("index") in range(count):
            found.setdefault(own["index"], line + "\n")
    return list(found.items())


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole, or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
