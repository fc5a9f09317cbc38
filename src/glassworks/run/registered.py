"""The functions that a model calls while a packed step runs, registered with transformers under one name.

Each asks in which context it is called. In a step it serves the step (see `packed`); while a model is looked at it
shows what it is given; at any other time, and in any other thread, it calls what was there before. That is known for as
long as the configuration lives: another thread may have looked our name up while a step ran, and call us after it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn

from glassworks.model.attention import BY_ROWS, function
from glassworks.run.packed import STEP, Kind, PackedStep, attend

NAME = "glassworks_packed"
_BESIDE = "_glassworks_before_packing"
"""Where a configuration holds, during a step, what it named before: a copy that is made then has it too."""
_BEFORE: dict[int, str] = {}
"""The same after the step, by the identity of the configuration: in itself it would be saved with it."""

GIVEN = frozenset({"attention_mask", "position_ids", "s_aux", "cu_seq_lens_q", "cu_seq_lens_k"})
LOOK: ContextVar[Any] = ContextVar("glassworks_packing_probe", default=None)


@contextmanager
def looking(look: Any) -> Iterator[None]:
    token = LOOK.set(look)
    try:
        yield
    finally:
        LOOK.reset(token)


@contextmanager
def within(step: PackedStep) -> Iterator[None]:
    token = STEP.set(step)
    try:
        yield
    finally:
        STEP.reset(token)


@contextmanager
def named(configs: Sequence[Any]) -> Iterator[None]:
    """Within the block these configurations name our function."""
    before = [config._attn_implementation for config in configs]
    for config, name in zip(configs, before, strict=True):
        if id(config) not in _BEFORE:
            finalize(config, _BEFORE.pop, id(config), None)
        _BEFORE[id(config)] = name
        object.__setattr__(config, _BESIDE, name)
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name
            object.__delattr__(config, _BESIDE)


def _before(config: Any) -> str:
    return getattr(config, _BESIDE, None) or _BEFORE[id(config)]


def _function(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """What a model calls while a step runs; see `packed.attend`. Outside of one, what was there before."""
    if (look := LOOK.get()) is not None:
        return look(module, query, key, value, attention_mask, **kwargs)
    step = STEP.get()
    if step is None:
        return function(module, _before(module.config))(module, query, key, value, attention_mask, *args, **kwargs)
    scaling = kwargs.get("scaling")
    kind = Kind(
        scaling=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    return attend(step, module, query, key, value, kind), None


class _Seen:
    """In the place of a mask, in the self-check: which keys a query sees, by transformers' own function of indices."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, query: int, key: int) -> bool:
        one = [torch.tensor(number) for number in (0, 0, query, key)]
        return bool(self._function(*one))


def window_differs(seen: Any, window: int | None) -> bool:
    """Whether a mask has another window than its attention function was told."""
    if not isinstance(seen, _Seen):
        return False
    far = 10**6 if window is None else 2 * window + 3
    if window is None:
        return not (seen(far, 0) and not seen(far, far + 1))
    return not (seen(far, far - window + 1) and not seen(far, far - window))


def _mask(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """No mask for a packed step; outside of one, what was there before."""
    if LOOK.get() is not None:
        return _Seen(kwargs["mask_function"]) if "mask_function" in kwargs else None
    if STEP.get() is not None:
        return None
    from transformers import AttentionMaskInterface

    return AttentionMaskInterface()[_before(config)](*args, config=config, **kwargs)


def register() -> None:
    if NAME not in BY_ROWS:
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(NAME, _function)
        AttentionMaskInterface.register(NAME, _mask)
        BY_ROWS.add(NAME)
