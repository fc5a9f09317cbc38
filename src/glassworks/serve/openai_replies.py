"""What a model said, in OpenAI's words: a whole answer, or the chunks of a stream.

Reads a worker's result, `{"choices": [{"text", "tokens", "finish", "logprobs", "prompt_tokens"}]}`, and its token
events, `{"choice", "id", "text", "logprobs"}`. In both, a token's `text` is what it adds to the text before it, and its
log probabilities are null or `{"id", "text", "logprob", "top": [[id, text, logprob], ...]}`.

A stream says what the whole answer would have said: text that may turn out to be the beginning of a stop text is held
back until it is known. Tokens that only make a stop text, or end the text, are counted and not shown.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from glassworks.serve.openai import Form

Result = Mapping[str, Any]
Token = Mapping[str, Any]
"""With its log probabilities."""

DONE = b"data: [DONE]\n\n"
_FINISHES = {"length": "length"}
_LEAST = -9999.0
"""OpenAI's log probability of what cannot come; JSON has no infinity."""
_PART = "\N{REPLACEMENT CHARACTER}"


def response(form: Form, result: Result, *, id: str, created_s: float) -> dict[str, Any]:
    """The whole answer. `id`: of the job."""
    choices = [_choice(form, index, own) for index, own in enumerate(result["choices"])]
    kind = "chat.completion" if form.chat else "text_completion"
    return {**_head(form, kind, id, created_s), "choices": choices, "usage": usage(form, result)}


def usage(form: Form, result: Result) -> dict[str, int]:
    """Tokens read, each prompt once however many choices it has, and tokens made."""
    choices = result["choices"]
    read = sum(own["prompt_tokens"] for own in choices[:: form.n])
    made = sum(len(own["tokens"]) for own in choices)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


class Stream:
    """The chunks of an answer, as server-sent events; a method may have nothing to send yet, and gives b"".

    Args:
        id: of the job.
    """

    def __init__(self, form: Form, *, id: str, created_s: float) -> None:
        self._form = form
        self._head = _head(form, "chat.completion.chunk" if form.chat else "text_completion", id, created_s)
        if form.usage:
            self._head["usage"] = None
        self._choices: dict[int, _Choice] = {}

    def begin(self) -> bytes:
        """What comes before any token."""
        if not self._form.chat:
            return b""
        return b"".join(self._chunk(k, {"role": "assistant", "content": ""}) for k in range(self._form.n))

    def token(self, event: Mapping[str, Any]) -> bytes:
        """A token has come."""
        choice = self._choices.setdefault(event["choice"], _Choice(self._form.stop))
        text, shown = choice.add(event["text"], event["logprobs"])
        return self._said(event["choice"], choice, text, shown) if text else b""

    def end(self, result: Result) -> bytes:
        """It has all come: what was held back, why each choice ended, the counts if they are wanted."""
        found = [self._ended(index, own) for index, own in enumerate(result["choices"])]
        if self._form.usage:
            found.append(_event({**self._head, "choices": [], "usage": usage(self._form, result)}))
        return b"".join([*found, DONE])

    @staticmethod
    def failed(error: bytes) -> bytes:
        """It ended before its time. `error`: as `messages.encode_error` gives it."""
        return b"data: " + error + b"\n\n"

    def _ended(self, index: int, own: Mapping[str, Any]) -> bytes:
        choice = self._choices.setdefault(index, _Choice(self._form.stop))
        text, shown = choice.end(own)
        said = self._said(index, choice, text, shown) if text or shown else b""
        finish = _FINISHES.get(own["finish"], "stop")
        return said + self._chunk(index, {} if self._form.chat else "", finish=finish)

    def _said(self, index: int, choice: "_Choice", text: str, shown: Sequence[Token]) -> bytes:
        found = _logprobs(self._form, shown, choice.offset)
        choice.offset += sum(len(token["text"]) for token in shown)
        return self._chunk(index, {"content": text} if self._form.chat else text, logprobs=found)

    def _chunk(self, index: int, said: Any, *, logprobs: Any = None, finish: str | None = None) -> bytes:
        own = {"index": index, "delta" if self._form.chat else "text": said, "logprobs": logprobs}
        return _event({**self._head, "choices": [{**own, "finish_reason": finish}]})


class Cut:
    """A text that ends before the first stop text, piece by piece. `held`: what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop, self.held, self._ended = stop, "", False

    def add(self, piece: str) -> str:
        """What is sure to be part of the text, of what has come so far and was not given yet."""
        if self._ended:
            return ""
        text = self.held + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self._ended, self.held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop text."""
    return next((k for k in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:k])), 0)


class _Choice:
    """One choice of a stream. `offset`: how much text the tokens have that were shown with log probabilities."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._cut = Cut(stop)
        self._given = ""
        self._waiting: list[Token] = []
        self._shown = 0
        self.offset = 0

    def add(self, piece: str, token: Token | None) -> tuple[str, list[Token]]:
        """The text that can be given now, and the tokens that begin in it."""
        if token is not None:
            self._waiting.append(token)
        text = self._cut.add(piece)
        self._given += text
        return text, self._begun() if text else []

    def _begun(self) -> list[Token]:
        shown, at = [], self.offset
        while self._waiting and at < len(self._given):
            shown.append(self._waiting.pop(0))
            at += len(shown[-1]["text"])
        self._shown += len(shown)
        return shown

    def end(self, own: Mapping[str, Any]) -> tuple[str, list[Token]]:
        """The rest of the text, as the result has it, and the rest of the tokens."""
        whole = _text(own)
        rest = whole[len(self._given) :] if whole.startswith(self._given) else self._cut.held
        return rest, _shown_tokens(own)[self._shown :]


# Parts of an answer.


def _head(form: Form, kind: str, id: str, created_s: float) -> dict[str, Any]:
    prefix = "chatcmpl" if form.chat else "cmpl"
    return {"id": f"{prefix}-{id}", "object": kind, "created": int(created_s), "model": form.model}


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, allow_nan=False).encode() + b"\n\n"


def _choice(form: Form, index: int, own: Mapping[str, Any]) -> dict[str, Any]:
    text = _text(own)
    said: dict[str, Any] = {"text": text}
    if form.chat:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}}
    found = _logprobs(form, _shown_tokens(own), 0)
    return {"index": index, **said, "logprobs": found, "finish_reason": _FINISHES.get(own["finish"], "stop")}


def _text(own: Mapping[str, Any]) -> str:
    """A choice's text without a character that had only begun when it ended."""
    text = str(own["text"])
    return text if own["finish"] == "stop" else text.rstrip(_PART)


def _shown_tokens(own: Mapping[str, Any]) -> list[Token]:
    """The tokens that the text is made of: not the one that ended it, none that begins in a stop text."""
    tokens = list(own["logprobs"] or ())
    if own["finish"] == "eos":
        return tokens[:-1]
    if own["finish"] == "stop":
        starts = accumulate((len(token["text"]) for token in tokens), initial=0)
        return [token for token, start in zip(tokens, starts, strict=False) if start < len(own["text"])]
    return tokens


def _logprobs(form: Form, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
    if form.top is None:
        return None
    if form.chat:
        return {"content": [_of_chat(token, form.top) for token in tokens], "refusal": None}
    return {
        "tokens": [token["text"] for token in tokens],
        "token_logprobs": [_finite(token["logprob"]) for token in tokens],
        "top_logprobs": [_of_text(token, form.top) for token in tokens] if form.top else None,
        "text_offset": [*accumulate((len(token["text"]) for token in tokens), initial=offset)][: len(tokens)],
    }


def _of_text(token: Token, count: int) -> dict[str, float]:
    """The likeliest tokens and the one that came, by their texts."""
    found = {token["text"]: _finite(token["logprob"])}
    for text, logprob in _likeliest(token, count):
        found[text] = max(logprob, found.get(text, logprob))
    return found


def _of_chat(token: Token, count: int) -> dict[str, Any]:
    top = [_spelled(text, logprob) for text, logprob in _likeliest(token, count)]
    return {**_spelled(token["text"], _finite(token["logprob"])), "top_logprobs": top}


def _spelled(text: str, logprob: float) -> dict[str, Any]:
    """A token that is a part of a character has no bytes that could be told from its text."""
    whole = bool(text) and _PART not in text
    return {"token": text, "bytes": list(text.encode()) if whole else None, "logprob": logprob}


def _likeliest(token: Token, count: int) -> list[tuple[str, float]]:
    found = [(text, _finite(logprob)) for _, text, logprob in token["top"]]
    return sorted(found, key=lambda pair: -pair[1])[:count]


def _finite(logprob: float) -> float:
    return _LEAST if math.isnan(logprob) else max(logprob, _LEAST)
