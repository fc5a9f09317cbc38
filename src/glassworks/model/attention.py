"""Attention seen from inside: what transformers' attention function is given, and the softmax in it.

Families call whatever function their configuration names. A watched attention module gets a copy of its configuration
that names ours: it shows query, key and value to whoever listens in this context, then calls the function that was
there. Where scores or probabilities are asked for, it calls the family's own eager function instead, with the mask
spelled out, and shows what enters and leaves its softmax. Without a listener it only calls what was there, so the
module behaves as before for everybody else.

Surprises this file settles:
- Fused functions get no mask, or one of bools, where causality says it all; an eager function adds what it is given.
  Naming "eager" on one layer alone would lose the mask in silence.
- Some families append a column for attention sinks before the softmax: it is not shown.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glassworks.errors import ModelError

NAME = "glassworks"
_BEFORE = "_glassworks_before"

Tell = Callable[[str, Tensor], Tensor]
"""Is told (port, tensor) inside an attention; gives what goes on."""


class Listener:
    """Who listens to one module's attention.

    Attributes:
        materialise: whether its scores and probabilities are asked for. events: port -> the event that stands for it.
    """

    __slots__ = ("events", "materialise", "module", "tell")

    def __init__(
        self, module: nn.Module, tell: Tell, *, materialise: Callable[[], bool], events: Mapping[str, int] | None = None
    ) -> None:
        self.module, self.tell, self.materialise, self.events = module, tell, materialise, events or {}


LISTENING: ContextVar[Listener | None] = ContextVar("glassworks_attention", default=None)

BY_ROWS: set[str] = set()
"""Attention functions of ours that listen by themselves, since their batch holds several requests."""


def can_listen(module: nn.Module) -> bool:
    """Whether a module has the configuration that names its attention function."""
    return isinstance(getattr(getattr(module, "config", None), "_attn_implementation", None), str)


def listening_config(config: Any) -> Any:
    """A copy of an attention module's configuration that names our function."""
    from transformers import AttentionInterface

    if NAME not in AttentionInterface():
        AttentionInterface.register(NAME, attend)
    own = copy.copy(config)
    object.__setattr__(own, _BEFORE, config._attn_implementation)
    own._attn_implementation_internal = NAME
    return own


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """Transformers' attention function while somebody watches.

    Args:
        query: `[batch, heads, seq, head_dim]`. key, value: `[batch, kv_heads, context, head_dim]`.
    """
    before = getattr(module.config, _BEFORE)
    listener = LISTENING.get()
    if listener is None or listener.module is not module or before in BY_ROWS:
        return function(module, before)(module, query, key, value, attention_mask, *args, **kwargs)
    query, key, value = (
        listener.tell(port, tensor) for port, tensor in zip(("query", "key", "value"), (query, key, value), strict=True)
    )
    if not listener.materialise():
        return function(module, before)(module, query, key, value, attention_mask, *args, **kwargs)
    mask = attention_mask
    if before != "eager":
        mask = _additive(module, query, key, attention_mask, kwargs.get("is_causal"))
    with ShownSoftmax(listener.tell, key.shape[-2]):
        return eager(module)(module, query, key, value, mask, *args, **kwargs)


def function(module: nn.Module, name: str) -> Callable[..., Any]:
    """The attention function of that name for a module."""
    from transformers import AttentionInterface

    return AttentionInterface().get_interface(name, eager(module))  # type: ignore[no-any-return]


def eager(module: nn.Module) -> Callable[..., Any]:
    """The family's own attention in plain operations."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise ModelError(f"{type(module).__name__} has no attention in plain operations, so no scores or probabilities")


def _additive(module: nn.Module, query: Tensor, key: Tensor, mask: Any, is_causal: bool | None) -> Tensor | None:
    """The mask that a fused function was given, as what is added to the scores: `[batch or 1, 1, seq, context]`."""
    seq, context = query.shape[-2], key.shape[-2]
    lowest = torch.finfo(query.dtype).min
    if mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if not causal or seq == 1:
            return None
        seen = torch.ones(seq, context, dtype=torch.bool, device=query.device).tril(context - seq)
        return torch.zeros(seq, context, dtype=query.dtype, device=query.device).masked_fill(~seen, lowest)[None, None]
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise ModelError(
            "scores and probabilities need a mask of four axes; load the model with attn_implementation='sdpa' or "
            "'eager'"
        )
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, lowest)


class ShownSoftmax(TorchFunctionMode):
    """Shows what enters and leaves the softmax over `context` keys."""

    def __init__(self, tell: Tell, context: int) -> None:
        super().__init__()
        self._tell, self._context = tell, context

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (nn.functional.softmax, torch.softmax, Tensor.softmax):
            return func(*args, **(kwargs or {}))
        scores, *rest = args
        return self._shown("probs", func(self._shown("scores", scores), *rest, **(kwargs or {})))

    def _shown(self, port: str, tensor: Tensor) -> Tensor:
        own = tensor[..., : self._context] if tensor.shape[-1] > self._context else tensor
        told = self._tell(port, own)
        if told is own or own is tensor:
            return tensor if told is own else told
        return torch.cat([told, tensor[..., self._context :]], dim=-1)
