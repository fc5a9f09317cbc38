"""A real worker over its socket: what it gives, what jobs do to each other (nothing), and what is left of them."""

import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import glassworks as gw
from families import FAMILIES, of_type
from glassworks.errors import Cancelled, InputError, LimitExceeded, OrderError, WireError
from glassworks.graph.backend import Experiment, Inputs, Results, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.messages import encode_request
from glassworks.graph.nodes import ALL_ROWS, Node, Ref
from workers import (
    Connection,
    Given,
    Process,
    WorkerBackend,
    experiments_of,
    over,
    wait_for,
    worker,
)

PROMPT = "The Eiffel Tower is in the city of"
ENDLESS = {"max_new_tokens": 90_000, "eos_token_id": []}
LIMITS = Limits(max_new_tokens=100_000, tokens=2**20, request_flops=2**60, request_bytes=2**60, node_bytes=2**28)


@pytest.fixture(scope="module")
def local() -> Any:
    return gw.load("toy")


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with worker("toy", limits=LIMITS) as found:
        yield found


@pytest.fixture
def connection(process: Process) -> Iterator[Connection]:
    found = process.connect()
    yield found
    found.close()


@pytest.fixture
def backend(connection: Connection) -> WorkerBackend:
    return WorkerBackend(connection, limits=LIMITS)


# Blocks, as people write them.


def lens(model: Any, prompt: Any = PROMPT) -> list[torch.Tensor]:
    with model.trace(prompt):
        kept = model.layers[0].output.save()
        model.layers[1].mlp.output[:, -1] = 0
        found = [model.unembed(layer.output[:, -1]).save() for layer in model.layers]
    return [kept.value, *[value.value for value in found]]


def steered(model: Any, prompt: Any = PROMPT) -> list[torch.Tensor]:
    with model.generate(prompt, max_new_tokens=6) as t, t.steps[1:4]:
        model.layers[1].output = model.layers[1].output * 1.5
        seen = model.logits[:, -1].argmax(-1).save()
    return [t.result, *seen.value]


def gradients(model: Any, prompt: Any = PROMPT) -> list[torch.Tensor]:
    with model.trace(prompt) as t:
        resid = model.layers[1].output
        t.backward(model.logits[:, -1].logsumexp(-1).sum())
        found = resid.grad.save()
    return [found.value]


def several(model: Any, prompt: Any = PROMPT) -> list[torch.Tensor]:
    with model.trace() as t:
        with t.invoke([prompt, "One"]):
            first = model.layers[2].output.save()
        with t.invoke("Two words"):
            model.layers[0].output[:, -1] = 0
            second = model.logits.save()
    return [first.value, second.value]


def session(model: Any, prompt: Any = PROMPT) -> list[torch.Tensor]:
    with model.session():
        with model.trace(prompt):
            taken = model.layers[2].output[:, -1].save()
        with model.trace("Something else"):
            model.layers[2].output[:, -1] = taken
            found = model.logits.save()
    return [taken.value, found.value]


def drawn(model: Any, prompt: Any = PROMPT) -> list[torch.Tensor]:
    with model.generate(prompt, max_new_tokens=5, do_sample=True, seed=7) as t:
        pass
    with model.trace(prompt, seed=3):
        noise = torch.rand_like(model.layers[0].output).save()
    return [t.result, noise.value]


def captured(model: Any, prompt: Any = PROMPT) -> list[torch.Tensor]:
    large = torch.linspace(-1, 1, 2**19)  # 2 MiB: travels beside the request
    with model.trace(prompt):
        model.layers[0].output = model.layers[0].output + large[: model.layers[0].output.shape[-1]]
        saved = model.logits.save()
        sums = large.sum().save() if isinstance(large, gw.Value) else (model.logits.sum() * 0 + large.sum()).save()
    return [saved.value, sums.value]


BLOCKS: tuple[Callable[..., list[torch.Tensor]], ...] = (lens, steered, gradients, several, session, drawn, captured)


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor], apart: float = 1e-5) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=apart, atol=apart, equal_nan=True)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_a_block_gives_what_it_gives_here(local: Any, backend: WorkerBackend, block: Any) -> None:
    equal(block(over(backend, local)), block(local))


def test_sites_inside_modules_and_the_tokenizer_are_answered(
    local: Any, backend: WorkerBackend, connection: Connection
) -> None:
    def inside(model: Any) -> list[torch.Tensor]:
        with model.trace(PROMPT):
            found = model.layers[0].mlp.op("mul").output.save()
        return [found.value]

    equal(inside(over(backend, local)), inside(local))
    assert connection.ask("tokenizer")[0] == 200
    status, body = connection.ask("sites", b"none of ours")
    assert (status, json.loads(body)["error"]["type"]) == (400, "WireError")


# Together.


def test_traces_that_come_together_share_passes(local: Any, backend: WorkerBackend, connection: Connection) -> None:
    own = experiments_of(local, lens)
    before = connection.later_stats()
    given = [backend.give(own, user=str(k % 3)) for k in range(16)]
    for each in given:
        [found] = backend.read(each.ended())
        equal(list(found.saves.values()), list(local.backend.run(own[0].graph, own[0].inputs).saves.values()))
    after = connection.later_stats()
    assert after["rows"] - before["rows"] == 16
    assert after["passes"] - before["passes"] <= 6
    assert after["alone_passes"] == before["alone_passes"]
    seconds = sum(each.ended().head["compute_s"] for each in given)
    assert seconds == pytest.approx(after["engine"]["seconds"] - before["engine"]["seconds"], rel=1e-6)
    assert [each.ended().head["forwards"] for each in given] == [1] * 16


@pytest.mark.parametrize("seed", range(2))
def test_everybody_gets_what_is_theirs(local: Any, backend: WorkerBackend, seed: int) -> None:
    """Random jobs of several people, some of which fail or are full of NaN, in random order: each as alone."""

    def nan(model: Any, prompt: Any) -> list[torch.Tensor]:
        with model.trace(prompt):
            model.layers[0].output[:] = float("nan")
            saved = model.logits.save()
        return [saved.value]

    def fails(model: Any, prompt: Any) -> list[torch.Tensor]:
        with model.trace(prompt):
            flat = model.layers[1].output.nonzero()
            saved = flat[10**6].save()
        return [saved.value]

    draw = random.Random(seed)
    given: list[tuple[Given, list[Experiment]]] = []
    for k in range(24):
        block = draw.choice([lens, steered, gradients, several, session, drawn, nan, fails])
        prompt = [draw.randrange(900) for _ in range(draw.randint(1, 12))]
        own = experiments_of(local, partial(block, prompt=prompt))
        given.append((backend.give(own, user=f"user {k % 5}"), own))
    for each, own in given:
        ended = each.ended()
        if len(own) == 1 and any(node.target == "nonzero" for node in own[0].graph.nodes):
            with pytest.raises(IndexError) as raised:
                local.backend.run_session(own)
            assert (ended.status, type(ended.error), str(ended.error)) == (422, IndexError, str(raised.value))
            assert "test_worker.py" in ended.error.__notes__[0]
            continue
        for a, b in zip(backend.read(ended), local.backend.run_session(own), strict=True):
            same(a, b)


def same(ours: Results, theirs: Results) -> None:
    assert set(ours.saves) == set(theirs.saves)
    for name in ours.saves:
        one, other = ours[name], theirs[name]
        equal(*((one, other) if isinstance(one, list) else ([one], [other])), apart=2e-5)


def test_a_model_that_fails_in_a_shared_pass_fails_for_its_culprit_alone(
    local: Any, backend: WorkerBackend, connection: Connection
) -> None:
    def breaks(model: Any) -> None:
        with model.trace(PROMPT):
            model["model.embed_tokens"].input[:] = 10**6
            model.logits.save()

    def writes(model: Any) -> None:
        with model.generate(PROMPT, max_new_tokens=4) as t, t.steps[0:4]:
            model.layers[0].output[:, -1] += 1
            model.logits[:, -1].save()

    bad, good = experiments_of(local, breaks), experiments_of(local, lens)
    long = experiments_of(local, writes)
    blocker = backend.give(experiments_of(local, gradients))
    given = [backend.give(own) for own in (good, bad, long, good, bad, good)]
    assert blocker.ended().status == 200
    assert [each.ended().status for each in given] == [200, 422, 200, 200, 422, 200]
    assert isinstance(given[1].ended().error, IndexError)
    for each, own in ((given[0], good), (given[2], long)):
        same(backend.read(each.ended())[0], local.backend.run_session(own)[0])


def test_what_is_over_a_limit_while_it_runs_ends_alone(local: Any, backend: WorkerBackend) -> None:
    def bursts(model: Any) -> None:
        with model.trace(PROMPT):
            many = (model.layers[0].output[0, 0].abs() * 0 + 2**22).long()
            many.repeat_interleave(many).save()

    given = [backend.give(experiments_of(local, own)) for own in (bursts, lens)]
    assert given[1].ended().status == 200
    assert given[0].ended().status == 422
    assert isinstance(given[0].ended().error, LimitExceeded)
    assert "node_bytes" in str(given[0].ended().error)


def test_bytes_that_are_no_request_are_refused(backend: WorkerBackend, connection: Connection) -> None:
    given = connection.run([b'{"tensors": [], "late": [[]], "forwards": 1}', b"nothing"])
    assert given.ended().status == 400
    assert isinstance(given.ended().error, WireError)


def test_an_experiment_that_cannot_be_placed_fails_alone(local: Any, backend: WorkerBackend) -> None:
    parts = backend.parts(experiments_of(local, lens))
    parts[1] = encode_request("model", [Experiment(*backwards())])  # as if a check had let it pass
    given = [backend.connection.run(parts), backend.give(experiments_of(local, lens))]
    assert [each.ended().status for each in given] == [422, 200]
    assert isinstance(given[0].ended().error, OrderError)


def backwards() -> tuple[Graph, Inputs]:
    """What the end gives, written at the beginning."""
    nodes = (
        Node("read", "logits", (), (), (), 0, None),
        Node("call", "sum", (Ref(0),), (), (0,), ALL_ROWS, None),
        Node("write", "layers.0.output", (Ref(1),), (), (1,), 0, None),
        Node("save", "s", (Ref(0),), (), (0,), ALL_ROWS, None),
    )
    return Graph(nodes), Inputs((Rows(ids=((1, 2),)),))


# Ending before their time.


def endless(local: Any, backend: WorkerBackend, **more: Any) -> Given:
    def write(model: Any) -> None:
        with model.generate(PROMPT, **ENDLESS) as t:
            t.result.save("all")

    return backend.give(experiments_of(local, write), **more)


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.03, 0.3])
@pytest.mark.parametrize("block", [lens, steered, gradients, session], ids=lambda block: block.__name__)
def test_a_cancel_at_any_moment_ends_a_job_once(
    local: Any, backend: WorkerBackend, connection: Connection, block: Any, after_s: float
) -> None:
    own = experiments_of(local, block)
    given = [endless(local, backend), *[backend.give(own) for _ in range(4)], endless(local, backend)]
    time.sleep(after_s)
    for each in (given[0], given[2], given[3], given[5]):
        connection.cancel(each)
        connection.cancel(each)
    for each in (given[0], given[5]):
        assert each.ended().status == 409
        assert isinstance(each.ended().error, Cancelled)
    assert {given[2].ended().status, given[3].ended().status} <= {200, 409}
    for each in (given[1], given[4]):
        assert each.ended().status == 200
    wait_for(lambda: connection.later_stats()["jobs"] == 0)
    assert connection.selftest() == (200, b"{}")


def test_when_the_connection_breaks_nothing_is_left_and_another_is_served(local: Any, process: Process) -> None:
    for _ in range(3):
        first = process.connect()
        before = WorkerBackend(first, limits=LIMITS)
        own = experiments_of(local, gradients)
        for _ in range(3):
            endless(local, before)
            before.give(own)
        assert first.later_stats()["jobs"] > 0
        first.close()
        second = process.connect()
        equal(lens(over(WorkerBackend(second, limits=LIMITS), local)), lens(local))
        stats = second.later_stats()
        second.close()
        assert (stats["jobs"], stats["at"], stats["node_of"]) == (0, [], None)
        assert stats["engine"]["bytes"]["host"][0] <= 2**20  # what beginnings are known by


def test_a_second_connection_waits_for_its_turn(local: Any, process: Process) -> None:
    first = process.connect()
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(process.path)
    waiting.settimeout(0.3)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    first.close()
    waiting.settimeout(20)
    assert waiting.recv(1)
    waiting.close()


@pytest.mark.slow  # tests/serve/test_endless.py is quicker, and of a whole service
def test_a_job_that_computes_too_long_is_ended_and_no_other_is(local: Any) -> None:
    limits = Limits(max_new_tokens=100_000, tokens=2**20, request_flops=2**60, request_bytes=2**60, run_s=1)
    with worker("toy", limits=limits) as process:
        connection = process.connect()
        backend = WorkerBackend(connection, limits=limits)
        long = [endless(local, backend) for _ in range(2)]
        own = experiments_of(local, lens)
        while not all(each.future.done() for each in long):
            assert backend.give(own).ended().status == 200
        for each in long:
            ended = each.ended()
            assert (ended.status, type(ended.error)) == (422, LimitExceeded)
            assert "run_s" in str(ended.error)
            assert 1 <= ended.head["compute_s"] < 3
        connection.close()


# What is said meanwhile.


def test_what_a_graph_says_is_told_while_it_runs_and_numbered(local: Any, backend: WorkerBackend) -> None:
    def talks(model: Any) -> None:
        with model.session():
            for _ in range(2):
                with model.generate(PROMPT, max_new_tokens=4) as t, t.steps[0:3]:
                    gw.log("top", model.logits[0, -1].argmax())

    given = backend.give(experiments_of(local, talks))
    results = backend.read(given.ended())
    heard = [event for event in given.events if event[3] == "log"]
    assert [event[2] for event in heard] == list(range(6))
    assert [event[4]["experiment"] for event in heard] == [0, 0, 0, 1, 1, 1]
    said = [[entry.text, entry.node, entry.step] for result in results for entry in result.logs]
    assert [event[4]["entry"][:3] for event in heard] == said


def test_the_job_whose_nodes_take_long_is_named(local: Any, backend: WorkerBackend, connection: Connection) -> None:
    def slow(model: Any) -> None:
        with model.trace(PROMPT):
            wide = model.layers[0].output[0, -1].mean() + torch.zeros(1500, 1500)
            for _ in range(12):
                wide = wide @ wide * 1e-3
            wide[0, 0].save()

    own = experiments_of(local, slow)
    others = [endless(local, backend) for _ in range(2)]
    seen = len(connection.stats)
    given = backend.give(own, job="slow one")
    assert given.ended().status == 200
    named = [stats for stats in connection.stats[seen:] if stats["node_of"] == "slow one"]
    assert named
    assert {"slow one", *[each.job for each in others]} == set(named[0]["at"])
    assert named[0]["pass_s"] > 0
    for each in others:
        connection.cancel(each)
        assert each.ended().head["compute_s"] < given.ended().head["compute_s"]


def test_progress_is_told_of_what_takes_long(local: Any, backend: WorkerBackend, connection: Connection) -> None:
    given = endless(local, backend)
    wait_for(lambda: len(given.of_kind("progress")) >= 2)
    connection.cancel(given)
    told = [data["progress"] for data in given.of_kind("progress")]
    assert told == sorted(told)
    assert 0 < told[-1] < 1
    assert all(event[2] is None for event in given.events)


def test_a_worker_ends_with_whoever_holds_its_lifeline() -> None:
    with worker("toy") as process:
        connection = process.connect()
    assert process.process.returncode == 0
    assert connection.gone.wait(5)
    connection.close()


# Other models.


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bloom", "mamba"])
def test_families_that_are_not_packed(tmp_path: Path, family: str) -> None:
    module = FAMILIES["t5"]() if family == "t5" else of_type(family)()
    module.save_pretrained(tmp_path)
    local = gw.load(str(tmp_path))
    with worker(str(tmp_path)) as process:
        connection = process.connect()
        backend = WorkerBackend(connection)
        assert not connection.ready["packed"]
        model = over(backend, local)

        def block(model: Any) -> list[torch.Tensor]:
            with model.trace([5, 6, 7]):
                logits = model.logits.save()
            with model.generate([5, 6, 7], max_new_tokens=5) as t:
                pass
            return [logits.value, t.result]

        equal(block(model), block(local))
        own = experiments_of(local, block)
        for each in [backend.give(own) for _ in range(4)]:
            assert each.ended().status == 200
        assert connection.selftest()[0] == 200
        connection.close()


def test_a_module_that_reads_no_tokens_runs_its_jobs_one_by_one(fake: Any, experiment: Any) -> None:
    limits = Limits(run_s=1)
    with worker("small", limits=limits, command=fake.FAKE) as process:
        connection = process.connect()
        backend = WorkerBackend(connection, limits=limits)
        given = [backend.give([own]) for own in (experiment(), experiment(("div", 2)), experiment(("mul", 0.2)))]
        waiting = backend.give([experiment()])
        connection.cancel(waiting)
        assert [each.ended().status for each in given] == [200, 422, 200]
        assert isinstance(given[1].ended().error, ZeroDivisionError)
        assert waiting.ended().status in (200, 409)
        completion = connection.run([b"{}", b"{}"], kind="completion")
        assert isinstance(completion.ended().error, InputError)
        assert connection.selftest()[0] == 200
        assert connection.later_stats()["iterations"] == 5 - (waiting.ended().status == 409)
        connection.close()
