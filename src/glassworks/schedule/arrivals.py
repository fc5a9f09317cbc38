"""Who asks for what, and when: workloads to simulate, drawn from a seed or read from a trace file.

Lengths are log-normal, unless a kind says otherwise, with the means and coefficients of variation (cv: standard
deviation over mean) of published data sets; nothing is taken from the data sets themselves. Knows nothing of policies.

The rate: a request of p prompt and n new tokens takes part in n iterations. In a full batch of `rows` its share is

    n (iteration_s / rows + row_s) + p prefill_token_s + context_token_s ((n - 1) p + n (n - 1) / 2)

Requests come `load` times as often as a batch that is always full could serve their mean share.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassworks.errors import InputError, WireError
from glassworks.measure.table import CostTable
from glassworks.schedule.cost import OPT_13B, IterationCost

Draw = Callable[[np.random.Generator, int], NDArray[np.int64]]
Ints = NDArray[np.int64]
_FIELDS = ("arrival_s", "prompt_tokens", "output_tokens", "user")


def log_normal(mean: float, cv: float, *, most: int = 2048) -> Draw:
    """Whole numbers from 1 to `most`; mean and cv are those before it is clipped."""
    variance = math.log1p(cv * cv)

    def draw(random: np.random.Generator, count: int) -> Ints:
        drawn = random.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), count)
        return np.clip(np.rint(drawn), 1, most).astype(np.int64)

    return draw


def pareto(least: float, shape: float, *, most: int = 2048) -> Draw:
    """A power law from `least` on: most are short, and what is long may be very long."""

    def draw(random: np.random.Generator, count: int) -> Ints:
        return np.clip(np.rint(least * (1 + random.pareto(shape, count))), 1, most).astype(np.int64)

    return draw


KINDS: dict[str, tuple[Draw, Draw]] = {
    "chat": (log_normal(161, 1.0), log_normal(338, 0.87)),
    "lognormal": (log_normal(161, 1.0), log_normal(250, 2.0, most=4096)),
    "short": (log_normal(19, 0.6), log_normal(58, 1.23)),
    "heavy": (log_normal(161, 1.0), pareto(40, 1.2)),
    "long-input": (log_normal(1000, 0.8), log_normal(60, 0.48)),
}
"""Prompt and output lengths: like ShareGPT, widely spread outputs, like Alpaca, a power law, documents summed up.

Clipping at 4096 leaves the spread outputs a mean of 245 and a cv of 1.7; at 2048 it would be 233 and 1.45.
"""


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Requests in the order in which they come: `arrival_s`, `prompt_tokens`, `output_tokens`, `users`, one each."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: Ints
    output_tokens: Ints
    users: tuple[str, ...]
    name: str = "trace"

    def __post_init__(self) -> None:
        counts = {len(self.arrival_s), len(self.prompt_tokens), len(self.output_tokens), len(self.users)}
        if len(counts) != 1 or not len(self.arrival_s):
            raise InputError(f"expected as many times, prompts, outputs and users, at least one; got {sorted(counts)}")
        if not np.all(np.isfinite(self.arrival_s)) or self.arrival_s[0] < 0 or np.any(np.diff(self.arrival_s) < 0):
            raise InputError("arrival_s must not be negative, and must not decrease; sort the requests by it")
        if min(self.prompt_tokens.min(), self.output_tokens.min()) < 1:
            raise InputError("each request has at least one token of prompt and of output")
        for array in (self.arrival_s, self.prompt_tokens, self.output_tokens):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __repr__(self) -> str:
        return (
            f"Arrivals({self.name}: {len(self)} requests in {self.arrival_s[-1]:.1f} s, prompts of "
            f"{self.prompt_tokens.mean():.0f} tokens, outputs of {self.output_tokens.mean():.0f}, cv "
            f"{self.output_tokens.std() / self.output_tokens.mean():.2f})"
        )

    def save(self, path: str | Path) -> None:
        """As a trace file: a JSON object a line."""
        rows = zip(
            self.arrival_s.tolist(), self.prompt_tokens.tolist(), self.output_tokens.tolist(), self.users, strict=True
        )
        lines = [json.dumps(dict(zip(_FIELDS, row, strict=True))) for row in rows]
        Path(path).write_text("\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Arrivals":
        """A trace file. Each line has arrival_s, prompt_tokens, output_tokens and perhaps user."""
        try:
            lines = Path(path).read_text().splitlines()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; give a trace file") from None
        rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
        times, prompts, outputs, users = zip(*rows, strict=True) if rows else ((), (), (), ())
        as_ints = (np.array(prompts, np.int64), np.array(outputs, np.int64))
        return cls(np.array(times, float), *as_ints, tuple(users), name=Path(path).stem)


def arrivals(
    kind: str | Path,
    *,
    load: float = 0.9,
    count: int = 2000,
    seed: int = 0,
    cost: CostTable | None = None,
    rows: int = 16,
    gaps: str = "poisson",
    gap_cv: float = 2.0,
    users: int = 1,
) -> Arrivals:
    """Requests of a kind, or of a trace file.

    Args:
        kind: `chat`, `lognormal`, `short`, `heavy` or `long-input`; or the path of a trace file, which has its own
            times and lengths: the other arguments are for kinds.
        load: how much of what a full batch can serve is asked for (above).
        cost, rows: of that batch. None: like OPT-13B on one accelerator, as in FastServe.
        gaps: `poisson` (exponential gaps) or `gamma`, burstier, of the coefficient of variation `gap_cv`.
        users: how many share the requests, at random.
    """
    if isinstance(kind, Path) or (kind not in KINDS and Path(kind).suffix):
        return Arrivals.load(kind)
    if kind not in KINDS:
        raise InputError(f"expected a kind, one of {', '.join(KINDS)}, or the path of a trace file; got {kind!r}")
    for name, value in (("load", load), ("count", count), ("rows", rows), ("gap_cv", gap_cv), ("users", users)):
        if not value > 0:
            raise InputError(f"{name} must be positive; got {value}")
    random = np.random.default_rng([seed, list(KINDS).index(kind)])
    prompts, outputs = (draw(random, count) for draw in KINDS[kind])
    share_s = float(np.mean(shares_s(prompts, outputs, cost=cost, rows=rows)))
    times = np.cumsum(_gaps(random, count, gaps, gap_cv)) * share_s / load
    names = tuple(f"user {number}" for number in random.integers(0, users, count))
    return Arrivals(times, prompts, outputs, names, name=f"{kind}, load {load:g}")


def shares_s(prompt_tokens: Ints, output_tokens: Ints, *, cost: CostTable | None, rows: int) -> NDArray[np.float64]:
    """Each request's share of the time of a batch that is always full."""
    each = IterationCost(OPT_13B if cost is None else cost)
    turns = output_tokens * (each.iteration_s / rows + each.row_s)
    attended = (output_tokens - 1) * prompt_tokens + output_tokens * (output_tokens - 1) / 2
    return np.asarray(turns + each.prefill_token_s * prompt_tokens + each.context_token_s * attended)


def _gaps(random: np.random.Generator, count: int, gaps: str, cv: float) -> NDArray[np.float64]:
    """Of mean one."""
    if gaps == "poisson":
        return random.exponential(1.0, count)
    if gaps == "gamma":
        return random.gamma(1 / cv**2, cv**2, count)
    raise InputError(f"expected gaps of 'poisson' or 'gamma'; got {gaps!r}")


def _row(line: str, where: str) -> tuple[float, int, int, str]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise WireError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or not set(_FIELDS[:3]) <= set(row) <= set(_FIELDS):
        raise WireError(f"{where}: expected an object with {', '.join(_FIELDS[:3])} and perhaps user; got {line[:80]}")
    numbers = [row[name] for name in _FIELDS[:3]]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers):
        raise WireError(f"{where}: {', '.join(_FIELDS[:3])} must be numbers; got {line[:80]}")
    if any(value != int(value) for value in numbers[1:]) or not isinstance(row.get("user", ""), str):
        raise WireError(f"{where}: tokens must be whole numbers, and a user a text; got {line[:80]}")
    return float(numbers[0]), int(numbers[1]), int(numbers[2]), row.get("user", "")
