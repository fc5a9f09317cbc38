"""Which axes are as long as what attention looks back at, and not as what enters: told apart by one step that decodes.

Over a prompt the two are one length, and small runs cannot tell them apart; with a cache, one token enters and all
before it are looked back at. What follows from this is which part of an axis is a row's own in a padded batch.

Surprise: a family whose step cannot be run by itself keeps what is true of all that are known: of two axes of tokens
the last is what is looked back at.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from glassworks.errors import ModelError
from glassworks.graph.sites import Axis, Site, SiteTable
from glassworks.model.record import Item, Seen, record, undisturbed
from glassworks.model.runs import Run, small_runs

_CACHE = "past_key_values"
_SEQ, _CONTEXT = "seq", "context"


def with_contexts(module: nn.Module, table: SiteTable) -> SiteTable:
    """The table with those axes labelled `context`."""
    if not any(_SEQ in site.axes for site in table.sites.values()):
        return table
    found = _decoded(module, small_runs(module)[0], table)
    lengths = {} if found is None else _shapes(found[0])
    context = 0 if found is None else found[1]
    sites = {}
    for name, site in table.sites.items():
        event = table.event_of(site)
        shape = lengths.get((event.path, event.port, event.call, site.item))
        sites[name] = replace(site, axes=_axes(site, shape, context))
    return replace(table, sites=sites)


def _axes(site: Site, shape: tuple[int, ...] | None, context: int) -> tuple[Axis, ...]:
    if shape is not None and len(shape) == len(site.axes):
        return tuple(
            _CONTEXT if axis == _SEQ and size == context else axis for axis, size in zip(site.axes, shape, strict=True)
        )
    first = site.axes.index(_SEQ) if _SEQ in site.axes else 0
    return tuple(_CONTEXT if axis == _SEQ and k > first else axis for k, axis in enumerate(site.axes))


def _shapes(events: list[Seen]) -> Mapping[tuple[str, str, int, Item], tuple[int, ...]]:
    return {(*event.key, item): tuple(leaf.tensor.shape) for event in events for item, leaf in event.leaves.items()}


def _decoded(module: nn.Module, prompt: Run, table: SiteTable) -> tuple[list[Seen], int] | None:
    """What passes in the step after a prompt, and how many tokens it looks back at; None: it cannot be run."""
    ids = "decoder_input_ids" if table.encoder_decoder or "decoder_input_ids" in prompt.kwargs else "input_ids"
    if "use_cache" not in prompt.kwargs or ids not in prompt.kwargs:
        return None
    try:
        with undisturbed(module):
            returned = replace(prompt, kwargs={**prompt.kwargs, "use_cache": True}).call(module)
        cache = returned.get(_CACHE) if hasattr(returned, "get") else None
        if cache is None:
            return None
        return record(module, _next(prompt, ids, cache), table.within), prompt.sizes[_SEQ] + 1
    except ModelError:
        return None


def _next(prompt: Run, ids: str, cache: Any) -> Run:
    """One more token of each row, after those of the prompt."""
    before: Tensor = prompt.kwargs[ids]
    own: dict[str, Any] = {ids: before[:, :1], _CACHE: cache, "use_cache": True}
    if "position_ids" in prompt.kwargs:
        own["position_ids"] = torch.full_like(before[:, :1], before.shape[1])
    return replace(prompt, kwargs={**prompt.kwargs, **own})
