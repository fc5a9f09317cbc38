"""Bodies made wrong, to every path that takes one: none is a fault of the service, and it goes on."""

import base64
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

import glassworks as gw
from glassworks.graph import messages, wire
from glassworks.graph.backend import Inputs, Rows
from glassworks.graph.limits import Limits
from glassworks.serve.supervise import Running, running_service
from mutations import VALUES, at, mutated, places
from services import eventually

TENSOR = wire.Blob("float32", (300,), bytes(1200))


@pytest.fixture(scope="module")
def running(fake: Any) -> Iterator[Running]:
    with running_service("small", keys=["gw-a"], limits=fake.LIMITS, worker_command=fake.FAKE) as found:
        yield found


@pytest.fixture(scope="module")
def toy() -> Iterator[Running]:
    """For texts, which need a tokenizer and an engine."""
    with running_service("toy", keys=["gw-a"], limits=Limits(max_new_tokens=8, check_s=5, body_bytes=2**20)) as found:
        yield found


@pytest.fixture(scope="module")
def graph() -> bytes:
    """One that takes part in a text."""
    model = gw.load("toy")
    with model.record() as t, t.steps[:]:
        model.layers[2].output = model.layers[2].output + torch.ones(128)
        model.logits[:, -1].argmax(-1).save("s")
    found: bytes = t.graph.encode()
    return found


def a_text(rng: random.Random, graph: bytes, chat: bool) -> dict[str, Any]:
    """An honest request for text."""
    said = {"messages": [{"role": "user", "content": "Hello"}]} if chat else {"prompt": rng.choice(("Once", [1, 2]))}
    options = {"temperature": 0.5, "seed": 3, "stop": ["x"], "n": 2, "logprobs": True if chat else 2, "top_p": 0.9}
    own = {name: value for name, value in options.items() if rng.random() < 0.5}
    return {"model": "toy", "max_tokens": 4, **said, **own, "graph": base64.b64encode(graph).decode()}


def mutated_text(rng: random.Random, number: int, graphs: list[bytes], chat: bool) -> bytes:
    """A field of it is another, or its graph, or its bytes, are wrong; now and then nothing is."""
    value = a_text(rng, graphs[0], chat)
    match rng.randrange(5):
        case 0:
            _, graph = mutated(graphs, number)
            value["graph"] = base64.b64encode(graph).decode()
        case 1:
            body = json.dumps(value).encode()
            place = rng.randrange(len(body))
            return body[:place] + rng.choice((b"", b"\xff", b"\0", b'"', b"}" * 50, b"[" * 5000)) + body[place + 1 :]
        case 2:
            path = rng.choice(places(value))
            owner = at(value, path[:-1])
            owner[path[-1]] = rng.choice(VALUES)
        case _:
            value[rng.choice(("stream", "n", "max_tokens", "logit_bias", "user", "extra", "top_k"))] = rng.choice(
                VALUES
            )
    return json.dumps(value).encode()


def seeds(experiment: Any, graph: bytes) -> dict[str, list[bytes]]:
    """Honest bodies, by the path that they go to."""
    requests = [
        messages.encode_request("small", own)
        for own in ([experiment()], [experiment(("add", 1), ("softmax", -1))], [experiment(), experiment(tokens=5)])
    ]
    inputs = messages.encode_inputs(Inputs((Rows(ids=((1, 2, 3),)),)))
    return {
        "POST /v1/models/small/jobs?wait_s=20": requests,
        "POST /v1/models/small/run": requests,
        "POST /v1/models/small/sites": [inputs],
        f"PUT /v1/tensors/{wire.digest(TENSOR)}": [messages.encode_tensor(TENSOR)],
        "POST /v1/completions": [graph],
        "POST /v1/chat/completions": [graph],
    }


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_body_is_a_fault_of_the_service(
    running: Running, toy: Running, experiment: Any, graph: bytes, count: int
) -> None:
    own, statuses = seeds(experiment, graph), Counter[tuple[str, int]]()
    wrong: list[str] = []
    services = (running, toy)
    before = [(each.web, each.worker) for each in services]
    with httpx.Client(headers={"Authorization": "Bearer gw-a"}, trust_env=False, timeout=60) as client:
        for number in range(count):
            rng = random.Random(f"body {number}")
            where = rng.choice(list(own))
            method, path = where.split()
            is_text = "completions" in path
            body = mutated_text(rng, number, own[where], "chat" in path) if is_text else mutated(own[where], number)[1]
            answer = client.request(method, services[is_text].url + path, content=body)
            statuses[where, answer.status_code] += 1
            if not (answer.status_code < 500 and understood(answer)):
                wrong.append(f"number {number}, {where}: {answer.status_code} {answer.text[:300]}")
        assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:20])
        for each in services:
            eventually(lambda each=each: client.get(f"{each.url}/healthz").status_code == 200)
    assert [(each.web, each.worker) for each in services] == before
    assert {where for where, _ in statuses} == set(own)
    assert sum(many for (_, status), many in statuses.items() if status >= 400) > count / 3
    for path in ("/v1/models/small/run", "/v1/completions", "/v1/chat/completions"):
        assert statuses[f"POST {path}", 200] > 0, path


def understood(answer: httpx.Response) -> bool:
    """Whether a refusal is one of ours."""
    if answer.status_code < 400:
        return True
    return isinstance(messages.decode_error(answer.content), Exception) and answer.json()["error"]["version"] == 1
