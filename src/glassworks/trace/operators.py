"""The methods and operators of a tensor, made from the table of operations, for what records them.

Nothing is decided here: each method hands its operation's name and its arguments to the class that it is mixed into.
"""

from collections.abc import Callable
from typing import Any

from glassworks.trace import binding

_PROPERTIES = ("mT", "mH", "real", "imag")
_BY_HAND = frozenset({"__getitem__", "__setitem__", "where"})
"""Methods that the class which records writes itself."""


class Operators:
    """What a class of symbolic tensors inherits; it says what happens with an operation."""

    __slots__ = ()

    def _perform(self, name: str, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise AssertionError("said by the class that records")

    def _perform_in_place(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise AssertionError("said by the class that records")


def _method(name: str, target: str) -> Callable[..., Any]:
    def method(self: Operators, *args: Any, **kwargs: Any) -> Any:
        return self._perform(name, target, args, kwargs)

    method.__name__ = method.__qualname__ = name
    return method


def _in_place_method(name: str, target: str) -> Callable[..., Any]:
    def method(self: Operators, *args: Any, **kwargs: Any) -> Any:
        return self._perform_in_place(target, args, kwargs)

    method.__name__ = method.__qualname__ = name
    return method


def _install() -> None:
    for name, target in binding.attributes().items():
        if name not in _BY_HAND:
            make = _in_place_method if target.endswith("_") else _method
            setattr(Operators, name, make(name, target))
    for name in _PROPERTIES:
        setattr(Operators, name, property(_method(name, name)))


_install()
