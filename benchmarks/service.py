"""What sharing a model costs: a service with 1, 4, 16, 64 clients, and the same jobs on nnsight one after the other.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/service.py [--clients 1 4 16 64] [--seconds 8] [--out DIR]

The model is a Llama with random weights, 12 layers, 256 wide. Two loads: *traces* of 8 tokens that read one layer and
the logits of the last token and write to one layer; and *generations* of 32 tokens. Clients are threads of one process,
each with `gw.connect` and blocks that wait; the service is the supervisor, web process, checkers and worker that people
run, with its state on the disk.

What is compared is the worker's CPU-seconds a job, from the service's own /metrics, between one client and many: that
is what a model that is shared can save. Wall-clock figures stand beside; on two cores they are mostly the clients' and
the web process's. The peer runs the same jobs one after the other, which is how NDIF runs them: nnsight 0.8.1 in this
process, its CPU-seconds a job without any network. Figures are medians over rounds.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers
from prometheus_client.parser import text_string_to_metric_families

import glassworks as gw
from glassworks.serve.supervise import Running, running_service

VOCABULARY, NEW_TOKENS = 2000, 32
SETTLE_S = 1.2
"""Until a worker has told of what it did."""


def subject(folder: Path) -> Path:
    """The model, as a folder that `gw.load` reads."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


def prompt(n: int) -> list[int]:
    """The n-th prompt: 8 tokens."""
    return torch.randint(2, VOCABULARY, (8,), generator=torch.Generator().manual_seed(n)).tolist()


def trace(model: Any, n: int) -> None:
    with model.trace(prompt(n)):
        model.layers[3].mlp.output[:, -1] *= 0.5
        model.layers[6].output[:, -1].save()
        model.logits[:, -1].argmax(-1).save()


def generation(model: Any, n: int) -> None:
    model.complete(prompt(n), max_new_tokens=NEW_TOKENS)


def nnsight_trace(model: Any, n: int) -> None:
    with model.trace(torch.tensor([prompt(n)])):
        model.model.layers[3].mlp.output[:, -1] *= 0.5
        model.model.layers[6].output[:, -1].save()
        model.lm_head.output[:, -1].argmax(-1).save()


def nnsight_generation(model: Any, n: int) -> None:
    model.generate(torch.tensor([prompt(n)]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)


LOADS: dict[str, tuple[Callable[[Any, int], None], Callable[[Any, int], None]]] = {
    "traces": (trace, nnsight_trace), "generations": (generation, nnsight_generation),
}  # fmt: skip


def figures(running: Running) -> dict[str, float]:
    """What the worker has done so far."""
    text = httpx.get(f"{running.url}/metrics").text
    found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    names = ("cpu_seconds", "passes", "rows")
    return {name: found[f"glassworks_worker_{name}_total"] for name in names}


def measured(
    running: Running, models: Sequence[Any], run: Callable[[Any, int], None], seconds: float
) -> dict[str, float]:
    """So many clients for a while, each waiting for its job before the next."""
    time.sleep(SETTLE_S)
    before, took = figures(running), list[float]()
    end = time.monotonic() + seconds
    began = time.monotonic()

    def work(k: int, model: Any) -> None:
        n = 0
        while time.monotonic() < end:
            start = time.monotonic()
            run(model, 1000 * k + n)
            took.append(time.monotonic() - start)
            n += 1

    threads = [threading.Thread(target=work, args=(k, model)) for k, model in enumerate(models)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.monotonic() - began
    time.sleep(SETTLE_S)
    after = figures(running)
    passes = after["passes"] - before["passes"]
    return {
        "jobs": len(took),
        "worker_cpu_s_a_job": (after["cpu_seconds"] - before["cpu_seconds"]) / len(took),
        "rows_a_pass": (after["rows"] - before["rows"]) / max(passes, 1),
        "jobs_a_second": len(took) / wall_s,
        "latency_s_median": statistics.median(took),
        "latency_s_p95": sorted(took)[int(0.95 * len(took))],
    }


def peer(folder: Path) -> Any:
    """The same model in nnsight; None where it is not installed."""
    try:
        import nnsight
    except ImportError:
        return None
    own = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return nnsight.NNsight(own)


def alone(model: Any, run: Callable[[Any, int], None], seconds: float) -> dict[str, float]:
    """One job after the other in this process."""
    run(model, 0)
    began, end, jobs = time.process_time(), time.monotonic() + seconds, 0
    with torch.no_grad():
        while time.monotonic() < end:
            run(model, jobs)
            jobs += 1
    return {"jobs": jobs, "cpu_s_a_job": (time.process_time() - began) / jobs}


def median_of(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(own[name] for own in rounds) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--out", type=Path, help="folder for the result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = subject(Path(folder) / "llama")
        nns = peer(path)
        with running_service(str(path), state=Path(folder) / "state") as running:
            models = [
                gw.connect(running.url, api_key=running.key).model(str(path)) for _ in range(max(options.clients))
            ]
            for load in options.loads:
                run, run_peer = LOADS[load]
                run(models[0], 0)
                rounds: dict[int, list[dict[str, float]]] = {count: [] for count in options.clients}
                peers = []
                for _ in range(options.rounds):
                    for count in options.clients:
                        rounds[count].append(measured(running, models[:count], run, options.seconds))
                    if nns is not None:
                        peers.append(alone(nns, run_peer, options.seconds))
                found[load] = {str(count): median_of(own) for count, own in rounds.items()}
                if peers:
                    found[load]["nnsight, one after the other"] = median_of(peers)
                report(load, found[load])
    found["about"] = {
        "date": datetime.date.today().isoformat(), "machine": platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "nnsight": version("nnsight") if nns is not None else None, "glassworks": gw.__version__,
        "rounds": options.rounds, "seconds": options.seconds, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }  # fmt: skip
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        target = options.out / f"service_{found['about']['date']}.json"
        target.write_text(json.dumps(found, indent=1) + "\n")
        print(f"written to {target}")


def report(load: str, found: dict[str, dict[str, float]]) -> None:
    print(load)
    one = found.get("1", {}).get("worker_cpu_s_a_job")
    for name, own in found.items():
        if "cpu_s_a_job" in own:
            print(f"  {name}: {1000 * own['cpu_s_a_job']:.1f} ms of CPU a job")
            continue
        ratio = f", {own['worker_cpu_s_a_job'] / one:.2f} of one client's" if one else ""
        print(
            f"  {name:>3} clients: worker {1000 * own['worker_cpu_s_a_job']:.1f} ms of CPU a job{ratio}; "
            f"{own['rows_a_pass']:.1f} rows a pass; {own['jobs_a_second']:.1f} jobs/s; "
            f"latency {1000 * own['latency_s_median']:.0f} ms, p95 {1000 * own['latency_s_p95']:.0f} ms"
        )


if __name__ == "__main__":
    main()
