"""Random arguments from a seed, and the list of what makes them for each operation."""

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

HALVES = (torch.float16, torch.bfloat16)


class Call(NamedTuple):
    """Arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs)


class Draw:
    """Random arguments from a seed.

    Attributes:
        dtype: of the numbers with fractions. free: ids of the tensors that may hold any number.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.source = torch.Generator().manual_seed(seed)
        self.dtype = self.random.choice((torch.float32, torch.float32, torch.float64))
        self.free: dict[int, torch.Tensor] = {}

    def n(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def pick(self, *items: Any) -> Any:
        return self.random.choice(items)

    def shape(self, low: int = 1, high: int = 3) -> tuple[int, ...]:
        return tuple(self.n(1, 4) for _ in range(self.n(low, high)))

    def real(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        made = (torch.randn(shape, generator=self.source, dtype=torch.float64) * 2).to(dtype or self.dtype)
        self.free[id(made)] = made
        return made

    def odd(self, *shape: int) -> torch.Tensor:
        """Of any float format, with infinities, NaN and both zeros among the numbers now and then."""
        made = self.real(*shape, dtype=self.pick(self.dtype, self.dtype, *HALVES))
        if self.flag():
            strange = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0], dtype=made.dtype)
            made.view(-1)[0] = strange[self.n(0, 4)]
        return made

    def between(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.source, dtype=self.dtype) * (high - low) + low

    def ints(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Whole numbers, `high` left out."""
        return torch.randint(low, high, shape, generator=self.source, dtype=dtype)

    def bools(self, *shape: int) -> torch.Tensor:
        return self.ints(0, 2, *shape).bool()

    def square(self) -> torch.Tensor:
        """A batch of matrices far from singular."""
        n = self.n(1, 4)
        return self.real(*self.shape(0, 1), n, n).mul(0.2) + torch.eye(n, dtype=self.dtype) * 3

    def definite(self) -> torch.Tensor:
        matrix = self.square()
        return matrix @ matrix.mT

    def dim(self, shape: tuple[int, ...]) -> int:
        return self.n(-len(shape), len(shape) - 1)


ONLY_IN_PLACE = frozenset({"setitem", "fill_diagonal", "zero", "copy"})
"""Operations whose plain name is no function of torch's."""

OPERANDS: dict[str, Callable[[Draw], Call]] = {}
IN_PLACE: dict[str, Callable[[Draw], Call]] = {}


def of(names: str) -> Callable[[Callable[[Draw], Call]], Callable[[Draw], Call]]:
    """Register a generator for some operations."""

    def register(make: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        for name in names.split():
            assert name not in OPERANDS, name
            OPERANDS[name] = make
        return make

    return register


def in_place(names: str) -> Callable[[Callable[[Draw], Call]], Callable[[Draw], Call]]:
    """Register a generator for the in-place forms of some operations."""

    def register(make: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        IN_PLACE.update(dict.fromkeys(names.split(), make))
        return make

    return register
