"""Measured points, and what they say about work that was not measured.

A *point* says that some named work (`what`), of so many units of each of its features, took so many seconds and bytes.
A table is points and the hardware they were measured on; it predicts by a sum of non-negative costs, one for each unit
of each feature and one for starting. It knows nothing of what the work is: schedulers and planners name it.

Surprise: the fit minimises relative errors, so that a point of a millisecond counts as much as one of a minute.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from glassworks.errors import InputError, WireError
from glassworks.measure.hardware import Hardware

FORMAT = "glassworks cost table 1"
START = ""
"""The name, beside a feature's, of the cost of starting."""
_LEAST_S, _LEAST_BYTES = 1e-9, 1.0
Costs = Mapping[str, float]


@dataclass(frozen=True)
class Point:
    """One measurement: `what` with so much of each feature took `seconds`, and `bytes` of memory."""

    what: str
    features: Mapping[str, float]
    seconds: float
    bytes: float = 0

    def __post_init__(self) -> None:
        if not isinstance(self.what, str) or not self.what:
            raise InputError(f"a point names what was measured; got {self.what!r}")
        numbers = {"seconds": self.seconds, "bytes": self.bytes, **self.features}
        for name, value in numbers.items():
            if not _is_number(value):
                raise InputError(f"{self.what}: {name} must be a finite number that is not negative; got {value!r}")
        if START in self.features:
            raise InputError(f"{self.what}: a feature needs a name")
        object.__setattr__(self, "features", dict(sorted(self.features.items())))


@dataclass(frozen=True)
class CostTable:
    """Points, which predict. All points of one `what` have the same features."""

    points: tuple[Point, ...] = ()
    hardware: Hardware = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(self.points))
        names: dict[str, list[str]] = {}
        for point in self.points:
            first = names.setdefault(point.what, list(point.features))
            if first != list(point.features):
                raise InputError(
                    f"points of {point.what!r} must share their features: {first} came first, then "
                    f"{list(point.features)}; give work with other features another name"
                )

    @classmethod
    def of_iterations(
        cls, *, iteration_s: float, row_s: float, context_token_s: float, prefill_token_s: float
    ) -> "CostTable":
        """A table of engine iterations of known costs: each iteration, row, token attended to, token of a prompt.

        Its points lie on the plane of those costs, so that the fit gives them back.
        """
        points = []
        for rows, context, prefill in ((1, 0, 0), (16, 0, 0), (16, 8000, 0), (1, 0, 500), (8, 2000, 100)):
            seconds = iteration_s + row_s * rows + context_token_s * context + prefill_token_s * prefill
            features = {"rows": rows, "context_tokens": context, "prefill_tokens": prefill}
            points.append(Point("iteration", features, seconds))
        return cls(tuple(points))

    def predict_s(self, what: str, /, **features: float) -> float:
        """Seconds that `what` takes. InputError: nothing of that name was measured, or its features are others."""
        return self._predict(self.costs_s(what), what, features)

    def predict_bytes(self, what: str, /, **features: float) -> float:
        """Bytes that `what` takes. InputError as above."""
        return self._predict(self._fit(what)[1], what, features)

    def costs_s(self, what: str) -> Costs:
        """Seconds for each unit of each feature, and for starting (under the empty name)."""
        return self._fit(what)[0]

    def add(self, *points: Point) -> "CostTable":
        """This table and more points."""
        return CostTable(self.points + points, self.hardware)

    def save(self, path: str | Path) -> None:
        """As JSON, to be loaded again."""
        points = [{"what": p.what, "features": dict(p.features), "seconds": p.seconds, "bytes": p.bytes}
                  for p in self.points]  # fmt: skip
        body = {"format": FORMAT, "hardware": self.hardware, "points": points}
        Path(path).write_text(json.dumps(body, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "CostTable":
        """A table that was saved. WireError names the part of the file that is not one."""
        try:
            body = json.loads(Path(path).read_text())
        except ValueError as error:
            raise WireError(f"{path} is not a cost table: {error}; measure again, or give another file") from error
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror}; give a file that CostTable.save wrote"
            ) from None
        return cls(tuple(_points(body, path)), _hardware(body, path))

    def __repr__(self) -> str:
        lines = [f"CostTable({len(self.points)} points; {self.hardware.get('cpu') or 'hardware unknown'})"]
        for what in self._names:
            parts = [f"{cost:.3g} s{f' a {name}' if name else ''}" for name, cost in self.costs_s(what).items()]
            lines.append(f"  {what}: {' + '.join(parts)}")
        return "\n".join(lines)

    @cached_property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(point.what for point in self.points))

    @cached_property
    def _fits(self) -> dict[str, tuple[Costs, Costs]]:
        return {}

    def _fit(self, what: str) -> tuple[Costs, Costs]:
        if what not in self._fits:
            own = [point for point in self.points if point.what == what]
            if not own:
                raise InputError(f"nothing called {what!r} was measured; this table has {_listed(self._names)}")
            rows = [list(point.features.values()) for point in own]
            names = list(own[0].features)
            seconds = _costs(names, rows, [p.seconds for p in own], least=_LEAST_S)
            self._fits[what] = seconds, _costs(names, rows, [p.bytes for p in own], least=_LEAST_BYTES)
        return self._fits[what]

    @staticmethod
    def _predict(costs: Costs, what: str, features: Mapping[str, float]) -> float:
        names = set(costs) - {START}
        if set(features) != names:
            raise InputError(f"{what} is measured by {_listed(sorted(names))}; got {_listed(sorted(features))}")
        for name, amount in features.items():
            if not _is_number(amount):
                raise InputError(f"{what}: {name} must be a finite number that is not negative; got {amount!r}")
        return costs[START] + sum(costs[name] * amount for name, amount in features.items())


def _costs(names: list[str], rows: list[list[float]], measured: list[float], *, least: float) -> Costs:
    """Non-negative least squares of relative errors; columns are scaled to one, for the sake of its tolerance."""
    import numpy as np
    from scipy.optimize import nnls

    matrix = np.column_stack([np.ones(len(rows)), np.array(rows, float).reshape(len(rows), len(names))])
    found = np.array(measured, float)
    weight = 1 / np.maximum(found, least)
    weighted = matrix * weight[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    scale[scale == 0] = 1
    solution, _ = nnls(weighted / scale, found * weight)
    return dict(zip([START, *names], (solution / scale).tolist(), strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _points(body: Any, path: str | Path) -> Iterable[Point]:
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise WireError(f"{path} is not a cost table: expected the format {FORMAT!r} at its top")
    if set(body) != {"format", "hardware", "points"} or not isinstance(body["points"], list):
        raise WireError(f"{path}: expected format, hardware and a list of points; got {_listed(body)}")
    for number, each in enumerate(body["points"]):
        if not isinstance(each, dict) or set(each) != {"what", "features", "seconds", "bytes"}:
            raise WireError(f"{path}: point {number} must have what, features, seconds and bytes")
        if not isinstance(each["features"], dict):
            raise WireError(f"{path}: the features of point {number} must be names and numbers")
        try:
            yield Point(each["what"], each["features"], each["seconds"], each["bytes"])
        except InputError as error:
            raise WireError(f"{path}: point {number}: {error}") from error


def _hardware(body: dict[str, Any], path: str | Path) -> Hardware:
    hardware = body["hardware"]
    if not isinstance(hardware, dict) or not all(isinstance(v, str | int | None) for v in hardware.values()):
        raise WireError(f"{path}: hardware must be names with texts, whole numbers or null")
    return hardware
