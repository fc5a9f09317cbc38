"""What a person asks an engine for, and what comes back while it is made.

A `Request` is data: a prompt, how much to generate and how, and perhaps a graph that looks on or takes part. A `Reply`
fills as its tokens come; whoever iterates over it, or waits for it, drives the engine meanwhile.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glassworks.engine.spelling import Spelling
from glassworks.errors import Cancelled, InputError
from glassworks.graph.graph import Graph
from glassworks.graph.logs import LogEntry
from glassworks.trace.results import RESULT


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt for an engine.

    Attributes:
        prompt: a text, token ids or a chat.
        max_new_tokens: at most so many; 0 only reads the prompt.
        graph: of `model.record()`, or a block's `t.graph`, with one invoke: what it saves is in the reply.
        options: transformers' names: do_sample, temperature, top_k, top_p, repetition_penalty, eos_token_id ...
        inputs: tensors for the graph's named inputs.
        stop: texts at which the reply ends; the first of them is not part of its text.
        logprobs: for each token, how many of the likeliest come with their log probability (0: none).
        seed: of sampling and of the graph's random nodes; what is drawn depends on it alone, never on the batch. None:
            the graph's own, or 0.
        user: whose it is: for the policy `fair`, and for who may share the beginnings of texts with whom.
        weight: what that user's share is in proportion to, under `fair`.
        expected_tokens: how many it will be, if somebody knows; policies that predict take it.

    Raises:
        InputError: a field that cannot be.
    """

    prompt: Any
    max_new_tokens: int = 64
    graph: Graph | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    stop: Sequence[str] = ()
    logprobs: int = 0
    seed: int | None = None
    user: str = ""
    weight: float = 1.0
    expected_tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "logprobs", "seed"):
            own = getattr(self, name)
            if (type(own) is not int or own < 0) and not (name == "seed" and own is None):
                raise InputError(f"{name} is an int of at least 0, got {own!r}")
        for name in ("options", "inputs"):
            if not isinstance(own := getattr(self, name), Mapping):
                raise InputError(f"{name} is a mapping by name, got {own!r}")
        expected = self.expected_tokens
        if expected is not None and not (isinstance(expected, int | float) and expected >= 0):
            raise InputError(f"expected_tokens is a number of at least 0, or None; got {expected!r}")
        if (
            not isinstance(self.stop, Sequence)
            or isinstance(self.stop, str)
            or not all(isinstance(text, str) and text for text in self.stop)
        ):
            raise InputError(f"stop is a list of texts, such as ['\\n\\n'], got {self.stop!r}")
        if self.graph is not None and not isinstance(self.graph, Graph):
            raise InputError(f"graph is a gw.Graph (t.graph of a block), got {type(self.graph).__name__}")
        if not isinstance(self.weight, int | float) or not 0 < self.weight < math.inf:
            raise InputError(f"weight is a number above 0, got {self.weight!r}")
        if not isinstance(self.user, str):
            raise InputError(f"user is a text, got {self.user!r}")


@dataclass(frozen=True, slots=True)
class Token:
    """One new token: its id, the text it adds, and with `logprobs=` id -> log probability (its own and the likeliest).

    A token that only begins a character adds no text; the one that ends it adds it all. Tokens are whole: the one in
    which a stop text begins comes with all of its text, which `reply.text` ends before.
    """

    id: int
    text: str
    logprobs: Mapping[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class Timing:
    """When things happened, in seconds on the engine's clock; None: not yet.

    Attributes:
        preempted: how often its turn was given to others while it had tokens to make. swapped: how often its keys and
            values left the device. recomputed_tokens, shared_tokens: computed again; taken over from another request.
        compute_s: its part of the seconds of iterations: of a pass that it shared, by tokens; of its own passes and its
            graph's nodes, all. Over all requests the sum is `engine.stats.seconds`.
    """

    arrival_s: float
    first_token_s: float | None = None
    end_s: float | None = None
    preempted: int = 0
    swapped: int = 0
    recomputed_tokens: int = 0
    shared_tokens: int = 0
    compute_s: float = 0.0

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def latency_s(self) -> float | None:
        """Seconds to the end."""
        return None if self.end_s is None else self.end_s - self.arrival_s


class Reply:
    """What comes of a request.

    `for token in reply:` gives each `Token` as it comes. `.tokens` and `.text` are what there is so far; `.wait()`
    drives the engine until it has ended; `.saves` waits, and is what the graph saved, by name.

    Attributes:
        request: what was asked. tokens: ids of the new tokens so far. timing: when, and what happened to it.
        error: what ended it before its time; None if nothing did. logs: what `gw.log` has said so far.
        in_company: the error is the model's, in a pass that others shared, and may be another's doing: the same request
            with `alone=True` tells.
        finish: why it ended: `length` (it has all the tokens that were asked for), `eos`, `stop` (a stop text came) or
            `graph` (its graph ended it); None: it has not, or ended before its time.
    """

    def __init__(
        self, request: Request, timing: Timing, *, drive: Callable[[], object], cancel: Callable[[], object]
    ) -> None:
        self.request, self.timing = request, timing
        self.tokens: list[int] = []
        self.error: Exception | None = None
        self.in_company = False
        self.logs: Sequence[LogEntry] = ()
        self.finish: str | None = None
        self._pieces: list[Token] = []
        self._logprobs: list[Mapping[int, float]] = []
        self._spelling = Spelling(None)
        self._saves: Mapping[str, Any] = {}
        self._stop: int | None = None
        self._drive, self._cancel = drive, cancel
        self.done = False

    # What people read.

    @property
    def text(self) -> str:
        """What the tokens spell so far, up to a stop text."""
        return self.whole[: self._stop] if self.done else "".join(piece.text for piece in self.pieces)

    @property
    def whole(self) -> str:
        """What the tokens spell so far, whatever they are."""
        return self._spelling.all(self.tokens)

    @property
    def pieces(self) -> Sequence[Token]:
        """The tokens so far, each with what it adds to the text."""
        while (at := len(self._pieces)) < len(self.tokens):
            added = self._spelling.added(self.tokens[: at + 1])
            self._pieces.append(Token(self.tokens[at], added, self._logprobs[at]))
        return self._pieces

    @property
    def saves(self) -> Mapping[str, Any]:
        """What the graph saved, by name. What ended the request before its time is raised."""
        return {name: value for name, value in self.wait()._saves.items() if name != f"{RESULT}.0"}

    @property
    def results(self) -> Mapping[str, Any]:
        """All that the run kept, as a backend gives it. What ended the request before its time is raised."""
        return self.wait()._saves

    @property
    def logprobs(self) -> list[Mapping[int, float]]:
        """For each token so far, with `logprobs=`: id -> log probability."""
        return list(self._logprobs)

    def wait(self) -> "Reply":
        """Drive the engine until this reply has ended; what ended it before its time is raised."""
        while not self.done:
            self._drive()
        if self.error is not None:
            raise self.error
        return self

    def cancel(self) -> None:
        """Call it off, at any moment: it makes no more tokens, and its memory is free. Nothing if it has ended."""
        self._cancel()

    def __iter__(self) -> Iterator[Token]:
        """Each token as it comes; at the end, what ended the request before its time is raised."""
        at = 0
        while True:
            while at < len(self.pieces):
                yield self.pieces[at]
                at += 1
            if self.done:
                break
            self._drive()
        self.wait()

    def __repr__(self) -> str:
        state = "ended" if self.done else "under way"
        if self.error is not None:
            state = "cancelled" if isinstance(self.error, Cancelled) else f"failed: {self.error}"
        return f"<reply, {len(self.tokens)} tokens, {state}: {self.text[:60]!r}>"

    # What the engine says.

    def begin(self, spelling: Spelling, logs: Sequence[LogEntry]) -> None:
        """It is taken in. `logs`: where its entries will be."""
        self._spelling, self.logs = spelling, logs

    def add(self, token: int, logprobs: Mapping[int, float]) -> None:
        """A token has come."""
        self._logprobs.append(logprobs)
        self.tokens.append(token)  # last: another thread may look

    def end(self, *, saves: Mapping[str, Any], stop: int | None, finish: str, now_s: float) -> None:
        """It has all come. `stop`: where in the whole text the reply ends before."""
        self._saves, self._stop, self.finish = saves, stop, finish
        self._ended(now_s)

    def fail(self, error: Exception, now_s: float, *, in_company: bool = False) -> None:
        """It ends before its time."""
        self.error, self.in_company = error, in_company
        self._ended(now_s)

    def _ended(self, now_s: float) -> None:
        self.timing.end_s, self.done = now_s, True
        self._drive = self._cancel = _nothing  # the engine, and what has run, are held no longer


def _nothing() -> None:
    """What is left to do for a reply that has ended."""
