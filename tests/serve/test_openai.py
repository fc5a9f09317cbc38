"""OpenAI's interface, both ways: bodies read strictly, and answers that the openai package's own types accept."""

import base64
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from glassworks.errors import GlassworksError, WireError
from glassworks.graph import messages
from glassworks.serve.openai import Form, read, seeds_of
from glassworks.serve.openai_fields import Unfit
from glassworks.serve.openai_replies import DONE, Cut, Stream, response

TEXT = {"model": "toy", "prompt": "The"}
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hello"}]}


def asked(body: Any, *, chat: bool = False) -> Any:
    return read(json.dumps(body).encode(), chat=chat)


# Reading.


def test_defaults_are_openais() -> None:
    found = asked(TEXT)
    assert found.prompts == ("The",)
    assert found.max_new_tokens == 16
    assert found.options == {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert (found.seed, found.graph, found.logprobs) == (None, None, 0)
    assert found.form == Form(chat=False, model="toy")
    assert asked(CHAT, chat=True).max_new_tokens is None
    assert asked({**TEXT, **dict.fromkeys(["temperature", "stop", "n", "user", "stream", "best_of", "graph"])}) == found


def test_everything_that_can_be_asked_for() -> None:
    found = asked({
        "model": "toy", "prompt": ["a", "b"], "max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "n": 2,
        "stop": ["x", "\n"], "seed": -1, "logprobs": 0, "stream": True, "stream_options": {"include_usage": True},
        "user": "me", "graph": base64.b64encode(b"bytes").decode(),
    })  # fmt: skip
    assert found.prompts == ("a", "b")
    assert found.options == {"do_sample": True, "temperature": 0.5, "top_p": 0.25, "top_k": 3}
    assert (found.max_new_tokens, found.seed, found.graph, found.logprobs) == (7, 2**63 - 1, b"bytes", 1)
    assert found.form == Form(chat=False, model="toy", n=2, stop=("x", "\n"), top=0, stream=True, usage=True)


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9])
def test_without_temperature_the_likeliest_token_is_taken(temperature: float) -> None:
    assert asked({**TEXT, "temperature": temperature, "top_p": 0.5}).options == {"do_sample": False}


@pytest.mark.parametrize(
    ("prompt", "found"),
    [([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3))), (["a"], ("a",)), ("", ("",))],
)
def test_forms_of_prompts(prompt: Any, found: Any) -> None:
    assert asked({**TEXT, "prompt": prompt}).prompts == found


def test_messages_are_as_templates_know_them() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    said = {"role": "assistant", "content": "Yes?", "refusal": None, "tool_calls": None, "annotations": []}
    given = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts, "name": "Ann"}, said]
    assert asked({**CHAT, "messages": given}, chat=True).prompts == (
        (
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello", "name": "Ann"},
            {"role": "assistant", "content": "Yes?"},
        ),
    )


def test_a_chat_says_how_many_tokens_under_either_name() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        found = asked({**CHAT, name: 5}, chat=True)
        assert (found.max_new_tokens, found.max_tokens_name) == (5, name)
    with pytest.raises(Unfit, match="give one of them"):
        asked({**CHAT, "max_tokens": 5, "max_completion_tokens": 5}, chat=True)


NEUTRAL = [
    (False, {"best_of": 1, "echo": False, "suffix": "", "logit_bias": {}, "frequency_penalty": 0.0}),
    (True, {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "modalities": ["text"]}),
    (True, {"store": False, "metadata": {}, "service_tier": "auto", "parallel_tool_calls": True, "top_logprobs": 0}),
    (True, {"safety_identifier": "a", "prompt_cache_key": "b", "presence_penalty": 0, "reasoning_effort": None}),
]


@pytest.mark.parametrize(("chat", "values"), NEUTRAL)
def test_what_asks_for_nothing_is_taken(chat: bool, values: dict[str, Any]) -> None:
    assert asked({**(CHAT if chat else TEXT), **values}, chat=chat) == asked(CHAT if chat else TEXT, chat=chat)


REFUSED_IN_BOTH = [
    ("model", 3), ("model", ""), ("model", "\ud800"), ("temperature", 2.1), ("temperature", -1), ("temperature", "1"),
    ("temperature", True), ("top_p", 1.5), ("top_k", 0.5), ("top_k", -2), ("n", 0), ("n", 10**30), ("n", True),
    ("stop", 3), ("stop", [""]), ("stop", ["a"] * 5), ("stop", ["a" * 1001]), ("stop", "\udfff"), ("seed", 2**63),
    ("seed", 1.0), ("stream", 1), ("stream_options", {"include_usage": True}), ("max_tokens", 0), ("max_tokens", 2**40),
    ("user", 3), ("graph", "%%%"), ("graph", "é"), ("graph", 3), ("graph", "abc"), ("logit_bias", {"1": 100}),
    ("frequency_penalty", 0.5), ("presence_penalty", False), ("nonsense", 1),
]  # fmt: skip
REFUSED_IN_TEXT = [
    ("prompt", None), ("prompt", []), ("prompt", [True]), ("prompt", [1, "a"]), ("prompt", [[1], []]), ("prompt", {}),
    ("prompt", "\ud800"), ("prompt", [1.0]), ("logprobs", 6), ("logprobs", True), ("echo", True), ("suffix", "x"),
    ("best_of", 2), ("best_of", True), ("messages", []), ("tools", []), ("max_completion_tokens", 3),
]  # fmt: skip
REFUSED_IN_CHAT = [
    ("messages", None), ("messages", []), ("messages", "Hello"), ("logprobs", 1), ("top_logprobs", 21),
    ("top_logprobs", 1), ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("functions", [1]),
    ("response_format", {"type": "json_object"}), ("modalities", ["text", "audio"]), ("audio", {}), ("store", True),
    ("metadata", {"a": "b"}), ("reasoning_effort", "high"), ("web_search_options", {}), ("prediction", {}),
    ("prompt", "x"), ("echo", False), ("service_tier", "flex"), ("verbosity", "low"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("chat", "name", "value"),
    [
        *[(chat, *pair) for pair in REFUSED_IN_BOTH for chat in (False, True)],
        *[(False, *pair) for pair in REFUSED_IN_TEXT],
        *[(True, *pair) for pair in REFUSED_IN_CHAT],
    ],
)
def test_what_cannot_be_is_refused_by_name(chat: bool, name: str, value: Any) -> None:
    body = {**(CHAT if chat else TEXT), name: value}
    with pytest.raises(Unfit) as caught:
        asked(body, chat=chat)
    assert caught.value.param == name
    assert name in str(caught.value)
    sent = json.loads(messages.encode_error(caught.value))["error"]
    assert (sent["type"], sent["param"]) == ("InputError", name)
    assert set(sent) == {"version", "type", "message", "notes", "param", "code"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (3, "messages[0]"), ({"role": "user"}, "messages[0].content"), ({"content": "x"}, "messages[0].role"),
        ({"role": "tool", "content": "x"}, "messages[0].role"), ({"role": [], "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": "x", "y": 1}, "messages[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "\ud800"}]}, "messages[0].content[0]"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "x", "name": 3}, "messages[0].name"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_are_refused_by_place(message: Any, param: str) -> None:
    with pytest.raises(Unfit) as caught:
        asked({**CHAT, "messages": [message]}, chat=True)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b'{"model": NaN}', b'{"n": 1, "n": 2}', b"\xff", b"[" * 10**5, b"1" * 5000,
        b'{"model": "toy", "prompt": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"temperature": 1e999}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("chat", [False, True])
def test_bodies_that_are_none(body: bytes, chat: bool) -> None:
    with pytest.raises((Unfit, WireError)):
        read(body, chat=chat)


NAMES = sorted({
    *TEXT, *CHAT, *[name for name, _ in [*REFUSED_IN_BOTH, *REFUSED_IN_TEXT, *REFUSED_IN_CHAT]],
    *[name for _, values in NEUTRAL for name in values], "role", "content", "type", "text", "include_usage",
})  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, -1, 2**63, "user", "text"])
    | st.text(st.characters())
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(st.booleans(), st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), VALUES, max_size=5), st.booleans())
def test_any_value_is_read_or_refused(chat: bool, changes: dict[str, Any], whole: bool) -> None:
    body = {**(CHAT if chat else TEXT), **changes} if whole else changes
    try:
        found = asked(body, chat=chat)
    except (Unfit, WireError) as error:
        messages.decode_error(messages.encode_error(error))
        return
    assert found.form.model == body["model"]
    assert all(math.isfinite(own) for own in (found.temperature, found.top_p))


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, chat: bool) -> None:
    with pytest.raises(GlassworksError):
        read(data, chat=chat)


def test_seeds_are_one_a_choice() -> None:
    verdict = {"n": 2, "prompts": [[1], [2]], "seed": 5, "options": {"do_sample": True}}
    assert seeds_of(verdict, 5) == [5, 6, 5, 6]
    assert seeds_of({**verdict, "seed": None}, 2**63 - 2) == [2**63 - 2, 2**63 - 1, 0, 1]
    assert seeds_of({**verdict, "seed": None, "options": {"do_sample": False}}, 5) == [None] * 4


# The way back.


def token(text: str, *, logprob: float = -0.5, top: tuple[tuple[int, str, float], ...] = ()) -> dict[str, Any]:
    return {"id": len(text), "text": text, "logprob": logprob, "top": [list(own) for own in top]}


def choice(*tokens: dict[str, Any], text: str | None = None, finish: str = "length") -> dict[str, Any]:
    whole = "".join(own["text"] for own in tokens) if text is None else text
    ids = [own["id"] for own in tokens]
    return {"text": whole, "tokens": ids, "finish": finish, "logprobs": list(tokens), "prompt_tokens": 3}


AB = choice(token("a", top=((7, "b", -2.0), (8, "a", -0.5))), token("bc", logprob=-math.inf), finish="eos")
HEAD = {"id": "job-1", "created_s": 12.5}


def chunks_of(data: bytes) -> list[Any]:
    events = data.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    return [event[6:] if event == "data: [DONE]" else json.loads(event[6:]) for event in events]


def streamed(form: Form, result: Any, *, told: int | None = None) -> list[Any]:
    """The chunks of a stream whose tokens come one after the other, of all choices in turn; `told`: only so many."""
    stream = Stream(form, **HEAD)
    data = stream.begin()
    events = [
        {"choice": k, "id": own["id"], "text": own["text"], "logprobs": None if form.top is None else own}
        for k, choice in enumerate(result["choices"])
        for own in choice["logprobs"]
    ]
    for event in events[:told]:
        data += stream.token(event)
    if form.top is None:
        result = {"choices": [{**own, "logprobs": None} for own in result["choices"]]}
    found = chunks_of(data + stream.end(result))
    assert found.pop() == "[DONE]"
    return found


def test_a_completion_is_one_of_openais() -> None:
    form = Form(chat=False, model="toy", top=1)
    body = response(form, {"choices": [AB]}, **HEAD)
    found = Completion.model_validate(body, strict=True)
    assert (found.id, found.created, found.model, found.object) == ("cmpl-job-1", 12, "toy", "text_completion")
    own = found.choices[0]
    assert (own.text, own.finish_reason, own.index) == ("abc", "stop", 0)
    assert own.logprobs is not None
    assert own.logprobs.tokens == ["a"]  # the one that ended it is not shown
    assert own.logprobs.token_logprobs == [-0.5]
    assert own.logprobs.top_logprobs == [{"a": -0.5}]
    assert own.logprobs.text_offset == [0]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (3, 2, 5)


def test_a_chat_is_one_of_openais() -> None:
    form = Form(chat=True, model="toy", top=2)
    found = ChatCompletion.model_validate(
        response(form, {"choices": [{**AB, "finish": "length"}]}, **HEAD), strict=True
    )
    own = found.choices[0]
    assert (found.id, found.object, own.finish_reason) == ("chatcmpl-job-1", "chat.completion", "length")
    assert (own.message.role, own.message.content) == ("assistant", "abc")
    assert own.logprobs is not None
    assert own.logprobs.content is not None
    first, second = own.logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("a", [97], -0.5)
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("a", -0.5), ("b", -2.0)]
    assert (second.token, second.logprob, second.top_logprobs) == ("bc", -9999.0, [])


def test_without_logprobs_there_are_none() -> None:
    bare = {"choices": [{**AB, "logprobs": None}]}
    for chat in (False, True):
        assert response(Form(chat=chat, model="toy"), bare, **HEAD)["choices"][0]["logprobs"] is None


def test_logprobs_of_zero_are_of_the_tokens_alone() -> None:
    found = response(Form(chat=False, model="toy", top=0), {"choices": [AB]}, **HEAD)["choices"][0]["logprobs"]
    assert found["top_logprobs"] is None
    assert found["token_logprobs"] == [-0.5]


def test_prompts_are_counted_once() -> None:
    result = {"choices": [{**choice(token("a")), "prompt_tokens": count} for count in (3, 3, 5, 5)]}
    usage = response(Form(chat=False, model="toy", n=2), result, **HEAD)["usage"]
    assert usage == {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "length"), ("eos", "stop"), ("stop", "stop"), ("graph", "stop")]
)
def test_why_it_ended(finish: str, reason: str) -> None:
    result = {"choices": [choice(token("a"), finish=finish)]}
    for chat in (False, True):
        form = Form(chat=chat, model="toy")
        assert response(form, result, **HEAD)["choices"][0]["finish_reason"] == reason
        assert [c["choices"][0]["finish_reason"] for c in streamed(form, result)][-1] == reason


def test_a_stream_of_a_completion_is_openais() -> None:
    form = Form(chat=False, model="toy", usage=True, stream=True, n=2)
    chunks = streamed(form, {"choices": [AB, choice(token("x"))]})
    found = [Completion.model_validate({**chunk, "choices": []}, strict=True) for chunk in chunks]
    assert {own.id for own in found} == {"cmpl-job-1"}
    assert all(own.usage is None for own in found[:-1])
    assert found[-1].usage is not None
    assert found[-1].usage.total_tokens == 6
    assert chunks[-1]["choices"] == []
    said = [(own["index"], own["text"], own["finish_reason"]) for chunk in chunks for own in chunk["choices"]]
    assert said == [(0, "a", None), (0, "bc", None), (1, "x", None), (0, "", "stop"), (1, "", "length")]


def test_a_stream_of_a_chat_is_openais() -> None:
    chunks = streamed(Form(chat=True, model="toy", stream=True, top=2), {"choices": [{**AB, "finish": "length"}]})
    found = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    assert {(own.id, own.object, own.created) for own in found} == {("chatcmpl-job-1", "chat.completion.chunk", 12)}
    assert all("usage" not in chunk for chunk in chunks)
    first, *middle, last = [own.choices[0] for own in found]
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert [own.delta.content for own in middle] == ["a", "bc"]
    assert (last.delta.content, last.finish_reason) == (None, "length")
    tokens = [token.token for own in middle if own.logprobs is not None for token in own.logprobs.content or ()]
    assert tokens == ["a", "bc"]


def test_a_stream_that_fails_says_so_as_an_error_does() -> None:
    [event] = chunks_of(Stream.failed(messages.encode_error(WireError("gone"))))
    assert event["error"]["message"] == "gone"
    assert DONE == b"data: [DONE]\n\n"


def test_a_character_that_only_began_is_not_shown() -> None:
    result = {"choices": [choice(token("a"), token(""), text="a\N{REPLACEMENT CHARACTER}")]}
    assert response(Form(chat=False, model="toy", top=0), result, **HEAD)["choices"][0]["text"] == "a"
    assert (
        "".join(own["text"] for chunk in streamed(Form(chat=False, model="toy"), result) for own in chunk["choices"])
        == "a"
    )


# Stop texts in streams.

FEW = st.text("ab\n", max_size=30)


def engines(pieces: list[str], stop: tuple[str, ...]) -> dict[str, Any]:
    """What an engine makes of these tokens: it ends with the token in which a stop text is there."""
    made: list[dict[str, Any]] = []
    for piece in pieces:
        made.append(token(piece))
        text = "".join(own["text"] for own in made)
        found = [at for own in stop if (at := text.find(own)) >= 0]
        if found:
            return choice(*made, text=text[: min(found)], finish="stop")
    return choice(*made)


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)
)
def test_streamed_text_is_the_text_before_the_first_stop(pieces: list[str], stop: list[str]) -> None:
    own = engines(pieces, tuple(stop))
    for top in (None, 1):
        for chat in (False, True):
            form = Form(chat=chat, model="toy", stop=tuple(stop), top=top)
            whole = response(form, {"choices": [own]}, **HEAD)["choices"][0]
            for told in (None, len(pieces) // 2):
                parts = [part for chunk in streamed(form, {"choices": [own]}, told=told) for part in chunk["choices"]]
                text = "".join((part["delta"].get("content") or "") if chat else part["text"] for part in parts)
                assert text == (whole["message"]["content"] if chat else whole["text"]) == own["text"]
                assert parts[-1]["finish_reason"] == whole["finish_reason"]
                _same_logprobs([part["logprobs"] for part in parts], whole["logprobs"])


def _same_logprobs(parts: list[Any], whole: Any) -> None:
    if whole is None:
        assert parts == [None] * len(parts)
        return
    for name, values in whole.items():
        if values is not None:
            assert [item for part in parts if part for item in part[name]] == values


@given(FEW, st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_nothing_of_a_stop_text_is_ever_given(text: str, stop: list[str], data: Any) -> None:
    """However a text is cut: what is given grows to the text before a stop text; no more is held back than must be."""
    cut, given, at = Cut(stop), "", 0
    while at < len(text):
        end = data.draw(st.integers(at + 1, len(text)))
        given += cut.add(text[at:end])
        at = end
        found = [where for own in stop if (where := text[:at].find(own)) >= 0]
        if found:
            assert given == text[: min(found)]
            assert cut.add("ab") == ""
            return
        assert given + cut.held == text[:at]
        assert not cut.held or any(own.startswith(cut.held) for own in stop)


def test_none_of_it_needs_torch() -> None:
    code = "import sys, glassworks.serve.openai_replies; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
