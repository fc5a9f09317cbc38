"""What policies gain and cost, in simulation: every kind of workload, every policy, against first come first served.

    .venv/bin/python benchmarks/scheduling.py [--seeds 5] [--count 2000] [--out benchmarks/results]

Load 0.9 of 16 rows, iterations like OPT-13B's in FastServe's evaluation, unlimited memory; then the kind that policies
are accepted by with a third of the memory that mlfq would take, behind links of two speeds. Figures are medians over
the seeds of first come first served over the policy: above 1 is better, below 1 is what gets worse. No machine matters:
time is simulated.
"""

import argparse
import datetime
import json
import platform
import statistics
from pathlib import Path

import glassworks as gw
from glassworks.schedule import NAMES
from glassworks.schedule.arrivals import KINDS, Arrivals
from glassworks.schedule.report import Report, plot_loads
from glassworks.schedule.store import LimitedKV

POLICIES = [name for name in NAMES if name not in ("fcfs", "fair")]
LOADS = (0.5, 0.7, 0.8, 0.9, 1.0)
Ratios = dict[str, float]


def run(
    arrivals: Arrivals, policy: str, seed: int, kv: LimitedKV | None = None, bound_s: float | None = None
) -> Report:
    return gw.simulate(arrivals, policy=policy, seed=seed, kv=kv, starvation_s=bound_s)


def ratios(base: Report, other: Report) -> Ratios:
    own, first = other.figures(), base.figures()
    found = {name: first[name] / own[name] for name in first}
    return {**found, "peak blocks": other.peak_blocks / base.peak_blocks, "swaps": float(other.swaps)}


def middle(found: list[Ratios]) -> Ratios:
    return {name: round(statistics.median(each[name] for each in found), 3) for name in found[0]}


def kind_table(kind: str, seeds: int, count: int) -> dict[str, object]:
    """Medians over seeds, and each seed's figures for the two that are accepted by a bound."""
    rows: dict[str, list[Ratios]] = {}
    spread: list[float] = []
    for seed in range(seeds):
        arrivals = gw.arrivals(kind, count=count, seed=seed)
        spread.append(float(arrivals.output_tokens.std() / arrivals.output_tokens.mean()))
        base = run(arrivals, "fcfs", seed)
        for policy in POLICIES:
            rows.setdefault(policy, []).append(ratios(base, run(arrivals, policy, seed)))
        rows.setdefault("mlfq, 10 s bound", []).append(ratios(base, run(arrivals, "mlfq", seed, bound_s=10.0)))
    by_seed = {policy: [(round(r["normalised mean"], 2), round(r["completion mean"], 2)) for r in own]
               for policy, own in rows.items()}  # fmt: skip
    medians = {policy: middle(own) for policy, own in rows.items()}
    return {"output_cv": round(statistics.median(spread), 2), "medians": medians, "normalised, completion": by_seed}


def memory_table(seeds: int, count: int) -> dict[str, Ratios]:
    """mlfq with little memory against first come first served with the same."""
    found: dict[str, list[Ratios]] = {}
    for seed in range(seeds):
        arrivals = gw.arrivals("lognormal", count=count, seed=seed)
        blocks = max(600, run(arrivals, "mlfq", seed).peak_blocks // 3)
        for name, link in (("at once", None), ("20000 blocks/s", 20000.0), ("2000 blocks/s", 2000.0)):
            kv = LimitedKV(blocks, link_blocks_per_s=link)
            found.setdefault(name, []).append(ratios(run(arrivals, "fcfs", seed, kv), run(arrivals, "mlfq", seed, kv)))
    return {name: middle(own) for name, own in found.items()}


def show(title: str, rows: dict[str, Ratios]) -> str:
    names = list(next(iter(rows.values())))
    lines = [title, " " * 20 + "".join(f"{name:>17}" for name in _short(names))]
    for policy, own in rows.items():
        lines.append(f"  {policy:<18}" + "".join(f"{own[name]:>17.2f}" for name in names))
    return "\n".join(lines)


def _short(names: list[str]) -> list[str]:
    return [name.replace("completion of longest tenth", "longest tenth").replace("first token", "first tok")
            for name in names]  # fmt: skip


def draw(out: Path, count: int) -> None:
    by_load = {}
    for load in LOADS:
        arrivals = gw.arrivals("lognormal", load=load, count=count)
        by_load[load] = [run(arrivals, policy, 0) for policy in ("fcfs", *POLICIES)]
    for figure, name in (("normalised mean", "normalised"), ("completion mean", "completion")):
        plot_loads(by_load, out / f"scheduling_{name}.png", figure=figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="requests of each trace")
    parser.add_argument("--out", type=Path, help="folder for a dated result file and pictures of latency against load")
    options = parser.parse_args()
    result: dict[str, object] = {}
    for kind in KINDS:
        found = kind_table(kind, options.seeds, options.count)
        result[kind] = found
        print(
            show(f"{kind} (cv of outputs {found['output_cv']}): times better than fcfs", found["medians"]), flush=True
        )
    result["little memory"] = found = memory_table(options.seeds, options.count)
    print(
        show("lognormal, a third of the memory: mlfq, times better than fcfs with as little, by speed of links", found)
    )
    result["about"] = {
        "date": datetime.date.today().isoformat(), "python": platform.python_version(), "glassworks": gw.__version__,
        "seeds": options.seeds, "count": options.count, "load": 0.9, "rows": 16, "prediction_sigma": 0.8,
    }  # fmt: skip
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"scheduling_{result['about']['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        draw(options.out, options.count)
        print(f"written to {path}, with pictures beside")


if __name__ == "__main__":
    main()
