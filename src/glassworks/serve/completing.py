"""Completions among an engine's requests: what is asked for in OpenAI's words, one request a choice.

The check has made plain data of the words (`verdict`): prompts of ids, one a choice, options, stop texts. Nothing of
the HTTP form is known here, nor what a client is shown of the result.

Tokens are told in an order that depends on the job alone, choice after choice at each place, so that a run that is
repeated says the same again: a choice that lags holds up the others. A text that may become a stop text waits until it
is known not to be one.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from glassworks.client.content import split
from glassworks.engine.requests import Reply, Request, Token
from glassworks.errors import WireError
from glassworks.graph.graph import Graph
from glassworks.serve.answers import Answer
from glassworks.serve.runner import JSON
from glassworks.serve.tasks import Attempt, Said, Task
from glassworks.serve.watch import RunWatch


class Completion(Task):
    """Texts that go on, with a graph that looks on or takes part, or without."""

    media = JSON

    def begin(self) -> None:
        first, request, *_ = split(self.order.body)
        self._verdict: dict[str, Any] = json.loads(bytes(first))
        graph, verdict = _graph(json.loads(bytes(request)).get("graph")), self._verdict
        logprobs = verdict.get("logprobs")
        self._top: int | None = logprobs
        price, late = self.host.price(), verdict.get("late") or [[]]
        for k, prompt in enumerate(verdict["prompts"]):
            wanted = Request(
                prompt, max_new_tokens=verdict["max_new_tokens"], graph=graph, options=verdict.get("options") or {},
                stop=verdict.get("stop") or (), logprobs=0 if logprobs is None else max(1, logprobs),
                seed=(verdict.get("seed") or 0) + k, user=self.order.user,
            )  # fmt: skip
            start = partial(_start, self, wanted)
            self.attempts.append(Attempt(start, lambda: RunWatch(late, price, job=self.order.job)))
        self._told = [_Told(tuple(verdict.get("stop") or ())) for _ in self.attempts]
        self._at = (0, 0)

    def look(self) -> Answer | None:
        ended = [attempt.reply.wait() for attempt in self.attempts if attempt.has_ended()]
        if len(ended) < len(self.attempts):
            return None
        return 200, json.dumps({"choices": [self._choice(reply) for reply in ended]}).encode()

    def _choice(self, reply: Reply) -> dict[str, Any]:
        logprobs = None if self._top is None else [self._spelled(piece) for piece in reply.pieces]
        return {
            "text": reply.text, "tokens": reply.tokens, "finish": reply.finish, "logprobs": logprobs,
            "prompt_tokens": len(reply.request.prompt),
        }  # fmt: skip

    def _spelled(self, piece: Token) -> dict[str, Any]:
        """A token with its log probability, and those of the likeliest, best first."""
        best = sorted(piece.logprobs.items(), key=lambda own: -own[1])[: self._top]
        top = [[id, self.engine.spell(id), logprob] for id, logprob in best]
        own = self.engine.spell(piece.id)
        return {"id": piece.id, "text": own, "logprob": piece.logprobs[piece.id], "top": top}

    # Tokens as they come.

    def news(self) -> Iterator[Said]:
        place, choice = self._at
        while self.order.streams:
            replies = [attempt.reply for attempt in self.attempts]
            if all(reply.done and place >= len(reply.tokens) for reply in replies):
                return
            reply = replies[choice]
            if place < len(reply.tokens):
                yield self._token(choice, place)
            elif not reply.done or reply.in_company:
                return
            place, choice = (place, choice + 1) if choice + 1 < len(replies) else (place + 1, 0)
            self._at = place, choice

    def _token(self, choice: int, place: int) -> Said:
        reply = self.attempts[choice].reply
        piece, last = reply.pieces[place], reply.done and place + 1 == len(reply.tokens)
        text = self._told[choice].added(piece.text, reply.text if last and reply.error is None else None)
        logprobs = None if self._top is None else self._spelled(piece)
        return self.said("token", {"choice": choice, "id": piece.id, "text": text, "logprobs": logprobs})

    @property
    def progress(self) -> float:
        replies = [attempt.reply for attempt in self.attempts]
        wanted = max(1, len(replies) * int(self._verdict["max_new_tokens"]))
        return min(1.0, sum(len(reply.tokens) for reply in replies) / wanted)


class _Told:
    """What has been told of one text. `stop`: what it must not end in."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop, self._text, self._sent = stop, "", 0

    def added(self, piece: str, whole: str | None) -> str:
        """What is told with a token that adds `piece`; `whole`: all of the text, with the last one."""
        self._text += piece
        upto = len(self._text) - self._waiting() if whole is None else len(whole)
        found = (self._text if whole is None else whole)[self._sent : upto]
        self._sent = max(self._sent, upto)
        return found

    def _waiting(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        tails = [n for stop in self._stop for n in range(1, len(stop)) if self._text.endswith(stop[:n])]
        return max(tails, default=0)


def _start(task: Task, wanted: Request, alone: bool) -> Reply:
    return task.engine.submit(wanted, alone=alone)


def _graph(text: str | None) -> Graph | None:
    """A stored graph that travels as base64."""
    try:
        return None if text is None else Graph.decode(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise WireError(f"graph: expected base64 of a stored graph: {error}") from None
