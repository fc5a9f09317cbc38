"""What a trace costs: a bare forward, raw hooks, Glassworks and nnsight, in one run, in shuffled order, on one thread.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/overhead.py [--rounds 400] [--out benchmarks/results]

Two subjects: an MLP of 12 layers and a GPT-2 of 12 layers, both 64 wide with random weights. Each timed trace is a
fresh block on a new input. Fixed cost of a trace: the time with one read, less the bare forward, less one read. Cost of
a read: the slope between 1 and 12 reads. On the GPT-2 the fixed cost comes out negative: a trace of the last layer ends
before the head. Figures are medians; the cold cost (the first trace of a new model) stands beside.
"""

import argparse
import datetime
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import nnsight
import torch
import transformers

import glassworks as gw

LAYERS, WIDTH = 12, 64
Trace = Callable[[torch.Tensor], object]


def mlp() -> torch.nn.Module:
    layers = [torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()) for _ in range(LAYERS)]
    return torch.nn.Sequential(*layers).eval()


def gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(
        vocab_size=1000, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def bare(module: torch.nn.Module) -> Trace:
    def run(x: torch.Tensor) -> object:
        with torch.no_grad():
            return module(x)

    return run


def hooks(module: torch.nn.Module, layers: list[torch.nn.Module], count: int) -> Trace:
    def run(x: torch.Tensor) -> object:
        kept: list[torch.Tensor] = []
        held = [layer.register_forward_hook(lambda m, a, out: kept.append(out)) for layer in layers[-count:]]
        with torch.no_grad():
            module(x)
        for hook in held:
            hook.remove()
        return kept

    return run


def ours_mlp(model: gw.Model, count: int) -> Trace:
    def run(x: torch.Tensor) -> object:
        with model.trace(x):
            return [model[k].output.save() for k in range(LAYERS - count, LAYERS)]

    return run


def ours_gpt2(model: gw.Model, first: int, end: int) -> Trace:
    def run(x: torch.Tensor) -> object:
        with model.trace(x):
            return [model.layers[k].output.save() for k in range(first, end)]

    return run


def nnsight_mlp(model: nnsight.NNsight, count: int) -> Trace:
    def run(x: torch.Tensor) -> object:
        with model.trace(x):
            kept = [model[k].output.save() for k in range(LAYERS - count, LAYERS)].save()
        return kept

    return run


def nnsight_gpt2(model: nnsight.NNsight, first: int, end: int) -> Trace:
    def run(x: torch.Tensor) -> object:
        with model.trace(x):
            kept = [model.transformer.h[k].output.save() for k in range(first, end)].save()
        return kept

    return run


def measure(runs: dict[str, Trace], inputs: Callable[[], torch.Tensor], rounds: int) -> dict[str, float]:
    """Median seconds of each run; every round runs all of them once, in an order of its own."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + rounds // 5):
        names = list(runs)
        random.shuffle(names)
        for name in names:
            x = inputs()
            start = time.perf_counter()
            runs[name](x)
            if number >= rounds // 5:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def cold(
    make: Callable[[], torch.nn.Module], x: torch.Tensor, run: Callable[[torch.nn.Module, torch.Tensor], object]
) -> float:
    """Seconds from a new module to the end of the first trace of it."""
    module = make()
    start = time.perf_counter()
    run(module, x)
    return time.perf_counter() - start


def costs(found: dict[str, float], name: str) -> dict[str, float]:
    """Fixed cost of a trace and cost of a read, in microseconds."""
    read = (found[f"{name} 12 reads"] - found[f"{name} 1 read"]) / 11
    return {"fixed_us": (found[f"{name} 1 read"] - found["bare"] - read) * 1e6, "read_us": read * 1e6}


def measure_mlp(rounds: int) -> dict[str, object]:
    module = mlp()
    ours, peer = gw.wrap(module), nnsight.NNsight(mlp())
    untouched = mlp()
    untouched.load_state_dict(module.state_dict())
    layers = list(module)
    runs: dict[str, Trace] = {"bare": bare(untouched), "wrapped, no trace": bare(module)}
    for count, label in ((1, "1 read"), (12, "12 reads")):
        runs[f"hooks {label}"] = hooks(untouched, list(untouched), count)
        runs[f"glassworks {label}"] = ours_mlp(ours, count)
        runs[f"nnsight {label}"] = nnsight_mlp(peer, count)
    assert len(layers) == LAYERS
    found = measure(runs, lambda: torch.randn(1, WIDTH), rounds)
    first = cold(mlp, torch.randn(1, WIDTH), lambda m, x: ours_mlp(gw.wrap(m), 1)(x))
    return {"median_us": _us(found), "ours": costs(found, "glassworks"), "nnsight": costs(found, "nnsight"),
            "hooks": costs(found, "hooks"), "outside_a_trace": found["wrapped, no trace"] / found["bare"],
            "cold_s": first}  # fmt: skip


def measure_gpt2(rounds: int) -> dict[str, object]:
    module = gpt2()
    ours, peer = gw.wrap(module), nnsight.NNsight(gpt2())
    untouched = gpt2()
    untouched.load_state_dict(module.state_dict())
    runs: dict[str, Trace] = {
        "bare": bare(untouched),
        "wrapped, no trace": bare(module),
        "hooks 1 read": hooks(untouched, list(untouched.transformer.h), 1),
        "hooks 12 reads": hooks(untouched, list(untouched.transformer.h), 12),
        "glassworks 1 read": ours_gpt2(ours, LAYERS - 1, LAYERS),
        "glassworks 12 reads": ours_gpt2(ours, 0, LAYERS),
        "glassworks layer 0": ours_gpt2(ours, 0, 1),
        "nnsight 1 read": nnsight_gpt2(peer, LAYERS - 1, LAYERS),
        "nnsight 12 reads": nnsight_gpt2(peer, 0, LAYERS),
        "nnsight layer 0": nnsight_gpt2(peer, 0, 1),
    }
    found = measure(runs, lambda: torch.randint(0, 1000, (1, 16)), rounds)
    first = cold(gpt2, torch.randint(0, 1000, (1, 16)), lambda m, x: ours_gpt2(gw.wrap(m), 0, 1)(x))
    return {"median_us": _us(found), "ours": costs(found, "glassworks"), "nnsight": costs(found, "nnsight"),
            "outside_a_trace": found["wrapped, no trace"] / found["bare"],
            "layer_0_speedup": found["bare"] / found["glassworks layer 0"], "cold_s": first}  # fmt: skip


def _us(found: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds * 1e6, 1) for name, seconds in found.items()}


def report(result: dict[str, dict]) -> str:
    rows = []
    for subject in ("mlp", "gpt2"):
        own = result[subject]
        rows.append(f"{subject}")
        rows += [f"  {name:<22} {us:>9.1f} us" for name, us in own["median_us"].items()]
        for key, label in (("fixed_us", "fixed cost of a trace"), ("read_us", "cost of a read")):
            ours, peer = own["ours"][key], own["nnsight"][key]
            rows.append(f"  {label:<22} {ours:.1f} us, nnsight {peer:.1f} us: {ours / peer:.2f} times")
        rows.append(f"  outside a trace        {own['outside_a_trace']:.3f} times the bare module")
        rows.append(f"  first trace ever       {own['cold_s']:.2f} s")
    rows.append(
        f"  reading layer 0 of 12 is {result['gpt2']['layer_0_speedup']:.2f} times faster than the whole forward"
    )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400, help="timed rounds; each runs everything once")
    parser.add_argument("--out", type=Path, help="folder for a dated result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    result = {"mlp": measure_mlp(options.rounds * 3), "gpt2": measure_gpt2(options.rounds)}
    result["about"] = {
        "date": datetime.date.today().isoformat(), "python": platform.python_version(), "machine": platform.machine(),
        "torch": torch.__version__, "transformers": transformers.__version__, "nnsight": nnsight.__version__,
        "glassworks": gw.__version__, "rounds": options.rounds, "threads": 1,
    }  # fmt: skip
    print(report(result))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"overhead_{result['about']['date']}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
