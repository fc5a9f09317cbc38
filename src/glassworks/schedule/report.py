"""What came of a simulation or a run: latencies, request by request, and what is said of them.

*Normalised* latency is latency over output length (FastServe's metric): it weighs the wait of a short answer as a
person would. Completion is plain latency. Better in one may be worse in the other, in the mean or in the tail: print
them side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glassworks.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """By request, in the order of arrival: `latency_s` to the end, `ttft_s` to the first token, `output_tokens`.

    Of the whole: `busy_s` of iterations, `idle_s` in which there was no request, `iterations`, mean `rows` of them,
    `swaps` to the host, `drops` and tokens lost by them, `peak_blocks` on the device.
    """

    policy: str
    arrivals: str
    arrival_s: Floats
    latency_s: Floats
    ttft_s: Floats
    output_tokens: NDArray[np.int64]
    busy_s: float
    idle_s: float
    iterations: int
    rows: float
    swaps: int = 0
    drops: int = 0
    dropped_tokens: int = 0
    peak_blocks: int = 0

    @property
    def normalized_s(self) -> Floats:
        """Latency for each token produced."""
        return self.latency_s / self.output_tokens

    @property
    def mean_latency_s(self) -> float:
        return float(self.latency_s.mean())

    @property
    def mean_normalized_s(self) -> float:
        return float(self.normalized_s.mean())

    @property
    def mean_ttft_s(self) -> float:
        return float(self.ttft_s.mean())

    def percentile_s(self, percent: float) -> float:
        """Of completion."""
        return float(np.percentile(self.latency_s, percent))

    def longest_tenth_s(self) -> float:
        """Mean completion of the tenth of requests with the longest outputs: who pays for short answers."""
        count = max(1, len(self.output_tokens) // 10)
        return float(self.latency_s[np.argsort(self.output_tokens, kind="stable")[-count:]].mean())

    def figures(self) -> dict[str, float]:
        """By name, in seconds."""
        return {
            "normalised mean": self.mean_normalized_s,
            "normalised p95": float(np.percentile(self.normalized_s, 95)),
            "completion mean": self.mean_latency_s,
            "completion p95": self.percentile_s(95),
            "completion of longest tenth": self.longest_tenth_s(),
            "first token mean": self.mean_ttft_s,
        }

    def __repr__(self) -> str:
        lines = [f"Report({self.policy}; {self.arrivals}; {len(self.latency_s)} requests)"]
        lines += [f"  {name:<28}{value:>10.3f} s" for name, value in self.figures().items()]
        lines.append(f"  {self.iterations} iterations of {self.rows:.1f} rows; busy {self.busy_s:.1f} s")
        lines.append(f"  {self.swaps} swaps, {self.drops} drops, at most {self.peak_blocks} blocks")
        return "\n".join(lines)


def compare(reports: Sequence[Report]) -> str:
    """A table: how many times better than the first report each other one is (below 1: worse)."""
    if len({report.arrivals for report in reports}) != 1:
        raise InputError("expected reports of the same arrivals; compare each workload by itself")
    first, *others = reports
    names = list(first.figures())
    lines = [f"{first.arrivals}: times better than {first.policy}", " " * 22 + "".join(f"{n:>29}" for n in names)]
    for report in others:
        own, base = report.figures(), first.figures()
        lines.append(f"  {report.policy:<20}" + "".join(f"{base[n] / own[n]:>29.2f}" for n in names))
    return "\n".join(lines)


def plot_loads(reports: Mapping[float, Sequence[Report]], path: str | Path, *, figure: str = "normalised mean") -> None:
    """Latency against load, a line a policy, as a picture. `reports`: by load. Needs matplotlib (the extra `plot`)."""
    from matplotlib.figure import Figure

    if not reports or any(figure not in each.figures() for own in reports.values() for each in own):
        raise InputError(f"expected reports by load, and a figure of theirs; got {figure!r} of loads {list(reports)}")
    lines: dict[str, list[tuple[float, float]]] = {}
    for load, own in sorted(reports.items()):
        for report in own:
            lines.setdefault(report.policy, []).append((load, report.figures()[figure]))
    drawing = Figure(figsize=(6, 4), layout="constrained")
    axes = drawing.add_subplot(xlabel="load", ylabel=f"{figure} (s)", yscale="log")
    for policy, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=policy)
    axes.legend()
    drawing.savefig(path)
