"""A real service through the real openai package: what comes back is what the model says here."""

import base64
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

import glassworks as gw
from glassworks.graph.graph import Graph
from glassworks.serve.supervise import Running

PROMPT = "Once there was"
CHAT: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the Eiffel Tower?"}]
GREEDY: Any = {"model": "toy", "temperature": 0, "max_tokens": 8}
WHOLE: Any = {**GREEDY, "prompt": PROMPT}


@pytest.fixture(scope="module")
def toy() -> Any:
    return gw.load("toy")


@pytest.fixture(scope="module")
def client(quiet_service: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{quiet_service.url}/v1", api_key=quiet_service.key, max_retries=0) as found:
        yield found


def said(chunks: Any, index: int = 0) -> str:
    """What the chunks of a stream say, of a completion or of a chat."""
    own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(
        getattr(choice, "text", None) or getattr(getattr(choice, "delta", None), "content", None) or ""
        for choice in own
    )


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("toy", "model", "glassworks")


def test_a_completion_is_the_models_own(toy: Any, client: openai.OpenAI) -> None:
    here = toy.complete(PROMPT, max_new_tokens=8)
    found = client.completions.create(**WHOLE)
    assert found.choices[0].text == here.text
    assert found.model == "toy"
    assert found.usage is not None
    prompt = len(toy.encode(PROMPT))
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, len(here.tokens))
    assert usage.total_tokens == prompt + len(here.tokens)


def test_prompts_as_texts_and_ids_with_several_choices(toy: Any, client: openai.OpenAI) -> None:
    texts = [PROMPT, "A man walked into the"]
    here = [toy.complete(text, max_new_tokens=8).text for text in texts]
    for prompt in (texts, [toy.encode(text) for text in texts]):
        found = client.completions.create(**{**GREEDY, "prompt": prompt, "n": 2})
        assert [choice.text for choice in found.choices] == [here[0], here[0], here[1], here[1]]
        assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
        assert found.usage is not None
        assert found.usage.prompt_tokens == sum(len(toy.encode(text)) for text in texts)


def test_a_streamed_completion_is_the_whole_one(toy: Any, client: openai.OpenAI) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(**WHOLE, **options))
    here = toy.complete(PROMPT, max_new_tokens=8)
    assert said(chunks) == here.text
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].text]) > 1  # as they come
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] in ("length", "stop")
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(here.tokens)
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_the_models_own(toy: Any, client: openai.OpenAI, stream: bool) -> None:
    here = toy.complete(CHAT, max_new_tokens=8).text
    found: Any = client.chat.completions.create(**GREEDY, messages=CHAT, stream=stream)
    if stream:
        chunks = list(found)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert said(chunks) == here
        return
    assert (found.choices[0].message.role, found.choices[0].message.content) == ("assistant", here)
    assert found.usage.prompt_tokens == len(toy.encode(CHAT))


def test_a_text_ends_before_a_stop_text(toy: Any, client: openai.OpenAI) -> None:
    whole = toy.complete(PROMPT, max_new_tokens=8).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    before = whole[: whole.index(stop)]
    found = client.completions.create(**WHOLE, stop=stop)
    assert (found.choices[0].text, found.choices[0].finish_reason) == (before, "stop")
    assert said(client.completions.create(**WHOLE, stop=[stop, "never"], stream=True)) == before


def test_a_seed_decides_what_is_drawn(toy: Any, client: openai.OpenAI) -> None:
    options: Any = {**WHOLE, "temperature": 1.5, "max_tokens": 16}
    texts = [client.completions.create(**options, seed=seed).choices[0].text for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]
    assert said(client.completions.create(**options, seed=7, stream=True)) == texts[0]
    drawn = {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0}
    with torch.inference_mode():
        here = gw.Engine(toy).submit(gw.Request(PROMPT, max_new_tokens=16, seed=7, options=drawn)).wait()
    assert texts[0] == here.text
    free = {client.completions.create(**options).choices[0].text for _ in range(3)}
    assert len(free) > 1


def logprobs_here(toy: Any, prompt: Any, tokens: list[int]) -> torch.Tensor:
    """Log probabilities of what follows each token before these: [tokens, vocab]."""
    ids = [*toy.encode(prompt), *tokens]
    with toy.trace([ids]):
        logits = toy.logits.save()
    found: torch.Tensor = logits.value[0, -len(tokens) - 1 : -1].log_softmax(-1)
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_the_models(toy: Any, client: openai.OpenAI, stream: bool) -> None:
    tokens = toy.complete(PROMPT, max_new_tokens=8).tokens
    expected = logprobs_here(toy, PROMPT, tokens)
    found: Any = client.completions.create(**WHOLE, logprobs=3, stream=stream)
    parts = [choice.logprobs for chunk in (found if stream else [found]) for choice in chunk.choices if choice.logprobs]
    own = [value for part in parts for value in part.token_logprobs]
    count = len(own)
    assert 0 < count <= len(tokens)
    chosen = expected[range(count), tokens[:count]]
    torch.testing.assert_close(torch.tensor(own), chosen, atol=1e-4, rtol=0)
    best = expected.topk(3).values
    for k, top in enumerate(value for part in parts for value in part.top_logprobs):
        assert sorted(top.values())[-1] == pytest.approx(float(best[k, 0]), abs=1e-4)
        assert 1 <= len(top) <= 4
    assert "".join(text for part in parts for text in part.tokens) == toy.decode(tokens[:count])


def test_log_probabilities_of_a_chat(toy: Any, client: openai.OpenAI) -> None:
    tokens = toy.complete(CHAT, max_new_tokens=8).tokens
    expected = logprobs_here(toy, CHAT, tokens)
    found = client.chat.completions.create(**GREEDY, messages=CHAT, logprobs=True, top_logprobs=2)
    assert found.choices[0].logprobs is not None
    content = found.choices[0].logprobs.content
    assert content
    for k, token in enumerate(content):
        assert token.logprob == pytest.approx(float(expected[k, tokens[k]]), abs=1e-4)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(
            expected[k].topk(2).values.tolist(), abs=1e-4
        )


# Steered.


@pytest.fixture(scope="module")
def steered(toy: Any) -> Graph:
    width = toy.table.parameters["model.embed_tokens.weight"][1][1]
    steer = 20 * torch.randn(width, generator=torch.Generator().manual_seed(1))
    with toy.record() as t, t.steps[:]:
        toy.layers[2].output = toy.layers[2].output + steer
    graph: Graph = t.graph
    return graph


@pytest.mark.parametrize("stream", [False, True])
def test_a_steered_model_is_served_to_any_client(toy: Any, client: openai.OpenAI, steered: Graph, stream: bool) -> None:
    extra = {"graph": base64.b64encode(steered.encode()).decode()}
    plain = {"do_sample": False}
    here = gw.Engine(toy).submit(gw.Request(PROMPT, max_new_tokens=8, graph=steered, options=plain)).wait()
    found: Any = client.completions.create(**WHOLE, extra_body=extra, stream=stream)
    text = said(found) if stream else found.choices[0].text
    assert text == here.text
    assert text != toy.complete(PROMPT, max_new_tokens=8).text
    chat = client.chat.completions.create(**GREEDY, messages=CHAT, extra_body=extra)
    there = gw.Engine(toy).submit(gw.Request(CHAT, max_new_tokens=8, graph=steered, options=plain)).wait()
    assert chat.choices[0].message.content == there.text


# Hanging up.


@pytest.mark.parametrize("chat", [False, True])
def test_who_hangs_up_in_the_middle_of_a_stream_calls_the_job_off(
    toy: Any, quiet_service: Running, client: openai.OpenAI, chat: bool
) -> None:
    with toy.record() as t, t.steps[:]:  # a text that does not end by itself
        toy.logits[:, :, toy.tokenizer.eos_token_id] = -1e9
    graph = base64.b64encode(t.graph.encode()).decode()
    more: Any = {"max_tokens": 900, "stream": True, "extra_body": {"graph": graph}}
    asked: Any = client.chat.completions if chat else client.completions
    own: Any = {"messages": CHAT} if chat else {"prompt": PROMPT}
    with asked.create(**{**GREEDY, **own, **more}) as stream:
        id = next(iter(stream)).id.partition("-")[2]
        assert gw.connect(quiet_service.url, api_key=quiet_service.key).job(id).status in ("queued", "running")
    job = gw.connect(quiet_service.url, api_key=quiet_service.key).job(id)
    job.wait(timeout_s=20)
    assert job.status == "cancelled"
    assert len([event for event in job.events() if event.kind == "token"]) < 900


# Refusals.


def test_a_model_that_is_not_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'") as caught:
        client.completions.create(**{**WHOLE, "model": "gpt-9"})
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 3), ("logit_bias", {"1": 5}), ("stop", ["x"] * 5), ("echo", True), ("max_tokens", 10**6)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_parameter_that_cannot_be(client: openai.OpenAI, name: str, value: Any, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=name) as caught:
        client.completions.create(**{**WHOLE, name: value}, stream=stream)
    assert caught.value.param == name


def test_a_graph_that_cannot_be(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**WHOLE, extra_body={"graph": base64.b64encode(b"junk").decode()})
    assert caught.value.param == "graph"


def test_a_key_that_is_not_known(quiet_service: Running) -> None:
    with (
        openai.OpenAI(base_url=f"{quiet_service.url}/v1", api_key="gw-nobody", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.completions.create(**WHOLE)
