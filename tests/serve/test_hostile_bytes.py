"""Thousands of mutated requests to a real service: each is refused with a place in it, or runs as it does here.

Counted at the worker, so that nothing that was refused has reached the model; watched by audit hooks in every process,
so that nothing in a message was taken for code; and measured, so that the web process has stayed small.
"""

import os
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch

import glassworks as gw
from glassworks.client.base import Answer, Request
from glassworks.client.inprocess import InProcessTransport
from glassworks.graph import messages
from glassworks.graph.limits import Limits
from glassworks.graph.wire import digest
from glassworks.serve.local import in_process
from glassworks.serve.supervise import Running, running_service
from glassworks.trace.tensors import as_leaf, from_blob
from laws.equal import close, same_bits
from mutations import WAYS, mutated

HERE = Path(__file__).parent
PROMPT = "The Eiffel Tower is in the city of"
WEB_BYTES = 200 * 10**6
LIMITS = Limits(
    body_bytes=4 * 2**20, experiments=64, nodes=2000, rows=64, tokens_per_row=256, tokens=4096, max_new_tokens=8,
    result_bytes=16 * 2**20, node_flops=2**32, node_bytes=2**26, request_flops=2**34, request_bytes=2**30,
    held_bytes=2**28, check_s=10, check_bytes=2**28,
)  # fmt: skip
PLACE = re.compile(
    r"bytes \d+:\d+|header field|\w[\w.]*\.py:\d+|node \d+|tensor '?\w|experiment \d+|request: |message: |invoke \d+|"
    r"\w+: \d+ asked for, \d+ allowed|inputs for \d+|the input '|the generation option|check_s|check_bytes|"
    r"text in arguments \(\w+\): \d+ char|large tensors are not here"
)


# What is mutated.


def lens_and_write(model: Any) -> None:
    with model.trace(PROMPT):
        model.layers[1].mlp.output[:, -1] = 0
        for layer in model.layers:
            model.unembed(layer.output[:, -1]).softmax(-1).topk(3).values.save()


def captured(model: Any) -> None:
    steer, table = (
        torch.tensor([0.25], dtype=torch.bfloat16),
        torch.randn(7, 3, generator=torch.Generator().manual_seed(0)),
    )
    with model.trace([PROMPT, "A man walked into the"]):
        model.layers[0].output = model.layers[0].output + steer
        (model.logits[:, -1, :7] @ table).save("product")
        torch.where(model.logits > 0, model.logits, 0.0).sum(-1).save()


def several_invokes(model: Any) -> None:
    with model.trace(rows=2) as t:
        with t.invoke(PROMPT):
            clean = model.layers[1].output[:, -1]
        with t.invoke("A man walked into the"):
            model.layers[1].output[:, -1] = clean
            model.logits[:, -1].argmax(-1).save()


def generation(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=3, do_sample=True, top_k=9, temperature=0.7, seed=3) as t, t.steps[0:2]:
        model.logits[:, -1].save()


def gradients(model: Any) -> None:
    with model.trace(PROMPT) as t:
        resid = model.layers[0].output
        t.backward(model.logits[:, -1].sum())
        resid.grad.norm(dim=-1).save()


def session(model: Any) -> None:
    with model.session():
        with model.trace(PROMPT):
            first = model.layers[0].output[:, -1].save()
        with model.trace("A man walked into the"):
            model.layers[0].output[:, -1] = first
            model.logits[:, -1].save()


def depends_on_numbers(model: Any) -> None:
    with model.trace(PROMPT):
        x = model.layers[0].output
        x[x > 0].sum().save()
        torch.repeat_interleave(x, torch.tensor([2]), dim=0).save()


def control(model: Any) -> None:
    with model.trace(PROMPT):
        resid = model.layers[1].output
        model.layers[1].output = gw.cond(resid.norm() > 1, lambda: resid * 0.5, lambda: resid + 1)
        gw.log("norm", resid.norm())
        model.logits[:, -1].save()


def states(model: Any) -> None:
    with model.generate(PROMPT, max_new_tokens=4, eos_token_id=None) as t, t.steps[:]:
        seen = t.state(torch.zeros(1))
        seen.value = seen.value + model.logits[:, -1].max(-1).values
        seen.value.save()
        t.stop(when=seen.value > 1e9)


def inside(model: Any) -> None:
    with model.trace(PROMPT):
        model.layers[0].attn.probs[:, 0, -1].save()
        model.layers[1].attn.heads[1].output = 0.0
        model.logits[:, -1].argmax(-1).save()


LARGE = torch.randn(991, 300, generator=torch.Generator().manual_seed(1))


def large(model: Any) -> None:
    with model.trace(PROMPT):
        (model.logits[:, -1] @ LARGE).sum().save()


@pytest.fixture(scope="module")
def local() -> Any:
    return gw.load("toy")


@pytest.fixture(scope="module")
def seeds(local: Any) -> list[bytes]:
    """The bodies of honest requests."""
    found: list[bytes] = []
    service = in_process("toy", local.backend, tokenizer={}, as_leaf=as_leaf, from_blob=from_blob)

    def noted(request: Request) -> Answer:
        if "/jobs" in request.path:
            found.append(bytes(request.body))  # type: ignore[arg-type]
        return service.send(request)

    backend = gw.client.RemoteBackend(InProcessTransport(noted), "toy", as_leaf=as_leaf, from_blob=from_blob)
    from glassworks.trace.facade import Model
    from glassworks.trace.parts import Core

    model = Model(Core(backend, text=local.text, table=local.table, name="toy"))
    for write in (
        lens_and_write, captured, several_invokes, generation, gradients, session, depends_on_numbers, control, states,
        inside, large,
    ):  # fmt: skip
        write(model)
    return found


# The service.


class Watched(NamedTuple):
    """A service whose runs are counted and whose processes are watched."""

    running: Running
    runs: Path
    audit: Path

    def count(self) -> int:
        return self.runs.stat().st_size

    @property
    def processes(self) -> dict[str, int]:
        web = self.running.web
        checkers = Path(f"/proc/{web}/task/{web}/children").read_text().split()
        return {
            "web": web,
            "worker": self.running.worker,
            **{f"checker {k}": int(pid) for k, pid in enumerate(checkers)},
        }

    def arm(self) -> None:
        for pid in self.processes.values():
            os.kill(pid, signal.SIGUSR1)

    def heard(self, pid: int) -> list[str]:
        path = Path(f"{self.audit}.{pid}")
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    runs = folder / "runs"
    runs.touch()
    added = {
        "GLASSWORKS_AUDIT": str(folder / "audit"),
        "GLASSWORKS_RUNS": str(runs),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent / "audit"), os.environ.get("PYTHONPATH", "")]),
    }
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    command = (sys.executable, str(HERE / "counted_worker.py"))
    try:
        with running_service("toy", limits=LIMITS, worker_command=command) as running:
            yield Watched(running, runs, folder / "audit")
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def peak_bytes(pid: int) -> int:
    """The most that a process has held."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


# What is asked.


def ran_here(local: Any, body: bytes) -> Any:
    """The results of a body in this process, or what it raises."""
    blob = as_leaf(LARGE).blob()
    request = messages.decode_request(body, from_blob=from_blob, aside={digest(blob): blob})
    try:
        return local.backend.run_session(request.experiments)
    except Exception as error:  # noqa: BLE001 - compared with what the service says
        return error


def alike(here: Any, there: Any, tensors: Any) -> bool:
    """The same values of the same form; of tensors `tensors` decides."""
    if isinstance(here, torch.Tensor):
        try:
            tensors(there, here)
        except AssertionError:
            return False
        return True
    if isinstance(here, list | tuple):
        return len(here) == len(there) and all(alike(*pair, tensors) for pair in zip(here, there, strict=True))
    if isinstance(here, dict):
        return here.keys() == there.keys() and all(alike(here[name], there[name], tensors) for name in here)
    return bool(here == there)


def same(body: bytes, here: Any, answer: bytes) -> bool:
    """The same bits; of a generation, which an engine computes in other shapes, nearly so."""
    there = messages.decode_results(answer, from_blob=from_blob)
    blob = as_leaf(LARGE).blob()
    request = messages.decode_request(body, from_blob=from_blob, aside={digest(blob): blob})
    pairs = zip(request.experiments, here, there, strict=True)
    return all(alike(_told(a), _told(b), close if own.generation else same_bits) for own, a, b in pairs)


def _told(result: Any) -> Any:
    said = [(entry.text, entry.node, entry.step, entry.rows) for entry in result.logs]
    return dict(result.saves), result.forwards, result.alive, dict(result.gradients), said


def judged(local: Any, body: bytes, status: int, answer: bytes, reached: int) -> str:
    """What became of a body: `refused`, `equal` or `failed alike`; AssertionError: none of these."""
    assert status < 500, (status, answer[:500])
    if status == 200:
        assert reached == 1
        here = ran_here(local, body)
        assert not isinstance(here, Exception), here
        assert same(body, here, answer)
        return "equal"
    error = messages.decode_error(answer)
    spoken = "\n".join([str(error), *getattr(error, "__notes__", ())])
    assert PLACE.search(spoken), (status, type(error), spoken)
    if not reached:
        assert status in (400, 409, 413, 422), (status, spoken)
        return "refused"
    here = ran_here(local, body)
    if isinstance(error, gw.LimitExceeded):
        return "too large when it ran"
    assert isinstance(here, Exception), (here, spoken)
    expected = messages.decode_error(messages.encode_error(here))
    assert type(expected) is type(error)
    assert str(expected) == str(error).replace(".meta.", ".")  # torch may have said it of a tensor without numbers
    return "failed alike"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutated_requests(watched: Watched, local: Any, seeds: list[bytes], count: int) -> None:
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    ways: Counter[str] = Counter()
    url = f"{watched.running.url}/v1/models/toy/run"
    headers = {"Authorization": f"Bearer {watched.running.key}"}
    blob = as_leaf(LARGE).blob()
    with httpx.Client(headers=headers, trust_env=False, timeout=120) as client:
        sent = client.put(f"{watched.running.url}/v1/tensors/{digest(blob)}", content=messages.encode_tensor(blob))
        assert sent.status_code == 200
        for body in seeds:  # and each process has imported what it needs
            before = watched.count()
            answer = client.post(url, content=body)
            assert judged(local, body, answer.status_code, answer.content, watched.count() - before) == "equal"
        watched.arm()
        armed = dict(watched.processes)
        for number in range(count):
            way, body = mutated(seeds, number)
            before = watched.count()
            answer = client.post(url, content=body)
            try:
                outcome = judged(local, body, answer.status_code, answer.content, watched.count() - before)
            except AssertionError as error:
                outcome = "wrong"
                wrong.append(f"number {number}, {way}: {str(error)[:400]}")
            outcomes[outcome] += 1
            ways[way.split(" and ")[0]] += 1
        assert client.get(f"{watched.running.url}/healthz").status_code == 200
    print(dict(outcomes), f"web {peak_bytes(armed['web']) / 1e6:.0f} MB")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:20])
    assert set(ways) == set(WAYS)
    assert outcomes["refused"] > count / 2
    assert outcomes["equal"] > count / 100
    assert watched.running.web == armed["web"], "the web process has ended"
    assert watched.running.worker == armed["worker"], "the worker has ended"
    assert peak_bytes(armed["web"]) < WEB_BYTES
    for name, pid in armed.items():
        heard = watched.heard(pid)
        assert heard[:1] == ["armed"], name
        assert [line for line in heard if line != "armed" and not allowed(name, line)] == [], name


def allowed(process: str, event: str) -> bool:
    """What a process does at each request: bodies pass through files of the service's own folder, the web process
    asks the worker over a socket, and a thread that was not busy before has a connection of its own to the database."""
    own = f" '{tempfile.gettempdir()}/glassworks-"
    ways = (f"open{own}", "socket.connect", f"sqlite3.connect{own}", "sqlite3.connect/handle ")
    return process == "web" and event.startswith(ways)
