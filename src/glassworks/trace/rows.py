"""The rows of one invoke, from what a person gave: a prompt, and arguments for the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from glassworks.errors import GlassworksError, InputError
from glassworks.graph.backend import Rows
from glassworks.trace.parts import Core
from glassworks.trace.prompts import prompt_rows
from glassworks.trace.recorder import caller


def make_rows(core: Core, prompt: tuple[Any, ...], arguments: Mapping[str, Any]) -> Rows:
    """One invoke's rows from what the user gave. InputError carries the line."""
    if core.table.plain:
        return Rows(args=prompt, kwargs=dict(arguments))
    if len(prompt) != 1:
        given = arguments.pop("input_ids") if not prompt and "input_ids" in arguments else None  # type: ignore[attr-defined]
        if given is None:
            raise InputError(
                f"expected one prompt (a text, ids, a chat, or a list of them), got {len(prompt)}\n  at {caller()}"
            )
        prompt = (given,)
    for name in arguments:
        if (why := core.table.why_not_argument(name)) is not None:
            raise InputError(f"{why}\n  at {caller()}")
    try:
        ids = prompt_rows(prompt[0], core.text, vocab=core.table.vocab, positions=core.table.positions)
    except GlassworksError as error:
        raise type(error)(f"{error}\n  at {caller()}") from None
    return Rows(ids=ids, kwargs=dict(arguments))


def decoder_length(own: Sequence[Rows]) -> int:
    """How many tokens the decoder of an encoder-decoder reads: one, unless it was given some."""
    lengths = [
        torch.as_tensor(rows.kwargs["decoder_input_ids"]).shape[-1]
        for rows in own
        if "decoder_input_ids" in rows.kwargs
    ]
    return max(lengths, default=1)
