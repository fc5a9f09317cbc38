"""What an experiment means, by plain PyTorch: hooks on the bare module. Only names of places come from what is tested.

The order of the forward pass is found by running the module with a hook on every place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from laws.runtimes import Runtime, local

Action = Callable[[torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Place:
    """A tensor of a module's inputs or outputs: which module, and the keys that lead to it."""

    path: str
    port: str
    item: tuple[Any, ...]
    folded: bool


@dataclass(frozen=True)
class Map:
    """The places of a family by site name, in the order of its forward pass."""

    places: Mapping[str, Place]
    order: Mapping[str, int]
    width: Mapping[str, int]


def names_of(runtime: Runtime) -> list[str]:
    """The standard sites that hold activations."""
    table = runtime.model.table
    return [name for name in table.standard_names if "[" not in name and table[name].dtype == "float32"]


@cache
def map_of(family: str) -> Map:
    runtime = local(family)
    table = runtime.model.table
    places = {}
    for name in names_of(runtime):
        site = table[name]
        event = table.event_of(site)
        places[name] = Place(event.path, event.port, tuple(site.item), site.unfold)
    seen: dict[str, int] = {}
    widths: dict[str, int] = {}

    def see(name: str) -> Action:
        def action(tensor: torch.Tensor) -> None:
            seen.setdefault(name, len(seen))
            widths[name] = tensor.shape[-1]

        return action

    hooked(runtime.bare, places, {name: see(name) for name in places}, lambda: runtime.forward([5, 6, 7]))
    return Map(places, seen, widths)


def hooked(
    module: torch.nn.Module, places: Mapping[str, Place], actions: Mapping[str, Action], run: Callable[[], Any]
) -> Any:
    """Run with hooks that show each tensor to its action and go on with what the action gives."""
    handles = []
    try:
        for name, action in actions.items():
            place = places[name]
            own = module.get_submodule(place.path)
            if place.port == "input":
                handles.append(own.register_forward_pre_hook(_before(place, action), with_kwargs=True))
            else:
                handles.append(own.register_forward_hook(_after(place, action)))
        return run()
    finally:
        for handle in handles:
            handle.remove()


def _before(place: Place, action: Action) -> Any:
    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        return _changed((args, kwargs), place, action)

    return hook


def _after(place: Place, action: Action) -> Any:
    def hook(module: Any, args: Any, output: Any) -> Any:
        return _changed(output, place, action)

    return hook


def _changed(tree: Any, place: Place, action: Action) -> Any:
    tensor = tree
    for key in place.item:
        tensor = tensor[key]
    shown = tensor.reshape(1, -1, tensor.shape[-1]) if place.folded else tensor
    new = action(shown)
    return None if new is None else _put(tree, place.item, new.reshape(tensor.shape))


def _put(tree: Any, keys: Sequence[Any], value: Any) -> Any:
    if not keys:
        return value
    inner = _put(tree[keys[0]], keys[1:], value)
    if isinstance(tree, tuple):
        return tuple(inner if k == keys[0] else item for k, item in enumerate(tree))
    if isinstance(tree, list):
        return [inner if k == keys[0] else item for k, item in enumerate(tree)]
    changed = type(tree)(**tree)
    changed[keys[0]] = inner
    return changed
