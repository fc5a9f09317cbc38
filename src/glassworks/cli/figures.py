"""Figures that are given one at a time: `--limit max_new_tokens=256 --limit held_bytes=16GiB`."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from glassworks.errors import InputError
from glassworks.units import size_bytes

Kind = TypeVar("Kind")


def figures(kind: type[Kind], option: str, given: Sequence[str]) -> Kind:
    """A `kind` of the figures that were given, and its own defaults for all others.

    Args:
        given: texts such as `rows=64`; bytes may have a unit.

    Raises:
        InputError: no such figure, no whole number, or the same twice.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for text in given:
        name, equals, number = text.partition("=")
        if not equals or name not in names:
            raise InputError(f"{option} takes name=number; the names are {', '.join(names)}; got {text!r}")
        if name in found:
            raise InputError(f"{option} {name} was given twice")
        found[name] = _figure(option, name, number)
    return kind(**found)


def _figure(option: str, name: str, number: str) -> int:
    if number.isascii() and number.isdigit():
        return int(number)
    if not name.endswith("_bytes"):
        raise InputError(f"{option} {name} takes a whole number, got {number!r}")
    return size_bytes(number)
