"""Random nodes: drawn by (seed, node, row, step), so that neither company, padding nor batch size changes a number.

Numbers are drawn on the CPU, where equal seeds give equal numbers, and moved to the values. A row draws from its end:
its last token gets the first numbers, so that padding at the left, which other rows bring, moves nothing.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from glassworks.trace import binding

_BLOCK = 16
"""torch fills normal numbers in blocks of so many; a part of one is drawn otherwise than the same part of a longer."""


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that belongs to this key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    key: tuple[int, int, int],
    rows: Sequence[int],
) -> Any:
    """Perform a random operation, row by row where its first axis is the rows.

    Args:
        key: (seed, node, step). rows: numbers of the rows, counted from the start of the experiment.
    """
    seed, node, step = key
    like = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
    of_rows = like.ndim and like.shape[0] == len(rows) and not (name == "multinomial" and like.ndim == 1)
    if not of_rows:
        return _DRAW[name](generator(seed, node, -1, step), *args, **kwargs)
    parts = []
    for k, row in enumerate(rows):
        own = [_row(value, k, len(rows)) for value in args]
        named = {word: _row(value, k, len(rows)) for word, value in kwargs.items()}
        parts.append(_DRAW[name](generator(seed, node, row, step), *own, **named))
    return torch.cat(parts)


def _row(value: Any, k: int, rows: int) -> Any:
    """Row `k` of what has rows."""
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == rows:
        return value[k : k + 1]
    return value


# Numbers of a shape, from the end.


def _uniform(source: torch.Generator, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.rand(math.prod(shape), generator=source, dtype=dtype).flip(0).reshape(shape)


def _normal(source: torch.Generator, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    count = math.prod(shape)
    whole = torch.randn(-(-count // _BLOCK) * _BLOCK, generator=source, dtype=dtype)
    return whole[:count].flip(0).reshape(shape)


# Operations, each with the arguments that torch gives it.


def _rand_like(source: torch.Generator, like: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    return _uniform(source, like.shape, dtype or like.dtype).to(like.device)


def _randn_like(source: torch.Generator, like: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    return _normal(source, like.shape, dtype or like.dtype).to(like.device)


def _randint_like(
    source: torch.Generator,
    like: torch.Tensor,
    low: int = 0,
    high: int | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    first, end = (0, low) if high is None else (low, high)
    flat = torch.randint(first, end, (like.numel(),), generator=source, dtype=dtype or like.dtype)
    return flat.flip(0).reshape(like.shape).to(like.device)


def _bernoulli(source: torch.Generator, value: torch.Tensor, p: Any = None) -> torch.Tensor:
    chance = value if p is None else torch.as_tensor(p, device=value.device)
    if not bool(((chance >= 0) & (chance <= 1)).all()):
        raise RuntimeError("bernoulli: each probability must be between 0 and 1")
    return (_uniform(source, value.shape, torch.float64).to(value.device) < chance).to(value.dtype)


def _multinomial(
    source: torch.Generator, value: torch.Tensor, num_samples: int, replacement: bool = False
) -> torch.Tensor:
    perform = binding.bound("multinomial")
    return perform(value.cpu(), num_samples, replacement, generator=source).to(value.device)  # type: ignore[no-any-return]


def _normal_of(source: torch.Generator, mean: Any, std: Any = 1.0) -> torch.Tensor:
    given = [value for value in (mean, std) if isinstance(value, torch.Tensor)]
    if not bool((torch.as_tensor(std) >= 0).all()):
        raise RuntimeError("normal: each standard deviation must be at least 0")
    whole = torch.as_tensor(mean + std * 0)
    return torch.as_tensor(_normal(source, whole.shape, given[0].dtype).to(whole.device) * std + mean)


def _dropout(source: torch.Generator, value: torch.Tensor, p: float = 0.5, training: bool = True) -> torch.Tensor:
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be between 0 and 1, got {p}")
    if not training or p == 0:
        return value
    keep = _uniform(source, value.shape, torch.float32).to(value.device) >= p
    return value * keep / (1 - p) if p < 1 else value * 0


_DRAW: dict[str, Callable[..., torch.Tensor]] = {
    "rand_like": _rand_like,
    "randn_like": _randn_like,
    "randint_like": _randint_like,
    "bernoulli": _bernoulli,
    "multinomial": _multinomial,
    "normal": _normal_of,
    "dropout": _dropout,
}
