"""How the next token is chosen: transformers' own logits processors, and draws that do not depend on the batch.

What plain `generate` would do is what is done: what nobody has set has transformers' own default (a `top_k` of 50 is
one of them), and a setting of the model's that would change its tokens in a way not known here is refused.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from glassworks.errors import InputError
from glassworks.graph.options import GENERATION_OPTIONS, check_options
from glassworks.run.random import generator

_SAMPLING = -2
"""Stands in the place of a node in the key of a draw."""

_WARPERS = {
    "temperature": ("TemperatureLogitsWarper", 1.0),
    "top_k": ("TopKLogitsWarper", 0),
    "top_p": ("TopPLogitsWarper", 1.0),
    "min_p": ("MinPLogitsWarper", None),
    "typical_p": ("TypicalLogitsWarper", 1.0),
    "epsilon_cutoff": ("EpsilonLogitsWarper", 0.0),
    "eta_cutoff": ("EtaLogitsWarper", 0.0),
}
_PROCESSORS = {
    "repetition_penalty": ("RepetitionPenaltyLogitsProcessor", 1.0),
    "no_repeat_ngram_size": ("NoRepeatNGramLogitsProcessor", 0),
    "bad_words_ids": ("NoBadWordsLogitsProcessor", None),
    "min_length": ("MinLengthLogitsProcessor", 0),
    "min_new_tokens": ("MinNewTokensLengthLogitsProcessor", 0),
    "suppress_tokens": ("SuppressTokensLogitsProcessor", None),
}
_UNTIL_EOS = frozenset({"min_length", "min_new_tokens"})
_WITHOUT_EFFECT = frozenset({
    "_from_model_config", "transformers_version", "bos_token_id", "max_length", "max_new_tokens", "renormalize_logits",
    # of memory and speed
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "compile_config",
    "disable_compile", "continuous_batching_config", "low_memory",
    # of what is returned beside tokens
    "output_attentions", "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate",
    # of beams
    "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty",
    # of drafts, which leave what is chosen as it is
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind", "target_lookbehind",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type", "use_mtp",
})  # fmt: skip
"""Settings of transformers' that do not bear on the tokens of one row."""


class Sampler:
    """Chooses tokens by the model's generation settings, with a request's own options on top.

    Raises:
        InputError: an option that is not one of these, or cannot be what it is; or the model's own settings ask for
            something that is not known here, and the options do not say otherwise.
    """

    def __init__(
        self, defaults: Mapping[str, Any], options: Mapping[str, Any], *, prompt_length: int, device: Any
    ) -> None:
        check_options(options, without_effect=_settings())
        given = {**{k: v for k, v in defaults.items() if k in GENERATION_OPTIONS and v is not None}, **options}
        if options.get("num_beams", 1) == 1:  # else transformers itself chooses
            _refuse_unknown(defaults, options)
        self.samples = bool(given.get("do_sample"))
        self.eos = _ids(given.get("eos_token_id"))
        self.pad, self.start = _pad(given, self.eos), start_of(given)
        extra = {"prompt_length_to_skip": prompt_length, "eos_token_id": self.eos, "device": device}
        self._processors = _made(_PROCESSORS, given, extra) + (_made(_WARPERS, given, extra) if self.samples else [])

    @property
    def looks_back(self) -> bool:
        """Whether the tokens so far bear on the next one."""
        return bool(self._processors)

    @property
    def is_argmax(self) -> bool:
        """Whether the next token is the likeliest, whatever came before."""
        return not self.samples and not self._processors

    def next(
        self, ids: torch.Tensor, logits: torch.Tensor, *, seed: int, step: int, rows: Sequence[int]
    ) -> torch.Tensor:
        """The next token of each row: int64 `[batch]`.

        Args:
            ids: what each row holds so far, `[batch, seq]`. logits: `[batch, vocab]`. rows: numbers of the rows.
        """
        scores = self.scores(ids, logits)
        if not self.samples:
            return scores.argmax(-1)
        chances = scores.softmax(-1)
        drawn = [
            torch.multinomial(row, 1, generator=generator(seed, _SAMPLING, number, step, device=row.device))
            for row, number in zip(chances, rows, strict=True)
        ]
        return torch.cat(drawn)

    def scores(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """What tokens are chosen by: float32 `[batch, vocab]`, -inf where none may be.

        Raises:
            InputError: an option does not go with this model.
        """
        scores = logits.to(torch.float32, copy=True)
        for process in self._processors:
            try:
                scores = process(ids, scores)
            except (ValueError, IndexError) as error:  # ids that this model has not, say
                raise InputError(f"generation options, {type(process).__name__}: {error}") from None
        return scores


def start_of(defaults: Mapping[str, Any]) -> int:
    """The token that a decoder begins with, by the model's own settings."""
    start = defaults.get("decoder_start_token_id")
    return _pad(defaults, _ids(defaults.get("eos_token_id"))) if start is None else int(start)


def _pad(given: Mapping[str, Any], eos: Sequence[int]) -> int:
    own = _ids(given.get("pad_token_id"))
    return next(iter([*own, *eos]), 0)


def _refuse_unknown(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """InputError: plain `generate` would do something here that is not done."""
    neutral, own = _neutral(), _settings()
    for name, value in defaults.items():
        if name not in own or name in GENERATION_OPTIONS - {"num_beams"} or name in _WITHOUT_EFFECT or name in options:
            continue
        if value is not None and value is not False and value != neutral.get(name):
            raise InputError(
                f"the model's generation_config has {name}={value!r}, which would change its tokens and is not known "
                f"here: give the option {name}={1 if name == 'num_beams' else None} to go on without it"
            )


@cache
def _settings() -> frozenset[str]:
    """Names of all settings of transformers' own."""
    from transformers import GenerationConfig

    return frozenset(GenerationConfig().to_dict())


@cache
def _neutral() -> Mapping[str, Any]:
    """What a setting is that nobody has set."""
    from transformers import GenerationConfig

    return dict(GenerationConfig._get_default_generation_params())


def settings_of(module: Any) -> dict[str, Any]:
    """The generation settings of a model as plain `generate` has them: transformers' own where it has set none."""
    settings = getattr(module, "generation_config", None)
    if settings is None:
        return {}
    return {**_neutral(), **{name: value for name, value in settings.to_dict().items() if value is not None}}


def _ids(value: Any) -> list[int]:
    """The ids of an option that is one, several or none."""
    return [] if value is None else [int(item) for item in value] if isinstance(value, list | tuple) else [int(value)]


def _made(kinds: Mapping[str, tuple[str, Any]], given: Mapping[str, Any], extra: Mapping[str, Any]) -> list[Any]:
    from transformers.generation import logits_process

    made = []
    for option, (name, neutral) in kinds.items():
        value = given.get(option, neutral)
        if value is None or value == neutral or (option in _UNTIL_EOS and not extra["eos_token_id"]):
            continue
        kind = getattr(logits_process, name)
        wanted = inspect.signature(kind.__init__).parameters
        own = {name: value if k == 0 else extra[name] for k, name in enumerate(_own(wanted, extra))}
        try:
            made.append(kind(**own))
        except (ValueError, TypeError) as error:
            raise InputError(f"{option}={value!r} cannot be: {error}") from None
    return made


def _own(wanted: Mapping[str, Any], extra: Mapping[str, Any]) -> list[str]:
    """The names under which a processor takes the option's value first, and what else it needs."""
    names = [name for name in wanted if name != "self"]
    main = next(name for name in names if name not in extra)
    return [
        main,
        *[name for name in names if name in extra and name in ("prompt_length_to_skip", "eos_token_id", "device")],
    ]
