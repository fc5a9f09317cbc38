"""Tensors inside what modules take and return: tuples, lists, dicts, transformers' model outputs."""

import copy
from collections.abc import Mapping
from typing import Any


def item_at(tree: Any, keys: tuple[int | str, ...]) -> Any:
    """What stands at a path of keys."""
    for key in keys:
        tree = tree[key]
    return tree


def replaced(tree: Any, keys: tuple[int | str, ...], value: Any) -> Any:
    """The same structure, of the same types, with `value` at a path of keys; the original is left alone."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(tree, Mapping):
        changed = copy.copy(tree)
        changed[key] = replaced(tree[key], rest, value)  # type: ignore[index]
        return changed
    items = list(tree)
    items[key] = replaced(items[key], rest, value)  # type: ignore[index]
    if isinstance(tree, list):
        return items
    return type(tree)(*items) if getattr(type(tree), "_fields", None) else type(tree)(items)


def built(structure: Any, leaf: Any) -> Any:
    """What a module would return whose first tensor is `leaf` and that has nothing else to say."""
    match structure:
        case {"leaf": _}:
            return leaf
        case {"tuple": items} | {"list": items}:
            first = next((k for k, item in enumerate(items) if item.keys() & {"leaf", "tuple", "list"}), 0)
            found = [built(item, leaf) if k == first else None for k, item in enumerate(items)]
            return tuple(found) if "tuple" in structure else found
    return None
