"""Prompts for `glassworks generate`: from arguments, a file or standard input, as requests with their settings.

A source of lines holds texts, or JSON objects of which each has a "prompt" and may have settings of its own. A file
named .jsonl holds objects and one named .txt holds texts; any other, and standard input, holds objects if its first
line begins with a brace.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassworks.errors import InputError

if TYPE_CHECKING:
    from glassworks.engine.requests import Request

_MAY_HAVE = ("max_new_tokens", "stop", "seed", "id", "options")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One prompt and how to go on from it, as plain data.

    Attributes:
        index: its place among the prompts, from 0. id: its own name, if it has one.
    """

    index: int
    prompt: Any
    max_new_tokens: int
    id: Any = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def request(self) -> "Request":
        """For an engine. InputError: it cannot be."""
        from glassworks.engine.requests import Request

        return Request(
            self.prompt, max_new_tokens=self.max_new_tokens, stop=self.stop, seed=self.seed, options=self.options
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for prompts that do not say otherwise. Prompt k draws from `seed + k`: equal prompts differ."""

    max_new_tokens: int
    stop: tuple[str, ...]
    seed: int
    temperature: float | None

    def wanted(self, given: Iterable[Mapping[str, Any]]) -> list[Wanted]:
        """Prompts with what holds for each."""
        return [self._one(index, own) for index, own in enumerate(given)]

    def _one(self, index: int, own: Mapping[str, Any]) -> Wanted:
        stop = own.get("stop", self.stop)
        return Wanted(
            index=index, id=own.get("id"), prompt=own["prompt"], stop=(stop,) if isinstance(stop, str) else tuple(stop),
            max_new_tokens=own.get("max_new_tokens", self.max_new_tokens), seed=own.get("seed", self.seed + index),
            options={**self._options(), **own.get("options", {})},
        )  # fmt: skip

    def _options(self) -> dict[str, Any]:
        """None: the model's own settings say whether to sample; 0: the likeliest token, always."""
        if self.temperature is None:
            return {}
        return {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}


def given_prompts(texts: list[str], file: Path | None) -> list[dict[str, Any]]:
    """Prompts as objects, in order.

    Raises:
        InputError: there are none, or two sources of them, or a line is not what its source holds.
    """
    if texts and file is not None:
        raise InputError("prompts came as arguments and as a file; give one or the other")
    if texts:
        return [{"prompt": text} for text in texts]
    if file is None and sys.stdin.isatty():
        raise InputError("no prompts: give them as arguments, with --file FILE, or one a line on standard input")
    source = "standard input" if file is None else str(file)
    try:
        whole = sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not text in UTF-8: {error}; convert it") from None
    # not splitlines(): JSON may hold U+2028, which that splits at
    lines = [(number, line) for number, line in enumerate(whole.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InputError(f"no prompts: {source} has no lines with text")
    suffix = "" if file is None else file.suffix
    if suffix == ".jsonl" or (suffix != ".txt" and lines[0][1].startswith("{")):
        return [_object(line, f"{source}, line {number}") for number, line in lines]
    return [{"prompt": line.rstrip("\r")} for _, line in lines]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(
            f'{where} is not JSON: {error}; each line is an object such as {{"prompt": "..."}}, or name a file of '
            f"plain texts .txt"
        ) from None
    if not isinstance(found, dict) or "prompt" not in found:
        raise InputError(f'{where}: expected an object with "prompt"; got {line[:80]}')
    if unknown := sorted(set(found) - {"prompt", *_MAY_HAVE}):
        raise InputError(f"{where}: unknown {', '.join(unknown)}; besides prompt there may be {', '.join(_MAY_HAVE)}")
    stop = found.get("stop", [])
    if not isinstance(stop, str | list) or not isinstance(found.get("options", {}), dict):
        raise InputError(f"{where}: stop is a text or a list of texts, and options an object; got {line[:80]}")
    return found
