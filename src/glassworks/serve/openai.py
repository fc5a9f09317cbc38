"""OpenAI's requests for text as data: what POST /v1/completions and /v1/chat/completions ask for, read strictly.

Knows OpenAI's names, bounds and defaults, and no model. Nothing that a body asks for is ignored: what this service
cannot do is refused by its name, unless its value is the one that asks for nothing.

Surprises:
- Defaults are OpenAI's: the temperature is 1, so tokens are drawn; completions have 16 tokens. With a temperature of 0
  the likeliest token is taken.
- Two fields are not OpenAI's: `top_k`, and `graph`: base64 of the bytes of a stored graph, which takes part in every
  completion.
- `user`, `safety_identifier` and `prompt_cache_key` say who asks and change no answer: they are read and let go.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glassworks.errors import GlassworksError, LimitExceeded, RemoteError, WireError
from glassworks.graph.wire import json_of, spell
from glassworks.serve.answers import status_of
from glassworks.serve.openai_fields import Fields, Unfit, check_absent, check_names, sound_text
from glassworks.serve.openai_prompts import Prompt, chat_prompt, text_prompts

MAX_TOKENS = 16
"""New tokens of a completion that does not say how many; a chat then has as many as there may be."""
CHOICES, STOPS, STOP_CHARACTERS = 128, 4, 1000
TOP_OF_TEXT, TOP_OF_CHAT = 5, 20
"""How many likeliest tokens each interface gives."""
COLD = 1e-5
"""Temperatures below it are 0."""
SEEDS = 2**63

_NOT_HERE: Mapping[str, tuple[Any, ...]] = {"frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},)}
_NOT_IN_TEXT: Mapping[str, tuple[Any, ...]] = {"best_of": (1,), "echo": (False,), "suffix": ("",)}
_NOT_IN_CHAT: Mapping[str, tuple[Any, ...]] = {
    "audio": (), "function_call": ("none", "auto"), "functions": ([],), "metadata": ({},), "modalities": (["text"],),
    "moderation": (), "parallel_tool_calls": (True, False), "prediction": (), "prompt_cache_options": (),
    "prompt_cache_retention": (), "reasoning_effort": ("none",), "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"), "store": (False,), "tool_choice": ("none", "auto"), "tools": ([],),
    "verbosity": ("medium",), "web_search_options": (),
}  # fmt: skip
"""What no model here does -> the values, besides null, that ask for nothing."""
_WHO = ("user", "safety_identifier", "prompt_cache_key")
_NAMES = "model temperature top_p top_k n stop seed stream stream_options logprobs graph max_tokens"
_COMMON = frozenset([*_NAMES.split(), *_WHO, *_NOT_HERE])
_TEXT = _COMMON | {*_NOT_IN_TEXT, "prompt"}
_CHAT = _COMMON | {*_NOT_IN_CHAT, "messages", "max_completion_tokens", "top_logprobs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What an answer looks like.

    Attributes:
        top: how many likeliest tokens come with each token; None: no log probabilities at all.
        usage: whether a stream ends with the counts.
    """

    chat: bool
    model: str
    n: int = 1
    stop: tuple[str, ...] = ()
    top: int | None = None
    stream: bool = False
    usage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for text.

    Attributes:
        prompts: a completion's, of which each has `form.n` choices; a chat is one.
        max_new_tokens: None: as many as there may be. max_tokens_name: the field that says so.
        top_k: 0: of all tokens. seed: None: any. graph: a stored graph's bytes.
    """

    form: Form
    prompts: tuple[Prompt, ...]
    max_new_tokens: int | None
    max_tokens_name: str
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    graph: bytes | None

    @property
    def prompt_name(self) -> str:
        """The field that the prompts stand in."""
        return "messages" if self.form.chat else "prompt"

    @property
    def options(self) -> dict[str, Any]:
        """How tokens are chosen, by transformers' names; what OpenAI has no name for is the model's own setting."""
        if self.temperature < COLD:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}

    @property
    def logprobs(self) -> int:
        """As `gw.Request.logprobs`."""
        return 0 if self.form.top is None else max(1, self.form.top)


def read(body: bytes | bytearray | memoryview, *, chat: bool) -> Asked:
    """What a body asks for.

    Raises:
        Unfit: names the field. WireError: the body is no JSON.
    """
    value = json_of(bytes(body), "the body")
    if not isinstance(value, dict):
        raise WireError(f"the body must be a JSON object, got {spell(value)}")
    fields = Fields(value)
    check_names(value, _CHAT if chat else _TEXT, "/v1/chat/completions" if chat else "/v1/completions")
    check_absent(fields, {**_NOT_HERE, **(_NOT_IN_CHAT if chat else _NOT_IN_TEXT)})
    for name in _WHO:
        fields.text(name)
    name = "max_completion_tokens" if fields.get("max_completion_tokens") is not None else "max_tokens"
    if name == "max_completion_tokens" and fields.get("max_tokens") is not None:
        raise Unfit("max_tokens and max_completion_tokens are the same: give one of them", param="max_tokens")
    form = _form(fields, chat=chat)
    return Asked(
        form=form, prompts=chat_prompt(fields) if chat else text_prompts(fields),
        max_new_tokens=fields.count(name, None if chat else MAX_TOKENS, 1, 2**31), max_tokens_name=name,
        temperature=fields.number("temperature", 1.0, 0, 2), top_p=fields.number("top_p", 1.0, 0, 1),
        top_k=max(0, fields.count("top_k", 0, -1, 2**31) or 0), seed=_seed(fields), graph=_graph(fields),
    )  # fmt: skip


def seeds_of(verdict: Mapping[str, Any], seed: int) -> list[int | None]:
    """The seed of each choice, prompt by prompt; None: the graph's own, where no token is drawn and none was asked for.

    A seed that was asked for gives each prompt what it gives it alone; with another all choices differ.

    Args:
        seed: the job's: what was asked for, or one that was made for it.
    """
    n, prompts = verdict["n"], len(verdict["prompts"])
    if verdict["seed"] is not None:
        return [(seed + k) % SEEDS for _ in range(prompts) for k in range(n)]
    if not verdict["options"]["do_sample"]:
        return [None] * (n * prompts)
    return [(seed + k) % SEEDS for k in range(n * prompts)]


def status_here(error: Exception) -> int:
    """The status of a refusal on OpenAI's paths, which has 400 for all that is wrong with a request."""
    if getattr(error, "code", None) == "model_not_found":
        return 404
    if isinstance(error, RemoteError) and not isinstance(error, LimitExceeded | WireError):
        return status_of(error)
    return 400 if isinstance(error, GlassworksError) else 500


# Fields.


def _form(fields: Fields, *, chat: bool) -> Form:
    model = fields.text("model")
    if not model:
        raise Unfit("model is missing: the name of a model of this service (GET /v1/models)", param="model")
    stream = fields.flag("stream")
    n = fields.count("n", 1, 1, CHOICES) or 1
    top = _top_of_chat(fields) if chat else fields.count("logprobs", None, 0, TOP_OF_TEXT)
    usage = _usage(fields, stream=stream)
    return Form(chat=chat, model=model, n=n, stop=_stop(fields), top=top, stream=stream, usage=usage)


def _top_of_chat(fields: Fields) -> int | None:
    wanted, top = fields.flag("logprobs"), fields.count("top_logprobs", None, 0, TOP_OF_CHAT)
    if top and not wanted:
        raise Unfit("top_logprobs needs logprobs to be true", param="top_logprobs")
    return (top or 0) if wanted else None


def _usage(fields: Fields, *, stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not stream:
        raise Unfit("stream_options must be an object, and needs stream to be true", param="stream_options")
    for name in set(options) - {"include_usage", "include_obfuscation"}:
        raise Unfit(f"stream_options has no field {spell(name)}", param="stream_options", code="unknown_parameter")
    own = Fields({f"stream_options.{name}": value for name, value in options.items()})
    check_absent(own, {"stream_options.include_obfuscation": (False,)})
    return own.flag("stream_options.include_usage")


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    given = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(given, list) or len(given) > STOPS:
        raise Unfit(f"stop must be a text, or a list of at most {STOPS}, got {spell(value)}", param="stop")
    for text in given:
        if not 1 <= len(sound_text(text, "stop")) <= STOP_CHARACTERS:
            raise Unfit(f"stop: a text has 1 to {STOP_CHARACTERS} characters, got {len(text)}", param="stop")
    return tuple(given)


def _seed(fields: Fields) -> int | None:
    seed = fields.count("seed", None, -SEEDS, SEEDS - 1)
    return None if seed is None else seed % SEEDS


def _graph(fields: Fields) -> bytes | None:
    value = fields.text("graph")
    if value is None:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        wanted = "base64 of the bytes of a stored graph (graph.encode(), or a file of graph.save(path))"
        raise Unfit(f"graph must be {wanted}: {str(error)[:100]}", param="graph") from None
