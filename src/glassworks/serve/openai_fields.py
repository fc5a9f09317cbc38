"""Fields of a JSON body, each checked as it is taken, and the refusal of one that cannot be. Knows no field by name."""

from collections.abc import Callable, Mapping
from typing import Any

from glassworks.errors import InputError
from glassworks.graph.wire import spell


class Unfit(InputError):
    """A field of a body that cannot be."""

    def __init__(self, message: str, *, param: str | None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class Fields:
    """The fields of a body; null is as good as absent. What cannot be is raised as Unfit, which names the field."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.get: Callable[[str], Any] = body.get

    def number(self, name: str, usual: float, low: float, high: float) -> float:
        """A number within bounds."""
        value = self.get(name)
        if value is None:
            return usual
        if type(value) not in (int, float) or not low <= value <= high:
            raise Unfit(f"{name} must be a number from {low} to {high}, got {spell(value)}", param=name)
        return float(value)

    def count(self, name: str, usual: int | None, low: int, high: int) -> int | None:
        """An integer within bounds."""
        value = self.get(name)
        if value is None:
            return usual
        if type(value) is not int or not low <= value <= high:
            raise Unfit(f"{name} must be an integer from {low} to {high}, got {spell(value)}", param=name)
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            raise Unfit(f"{name} must be true or false, got {spell(value)}", param=name)
        return bool(value)

    def text(self, name: str) -> str | None:
        """A text."""
        value = self.get(name)
        return None if value is None else sound_text(value, name)


def sound_text(value: Any, name: str) -> str:
    """A text that is one: half of a surrogate pair is no character, and no tokenizer takes it."""
    if not isinstance(value, str):
        raise Unfit(f"{name} must be a text, got {spell(value)}", param=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unfit(f"{name} must be Unicode text: character {error.start} is half of a pair", param=name) from None
    return value


def check_names(body: Mapping[str, Any], known: frozenset[str], path: str) -> None:
    """Unfit: names a field that nobody knows."""
    for name in body:
        if name not in known:
            raise Unfit(f"{spell(name)} is no parameter of {path}", param=name[:100], code="unknown_parameter")


def check_absent(fields: Fields, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Unfit: names a field of these that asks for something. `neutral`: name -> the values that ask for nothing."""
    for name, values in neutral.items():
        value = fields.get(name)
        if value is not None and not any(_same(value, own) for own in values):
            spelled = f"; leave it out, or give {' or '.join(map(spell, values))}" if values else "; leave it out"
            raise Unfit(f"{name} is not supported by this service{spelled}", param=name, code="unsupported_parameter")


def _same(value: Any, own: Any) -> bool:
    return isinstance(value, bool) == isinstance(own, bool) and bool(value == own)
