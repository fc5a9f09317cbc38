"""Large tensors by digest: checked, each key's own, bounded; and jobs and tensors over real HTTP, key by key."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from asking import ask
from glassworks.client import Answer, HTTPTransport, RemoteBackend, Request
from glassworks.client.job import RemoteJob
from glassworks.errors import Cancelled, LimitExceeded, RemoteError, WireError
from glassworks.graph import messages, wire
from glassworks.graph.backend import Experiment, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Node, Ref, SentLine
from glassworks.serve.local import in_process
from glassworks.serve.supervise import Running, running_service
from glassworks.serve.tensors import Stored, TensorStore

LARGE = wire.Blob("float32", (2**19,), bytes(range(256)) * 2**13)
OTHER = wire.Blob("float32", (2**19,), bytes(2**21))


def captured(*blobs: wire.Blob, save: str = "s") -> Experiment:
    """Adds captured tensors up; the fake model gives the first."""
    nodes = [Node("constant", "", (k,), (), (), ALL_ROWS, None) for k in range(len(blobs))]
    for k in range(1, len(blobs)):
        args = (Ref(len(nodes) - 1 if k > 1 else 0), Ref(k))
        nodes.append(Node("call", "add", args, (), tuple(ref.node for ref in args), ALL_ROWS, None))
    last = len(nodes) - 1
    nodes.append(Node("save", save, (Ref(last),), (), (last,), ALL_ROWS, None))
    lines = tuple(SentLine("work.py", 10 + n) for n in range(len(nodes)))
    return Experiment(Graph(tuple(nodes), lines, blobs), Inputs((Rows(ids=((1,),)),)))


class Counted:
    """A transport that notes what goes over it."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.sent: list[tuple[str, str, int]] = []

    def send(self, request: Request) -> Answer:
        self.sent.append((request.method, request.path, len(request.body or b"")))
        return self._transport.send(request)

    def took(self) -> int:
        """Bytes since it was last asked."""
        found, self.sent = sum(size for _, _, size in self.sent), []
        return found


@pytest.fixture(scope="module")
def running(fake: Any) -> Iterator[Running]:
    from dataclasses import replace

    limits = replace(fake.LIMITS, body_bytes=8 * 2**20, result_bytes=8 * 2**20)
    with running_service("small", keys=["gw-a", "gw-b"], limits=limits, worker_command=fake.FAKE) as found:
        yield found


@pytest.fixture
def served(running: Running) -> Iterator[Any]:
    """Where there is a queue."""
    with HTTPTransport(running.url, api_key="gw-a") as found:
        yield found


@pytest.fixture(params=["in process", "served"])
def transport(request: pytest.FixtureRequest, fake: Any) -> Iterator[Any]:
    if request.param == "in process":
        yield in_process("small", fake.FakeBackend(), tokenizer={})
    else:
        running = request.getfixturevalue("running")
        with HTTPTransport(running.url, api_key="gw-a") as found:
            yield found


# Tensors.


def test_a_large_tensor_travels_once(transport: Any) -> None:
    counted = Counted(transport)
    backend = RemoteBackend(counted, "small")
    took = []
    for k in range(3):
        blob = wire.Blob("float32", (2**19,), LARGE.data)
        assert backend.run_session([captured(blob, save=f"s{k}")])[0][f"s{k}"] == LARGE
        took.append(counted.took())
    assert took[0] > LARGE.size_bytes > 2**20 > took[1]
    assert took[1] == took[2]


def test_the_same_tensor_in_several_experiments_travels_once(transport: Any) -> None:
    counted = Counted(transport)
    blob = wire.Blob("float32", (2**19,), bytes(reversed(LARGE.data)))
    RemoteBackend(counted, "small").run_session([captured(blob), captured(blob)])
    assert blob.size_bytes < counted.took() < 1.1 * blob.size_bytes


def test_a_small_tensor_travels_in_the_message(transport: Any) -> None:
    counted = Counted(transport)
    small = wire.Blob("float32", (100,), bytes(400))
    RemoteBackend(counted, "small").run_session([captured(small)])
    assert [path.rpartition("/")[2] for _, path, _ in counted.sent] == ["jobs?wait_s=20"]


def test_a_tensor_that_was_let_go_is_sent_again(transport: Any) -> None:
    class Forgetful:
        """Says once that everything is there."""

        lied = False

        def send(self, request: Request) -> Answer:
            if request.method == "GET" and "/tensors/" in request.path and not self.lied:
                self.lied = True
                return Answer(200, b"{}")
            return transport.send(request)

    blob = wire.Blob("float32", (2**19,), bytes(7) + bytes(2**21 - 7))
    [result] = RemoteBackend(Forgetful(), "small").run_session([captured(blob)])
    assert result["s"] == blob


def test_a_request_with_a_tensor_that_was_never_sent_is_409(transport: Any) -> None:
    body = messages.encode_request("small", [captured(wire.Blob("int8", (2**21,), b"\1" * 2**21))], aside={})
    status, answer = ask(transport, "POST", "/v1/models/small/jobs", body)
    assert status == 409
    assert "1 of 1 large tensors are not here" in str(messages.decode_error(bytes(answer)))


@pytest.mark.parametrize(
    ("body", "digest", "message"),
    [
        (messages.encode_tensor(OTHER), wire.digest(LARGE), "the tensor's digest is"),
        (b"junk", wire.digest(LARGE), "bytes 0:8"),
        (messages.encode_tensor(OTHER), "../../etc", "64 hexadecimal digits"),
        (messages.encode_tensor(OTHER), "A" * 64, "64 hexadecimal digits"),
        (wire.pack({"tensor": {"version": 1}}, {"0": LARGE, "1": OTHER}), wire.digest(LARGE), "holds one, got 2"),
        (wire.pack({"tensor": {"version": 1}}, {}), wire.digest(LARGE), "holds one, got 0"),
    ],
)
def test_a_tensor_is_what_its_digest_says(transport: Any, body: bytes, digest: str, message: str) -> None:
    from urllib.parse import quote

    status, answer = ask(transport, "PUT", f"/v1/tensors/{quote(digest, safe='')}", body)
    assert status in (400, 404)
    if status == 400:
        error = messages.decode_error(bytes(answer))
        assert type(error) is WireError
        assert message in str(error)


def test_what_a_request_says_of_a_tensor_is_compared_with_what_is_there(transport: Any) -> None:
    """The digest of one tensor, the form of another: the price would be another's."""
    assert ask(transport, "PUT", f"/v1/tensors/{wire.digest(LARGE)}", messages.encode_tensor(LARGE))[0] == 200
    body = messages.encode_request("small", [captured(LARGE)], aside={})
    for said, wrong in ((b"[524288]", b"[424288]"), (b"float32", b"float16")):
        changed = body.replace(said, wrong)
        assert changed != body
        status, answer = ask(transport, "POST", "/v1/models/small/jobs", changed)
        assert status == 400
        assert "request: large" in str(messages.decode_error(bytes(answer)))


def test_limits_count_tensors_that_are_elsewhere(fake: Any) -> None:
    from glassworks.graph.limits import Limits

    transport = in_process("small", fake.FakeBackend(), tokenizer={}, limits=Limits(constants_bytes=3 * 2**20))
    RemoteBackend(transport, "small").run_session([captured(LARGE)])
    with pytest.raises(LimitExceeded, match="constants_bytes: 4194304 asked for, 3145728 allowed"):
        RemoteBackend(transport, "small").run_session([captured(LARGE, OTHER)])


def test_each_key_sees_its_own_tensors_only(running: Running) -> None:
    path = f"/v1/tensors/{wire.digest(OTHER)}"
    with HTTPTransport(running.url, api_key="gw-a") as a, HTTPTransport(running.url, api_key="gw-b") as b:
        assert ask(a, "PUT", path, messages.encode_tensor(OTHER))[0] == 200
        assert ask(a, "GET", path)[0] == 200
        assert ask(b, "GET", path)[0] == 404
        assert (
            ask(b, "POST", "/v1/models/small/jobs", messages.encode_request("small", [captured(OTHER)], aside={}))[0]
            == 409
        )
        with HTTPTransport(running.url) as nobody:
            assert ask(nobody, "GET", path)[0] == 401
            assert ask(nobody, "PUT", path, b"")[0] == 401


def test_the_store_lets_go_what_was_used_longest_ago() -> None:
    store = TensorStore(limit_bytes=30)
    for name in "abc":
        store.put("o", name, Stored(bytes(10), "int8", (10,)))
    store.put("p", "a", Stored(bytes(10), "int8", (10,)))
    assert store.get("o", "a") is not None
    store.put("o", "d", Stored(bytes(10), "int8", (10,)))
    assert [store.get("o", name) is not None for name in "abcd"] == [True, False, True, True]
    assert store.get("p", "a") is not None
    store.put("o", "e", Stored(bytes(100), "int8", (100,)))
    assert [store.get("o", name) is not None for name in "acde"] == [False, False, False, True]


# Jobs.


def test_a_job_from_submission_to_results(served: Any, experiment: Any) -> None:
    backend = RemoteBackend(served, "small")
    slow, quick = backend.submit([experiment(("mul", 0.5))]), backend.submit([experiment(), experiment()])
    assert quick.status in ("queued", "running")
    assert quick.position in (1, 0)
    assert 0.0 <= quick.progress < 1.0
    with pytest.raises(TimeoutError, match=f"{quick.id} has not ended after 0.05 s"):
        quick.wait(timeout_s=0.05)
    slow.wait()
    assert slow.status == "done"
    first, second = quick.results()  # type: ignore[misc]
    assert first["s"].shape == second["s"].shape == (1, 3, 8)
    assert (quick.status, quick.position, quick.progress) == ("done", None, 1.0)
    assert slow.results()["s"].shape == (1, 3, 8)  # type: ignore[call-overload]


def test_a_job_is_found_by_its_id_and_by_nobody_else(running: Running, experiment: Any) -> None:
    with HTTPTransport(running.url, api_key="gw-a") as a, HTTPTransport(running.url, api_key="gw-b") as b:
        job = RemoteBackend(a, "small").submit([experiment()])
        again = RemoteJob(a, job.id)
        again.wait()
        assert again.each()[0]["s"].shape == (1, 3, 8)
        for call in (lambda: RemoteJob(b, job.id).status, lambda: RemoteJob(b, job.id).cancel(),
                     lambda: RemoteJob(b, job.id).each(), lambda: RemoteJob(a, "job-x").status,
                     lambda: RemoteJob(a, "../models").status):  # fmt: skip
            with pytest.raises(RemoteError, match=r"no job|not found"):
                call()


def test_what_a_job_raises_is_raised_at_its_results_each_time(transport: Any, experiment: Any) -> None:
    job = RemoteBackend(transport, "small").submit([experiment(("div", 0))])
    job.wait()
    assert job.status == "failed"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            job.results()
        assert caught.value.__notes__ == ["  at work.py:11"]


def test_what_a_check_refuses_is_raised_at_once(transport: Any, experiment: Any) -> None:
    with pytest.raises(LimitExceeded, match=r"node_flops: .*\n  at work.py:11"):
        RemoteBackend(transport, "small").submit([experiment(("repeat", 10**9, 10**9, 1))])


def test_a_job_is_called_off(served: Any, experiment: Any) -> None:
    backend = RemoteBackend(served, "small")
    slow, waiting = backend.submit([experiment(("mul", 0.5))]), backend.submit([experiment()])
    waiting.cancel()
    waiting.wait()
    assert waiting.status == "cancelled"
    with pytest.raises(Cancelled, match="cancelled"):
        waiting.results()
    slow.wait()
    slow.cancel()
    assert slow.status == "done"


def test_who_waits_does_not_hold_up_others(running: Running, experiment: Any) -> None:
    """Long questions about one job, and health and other jobs are answered all the while."""
    with HTTPTransport(running.url, api_key="gw-a") as transport:
        backend = RemoteBackend(transport, "small")
        job = backend.submit([experiment(("mul", 3.0))])
        threads = [threading.Thread(target=RemoteJob(transport, job.id).wait) for _ in range(40)]
        for thread in threads:
            thread.start()
        start = time.monotonic()
        for _ in range(5):
            assert ask(transport, "GET", "/healthz")[0] == 200
            assert ask(transport, "GET", "/v1/models")[0] == 200
        assert time.monotonic() - start < 3.0
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("query", ["wait_s=-1", "wait_s=x", "wait_s=nan", "wait_s=1e9"])
def test_a_wait_that_is_none_is_refused(running: Running, query: str) -> None:
    with HTTPTransport(running.url, api_key="gw-a") as transport:
        status, answer = ask(transport, "GET", f"/v1/jobs/job-x?{query}")
        assert status in (404, 422)
        assert isinstance(messages.decode_error(bytes(answer)), Exception)  # type: ignore[arg-type]
