"""Bodies made wrong, to every path that takes one: none is a fault of the service, and it goes on."""

import base64
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from glassworks.graph import messages, wire
from glassworks.graph.backend import Inputs, Rows
from glassworks.serve.supervise import Running, running_service
from mutations import VALUES, at, mutated, places
from services import eventually

TENSOR = wire.Blob("float32", (300,), bytes(1200))


@pytest.fixture(scope="module")
def running(fake: Any) -> Iterator[Running]:
    with running_service("small", keys=["gw-a"], limits=fake.LIMITS, worker_command=fake.FAKE) as found:
        yield found


def a_text(rng: random.Random, graph: bytes, chat: bool) -> dict[str, Any]:
    """An honest request for text."""
    said = {"messages": [{"role": "user", "content": "Hello"}]} if chat else {"prompt": rng.choice(("Once", [1, 2]))}
    options = {"temperature": 0.5, "seed": 3, "stop": ["x"], "n": 2, "logprobs": True if chat else 2, "top_p": 0.9}
    own = {name: value for name, value in options.items() if rng.random() < 0.5}
    return {"model": "small", **said, **own, "graph": base64.b64encode(graph).decode()}


def mutated_text(rng: random.Random, number: int, graphs: list[bytes], chat: bool) -> bytes:
    """A field of it is another, is gone, has another name; or its graph, or its bytes, are wrong."""
    value = a_text(rng, graphs[0], chat)
    match rng.randrange(4):
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


def seeds(experiment: Any) -> dict[str, list[bytes]]:
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
        "POST /v1/completions": [experiment().graph.encode()],
        "POST /v1/chat/completions": [experiment().graph.encode()],
    }


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_body_is_a_fault_of_the_service(running: Running, experiment: Any, count: int) -> None:
    own, statuses = seeds(experiment), Counter[tuple[str, int]]()
    wrong: list[str] = []
    before = running.web, running.worker
    with httpx.Client(
        base_url=running.url, headers={"Authorization": "Bearer gw-a"}, trust_env=False, timeout=60
    ) as client:
        for number in range(count):
            rng = random.Random(number)
            where = rng.choice(list(own))
            method, path = where.split()
            is_text = "completions" in path
            body = mutated_text(rng, number, own[where], "chat" in path) if is_text else mutated(own[where], number)[1]
            answer = client.request(method, path, content=body)
            statuses[where, answer.status_code] += 1
            if not (answer.status_code < 500 and understood(answer)):
                wrong.append(f"number {number}, {where}: {answer.status_code} {answer.text[:300]}")
        assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:20])
        eventually(lambda: client.get("/healthz").status_code == 200)
    assert (running.web, running.worker) == before
    assert {where for where, _ in statuses} == set(own)
    assert sum(many for (_, status), many in statuses.items() if status >= 400) > count / 2
    assert statuses["POST /v1/models/small/run", 200] > 0


def understood(answer: httpx.Response) -> bool:
    """Whether a refusal is one of ours."""
    if answer.status_code < 400:
        return True
    return isinstance(messages.decode_error(answer.content), Exception) and answer.json()["error"]["version"] == 1
