"""Whether the engine gains what the simulator says: the same trace through both, first come first served against mlfq.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/scheduling_live.py [--seeds 5] [--count 250] [--out FOLDER]

A Llama of two layers with random weights; log-normal outputs (mean 250, cv 2, clipped), load 0.9 of 4 rows under the
costs that the engine itself has learnt in a warm-up. The engine runs on a virtual clock that advances by the CPU-
seconds of each iteration, so that neighbours on the machine stretch iterations and change no order. Four rows, since
a queue builds up at load 0.9 behind four within hundreds of requests, and behind sixteen within thousands. Figures:
how many times better mlfq's mean latency per output token, first token and completion are, in both, and their
proportion.
"""

import argparse
import datetime
import json
import platform
import statistics
from pathlib import Path

import numpy as np
import torch
import transformers

import glassworks as gw
from glassworks.measure import VirtualClock
from glassworks.schedule.arrivals import Arrivals

ROWS, TOKENS, VOCABULARY = 4, 512, 256
Figures = dict[str, float]


def tiny() -> gw.Model:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16384, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return gw.wrap(transformers.LlamaForCausalLM(config).eval())


def engine_of(model: gw.Model, policy: str, cost: gw.CostTable | None) -> gw.Engine:
    budget = gw.KVBudget(device="512MiB", host="512MiB")
    clock = VirtualClock()
    return gw.Engine(model, policy=policy, rows=ROWS, tokens=TOKENS, kv=budget, cost=cost, clock=clock, share=False)


def replay(engine: gw.Engine, arrivals: Arrivals) -> list[gw.Reply]:
    """Submit each request when its time has come; where nothing is under way, time passes."""
    draw = np.random.default_rng(0)
    replies: list[gw.Reply] = []
    while len(replies) < len(arrivals) or engine.pending:
        while len(replies) < len(arrivals) and arrivals.arrival_s[len(replies)] <= engine.clock.now_s():
            k = len(replies)
            prompt = draw.integers(2, VOCABULARY, int(arrivals.prompt_tokens[k])).tolist()
            replies.append(engine.submit(gw.Request(prompt, max_new_tokens=int(arrivals.output_tokens[k]))))
            replies[-1].timing.arrival_s = float(arrivals.arrival_s[k])  # not when the iteration under way ended
        if not engine.step() and len(replies) < len(arrivals):
            engine.clock.sleep(max(float(arrivals.arrival_s[len(replies)]) - engine.clock.now_s(), 0.0))
    return replies


def learnt_cost(model: gw.Model) -> gw.CostTable:
    """What iterations cost, from a warm-up with few and many rows, short and long contexts."""
    engine = engine_of(model, "fcfs", None)
    arrivals = gw.arrivals("lognormal", load=0.9, count=40, seed=99, cost=engine.cost, rows=ROWS)
    replay(engine, arrivals)
    return engine.cost


def live_figures(replies: list[gw.Reply]) -> Figures:
    latency = np.array([reply.timing.latency_s for reply in replies])
    first = np.array([reply.timing.ttft_s for reply in replies])
    return means(latency, first, np.array([len(reply.tokens) for reply in replies]))


def means(latency_s: np.ndarray, ttft_s: np.ndarray, tokens: np.ndarray) -> Figures:
    return {
        "latency per output token": float((latency_s / tokens).mean()),
        "completion": float(latency_s.mean()),
        "first token": float(ttft_s.mean()),
        "p95 completion": float(np.quantile(latency_s, 0.95)),
    }


def gains(base: Figures, other: Figures) -> Figures:
    return {name: base[name] / other[name] for name in base}


def seed_of(model: gw.Model, cost: gw.CostTable, seed: int, count: int, load: float) -> dict[str, Figures]:
    arrivals = gw.arrivals("lognormal", load=load, count=count, seed=seed, cost=cost, rows=ROWS)
    simulated, live = {}, {}
    for policy in ("fcfs", "mlfq"):
        report = gw.simulate(arrivals, policy=policy, cost=cost, rows=ROWS, tokens=TOKENS)
        simulated[policy] = means(report.latency_s, report.ttft_s, report.output_tokens)
        live[policy] = live_figures(replay(engine_of(model, policy, cost), arrivals))
    found = {"simulated": gains(simulated["fcfs"], simulated["mlfq"]), "live": gains(live["fcfs"], live["mlfq"])}
    return {**found, "proportion": gains(found["live"], found["simulated"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--load", type=float, default=0.9)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = tiny()
    cost = learnt_cost(model)
    found = []
    for seed in range(given.seeds):
        found.append(seed_of(model, cost, seed, given.count, given.load))
        print(seed, {name: {k: round(v, 2) for k, v in own.items()} for name, own in found[-1].items()}, flush=True)
    medians = {
        name: {key: statistics.median(own[name][key] for own in found) for key in own} for name, own in found[0].items()
    }
    for name, own in medians.items():
        print(f"median {name:12}", {key: round(value, 2) for key, value in own.items()})
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        result = {
            "date": datetime.date.today().isoformat(), "machine": platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "count": given.count, "load": given.load, "costs_s": dict(cost.costs_s("iteration")), "medians": medians,
            "seeds": found,
        }  # fmt: skip
        path = given.out / f"scheduling_live_{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
