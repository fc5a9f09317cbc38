"""A service of this process, without a network: answers, statuses, and what never reaches the model."""

from typing import Any

import pytest

from asking import ask
from glassworks.client import Lab, RemoteBackend, Request, remote_parts
from glassworks.client.content import joined, split
from glassworks.client.inprocess import InProcessTransport
from glassworks.errors import GraphError, LimitExceeded, ModelError, RemoteError, UnknownSite, WireError
from glassworks.graph import messages
from glassworks.graph.backend import Experiment, Generation, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Node, Ref
from glassworks.serve.host import ModelHost, tokenizer_files
from glassworks.serve.local import LocalService, in_process

FILES = {"tokenizer.json": b"{}"}


@pytest.fixture
def backend(fake: Any) -> Any:
    return fake.FakeBackend()


@pytest.fixture
def service(fake: Any, backend: Any) -> InProcessTransport:
    return in_process("small", backend, tokenizer=FILES, limits=fake.LIMITS)


def run(service: Any, body: bytes, *, name: str = "small") -> tuple[int, bytes]:
    return ask(service, "POST", f"/v1/models/{name}/run", body)


def post(service: Any, *experiments: Experiment, name: str = "small") -> tuple[int, Any]:
    """The status, and the results or the error."""
    status, body = run(service, messages.encode_request(name, experiments), name=name)
    return status, messages.decode_results(body) if status == 200 else messages.decode_error(body)


def through(fake: Any, handle: Any) -> InProcessTransport:
    """A service whose host answers with `handle` what the model would have answered."""
    host = ModelHost(fake.FakeBackend(), tokenizer=FILES, result_bytes=10_000)
    own = host.handle

    def changed(method: str, path: str, body: Any = None) -> Any:
        return handle(body) if path.startswith("/run") else own(method, path, body)

    host.handle = changed  # type: ignore[method-assign]
    return InProcessTransport(LocalService("small", host, fake.LIMITS).handle)


def test_a_run_gives_its_saves(service: InProcessTransport, experiment: Any) -> None:
    status, [result] = post(service, experiment())
    assert status == 200
    assert result["s"].shape == (1, 3, 8)
    assert result.forwards == 1


def test_what_is_checked_is_what_runs(fake: Any, experiment: Any) -> None:
    sent = []

    def handle(body: Any) -> tuple[int, bytes]:
        sent.append(bytes(joined(body)))
        return 200, b"answer"

    body = messages.encode_request("small", [experiment()])
    assert run(through(fake, handle), body) == (200, b"answer")
    _, request = split(bytearray(sent[-1]))
    assert bytes(request) == body


@pytest.mark.parametrize(
    ("status", "kind", "message", "change"),
    [
        (422, LimitExceeded, "nodes: 121 asked for, 100 allowed", {"calls": [("sum",)] * 119}),
        (422, LimitExceeded, "tokens_per_row .*: 700 asked for, 600 allowed", {"tokens": 700}),
        (422, GraphError, "at work.py:11", {"calls": [("system",)]}),
        (
            422,
            LimitExceeded,
            "result_bytes: 16000 asked for, 10000 allowed; save less.*\n  at work.py:11",
            {"tokens": 500},
        ),
        (422, ZeroDivisionError, "division by zero", {"calls": [("div", 0)]}),
        (422, RemoteError, "Odd: no such thing", {"calls": [("exp",)]}),
    ],
)
def test_refusals(service: Any, experiment: Any, status: int, kind: type, message: str, change: Any) -> None:
    calls = change.pop("calls", [])
    answered, error = post(service, experiment(*calls, **change))
    assert answered == status
    with pytest.raises(kind, match=message):
        raise error


def test_what_is_refused_never_reaches_the_model(service: InProcessTransport, backend: Any, experiment: Any) -> None:
    post(service, experiment(("system",)))
    post(service, experiment(tokens=601))
    run(service, b"not a message")
    assert backend.ran == 0


def test_the_line_of_an_error_travels(service: InProcessTransport, experiment: Any) -> None:
    _, error = post(service, experiment(("div", 0)))
    assert error.__notes__ == ["  at work.py:11"]


@pytest.mark.parametrize("body", [b"", b"x" * 100, b"\x80\x04\x95pickle"])
def test_bytes_that_are_no_message_are_400(service: InProcessTransport, body: bytes) -> None:
    status, answer = run(service, body)
    assert status == 400
    assert type(messages.decode_error(answer)) is WireError


def test_a_message_for_another_model_is_400(service: InProcessTransport, experiment: Any) -> None:
    status, answer = run(service, messages.encode_request("large", [experiment()]))
    assert status == 400
    assert "'large' and was sent to 'small'" in str(messages.decode_error(answer))


def test_an_unknown_model_is_404_and_names_those_there_are(service: InProcessTransport, experiment: Any) -> None:
    status, error = post(service, experiment(), name="large")
    assert status == 404
    assert type(error) is ModelError
    assert "no model 'large'; it has: small" in str(error)


def test_a_body_over_the_limit_is_413_with_both_figures(service: InProcessTransport) -> None:
    status, answer = run(service, bytes(2**20 + 1))
    assert status == 413
    with pytest.raises(LimitExceeded, match="1048577 bytes or more, 1048576 allowed"):
        raise messages.decode_error(answer)


def test_a_model_that_does_not_answer_is_503(fake: Any, experiment: Any) -> None:
    def handle(body: Any) -> tuple[int, bytes]:
        raise RemoteError("no service answers at /private/worker.sock")

    status, error = post(through(fake, handle), experiment())
    assert status == 503
    assert "the worker that holds 'small' is not there" in str(error)
    assert "private" not in str(error)


def test_a_fault_of_the_service_is_500_without_its_insides(fake: Any, experiment: Any) -> None:
    def handle(body: Any) -> tuple[int, bytes]:
        raise OSError("/secret/path")

    status, error = post(through(fake, handle), experiment())
    assert status == 500
    assert "secret" not in str(error)


# Through the client, in this process.


@pytest.fixture
def transport(fake: Any) -> Any:
    return in_process("org/small", fake.FakeBackend(), tokenizer={"tokenizer.json": b"{}"}, limits=fake.LIMITS)


def test_remote_parts(fake: Any, transport: Any) -> None:
    lab = Lab(transport)
    assert lab.models() == ["org/small"]
    parts = remote_parts(lab, "org/small")
    assert parts.table == fake.table()
    assert parts.tokenizer == {"tokenizer.json": b"{}"}
    with pytest.raises(ModelError, match="no model 'large'; it has: org/small"):
        remote_parts(lab, "large")


def test_paths_that_are_none(transport: Any) -> None:
    for method, path in [
        ("GET", "/"),
        ("POST", "/v1/models"),
        ("GET", "/v1/models/org/small/jobs"),
        ("PUT", "/v1/models/org/small/sites"),
    ]:
        status, answer = ask(transport, method, path)
        assert status == 404
        assert "no such request" in str(messages.decode_error(answer))


def test_what_a_check_refuses_has_no_job_and_what_ran_has_one(transport: Any, experiment: Any) -> None:
    path = "/v1/models/org/small/jobs"
    for own, status, has_job in (
        (experiment(), 200, True),
        (experiment(("div", 0)), 422, True),
        (experiment(("system",)), 422, False),
    ):
        answer = transport.send(Request("POST", path, messages.encode_request("org/small", [own])))
        assert (answer.status, answer.job is not None) == (status, has_job)
    too_large = transport.send(Request("POST", path, bytes(2**20 + 1)))
    assert (too_large.status, too_large.job) == (413, None)


def test_a_remote_backend_raises_what_the_model_raised(fake: Any, experiment: Any) -> None:
    backend = RemoteBackend(in_process("m", fake.FakeBackend(), tokenizer={}), "m")
    with pytest.raises(ZeroDivisionError) as caught:
        backend.run_session([experiment(), experiment(("div", 0))])
    assert caught.value.__notes__ == ["  at work.py:11"]
    with pytest.raises(UnknownSite, match="nearest"):
        backend.run(Graph((Node("read", "a.outputs", (), (), (), 0, None),)), Inputs((Rows(ids=((1,),)),)))


def test_a_session_hands_values_on(fake: Any, experiment: Any) -> None:
    backend = RemoteBackend(in_process("m", fake.FakeBackend(), tokenizer={}), "m")
    nodes = (Node("input", "x", (), (), (), ALL_ROWS, None), Node("save", "y", (Ref(0),), (), (0,), ALL_ROWS, None))
    second = Experiment(Graph(nodes), Inputs((Rows(ids=((1,),)),)), Generation(2), {"x": (0, "s")})
    first, last = backend.run_session([experiment(), second])
    assert last["y"] == first["s"]
    assert last.forwards == 2
    assert last.alive == [[[True], [True]]]
    assert backend.run_session([]) == []


def test_the_callers_tensors_are_converted_on_both_sides(fake: Any) -> None:
    class Tensor:
        def __init__(self, blob: Any) -> None:
            self.own = blob

    def as_leaf(value: Any) -> Any:
        return value.own if isinstance(value, Tensor) else None

    class Doubles(fake.FakeBackend):
        def run(self, graph: Graph, inputs: Inputs, generation: Any = None) -> Any:
            assert isinstance(inputs.named["x"], Tensor)
            return super().run(graph, inputs, generation)

    transport = in_process("m", Doubles(), tokenizer={}, as_leaf=as_leaf, from_blob=Tensor)
    backend = RemoteBackend(transport, "m", as_leaf=as_leaf, from_blob=Tensor)
    nodes = (Node("input", "x", (), (), (), ALL_ROWS, None), Node("save", "y", (Ref(0),), (), (0,), ALL_ROWS, None))
    given = Inputs((Rows(ids=((1,),)),), named={"x": Tensor(fake.zeros(2))})
    assert backend.run(Graph(nodes), given)["y"].own == fake.zeros(2)


def test_a_plain_module_has_its_sites_for_the_inputs_given(fake: Any) -> None:
    own = fake.FakeBackend(plain=True)
    backend = RemoteBackend(in_process("m", own, tokenizer={}), "m")
    inputs = Inputs((Rows(args=(fake.zeros(1, 5, 8),)),))
    again = Inputs((Rows(args=(fake.Blob("float32", (1, 5, 8), bytes(160)),)),))
    assert backend.sites(inputs)["a.output"].axes == (1, 5, 8)
    asked = len(own.asked)
    assert backend.sites(again)["a.output"].axes == (1, 5, 8)
    assert len(own.asked) == asked
    graph = Graph(
        (Node("read", "a.output", (), (), (), 0, None), Node("save", "s", (Ref(0),), (), (0,), ALL_ROWS, None))
    )
    assert backend.run(graph, inputs)["s"].shape == (1, 1, 8)


def test_what_a_scan_raises_is_raised_here(fake: Any) -> None:
    class Broken(fake.FakeBackend):
        def sites(self, inputs: Inputs | None = None, *, within: frozenset[str] = frozenset()) -> Any:
            raise ModelError("this family calls .item() in its forward")

    with pytest.raises(ModelError, match=r"calls \.item"):
        RemoteBackend(in_process("m", Broken(), tokenizer={}), "m").sites()


def test_tokenizer_files_are_those_that_are_data() -> None:
    class Tokenizer:
        def save_pretrained(self, folder: str) -> None:
            for name in ("tokenizer.json", "run.py", "chat_template.jinja"):
                with open(f"{folder}/{name}", "w") as file:
                    file.write(name)

    assert tokenizer_files(Tokenizer()) == {
        "chat_template.jinja": b"chat_template.jinja",
        "tokenizer.json": b"tokenizer.json",
    }
    assert tokenizer_files(None) == {}
