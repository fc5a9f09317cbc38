"""The check of requests for text, on the toy: tokenised as a local model does it, priced, refused by the field."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import glassworks as gw
from glassworks.errors import LimitExceeded, ModelError, RemoteError, WireError
from glassworks.graph import messages, sites
from glassworks.graph.backend import Experiment, Generation, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.nodes import ALL_ROWS, Node
from glassworks.serve.checking import CheckerPool
from glassworks.serve.checks import Checks
from glassworks.serve.host import tokenizer_files
from glassworks.serve.openai import read
from glassworks.serve.quote import quote_request

PROMPT = "The Eiffel Tower is in the city of"
TEXT = {"model": "toy", "prompt": PROMPT, "max_tokens": 4}
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
LIMITS = Limits(rows=64, tokens_per_row=64, tokens=256, max_new_tokens=32, nodes=2000, node_bytes=2**24, check_s=10)


@pytest.fixture(scope="module")
def toy() -> Any:
    return gw.load("toy")


def told(toy: Any, checks: Any, **changes: Any) -> Any:
    """A checker that knows the toy."""
    table = {**sites.to_json(toy.table), **changes}
    checks.learn("toy", json.dumps(table).encode(), messages.encode_files(tokenizer_files(toy.tokenizer)))
    return checks


@pytest.fixture(scope="module")
def checks(toy: Any) -> Checks:
    found: Checks = told(toy, Checks(LIMITS))
    return found


def nobody(what: str, about: bytes) -> bytes:
    raise AssertionError(f"nobody was to be asked for {what}")


def ask(checks: Any, body: Any, *, chat: bool = False) -> tuple[int, Any]:
    """The verdict, or the error."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = checks.check("completion", "chat" if chat else "text", data, nobody)
    return status, json.loads(answer) if status == 200 else messages.decode_error(answer)


def good(checks: Any, body: Any, *, chat: bool = False) -> Any:
    status, verdict = ask(checks, body, chat=chat)
    assert status == 200, verdict
    return verdict


def encoded(graph: Graph) -> str:
    return base64.b64encode(graph.encode()).decode()


@pytest.fixture(scope="module")
def steered(toy: Any) -> Graph:
    """Adds a captured vector to a layer at every step."""
    steer = torch.linspace(-2, 2, toy.table.parameters["model.embed_tokens.weight"][1][1])
    with toy.record() as t, t.steps[:]:
        toy.layers[1].output = toy.layers[1].output + steer
    graph: Graph = t.graph
    return graph


# Verdicts.


def test_a_completion(toy: Any, checks: Checks) -> None:
    assert good(checks, {**TEXT, "seed": 3, "stop": "x", "logprobs": 2, "temperature": 0.5, "user": "me"}) == {
        "late": [[]], "forwards": 4, "tokens": len(toy.encode(PROMPT)) + 4, "flops": 0, "bytes": 0,
        "result_bytes": 32, "tensors": [], "prompts": [toy.encode(PROMPT)], "n": 1, "max_new_tokens": 4,
        "options": {"do_sample": True, "temperature": 0.5, "top_p": 1.0, "top_k": 0}, "stop": ["x"], "logprobs": 2,
        "seed": 3, "graph": False,
        "form": {
            "chat": False, "model": "toy", "n": 1, "stop": ["x"], "top": 2, "stream": False, "usage": False,
        },
    }  # fmt: skip


def test_a_chat(toy: Any, checks: Checks) -> None:
    verdict = good(checks, CHAT, chat=True)
    assert verdict["prompts"] == [toy.encode([{"role": "user", "content": "Hello"}])]
    assert toy.decode(verdict["prompts"][0]).endswith("assistant:")
    del (body := dict(CHAT))["max_tokens"]
    assert good(checks, body, chat=True)["max_new_tokens"] == LIMITS.max_new_tokens
    few = told_with_positions(checks, len(verdict["prompts"][0]) + 5)
    assert good(few, body, chat=True)["max_new_tokens"] == 6  # the last is made and not read


def told_with_positions(checks: Checks, positions: int) -> Checks:
    toy = gw.load("toy")
    found: Checks = told(toy, Checks(LIMITS), positions=positions)
    return found


def test_every_form_of_a_prompt_gives_a_local_models_ids(toy: Any, checks: Checks) -> None:
    texts = [PROMPT, "é 😀\n", "<bos>x<eos>", "", " "]
    rows = [toy.encode(text) for text in texts]
    assert good(checks, {**TEXT, "prompt": texts})["prompts"] == rows
    assert good(checks, {**TEXT, "prompt": rows})["prompts"] == rows
    assert good(checks, {**TEXT, "prompt": rows[0]})["prompts"] == rows[:1]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.text(min_size=1, max_size=14))
def test_any_text_gives_a_local_models_ids(toy: Any, checks: Checks, text: str) -> None:
    assert good(checks, {**TEXT, "prompt": text})["prompts"] == [toy.encode(text)]
    messages = [{"role": "user", "content": text}]
    assert good(checks, {**CHAT, "messages": messages}, chat=True)["prompts"] == [toy.encode(messages)]


def test_a_graph_is_priced_for_every_choice(checks: Checks, steered: Graph) -> None:
    once = good(checks, {**TEXT, "graph": encoded(steered)})
    assert once["graph"]
    assert once["flops"] > 0
    assert once["bytes"] > 0
    many = good(checks, {**TEXT, "graph": encoded(steered), "n": 3, "prompt": [PROMPT, PROMPT]})
    for name in ("flops", "bytes", "result_bytes", "forwards", "tokens"):
        assert many[name] == 6 * once[name]
    assert len(many["late"]) == 2


def test_prompts_of_several_lengths_are_priced_each_as_it_is(checks: Checks, steered: Graph) -> None:
    body = {**TEXT, "graph": encoded(steered)}
    alone = [good(checks, {**body, "prompt": text}) for text in ("a", PROMPT)]
    both = good(checks, {**body, "prompt": [PROMPT, "a", PROMPT]})
    for name in ("flops", "bytes", "tokens"):
        assert both[name] == alone[0][name] + 2 * alone[1][name]


def test_nodes_that_wait_for_numbers_are_named_for_each_prompt(toy: Any, checks: Checks) -> None:
    with toy.record() as t, t.steps[:]:
        hidden = toy.layers[0].output
        toy.layers[1].output = toy.layers[1].output + hidden[hidden > 0].mean()
    late = good(checks, {**TEXT, "graph": encoded(t.graph), "prompt": [PROMPT, "a"]})["late"]
    assert len(late) == 2
    assert late[0] == late[1] != []


def test_the_body_that_was_checked_has_the_graph(steered: Graph) -> None:
    found = read(json.dumps({**TEXT, "graph": encoded(steered)}).encode(), chat=False).graph
    assert found is not None
    assert Graph.decode(found) == steered


def test_an_experiment_has_its_price_too(toy: Any) -> None:
    with toy.record() as t:
        (toy.layers[0].output * 2).save()
    row = tuple(toy.encode(PROMPT))
    given = Experiment(t.graph, Inputs((Rows((row, row[:3])),)), Generation(5))
    quote = quote_request([given, given], Limits(), lambda experiment: toy.table)
    assert quote.forwards == 10
    assert quote.tokens == 2 * (len(row) + 3 + 2 * 5)
    assert quote.total.bytes == quote.result_bytes > 0


# Refusals.


def nodes(*own: Node, invokes: int = 1) -> str:
    return encoded(Graph(own, invokes=invokes))


def test_a_model_that_is_not_here(checks: Checks) -> None:
    status, error = ask(checks, {**TEXT, "model": "gpt-9"})
    assert (status, error.param, error.code) == (404, "model", "model_not_found")
    assert str(error) == "this service has no model 'gpt-9'; it has: toy"


def test_a_model_without_a_tokenizer(toy: Any) -> None:
    checks = Checks(LIMITS)
    checks.learn("toy", json.dumps(sites.to_json(toy.table)).encode())
    status, error = ask(checks, {**TEXT, "prompt": [1, 2]})
    assert (status, error.param) == (400, "model")
    checks.learn_tokenizer("toy", messages.encode_files({"tokenizer.json": b"{}"}))
    status, error = ask(checks, TEXT)
    assert (status, type(error)) == (400, ModelError)
    assert "the files tokenizer.json are no tokenizer" in str(error)


REFUSED = [
    ({"prompt": [10**6]}, "prompt", "vocabulary"), ({"prompt": [-1]}, "prompt", "vocabulary"),
    ({"prompt": [2**70]}, "prompt", "vocabulary"), ({"prompt": "a " * 100}, "prompt", "tokens_per_row"),
    ({"prompt": ["a b c d e f g h"] * 40}, "prompt", "tokens: "), ({"n": 65}, "n", "rows: 65 asked for, 64 allowed"),
    ({"prompt": ["a"] * 33, "n": 2}, "n", "rows: 66 asked for, 64 allowed"), ({"max_tokens": 33}, "max_tokens", "33"),
    ({"graph": base64.b64encode(b"junk").decode()}, "graph", "bytes 0:8"), ({"graph": ""}, "graph", "bytes 0:8"),
    ({"graph": nodes(invokes=2)}, "graph", "one invoke"), ({"graph": nodes(invokes=2**40)}, "graph", "one invoke"),
    ({"graph": nodes(Node("input", "x", (), (), (), ALL_ROWS, None))}, "graph", "no named inputs"),
    ({"graph": nodes(Node("read", "nowhere.output", (), (), (), 0, None))}, "graph", "nowhere"),
    ({"graph": nodes(*[Node("parameter", "lm_head.weight", (), (), (), 0, None)] * 2001)}, "graph", "nodes"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param", "words"), REFUSED)
def test_what_cannot_be_is_refused_by_name(checks: Checks, changes: Any, param: str, words: str) -> None:
    status, error = ask(checks, {**TEXT, **changes})
    assert (status, error.param) == (400, param), error
    assert words in str(error)


def test_a_chat_names_its_own_fields(checks: Checks) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": "a " * 100}], "max_completion_tokens": 3}
    assert ask(checks, body, chat=True)[1].param == "messages"
    assert ask(checks, {**CHAT, "max_tokens": 33}, chat=True)[1].param == "max_tokens"
    body = {"model": "toy", "messages": CHAT["messages"], "max_completion_tokens": 33}
    assert ask(checks, body, chat=True)[1].param == "max_completion_tokens"


def test_more_than_the_positions_of_a_model(toy: Any) -> None:
    count = len(toy.encode(PROMPT))
    checks = told_with_positions(Checks(LIMITS), count + 3)
    assert good(checks, TEXT)["max_new_tokens"] == 4
    status, error = ask(checks, {**TEXT, "max_tokens": 5})
    assert (status, error.param, error.code) == (400, "max_tokens", "context_length_exceeded")
    assert "at most 4" in str(error)
    status, error = ask(checks, {**TEXT, "prompt": [1] * (count + 4)})
    assert (status, error.param, error.code) == (400, "prompt", "context_length_exceeded")


def test_a_template_that_refuses_messages(toy: Any) -> None:
    files = tokenizer_files(toy.tokenizer)
    files.pop("chat_template.jinja", None)
    config = json.loads(files["tokenizer_config.json"])
    found = {}
    for name, template in {"refuses": "{{ raise_exception('user first') }}", "none": None}.items():
        files["tokenizer_config.json"] = json.dumps({**config, "chat_template": template}).encode()
        checks = told(toy, Checks(LIMITS))
        checks.learn_tokenizer("toy", messages.encode_files(files))
        found[name] = ask(checks, CHAT, chat=True)
    assert [(status, error.param) for status, error in found.values()] == [(400, "messages")] * 2
    assert "user first" in str(found["refuses"][1])
    assert "no chat template" in str(found["none"][1])


def test_a_graph_that_costs_too_much(toy: Any, checks: Checks) -> None:
    with toy.record() as t, t.steps[:]:
        toy.layers[1].output = toy.layers[1].output + toy.layers[0].output.repeat(10**4, 10**4, 1).mean()
    status, error = ask(checks, {**TEXT, "graph": encoded(t.graph)})
    assert (status, type(error), error.param) == (400, LimitExceeded, "graph")
    assert "node_bytes" in str(error)
    assert "test_completions.py" in str(error)


def test_a_graph_whose_shapes_do_not_fit(toy: Any, checks: Checks) -> None:
    with toy.record() as t, t.steps[:]:
        toy.layers[1].output = toy.layers[1].output + 1
    whole = t.graph.encode()
    k = next(k for k, node in enumerate(t.graph.nodes) if node.kind == "call")
    own = list(t.graph.nodes)
    own[k] = own[k]._replace(target="reshape", args=(own[k].args[0], 7, 7), kwargs=())
    broken = Graph(tuple(own), t.graph.lines, t.graph.constants)
    assert broken.encode() != whole
    status, error = ask(checks, {**TEXT, "graph": encoded(broken)})
    assert (status, error.param) == (400, "graph")
    assert error.__notes__


# Whatever comes.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["model", "prompt", "messages", "max_tokens", "n", "stop", "temperature", "graph", "top_k", "logprobs", "seed"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
def test_any_body_is_answered(checks: Checks, chat: bool, changes: dict[str, Any]) -> None:
    status, answer = ask(checks, {**(CHAT if chat else TEXT), **changes}, chat=chat)
    assert status in (200, 400, 404)
    assert (status == 200) == isinstance(answer, dict)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_any_graph_is_answered(checks: Checks, steered: Graph, data: Any) -> None:
    whole = bytearray(steered.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    status, error = ask(checks, {**TEXT, "graph": base64.b64encode(bytes(whole)).decode()})
    assert status in (200, 400)
    if status == 400:
        assert error.param == "graph"


# In a process of its own.


@pytest.fixture(scope="module")
def pool(toy: Any) -> Iterator[CheckerPool]:
    found = told(toy, CheckerPool(Limits(check_s=2, check_bytes=64 * 2**20), processes=1))
    yield found
    found.close()


def test_a_checker_answers_as_this_process_does(toy: Any, pool: CheckerPool, steered: Graph) -> None:
    """Reading a tokenizer takes longer than a check may, and more memory; it is no part of one."""
    here = told(toy, Checks(pool.limits))
    for body in (TEXT, {**TEXT, "graph": encoded(steered), "n": 3}):
        assert good(pool, body) == good(here, body)
    first = pool._free.get()
    pool._free.put(first)
    assert good(pool, CHAT, chat=True) == good(here, CHAT, chat=True)
    status, error = ask(pool, b"[" * 10**6)
    assert (status, type(error)) == (400, WireError)
    assert pool._free.get() is first  # it is still the same one
    pool._free.put(first)


def test_a_text_that_takes_too_much_ends_its_check_alone(pool: CheckerPool) -> None:
    status, error = ask(pool, {**TEXT, "prompt": "a b " * 2**22})
    assert status in (400, 422)
    assert isinstance(error, RemoteError)
    assert "check_bytes" in str(error) or "check_s" in str(error) or "tokens_per_row" in str(error)
    assert good(pool, TEXT)["n"] == 1
