"""What an experiment means, by plain PyTorch: hooks on the bare module. Only names of places come from what is tested.

The order of the forward pass is found by running the module with a hook on every place.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AttentionInterface

from laws.runtimes import Runtime, local

Action = Callable[[torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Place:
    """A tensor of a module's inputs or outputs, or inside its attention: which module, and the keys that lead to it.

    `heads`: it is shown as so many heads. `held`: the model goes on with this very tensor, so it is changed in place.
    """

    path: str
    port: str
    item: tuple[Any, ...]
    folded: bool
    heads: int = 0
    held: bool = False


@dataclass(frozen=True)
class Map:
    """The places of a family by site name, in the order of its forward pass."""

    places: Mapping[str, Place]
    order: Mapping[str, int]
    shape: Mapping[str, tuple[int | str, ...]]


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
        places[name] = Place(event.path, event.port, tuple(site.item), site.unfold, site.heads, site.inplace)
    seen: dict[str, int] = {}
    shapes: dict[str, tuple[int | str, ...]] = {}

    def see(name: str) -> Action:
        def action(tensor: torch.Tensor) -> None:
            seen.setdefault(name, len(seen))
            shapes[name] = tuple(_LENGTHS.get(size, size) for size in tensor.shape)

        return action

    prompt, *decoder = ([7] * length for length in _LENGTHS)
    arguments = {"decoder_input_ids": torch.tensor(decoder)} if runtime.two else {}
    hooked(runtime.bare, places, {name: see(name) for name in places}, lambda: runtime.forward(prompt, **arguments))
    return Map(places, seen, shapes)


_LENGTHS = {7: "prompt", 5: "decoder"}
"""Lengths that are no other size of the models'."""


def hooked(
    module: torch.nn.Module, places: Mapping[str, Place], actions: Mapping[str, Action], run: Callable[[], Any]
) -> Any:
    """Run with hooks that show each tensor to its action and go on with what the action gives."""
    handles: list[Any] = []
    inside: dict[str, dict[str, Action]] = {}
    try:
        for name, action in actions.items():
            place = places[name]
            own = module.get_submodule(place.path)
            if place.port in ("query", "key", "value", "scores", "probs"):
                inside.setdefault(place.path, {})[place.port] = action
            elif place.port.startswith("op(linear"):
                handles.append(own.register_forward_hook(_rerouted(own, action)))
            elif place.port == "input":
                handles.append(own.register_forward_pre_hook(_before(place, action), with_kwargs=True))
            else:
                handles.append(own.register_forward_hook(_after(place, action)))
        handles += [_Attending(module.get_submodule(path), own) for path, own in inside.items()]
        return run()
    finally:
        for handle in handles:
            handle.remove()


class _Attending:
    """An attention module that computes attention here, in plain operations, until it is removed."""

    def __init__(self, module: Any, actions: Mapping[str, Action]) -> None:
        self._module, self._config = module, module.config
        module.config = copy.copy(module.config)
        module.config._attn_implementation_internal = "laws"
        _ACTIONS[module] = actions

    def remove(self) -> None:
        self._module.config = self._config
        del _ACTIONS[self._module]


_ACTIONS: dict[Any, Mapping[str, Action]] = {}


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, position_bias: Any = None, **_: Any
) -> Any:
    """Of a lone prompt without padding: softmax(q k / sqrt(d) + bias + causality) v."""

    def at(port: str, tensor: torch.Tensor, *, swapped: bool = False) -> torch.Tensor:
        action = _ACTIONS[module].get(port)
        new = None if action is None else action(tensor.transpose(1, 2) if swapped else tensor)
        return tensor if new is None else new.transpose(1, 2) if swapped else new

    query, key, value = (
        at(p, t, swapped=True) for p, t in (("query", query), ("key", key), ("value", value))
    )  # fmt: skip
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores if position_bias is None else scores + position_bias
    if module.is_causal and query.shape[2] == key.shape[2]:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores + torch.zeros(scores.shape[-2:]).masked_fill(hidden, torch.finfo(scores.dtype).min)
    probs = at("probs", at("scores", scores).softmax(-1))
    return (probs @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), None


AttentionInterface.register("laws", _attention)


def _rerouted(router: Any, action: Action) -> Any:
    """A router that chooses by other logits."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        logits = output[0]
        new = action(logits.reshape(1, -1, logits.shape[-1]))
        if new is None:
            return None
        logits = new.reshape(logits.shape)
        best, index = logits.softmax(-1).topk(router.top_k, dim=-1)
        return logits, best / best.sum(-1, keepdim=True), index

    return hook


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
    new = action(shown.unflatten(-1, (place.heads, -1)) if place.heads else shown)
    if place.held:
        if new is not None:
            tensor.copy_(new.reshape(tensor.shape))
        return None
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
