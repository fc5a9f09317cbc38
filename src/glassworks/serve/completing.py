"""Completions among an engine's requests: what is asked for in OpenAI's words, one request a choice.

The check has made plain data of the words (`verdict`): prompts of ids, `n` choices of each, options, stop texts. What a
client is shown of the result is not known here.

Tokens, and what a graph says, are told in an order that depends on the job alone, choice after choice at each place, so
that a run that is repeated says the same again: a choice that lags holds up the others.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from glassworks.client.content import split
from glassworks.engine.requests import Reply, Request, Token
from glassworks.graph.graph import Graph
from glassworks.graph.logs import to_json
from glassworks.serve.answers import Answer
from glassworks.serve.openai import read, seeds_of
from glassworks.serve.runner import JSON
from glassworks.serve.tasks import Attempt, Said, Task
from glassworks.serve.watch import RunWatch


class Completion(Task):
    """Texts that go on, with a graph that looks on or takes part, or without."""

    media = JSON

    def begin(self) -> None:
        first, request, *_ = split(self.order.body)
        self._verdict: dict[str, Any] = json.loads(bytes(first))
        verdict = self._verdict
        graph = read(request, chat=verdict["form"]["chat"]).graph if verdict["graph"] else None
        self._top: int | None = verdict["form"]["top"]
        seeds, n = seeds_of(verdict, self.order.seed), verdict["n"]
        for k, seed in enumerate(seeds):
            prompt, late = verdict["prompts"][k // n], [verdict["late"][k // n]]
            wanted = Request(
                prompt, max_new_tokens=verdict["max_new_tokens"], graph=None if graph is None else Graph.decode(graph),
                options=verdict["options"], stop=verdict["stop"], logprobs=verdict["logprobs"], seed=seed,
                user=self.order.user, weight=self.order.weight,
            )  # fmt: skip
            watch = partial(RunWatch, late, self.host.price(), job=self.order.job)
            self.attempts.append(Attempt(partial(_start, self, wanted), watch))
        self._at, self._told = (0, 0), [0] * len(self.attempts)

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

    # Tokens as they come, each after what the graph has said up to it.

    def news(self) -> Iterator[Said]:
        place, choice = self._at
        while self.order.streams or self._verdict["graph"]:
            replies = [attempt.reply for attempt in self.attempts]
            if all(reply.done and place >= len(reply.tokens) for reply in replies):
                for own in range(len(replies)):
                    yield from self._logs(own)
                return
            reply = replies[choice]
            if place < len(reply.tokens):
                yield from self._logs(choice, place)
                if self.order.streams:
                    yield self._token(choice, place)
            elif not reply.done or reply.in_company:
                return
            place, choice = (place, choice + 1) if choice + 1 < len(replies) else (place + 1, 0)
            self._at = place, choice

    def _logs(self, choice: int, place: int | None = None) -> Iterator[Said]:
        """What the graph of a choice has said and was not told yet: all, or up to a step."""
        for entry in self.attempts[choice].reply.logs[self._told[choice] :]:
            if place is not None and (entry.step or 0) > place:
                return
            self._told[choice] += 1
            yield self.said("log", {"choice": choice, "experiment": 0, "entry": to_json(entry)})

    def _token(self, choice: int, place: int) -> Said:
        reply = self.attempts[choice].reply
        piece = reply.pieces[place]
        logprobs = None if self._top is None else self._spelled(piece)
        return self.said("token", {"choice": choice, "id": piece.id, "text": piece.text, "logprobs": logprobs})

    @property
    def progress(self) -> float:
        replies = [attempt.reply for attempt in self.attempts]
        wanted = max(1, len(replies) * int(self._verdict["max_new_tokens"]))
        return min(1.0, sum(len(reply.tokens) for reply in replies) / wanted)


def _start(task: Task, wanted: Request, alone: bool) -> Reply:
    return task.engine.submit(wanted, alone=alone)
