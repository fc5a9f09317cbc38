"""Completions at a worker: equal to the engine's own, and told token by token in an order that does not change."""

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import glassworks as gw
from glassworks.errors import GlassworksError
from workers import Connection, Given, Process, worker

PROMPTS = ("The Eiffel Tower is in the city of", "One", "The capital of")


@pytest.fixture(scope="module")
def local() -> Any:
    return gw.load("toy")


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with worker("toy") as found:
        yield found


@pytest.fixture
def connection(process: Process) -> Iterator[Connection]:
    found = process.connect()
    yield found
    found.close()


def asked(
    connection: Connection, prompts: Any, *, graph: Any = None, top: int | None = None, n: int = 1,
    seed: int | None = None, streams: bool = False, **more: Any,
) -> Given:  # fmt: skip
    """As the web process asks; `top`: how many likeliest tokens are wanted, None: no log probabilities."""
    verdict = {
        "prompts": prompts, "n": n, "max_new_tokens": 12, "options": {"do_sample": False}, "stop": [], "seed": seed,
        "logprobs": 0 if top is None else max(1, top), "late": [[] for _ in prompts], "graph": graph is not None,
        "form": {"chat": False, "top": top}, **more,
    }  # fmt: skip
    body: dict[str, Any] = {"model": "model", "prompt": "x"}
    if graph is not None:
        body["graph"] = graph if isinstance(graph, str) else base64.b64encode(graph.encode()).decode()
    parts = [json.dumps(verdict).encode(), json.dumps(body).encode()]
    return connection.run(parts, kind="completion", streams=streams, seed=seed or 0)


def choices(given: Given) -> list[dict[str, Any]]:
    ended = given.ended()
    assert ended.status == 200, ended.body
    assert ended.head["media"] == "application/json"
    return json.loads(ended.body)["choices"]


def ids(local: Any, prompt: str) -> list[int]:
    return list(local._core.text.encode(prompt))


def test_the_likeliest_tokens_are_those_of_complete(local: Any, connection: Connection) -> None:
    given = [asked(connection, [ids(local, prompt)]) for prompt in PROMPTS]
    for each, prompt in zip(given, PROMPTS, strict=True):
        [choice] = choices(each)
        expected = local.complete(prompt, max_new_tokens=12)
        assert (choice["tokens"], choice["text"]) == (expected.tokens, expected.text)
        assert choice["prompt_tokens"] == len(ids(local, prompt))
        assert choice["logprobs"] is None
        assert choice["finish"] == ("eos" if len(expected.tokens) < 12 else "length")


def test_drawn_tokens_stop_texts_and_log_probabilities(local: Any, connection: Connection) -> None:
    options = {"do_sample": True, "temperature": 1.5}
    prompt = ids(local, PROMPTS[0])
    stop = local.complete(PROMPTS[0], max_new_tokens=12, seed=5, **options).text[8:11]
    given = asked(connection, [prompt], n=3, options=options, seed=4, stop=[stop, "never"], top=3)
    engine = gw.Engine(local)
    for k, choice in enumerate(choices(given)):
        reply = engine.submit(
            gw.Request(prompt, max_new_tokens=12, options=options, seed=4 + k, stop=[stop, "never"], logprobs=3)
        ).wait()
        assert choice["tokens"] == reply.tokens
        assert choice["text"] == reply.text
        assert choice["finish"] == reply.finish
        for token, own, found in zip(reply.tokens, reply.logprobs, choice["logprobs"], strict=True):
            assert found["id"] == token
            assert found["logprob"] == pytest.approx(own[token], abs=1e-4)
            assert [id for id, _, _ in found["top"]] == sorted(own, key=lambda id: -own[id])[:3]
            assert found["text"] == local.decode([token])
    assert choices(given)[1]["finish"] == "stop"


def test_log_probabilities_of_the_token_alone(local: Any, connection: Connection) -> None:
    [choice] = choices(asked(connection, [[3, 4, 5]], top=0))
    assert all(entry["top"] == [] and entry["logprob"] <= 0 for entry in choice["logprobs"])


@pytest.mark.parametrize("stop", [[], [" of a"], ["absent", "y"]])
def test_tokens_are_told_as_they_come_and_spell_the_text(local: Any, connection: Connection, stop: list[str]) -> None:
    prompts = [ids(local, prompt) for prompt in PROMPTS]
    told = []
    for company in (0, 5):
        others = [asked(connection, prompts[:1], max_new_tokens=40) for _ in range(company)]
        given = asked(connection, prompts, stop=stop, streams=True, top=1)
        found = choices(given)
        events = [event for event in given.events if event[3] == "token"]
        assert [event[2] for event in events] == list(range(len(events)))
        for k, choice in enumerate(found):
            own = [event[4] for event in events if event[4]["choice"] == k]
            assert [token["id"] for token in own] == choice["tokens"]
            whole = "".join(token["text"] for token in own)
            ends = [at for text in stop if (at := whole.find(text)) >= 0]
            assert whole[: min(ends, default=len(whole))] == choice["text"]
            assert [token["logprobs"]["id"] for token in own] == choice["tokens"]
        told.append([(data["choice"], data["id"], data["text"]) for data in (event[4] for event in events)])
        for other in others:
            choices(other)
    assert told[0] == told[1]  # the same order in other company


def test_the_first_token_is_told_before_the_last_is_made(connection: Connection) -> None:
    given = asked(
        connection, [[1, 2, 3]], max_new_tokens=400, options={"do_sample": False, "eos_token_id": []}, streams=True
    )
    came = threading.Event()
    while not came.wait(0.001):
        if given.of_kind("token"):
            came.set()
    assert not given.future.done()
    connection.cancel(given)
    assert given.ended().status == 409


def test_a_graph_takes_part(local: Any, connection: Connection) -> None:
    with local.record() as t:
        local.layers[2].output = local.layers[2].output * -1.5
    prompt = ids(local, PROMPTS[0])
    steered = choices(asked(connection, [prompt], graph=t.graph))
    expected = gw.Engine(local).submit(gw.Request(prompt, max_new_tokens=12, graph=t.graph)).wait()
    assert steered[0]["tokens"] == expected.tokens
    assert steered[0]["tokens"] != local.complete(PROMPTS[0], max_new_tokens=12).tokens


def test_what_is_no_graph_is_refused(connection: Connection) -> None:
    for text in ("???", base64.b64encode(b"nothing").decode()):
        ended = asked(connection, [[1]], graph=text).ended()
        assert ended.status in (400, 422)
        assert isinstance(ended.error, GlassworksError)


def test_a_graph_that_fails_fails_its_completion_alone(local: Any, connection: Connection) -> None:
    with local.record() as t:
        local.layers[1].output.nonzero()[10**6].save()
    given = [asked(connection, [[1, 2]], graph=t.graph), asked(connection, [[1, 2]])]
    assert (given[0].ended().status, type(given[0].ended().error)) == (422, IndexError)
    assert choices(given[1])[0]["tokens"] == local.complete([1, 2], max_new_tokens=12).tokens


@pytest.mark.parametrize("streams", [False, True])
def test_what_a_graph_says_is_told_before_the_token_of_its_step(
    local: Any, connection: Connection, streams: bool
) -> None:
    with local.generate(PROMPTS[0], max_new_tokens=12) as t, t.steps[:]:
        gw.log("top", local.logits[0, -1].argmax())
    prompts, graph = [ids(local, prompt) for prompt in PROMPTS], t.graph
    told = []
    for company in (0, 3):
        others = [asked(connection, prompts[:1]) for _ in range(company)]
        given = asked(connection, prompts, graph=graph, streams=streams)
        found = choices(given)
        for other in others:
            choices(other)
        events = [event[2:] for event in given.events if event[3] in ("token", "log")]
        assert [source for source, *_ in events] == list(range(len(events)))
        for k, (prompt, choice) in enumerate(zip(prompts, found, strict=True)):
            expected = gw.Engine(local).submit(gw.Request(prompt, max_new_tokens=12, graph=graph)).wait()
            own = [(kind, data) for _, kind, data in events if data["choice"] == k]
            said = [data["entry"] for kind, data in own if kind == "log"]
            assert [entry[0] for entry in said] == [entry.text for entry in expected.logs]
            assert [entry[2] for entry in said] == list(range(len(choice["tokens"])))
            assert [kind for kind, _ in own] == ["log", "token"] * len(said) if streams else ["log"] * len(said)
        told.append(events)
    assert told[0] == told[1]
