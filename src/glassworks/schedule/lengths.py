"""How many tokens a request will produce: predictions from what ended before, and noisy truth for simulations.

`Learned` keeps running means of the logarithm of output lengths, for each user and size of prompt, drawn toward the
user's and everyone's as long as they rest on little. It knows nothing of what the prompts say. A predictor that looks
at the model's own activations (TRAIL, arXiv 2410.01035) has the same face.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from glassworks.errors import InputError

_ENOUGH = 8
"""Finished requests before anything is predicted, and how many the wider mean counts as beside the narrower."""
_MEMORY = 500
"""Beyond so many, a mean forgets: users change."""
_GROUPS = 4096
"""Means that are kept; those longest without a request go first."""


class Predictor(Protocol):
    """Predicts output lengths. Called once when a job comes, and once when it has ended."""

    def predict(self, prompt_tokens: int, max_new_tokens: int, user: str) -> float | None:
        """Tokens expected; None: no idea yet."""

    def observe(self, prompt_tokens: int, output_tokens: int, user: str) -> None:
        """A request ended after so many."""


class Learned:
    """The default predictor: the typical (geometric mean) output length of similar requests so far."""

    def __init__(self) -> None:
        self._means: dict[tuple[object, ...], tuple[float, float]] = {}

    def predict(self, prompt_tokens: int, max_new_tokens: int, user: str) -> float | None:
        everyone, *narrower = [self._means.get(key, (0.0, 0.0)) for key in _groups(prompt_tokens, user)]
        if everyone[0] < _ENOUGH:
            return None
        mean = everyone[1]
        for count, own in narrower:
            mean = (count * own + _ENOUGH * mean) / (count + _ENOUGH)
        return min(math.exp(mean), float(max_new_tokens))

    def observe(self, prompt_tokens: int, output_tokens: int, user: str) -> None:
        for key in _groups(prompt_tokens, user):
            count, mean = self._means.get(key, (0.0, 0.0))
            count = min(count + 1, _MEMORY)
            self._means.pop(key, None)  # so that it goes to the end, among the newest
            self._means[key] = count, mean + (math.log(max(1, output_tokens)) - mean) / count
        while len(self._means) > _GROUPS:
            del self._means[next(iter(self._means))]


def _groups(prompt_tokens: int, user: str) -> list[tuple[object, ...]]:
    """From everyone down: all, the size of prompt (a power of two), the user, the user's prompts of that size."""
    size = prompt_tokens.bit_length()
    return [(), (size,), (user, None), (user, size)]


@dataclass(frozen=True)
class Noisy:
    """The truth times a log-normal error: a stand-in, in simulations, for a predictor of known quality."""

    sigma: float = 0.8

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise InputError(f"the error of a noisy prediction must not be negative; got sigma={self.sigma}")

    def predictions(self, output_tokens: Sequence[int], *, seed: int) -> list[float]:
        """One for each request."""
        import numpy as np

        errors = np.random.default_rng([seed, 1]).normal(0.0, self.sigma, len(output_tokens))
        return [true * math.exp(error) for true, error in zip(output_tokens, errors.tolist(), strict=True)]
