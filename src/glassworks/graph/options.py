"""What a generation may be asked for besides its length: transformers' names of options, and what may stand at each."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from glassworks.errors import InputError


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_whole, value))


_FLAG = ("true or false", lambda value: type(value) is bool)
_WHOLE = ("a whole number of at least 0", _is_whole)
_NUMBER = ("a number", _is_number)
_ID = ("a token id", _is_whole)
_IDS = ("a token id, or a list of them", lambda value: _is_whole(value) or _is_list(value))
_TEXTS = ("a list of lists of token ids", lambda value: isinstance(value, list | tuple) and all(map(_is_list, value)))

_WHAT: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "do_sample": _FLAG,
    **dict.fromkeys(("eos_token_id", "suppress_tokens"), _IDS),
    **dict.fromkeys(("pad_token_id", "decoder_start_token_id"), _ID),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "min_length", "min_new_tokens"), _WHOLE),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), _NUMBER),
    "repetition_penalty": _NUMBER,
    "bad_words_ids": _TEXTS,
    "num_beams": ("an int of at least 1", lambda value: type(value) is int and value >= 1),
}
GENERATION_OPTIONS = frozenset(_WHAT)
_NEVER_NONE = frozenset({"num_beams"})


def check_options(options: Mapping[str, Any], *, without_effect: Iterable[str] = ()) -> None:
    """Refuse options that are not known here, or are not what they must be. None is for what nobody asks for.

    Args:
        without_effect: names of others that may be there, as None.

    Raises:
        InputError: names the option.
    """
    others = frozenset(without_effect)
    for name, value in options.items():
        if name not in _WHAT and (value is not None or name not in others):
            raise InputError(f"the generation option {name!r} is not known here; known: {sorted(GENERATION_OPTIONS)}")
        if value is None and name not in _NEVER_NONE:
            continue
        what, holds = _WHAT[name]
        if not holds(value):
            raise InputError(f"the generation option {name!r} must be {what}, got {str(value)[:100]!r}")


def beams_of(options: Mapping[str, Any]) -> int:
    """How many beams each row has.

    Raises:
        InputError: it is not a number of beams.
    """
    beams: int = options.get("num_beams", 1)
    check_options({"num_beams": beams})
    return beams
