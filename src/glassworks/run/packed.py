"""Attention of a packed step: several requests' tokens in one `[1, tokens, ...]` batch, each seeing its own past only.

New keys and values are written to the store's blocks; then rows that have one token are served together, by a gather
padded to their longest, and longer parts one by one. What a model hands to its attention function (windows, soft caps,
sinks) is honoured here, or the model is not packed at all (see `packing`). A part whose graph looks into an attention
is served by itself, in the shapes of a lone run: where a cache of transformers' forgets what has left a window, the
keys begin with the window, although the blocks still hold those before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from glassworks.memory.blocks import Pool
from glassworks.model.attention import LISTENING, Listener, ShownSoftmax, eager
from glassworks.run.interpret import Interpreter

_WASTE = 2.0
"""Rows are gathered together while the longest has at most so many times the blocks of the shortest."""


@dataclass(slots=True)
class Span:
    """One request's tokens in a packed step.

    Attributes:
        start, count: its places in the batch. past: tokens of its own that came before them.
        blocks: of its table. interpreter: what looks on, if anything does.
    """

    start: int
    count: int
    past: int
    blocks: Sequence[int]
    interpreter: Interpreter | None = None

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def context(self) -> int:
        """How many tokens its last one sees, itself among them."""
        return self.past + self.count


@dataclass(slots=True)
class Group:
    """Rows of one token each that are gathered together: places `start:end` of the batch.

    Attributes:
        blocks: int64 `[rows, blocks]`, padded with 0. contexts: int64 `[rows, 1]`.
    """

    start: int
    end: int
    blocks: Tensor
    contexts: Tensor
    gathers: dict[int, Tensor] = field(default_factory=dict)
    masks: dict[Any, Tensor] = field(default_factory=dict)

    def gather(self, heads: int) -> Tensor:
        """Which rows of a pool `[blocks * heads, ...]` hold the keys, int64 `[rows * heads * blocks]`."""
        if heads not in self.gathers:
            head = torch.arange(heads, device=self.blocks.device)[None, :, None]
            self.gathers[heads] = (self.blocks[:, None] * heads + head).flatten()
        return self.gathers[heads]

    def mask(self, width: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to scores, `[rows, 1, 1, width]`: -inf where a row has no token of its own."""
        key = width, window, dtype
        if key not in self.masks:
            at = torch.arange(width, device=self.contexts.device)[None]
            seen = at < self.contexts
            if window is not None:
                seen = seen & (at >= self.contexts - window)
            zero = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self.masks[key] = zero.masked_fill(~seen, -torch.inf)[:, None, None]
        return self.masks[key]


class PackedStep:
    """Who has which tokens in one step, and where their keys and values go.

    Args:
        spans: rows of one token first, those with fewer blocks before those with more. layers: of each attention
            module its number in the pool. windows: of those whose cache forgets, how many tokens attention then sees.
    """

    def __init__(
        self, spans: Sequence[Span], pool: Pool, layers: Mapping[nn.Module, int], block_tokens: int, *,
        windows: Mapping[nn.Module, int],
    ) -> None:  # fmt: skip
        self.spans, self.pool, self.layers, self.block_tokens = spans, pool, layers, block_tokens
        self._windows = windows
        self.calls = 0
        self.speaking: Interpreter | None = None
        self._device = pool.keys[0].device
        self._writes: dict[int, Tensor] = {}
        places = [divmod(at, block_tokens) for own in spans for at in range(own.past, own.context)]
        tables = [own.blocks for own in spans for _ in range(own.count)]
        self._blocks = torch.tensor([own[k] for own, (k, _) in zip(tables, places, strict=True)], device=self._device)
        self._offsets = torch.tensor([offset for _, offset in places], device=self._device)
        self.groups = list(self._grouped())
        self.longer = [own for own in spans if own.count > 1]

    def _grouped(self) -> Iterator[Group]:
        rows = [own for own in self.spans if own.count == 1]
        while rows:
            most = max(_WASTE * self._need(rows[0]), self._need(rows[0]) + 1)
            own = [span for span in rows if self._need(span) <= most]
            rows = rows[len(own) :]
            width = max(map(self._need, own))
            blocks = [[*span.blocks[: self._need(span)], *[0] * (width - self._need(span))] for span in own]
            yield Group(
                own[0].start, own[-1].end, torch.tensor(blocks, device=self._device),
                torch.tensor([[span.context] for span in own], device=self._device),
            )  # fmt: skip

    def _need(self, span: Span) -> int:
        return -(-span.context // self.block_tokens)

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put new keys and values, `[1, heads, tokens, dim]`, where their spans go on."""
        at = self._at(key.shape[1])
        self.pool.keys[layer].view(-1, key.shape[-1]).index_copy_(0, at, key.reshape(-1, key.shape[-1]))
        self.pool.values[layer].view(-1, value.shape[-1]).index_copy_(0, at, value.reshape(-1, value.shape[-1]))

    def _at(self, heads: int) -> Tensor:
        if heads not in self._writes:
            head = torch.arange(heads, device=self._device)[:, None]
            self._writes[heads] = ((self._blocks * heads + head) * self.block_tokens + self._offsets).flatten()
        return self._writes[heads]

    def own(self, layer: int, span: Span) -> tuple[Tensor, Tensor]:
        """All keys and values of one span, each `[1, heads, context, dim]`."""
        blocks = torch.tensor(span.blocks[: self._need(span)], device=self._device)
        found = []
        for pool in (self.pool.keys[layer], self.pool.values[layer]):
            rows = pool.index_select(0, blocks).transpose(0, 1)  # heads, blocks, tokens, dim
            found.append(rows.reshape(1, rows.shape[0], -1, rows.shape[-1])[:, :, : span.context])
        return found[0], found[1]

    def shown(self, module: nn.Module, span: Span) -> tuple[Tensor, Tensor]:
        """Those of them that a lone run's attention is given."""
        key, value = self.own(self.layers[module], span)
        window = self._windows.get(module)
        if window is None:
            return key, value
        first = max(span.past - (window - 1), 0)  # what came in this step is seen, whatever the window
        return key[:, :, first:], value[:, :, first:]


STEP: ContextVar[PackedStep | None] = ContextVar("glassworks_packed_step", default=None)


@dataclass(frozen=True, slots=True)
class Kind:
    """How one layer attends: what its module hands to the attention function."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.sinks is None


def attend(step: PackedStep, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kind: Kind) -> Tensor:
    """Attention of all spans.

    Args:
        query: `[1, heads, tokens, dim]`. key, value: `[1, kv_heads, tokens, dim]`.

    Returns:
        `[1, tokens, heads, value_dim]`.
    """
    layer = step.layers[module]
    step.calls += 1
    step.write(layer, key, value)
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    for group in step.groups:
        out[group.start : group.end] = _together(step, layer, group, query, kind)
    for span in step.longer:
        q = query[:, :, span.start : span.end]
        if span.past == 0 and (kind.window is None or span.count <= kind.window) and kind.is_plain:
            k, v = (own[:, :, span.start : span.end] for own in (key, value))
            shared = k.shape[1] != q.shape[1]
            found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=kind.scaling, enable_gqa=shared)
        else:
            found = _alone(q, *step.own(layer, span), kind)
        out[span.start : span.end] = found[0].transpose(0, 1)
    listener = LISTENING.get()
    if listener is not None and listener.module is module:
        for span, asks in _listening(step, listener):
            own = query[:, :, span.start : span.end]
            out[span.start : span.end] = _heard(step, listener, asks, module, span, own, kind)[0]
    return out[None]


def _together(step: PackedStep, layer: int, group: Group, query: Tensor, kind: Kind) -> Tensor:
    """Rows of one token each: `[rows, heads, value_dim]`."""
    keys, values = step.pool.keys[layer], step.pool.values[layer]
    heads, rows = keys.shape[1], group.end - group.start
    at = group.gather(heads)
    k = keys.view(-1, *keys.shape[2:]).index_select(0, at).view(rows, heads, -1, keys.shape[-1])
    v = values.view(-1, *values.shape[2:]).index_select(0, at).view(rows, heads, -1, values.shape[-1])
    q = query[0, :, group.start : group.end].transpose(0, 1)
    q = q.reshape(rows, heads, -1, q.shape[-1])  # the query heads of one key head as its tokens
    mask = group.mask(k.shape[2], kind.window, q.dtype)
    if kind.is_plain:
        found = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=kind.scaling)
    else:
        sinks = None if kind.sinks is None else kind.sinks.reshape(1, heads, -1, 1)
        found = _written_out(q, k, v, mask, kind, sinks)
    return found.flatten(1, 2)


def _alone(q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
    """One span against all of its past: `[1, heads, tokens, value_dim]`."""
    groups = q.shape[1] // k.shape[1]
    k, v = (own.repeat_interleave(groups, dim=1) for own in (k, v)) if groups > 1 else (k, v)
    mask = seen(q.shape[2], k.shape[2], kind.window, q)
    if kind.is_plain:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=kind.scaling)
    sinks = None if kind.sinks is None else kind.sinks.reshape(1, -1, 1, 1)
    return _written_out(q, k, v, mask, kind, sinks)


def seen(count: int, context: int, window: int | None, like: Tensor) -> Tensor:
    """What is added to scores, `[1, 1, count, context]`: -inf at keys after each of the last `count` tokens, and at
    those that are a window or more before it."""
    key = torch.arange(context, device=like.device)[None]
    at = torch.arange(context - count, context, device=like.device)[:, None]
    own = key <= at if window is None else (key <= at) & (key > at - window)
    return torch.zeros(own.shape, dtype=like.dtype, device=like.device).masked_fill(~own, -torch.inf)[None, None]


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, kind: Kind, sinks: Tensor | None) -> Tensor:
    """Attention with what fused functions lack: soft caps before the mask, sinks as one more key without a value."""
    scores = q @ k.transpose(-1, -2) * kind.scaling
    if kind.softcap is not None:
        scores = torch.tanh(scores / kind.softcap) * kind.softcap
    scores = scores + mask
    if sinks is None:
        return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype) @ v
    scores = torch.cat([scores, sinks.to(q.dtype).expand(*scores.shape[:-1], 1)], dim=-1)
    scores = scores - scores.max(dim=-1, keepdim=True).values
    return scores.softmax(-1)[..., :-1] @ v


# Spans that somebody looks into.


def _listening(step: PackedStep, listener: Listener) -> Iterator[tuple[Span, Callable[[str], bool]]]:
    for span in step.spans:
        actions = None if span.interpreter is None else span.interpreter.actions
        if actions is not None and any(event in actions for event in listener.events.values()):
            yield span, lambda port, own=actions: listener.events.get(port, -1) in own  # type: ignore[misc]


def _heard(
    step: PackedStep, listener: Listener, asks: Callable[[str], bool], module: nn.Module, span: Span,
    query: Tensor, kind: Kind,
) -> Tensor:  # fmt: skip
    """Attention of one span in the shapes of a lone run, told to its own interpreter: `[1, tokens, heads, dim]`."""
    step.speaking = span.interpreter
    try:
        key, value = step.shown(module, span)
        query, key, value = (
            listener.tell(port, own) for port, own in zip(("query", "key", "value"), (query, key, value), strict=True)
        )
        if not (asks("scores") or asks("probs")):
            return _alone(query, key, value, kind).transpose(1, 2)
        mask = seen(span.count, key.shape[2], kind.window, query)
        lowest = mask.new_tensor(torch.finfo(mask.dtype).min)
        with ShownSoftmax(listener.tell, key.shape[2]):
            extra: dict[str, Any] = {"softcap": kind.softcap} if kind.softcap is not None else {}
            extra |= {"s_aux": kind.sinks} if kind.sinks is not None else {}
            mask = torch.maximum(mask, lowest)
            found = eager(module)(module, query, key, value, mask, scaling=kind.scaling, dropout=0.0, **extra)
        return found[0]  # type: ignore[no-any-return]
    finally:
        step.speaking = None
