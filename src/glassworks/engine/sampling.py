"""How the next token is chosen: transformers' own logits processors, and draws that do not depend on the batch."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from glassworks.errors import InputError
from glassworks.run.random import generator

_SAMPLING = -2
"""Stands in the place of a node in the key of a draw."""

_OWN = frozenset({"eos_token_id", "pad_token_id", "decoder_start_token_id", "do_sample"})
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
    "suppress_tokens": ("SuppressTokensLogitsProcessor", None),
    "bad_words_ids": ("NoBadWordsLogitsProcessor", None),
    "min_new_tokens": ("MinNewTokensLengthLogitsProcessor", 0),
}


class Sampler:
    """Chooses tokens by the model's generation settings, with a request's own options on top.

    Raises:
        InputError: an option that is not one of these.
    """

    def __init__(
        self, defaults: Mapping[str, Any], options: Mapping[str, Any], *, prompt_length: int, device: Any
    ) -> None:
        beams_of(options)
        known = _OWN | set(_WARPERS) | set(_PROCESSORS) | {"num_beams"}
        if unknown := sorted(set(options) - known):
            raise InputError(f"unknown generation options: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        given = {**{k: v for k, v in defaults.items() if k in known and v is not None}, **options}
        self.samples = bool(given.get("do_sample", False))
        self.eos = _as_list(given.get("eos_token_id"))
        self.pad = given.get("pad_token_id", self.eos[0] if self.eos else 0)
        self.start = given.get("decoder_start_token_id", self.pad)
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
        scores = logits.to(torch.float32, copy=True)
        for process in self._processors:
            scores = process(ids, scores)
        if not self.samples:
            return scores.argmax(-1)
        chances = scores.softmax(-1)
        drawn = [
            torch.multinomial(row, 1, generator=generator(seed, _SAMPLING, number, step, device=row.device))
            for row, number in zip(chances, rows, strict=True)
        ]
        return torch.cat(drawn)


def beams_of(options: Mapping[str, Any]) -> int:
    """How many beams each row has.

    Raises:
        InputError: it is not a number of beams.
    """
    beams = options.get("num_beams", 1)
    if type(beams) is not int or beams < 1:
        raise InputError(f"num_beams must be an int of at least 1, got {beams!r}")
    return beams


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(item) for item in value] if isinstance(value, list | tuple) else [int(value)]


def _made(kinds: Mapping[str, tuple[str, Any]], given: Mapping[str, Any], extra: Mapping[str, Any]) -> list[Any]:
    from transformers.generation import logits_process

    made = []
    for option, (name, neutral) in kinds.items():
        value = given.get(option, neutral)
        if value is None or value == neutral:
            continue
        kind = getattr(logits_process, name)
        wanted = inspect.signature(kind.__init__).parameters
        made.append(kind(**{own: value if k == 0 else extra[own] for k, own in enumerate(_own(wanted, option, extra))}))
    return made


def _own(wanted: Mapping[str, Any], option: str, extra: Mapping[str, Any]) -> list[str]:
    """The names under which a processor takes the option's value first, and what else it needs."""
    names = [name for name in wanted if name != "self"]
    main = next(name for name in names if name not in extra)
    return [
        main,
        *[name for name in names if name in extra and name in ("prompt_length_to_skip", "eos_token_id", "device")],
    ]
