"""The other face of keys and values: a transformers cache, of what runs by itself, as bytes that move between tiers.

A cache is whatever object the family keeps: lists of keys and values, convolution and recurrent states. Its tensors are
found wherever they hang, so that they can be counted, copied off the device and back. What a cache takes is measured on
two small runs, since no configuration says it for every family.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from glassworks.memory.arena import Arena
from glassworks.memory.links import Fence, Link
from glassworks.run.eager import EagerRuntime, state_name

_Place = tuple[Any, Any]
"""What holds a tensor, and under which name, key or index."""


def tensors_of(cache: Any) -> list[tuple[_Place, torch.Tensor]]:
    """Every tensor in a cache with what holds it, each once."""
    return list(_found(cache, set()))


def _found(owner: Any, seen: set[int]) -> Iterator[tuple[_Place, torch.Tensor]]:
    if id(owner) in seen or (not isinstance(owner, dict | list) and not hasattr(owner, "__dict__")):
        return
    seen.add(id(owner))
    items = enumerate(owner) if isinstance(owner, list) else (owner if isinstance(owner, dict) else vars(owner)).items()
    for key, value in list(items):
        if isinstance(value, torch.Tensor):
            yield (owner, key), value
        elif not isinstance(value, torch.nn.Module | type) and not callable(value):
            yield from _found(value, seen)


def _put(place: _Place, tensor: torch.Tensor) -> None:
    owner, key = place
    if isinstance(owner, dict | list):
        owner[key] = tensor
    else:
        setattr(owner, key, tensor)


def size_of(cache: Any) -> int:
    """Bytes of a cache."""
    return sum(tensor.nbytes for _, tensor in tensors_of(cache))


def measured(runtime: EagerRuntime, *, vocab: int) -> tuple[int, int]:
    """Bytes of a row's cache: for each token, and besides. Of a model that keeps none, (0, 0)."""
    short, long = (_after(runtime, tokens, vocab) for tokens in (4, 12))
    token_bytes = max(math.ceil((long - short) / 8), 0)
    return token_bytes, max(short - 4 * token_bytes, 0)


def _after(runtime: EagerRuntime, tokens: int, vocab: int) -> int:
    ids = torch.arange(tokens, device=runtime.device)[None] % max(vocab, 1)
    config = runtime.module.config
    extra = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
    with torch.no_grad():
        returned = runtime.module(input_ids=ids, use_cache=True, **extra)
    return size_of(returned.get(state_name(returned)))


class Held:
    """The cache of one experiment that runs by itself, and the bytes it has been promised.

    Args:
        size_bytes: what it may come to. device, host: the arenas. out, back: the links between them.
        late: where it puts itself if it is let go of while it is copied: whoever has the list polls it.
    """

    def __init__(
        self, size_bytes: int, device: Arena, host: Arena | None, out: Link, back: Link, *, poison: bool,
        late: "list[Held]",
    ) -> None:  # fmt: skip
        self.size_bytes, self._device, self._host = size_bytes, device, host
        self._out, self._back, self._poison, self._late = out, back, poison, late
        self.is_here = self.is_away = False
        self.fence: Fence | None = None
        self._then: Any = None

    @property
    def free_bytes(self) -> int:
        """What is left of the device."""
        return self._device.free_bytes

    def take(self) -> None:
        """Before the first step. BudgetExceeded: the device has not the room."""
        self._device.take(self.size_bytes, "the cache of a request that runs by itself")
        self.is_here = True

    def leave(self, cache: Any) -> bool:
        """Begin to copy it off the device; whether there is room."""
        if self._host is None or self._host.free_bytes < self.size_bytes:
            return False
        self._host.take(self.size_bytes, "a cache")
        self._move(self._out, cache, torch.device("cpu"), self._left)
        return True

    def come(self, cache: Any, device: torch.device) -> bool:
        """Begin to copy it back; whether there is room."""
        if self._device.free_bytes < self.size_bytes:
            return False
        self._device.take(self.size_bytes, "a cache")
        self._move(self._back, cache, device, self._came)
        return True

    def _move(self, link: Link, cache: Any, device: torch.device, then: Any) -> None:
        sources = tensors_of(cache)
        copies = [torch.empty_like(tensor, device=device) for _, tensor in sources]
        if self._poison:
            for copy in copies:
                _poison(copy)

        def copy_all() -> None:
            for (_, tensor), copy in zip(sources, copies, strict=True):
                copy.copy_(tensor, non_blocking=True)

        def settle() -> None:
            for (place, tensor), copy in zip(sources, copies, strict=True):
                _put(place, copy)
                if self._poison:
                    _poison(tensor)
            then()

        self.fence, self._then = link.send(copy_all, self.size_bytes), settle
        self.poll()

    def poll(self) -> bool:
        """Whether a copy is still under way."""
        if self.fence is not None and self.fence.passed():
            then, self.fence, self._then = self._then, None, None
            then()
        return self.fence is not None

    def _left(self) -> None:
        self._device.give(self.size_bytes)
        self.is_here, self.is_away = False, True

    def _came(self) -> None:
        assert self._host is not None
        self._host.give(self.size_bytes)
        self.is_here, self.is_away = True, False

    def release(self) -> None:
        """It has ended, or is forgotten: its bytes are free, once no copy uses them."""
        if self.fence is not None:
            self._then = partial(_one_after_the_other, self._then, self.release)
            self._late.append(self)
            return
        if self.is_here:
            self._device.give(self.size_bytes)
        if self.is_away and self._host is not None:
            self._host.give(self.size_bytes)
        self.is_here = self.is_away = False


def _one_after_the_other(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()


def _poison(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point():
        tensor.fill_(math.nan)
