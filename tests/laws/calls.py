"""Calls of operations as people write them, with some of their tensors replaced by Values."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from glassworks.trace import binding
from operands import IN_PLACE, OPERANDS, Call, Draw

BY_ATTRIBUTE = {"mT", "mH", "real", "imag"}


def arguments(name: str, draw: Draw, *, in_place: bool = False) -> Call:
    return (IN_PLACE.get(name) or OPERANDS[name] if in_place else OPERANDS[name])(draw)


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))


def put(tree: Any, values: dict[int, Any]) -> Any:
    """The tree with tensors replaced by what `values` has for them."""
    if isinstance(tree, torch.Tensor):
        return values.get(id(tree), tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(put(item, values) for item in tree)
    return {key: put(item, values) for key, item in tree.items()} if isinstance(tree, dict) else tree


def leaves(result: Any) -> list[Any]:
    if isinstance(result, (tuple, list)):
        return [leaf for item in result for leaf in leaves(item)]
    return [result]


def perform(spelling: str, function: Callable[..., Any], call: Call, values: dict[int, Any]) -> Any:
    """The call as a person writes it: a method on its first argument, or a function."""
    args, kwargs = put(call.args, values), put(call.kwargs, values)
    if spelling == "attribute":
        return getattr(args[0], function.__name__)
    if spelling.startswith("Tensor."):
        return getattr(args[0], spelling.removeprefix("Tensor."))(*args[1:], **kwargs)
    return function(*args, **kwargs)


def written(name: str) -> dict[str, Callable[..., Any]]:
    """The ways to write an operation."""
    found = dict(binding.spellings(name))
    if name in BY_ATTRIBUTE:
        found["attribute"] = getattr(torch.Tensor, name)
    return found


def write(spelling: str, function: Callable[..., Any], call: Call, target: Any) -> None:
    args = (target, *call.args[1:])
    own = spelling.rpartition(".")[2]
    if own == "__setitem__":
        target[call.args[1]] = call.args[2]
    elif spelling.startswith("Tensor."):
        getattr(target, own)(*args[1:], **call.kwargs)
    else:
        function(*args, **call.kwargs)
