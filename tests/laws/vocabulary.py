"""The operations and the ways of writing that random experiments draw from.

Each is one Python function that means the same on a torch tensor and on a Value: the reference calls it on tensors, the
experiment on Values.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

D = 32
_SOURCE = torch.Generator().manual_seed(7)
VECTOR = torch.randn(D, generator=_SOURCE)
MATRIX = torch.randn(D, D, generator=_SOURCE) / D**0.5
HALF = (torch.randn(D, generator=_SOURCE) / 4).to(torch.bfloat16)
COLUMNS = torch.tensor([1, 3, 9, 27])


def _swapped(x: Any) -> Any:
    first, second = x.split(x.shape[-1] // 2, dim=-1)[:2]
    return torch.cat([second, first], dim=-1)


def _sorted(x: Any) -> Any:
    values, _ = torch.sort(x, dim=-1)
    return values


def _top(x: Any) -> Any:
    return x.topk(3, dim=-1).values.mean(-1, keepdim=True)


def _stacked(x: Any) -> Any:
    return torch.stack([x, -x], dim=0).amax(0)


UNARY: dict[str, Callable[[Any], Any]] = {
    "halved": lambda x: x * 0.5,
    "one minus": lambda x: 1.0 - x,
    "vector": lambda x: x + VECTOR,
    "matmul": lambda x: x @ MATRIX,
    "linear": lambda x: F.linear(x, MATRIX, VECTOR),
    "einsum": lambda x: torch.einsum("bsd,de->bse", x, MATRIX),
    "bfloat16": lambda x: x * HALF,
    "softmax": lambda x: x.softmax(-1),
    "layer norm": lambda x: F.layer_norm(x, (x.shape[-1],), eps=1.0),  # of two like numbers, it must not magnify noise
    "last": lambda x: x[:, -1:],
    "first": lambda x: x[:, :1],
    "cut": lambda x: x[..., 4:20],
    "picked": lambda x: x[..., COLUMNS],
    "mean": lambda x: x.mean(1, keepdim=True),
    "spread": lambda x: x.std(dim=-1, correction=0, keepdim=True),
    "largest": lambda x: x.max(dim=-1, keepdim=True).values,
    "transposed": lambda x: F.gelu(x.transpose(1, 2)).transpose(-1, -2),
    "swapped": _swapped,
    "sorted": _sorted,
    "top": _top,
    "stacked": _stacked,
    "flipped": lambda x: x.flip(1),
    "running": lambda x: x.cumsum(1),
    "positive": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "masked": lambda x: x.masked_fill(x < 0, -1.0),
    "bounded": lambda x: torch.clamp(x, -1.0, max=1.0),
    "normal": lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-6),
    "flat": lambda x: x.flatten(1).tanh().reshape(x.shape),
    "moved": lambda x: x.unsqueeze(0).squeeze(0).roll(1, dims=-1),
    "double": lambda x: x.double().mul(2).to(torch.float32),
    "whole numbers": lambda x: (x * 4).round() / 4,
    "in place": lambda x: (x * 1.0).mul_(0.5).add_(1.0),
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda x, y: x + y,
    "difference": lambda x, y: x - y * 0.5,
    "gate": lambda x, y: x * y[:, -1:].sigmoid(),
    "beside": lambda x, y: torch.cat([x, y], dim=1),
    "mixed": lambda x, y: torch.lerp(x, y, 0.25),
    "larger": lambda x, y: torch.maximum(x, y),
    "scores": lambda x, y: (x @ y.transpose(-1, -2)).softmax(-1),
    "attended": lambda x, y: ((x @ y.mT) / 8).softmax(-1) @ y,
    "chosen": lambda x, y: torch.where(x > y, x, y * 0.5),
    "inner": lambda x, y: (x * y).sum(-1, keepdim=True),
}


def _last_token(h: Any, v: Any) -> None:
    h[:, -1] = v[:, -1]


def _last_kept(h: Any, v: Any) -> None:
    h[:, -1:] = v


def _everything(h: Any, v: Any) -> None:
    h[:] = v


def _columns(h: Any, v: Any) -> None:
    h[..., 3:9] = 0.25


def _listed(h: Any, v: Any) -> None:
    h[:, :, [0, 5, 7]] = -0.5


def _where_negative(h: Any, v: Any) -> None:
    h[h < 0] = 0.0


def _scaled_columns(h: Any, v: Any) -> None:
    h[:, :, 2:10] *= 1.5


def _added(h: Any, v: Any) -> None:
    h += v


def _multiplied(h: Any, v: Any) -> None:
    h.mul_(v)


def _copied(h: Any, v: Any) -> None:
    h.copy_(v)


def _bounded(h: Any, v: Any) -> None:
    h.clamp_(-1.0, 1.0)


def _filled(h: Any, v: Any) -> None:
    h[:, 0].fill_(0.125)


def _emptied(h: Any, v: Any) -> None:
    h[:, 0].zero_()


def _transposed(h: Any, v: Any) -> None:
    h.transpose(1, 2)[:, 3:8] += 1.0


def _heads(h: Any, v: Any) -> None:
    h.reshape(1, -1, 4, h.shape[-1] // 4)[:, :, 1] *= 0.5


def _viewed(h: Any, v: Any) -> None:
    h.view(1, -1, 2, h.shape[-1] // 2)[..., 0, :] = 0.75


def _unbound(h: Any, v: Any) -> None:
    h.unbind(1)[-1].mul_(2.0)


def _split(h: Any, v: Any) -> None:
    first, _ = h.split(h.shape[-1] // 2, dim=-1)
    first += 0.5


def _chunked(h: Any, v: Any) -> None:
    _, second = h.chunk(2, dim=-1)
    second[:, -1] = -1.0


def _chained(h: Any, v: Any) -> None:
    h[:, -1].unsqueeze(1).transpose(1, 2)[:, ::2] = 0.5


def _narrowed(h: Any, v: Any) -> None:
    h.narrow(-1, 4, 8).neg_()


def _twice(h: Any, v: Any) -> None:
    h[:, -1] *= 0.5
    h[:, -1, 4:8] += 1.0


IN_PLACE: dict[str, Callable[[Any, Any], None]] = {
    function.__name__.strip("_"): function
    for function in (
        _last_token, _last_kept, _everything, _columns, _listed, _where_negative, _scaled_columns, _added, _multiplied,
        _copied, _bounded, _filled, _emptied, _transposed, _heads, _viewed, _unbound, _split, _chunked, _chained,
        _narrowed, _twice,
    )
}  # fmt: skip
"""Ways to change a handle `h` in place, some of them with another value `v`."""

NEEDS_VALUE = frozenset({"last_token", "last_kept", "everything", "added", "multiplied", "copied"})

NEEDS_ONE_LAYOUT = frozenset({"heads", "viewed"})
"""Ways that take a view only of tensors that lie in memory in the order of their axes, as heads may not."""
