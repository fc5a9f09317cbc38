"""Prompts in all the forms people hold them, as rows of token ids.

A text, a list of texts, ids (`[1, 2]` is one prompt), lists or tensors of ids, a chat (`[{...}]`) or several, and
what a tokenizer returned (a mapping with `input_ids`). What tokenises is a `Text`, which a backend's owner provides.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from glassworks.errors import InputError


class Text(Protocol):
    """A tokenizer, as far as blocks need one; `tokenizer` is the library's own."""

    tokenizer: Any

    def encode(self, prompt: str | Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Token ids of a text or a chat, with the special tokens that the model expects, once."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as the text it stands for."""

    def token(self, text: str) -> int:
        """The one id of a text; InputError if it is not one token."""

    def find(self, ids: Sequence[int], text: str, which: str) -> int:
        """The position of the last token of `text` among `ids`; InputError if absent or off a token boundary."""


def prompt_rows(prompt: Any, text: Text | None, *, vocab: int, positions: int = 0) -> tuple[tuple[int, ...], ...]:
    """`rows_of`, with every id checked against the size of the vocabulary (0: not known), and the rows' lengths
    against the model's positions (0: without end)."""
    rows = rows_of(prompt, text)
    for row in rows:
        if positions and len(row) > positions:
            raise InputError(
                f"a prompt of {len(row)} tokens is longer than the {positions} positions of this model: shorten it, or "
                f"give it in parts"
            )
        if vocab and not (min(row) >= 0 and max(row) < vocab):
            wrong = next(token for token in row if not 0 <= token < vocab)
            raise InputError(f"token ids of this model are 0 to {vocab - 1}; got {wrong}")
    return rows


def rows_of(prompt: Any, text: Text | None) -> tuple[tuple[int, ...], ...]:
    """Token ids, a tuple a row.

    Raises:
        InputError: says which forms a prompt may have.
    """
    if isinstance(prompt, Mapping):
        return _from_mapping(prompt)
    if isinstance(prompt, str):
        return (_encode(prompt, text),)
    if isinstance(prompt, torch.Tensor) or type(prompt).__module__ == "numpy":
        return rows_of(_id_lists(prompt), text)
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray) and len(prompt):
        if (ids := _as_ids(prompt)) is not None:
            return (ids,)
        if all(isinstance(item, Mapping) and "role" in item for item in prompt):
            return (_encode(prompt, text),)
        return tuple(row for item in prompt for row in rows_of(item, text))
    raise InputError(
        "a prompt is a text, token ids, a chat ([{'role': ..., 'content': ...}]) or a list of these; "
        f"got {_spell(prompt)}"
    )


def _as_ids(items: Sequence[Any]) -> tuple[int, ...] | None:
    """The items as ids, if each is a whole number: an int, or numpy's or torch's without axes."""
    found = []
    for item in items:
        if isinstance(item, str | bool | Mapping | list | tuple) or bool(getattr(item, "ndim", None)):
            return None
        try:
            found.append(operator.index(item))
        except TypeError:
            return None
    return tuple(found)


def _encode(prompt: Any, text: Text | None) -> tuple[int, ...]:
    if text is None:
        raise InputError("this model has no tokenizer: give token ids, or gw.wrap(model, tokenizer=...)")
    try:
        ids = text.encode(prompt)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - a tokenizer, or its chat template, raises anything
        raise InputError(f"the tokenizer does not take the prompt ({type(error).__name__}: {error})") from None
    if not ids:
        raise InputError(f"the prompt has no tokens: {prompt!r}")
    return ids


def _id_lists(prompt: Any) -> Any:
    ids = torch.as_tensor(prompt)
    if ids.is_floating_point() or ids.ndim not in (1, 2) or not ids.numel():
        raise InputError(
            f"token ids are whole numbers [seq] or [batch, seq]; got {ids.dtype} of shape {list(ids.shape)}"
        )
    return ids.tolist()


def _from_mapping(prompt: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    if "input_ids" not in prompt:
        raise InputError(f"a mapping as a prompt needs input_ids; got {sorted(prompt)}. A chat is a list of messages")
    ids, mask = _rows_in(prompt, "input_ids"), _rows_in(prompt, "attention_mask")
    if [len(row) for row in mask] != [len(row) for row in ids] and mask:
        raise InputError("attention_mask is of another shape than input_ids")
    mask = mask or [(1,) * len(row) for row in ids]
    rows = tuple(
        tuple(token for token, keep in zip(row, kept, strict=True) if keep) for row, kept in zip(ids, mask, strict=True)
    )
    if not rows or not all(rows):
        raise InputError("a row of input_ids has no tokens left under its attention_mask")
    return rows


def _rows_in(prompt: Mapping[str, Any], name: str) -> list[tuple[int, ...]]:
    """The rows of one entry of a mapping; none if it is not there. A mask may be of bools."""
    value = _listed(prompt.get(name))
    if value is None:
        return []
    nested = isinstance(value, list | tuple) and bool(value) and isinstance(value[0], list | tuple)
    found = [_whole_numbers(row, or_bools=name == "attention_mask") for row in (value if nested else [value])]
    if None in found:
        raise InputError(f"{name} is a list of whole numbers, or a list of such lists; got {_spell(value)}")
    return [row for row in found if row is not None]


def _whole_numbers(row: Any, *, or_bools: bool) -> tuple[int, ...] | None:
    if not isinstance(row, list | tuple):
        return None
    return _as_ids([int(item) if or_bools and isinstance(item, bool) else item for item in row])


def _listed(value: Any) -> Any:
    """Nested lists of an array, a tensor or lists."""
    return value.tolist() if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy" else value


def _spell(prompt: Any) -> str:
    return f"{type(prompt).__name__} {str(prompt)[:60]!r}"
