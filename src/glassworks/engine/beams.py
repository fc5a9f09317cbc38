"""Beam search, by transformers' own `generate`: rows there are candidates that change places, so no sites are shown."""

from typing import Any

import torch

from glassworks.engine.batch import Batch
from glassworks.engine.loop import Generated
from glassworks.errors import GraphError, InputError
from glassworks.graph.backend import Draft
from glassworks.graph.place import Forward
from glassworks.graph.sites import SiteTable


def refuse_sites(graph: Draft, forward: Forward, table: SiteTable) -> None:
    """GraphError: a site is read or written under beam search."""
    touched = [n for event, own in forward.actions if event < len(table.events) for n in own]
    if touched:
        raise GraphError(
            f"under beam search a row is one of several beams that change places, so no site can be read or written, "
            f"only t.result; generate without num_beams\n  at {graph.where(min(touched))}"
        )


def search(
    module: Any, batch: Batch, options: dict[str, Any], *, max_new_tokens: int, seed: int, eos: list[int], pad: int
) -> Generated:
    """The best beam of each row.

    Raises:
        InputError: `max_new_tokens` is 0; transformers does not take the options together.
    """
    if not max_new_tokens:
        raise InputError("beam search needs max_new_tokens of at least 1")
    own = {"eos_token_id": eos or None, "pad_token_id": pad, **options}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        try:
            found = module.generate(
                batch.ids, attention_mask=batch.mask.long(), max_new_tokens=max_new_tokens, **dict(batch.kwargs), **own
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"beam search: {error}") from None
    before = batch.kwargs["decoder_input_ids"].shape[1] if "decoder_input_ids" in batch.kwargs else 1
    tokens = found[:, before if module.config.is_encoder_decoder else batch.ids.shape[1] :]
    alive = [torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)]
    for k in range(1, tokens.shape[1]):
        ended = torch.stack([tokens[:, k - 1] == end for end in eos]).any(0) if eos else ~alive[0]
        alive.append(alive[-1] & ~ended)
    return Generated(tokens, alive, tokens.shape[1])
