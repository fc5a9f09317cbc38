"""Seconds of an iteration, from how many rows it has, how many tokens they attend to and how many tokens of prompts.

The cost is `iteration + row x rows + context x context_tokens + prefill x prefill_tokens`, no part negative. It starts
from a table of measured iterations, or from a guess, and follows what is observed: least squares of relative errors in
which older iterations count less and less (recursive least squares with forgetting, its normal equations kept and
solved under the sign constraint by coordinate descent). An outlier, such as a pause of the computer, counts little.

It knows nothing of jobs. Without a table the guess is that of a small model: only the ratios of costs matter to a
policy, and a few iterations replace it.
"""

from collections.abc import Sequence

from glassworks.errors import InputError
from glassworks.measure.table import START, CostTable

WHAT = "iteration"
FEATURES = ("rows", "context_tokens", "prefill_tokens")
OPT_13B = CostTable.of_iterations(iteration_s=19e-3, row_s=0.1e-3, context_token_s=1e-6, prefill_token_s=0.17e-3)
"""Like OPT-13B on one accelerator, in the setting of FastServe's evaluation: what a simulation assumes by default."""
GUESS = CostTable.of_iterations(iteration_s=5e-3, row_s=1e-3, context_token_s=1e-6, prefill_token_s=0.2e-3)

_SCALES = (1.0, 10.0, 1e4, 1e2)
"""Typical size of each term's factor, so that the four unknowns are of one order."""
_FORGETTING = 0.995
_SEED_WEIGHT = 20.0
"""How many observations the table counts as."""
_SWEEPS = 6
_PATIENCE = 3.0
"""Errors beyond so many times the usual one count as outliers (Huber)."""


class IterationCost:
    """What iterations cost, learning as they are observed."""

    def __init__(self, table: CostTable | None = None) -> None:
        costs = (GUESS if table is None else table).costs_s(WHAT)
        if missing := set(FEATURES) ^ (set(costs) - {START}):
            raise InputError(f"a table of iterations has the features {FEATURES}; {sorted(missing)} differ")
        self._theta = [costs[name] * scale for name, scale in zip((START, *FEATURES), _SCALES, strict=True)]
        self._gram = [[0.0] * 4 for _ in range(4)]
        self._moment = [0.0] * 4
        self._usual = 0.1
        for factors in _spread():
            self._count(factors, self._of(factors), _SEED_WEIGHT / 5)
        self._publish()

    def seconds(self, *, rows: int, context_tokens: int = 0, prefill_tokens: int = 0) -> float:
        """Of one iteration. `context_tokens`: those already computed, over all rows."""
        return (
            self.iteration_s + self.row_s * rows + self.context_token_s * context_tokens
            + self.prefill_token_s * prefill_tokens
        )  # fmt: skip

    def prefill_s(self, tokens: int) -> float:
        """Of an iteration that computes a prompt of so many tokens alone."""
        return self.minimal_s + self.prefill_token_s * tokens

    def observe(self, *, rows: int, context_tokens: int, prefill_tokens: int, seconds: float) -> None:
        """An iteration took `seconds`."""
        if not seconds > 0:
            raise InputError(f"an iteration takes some time: expected seconds > 0, got {seconds}")
        factors = _factors(rows, context_tokens, prefill_tokens)
        error = abs(seconds / max(self._of(factors), 1e-9) - 1)
        weight = min(1.0, _PATIENCE * self._usual / error) if error else 1.0
        self._usual = max(0.01, 0.95 * self._usual + 0.05 * min(error, 2 * _PATIENCE * self._usual))
        for row in self._gram:
            row[:] = [_FORGETTING * each for each in row]
        self._moment = [_FORGETTING * each for each in self._moment]
        self._count(factors, seconds, weight)
        self._solve()
        self._publish()

    def _of(self, factors: Sequence[float]) -> float:
        return sum(cost * factor for cost, factor in zip(self._theta, factors, strict=True))

    def _count(self, factors: Sequence[float], seconds: float, weight: float) -> None:
        seconds = max(seconds, 1e-9)
        weight /= seconds * seconds  # relative errors
        for i, factor in enumerate(factors):
            self._moment[i] += weight * factor * seconds
            for j, other in enumerate(factors):
                self._gram[i][j] += weight * factor * other

    def _solve(self) -> None:
        theta = self._theta
        for _ in range(_SWEEPS):
            for i, row in enumerate(self._gram):
                others = sum(row[j] * theta[j] for j in range(4) if j != i)
                theta[i] = max(0.0, (self._moment[i] - others) / row[i])

    def _publish(self) -> None:
        """Plain attributes, since policies read them at every token. `minimal_s`: one row and nothing to attend to."""
        costs = [cost / scale for cost, scale in zip(self._theta, _SCALES, strict=True)]
        self.iteration_s, self.row_s, self.context_token_s, self.prefill_token_s = costs
        self.minimal_s = max(self.iteration_s + self.row_s, 1e-9)


def _factors(rows: int, context_tokens: int, prefill_tokens: int) -> tuple[float, ...]:
    return 1.0, rows / _SCALES[1], context_tokens / _SCALES[2], prefill_tokens / _SCALES[3]


def _spread() -> Sequence[Sequence[float]]:
    """Iterations that tell all costs apart: where the table is believed until something is observed."""
    return [_factors(*each) for each in ((1, 0, 0), (16, 0, 0), (16, 8000, 0), (1, 0, 500), (8, 2000, 100))]
