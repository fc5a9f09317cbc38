"""Random nodes: drawn by (seed, node, row, step), so that neither company nor batch size changes a number."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from glassworks.trace import binding


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
    like = args[0]
    if like.ndim and like.shape[0] == len(rows):
        parts = [
            _draw(
                name,
                (_row(args[0], k), *[_row(a, k, len(rows)) for a in args[1:]]),
                kwargs,
                generator(seed, node, row, step, device=like.device),
            )
            for k, row in enumerate(rows)
        ]
        return torch.cat(parts)
    return _draw(name, args, kwargs, generator(seed, node, -1, step, device=like.device))


def _row(value: Any, k: int, rows: int | None = None) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim and (rows is None or value.shape[0] == rows):
        return value[k : k + 1]
    return value


def _draw(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], source: torch.Generator) -> torch.Tensor:
    like = args[0]
    match name:
        case "rand_like":
            return torch.rand(like.shape, generator=source, dtype=kwargs.get("dtype", like.dtype), device=like.device)
        case "randn_like":
            return torch.randn(like.shape, generator=source, dtype=kwargs.get("dtype", like.dtype), device=like.device)
        case "randint_like":
            low, high = (0, args[1]) if len(args) == 2 else args[1:3]
            return torch.randint(
                low,
                high,
                like.shape,
                generator=source,
                dtype=kwargs.get("dtype", like.dtype),
                device=like.device,
            )
        case "dropout":
            return _dropout(like, *args[1:], source=source, **kwargs)
    return binding.bound(name)(*args, generator=source, **kwargs)  # type: ignore[no-any-return]


def _dropout(value: torch.Tensor, p: float = 0.5, training: bool = True, *, source: torch.Generator) -> torch.Tensor:
    if not training or p == 0:
        return value
    keep = torch.rand(value.shape, generator=source, device=value.device) >= p
    return value * keep / (1 - p)
