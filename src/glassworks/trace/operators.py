"""The methods and operators of a tensor, made from the table of operations, for what records them.

Nothing is decided here: each method hands its operation's name and its arguments to the class that it is mixed into.
"""

from collections.abc import Callable
from typing import Any

import torch

from glassworks.trace import binding

_OPERATORS = """add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul eq ne lt le gt
ge and or xor invert lshift rshift neg abs"""
_AUGMENTED = "add sub mul truediv floordiv mod pow and or xor"


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
        make = _in_place_method if name.endswith("_") else _method
        setattr(Operators, name, make(name, target))
    for short in _OPERATORS.split():
        name = f"__{short}__"
        setattr(Operators, name, _method(name, binding.name_of(getattr(torch.Tensor, name))))
    for short in _AUGMENTED.split():
        name = f"__i{short}__"
        setattr(Operators, name, _in_place_method(name, binding.name_of(getattr(torch.Tensor, name))))


_install()
