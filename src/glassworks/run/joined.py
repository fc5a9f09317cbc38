"""The padded fallback: rows that cannot be packed decode together, one token each, in one padded pass.

For families that ignore the registered attention function but keep ordinary keys and values (BLOOM, Falcon, GPT-J):
each row's cache stays its own; for a step their keys and values are padded at the left to the longest, and what the
step added is handed back. It copies all of them at every step, which a store of blocks does not: it is the second
choice. Prompts run alone. Like packing, it is tried when an engine is made, and refused where rows do not come out as
alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glassworks.errors import ModelError
from glassworks.graph.nodes import ALL_ROWS
from glassworks.graph.sites import SiteTable
from glassworks.model.record import record
from glassworks.model.runs import Run
from glassworks.run.eager import EagerRuntime
from glassworks.run.interpret import Interpreter
from glassworks.run.modules import Stopped
from glassworks.run.packing import RowsWatch, Speaking, agree, refuse_dynamic_rotary
from glassworks.run.rows import Slot
from glassworks.run.unlike import unlike


@dataclass(slots=True)
class Row:
    """One row that decodes: its last token, the cache of those before it, and what looks on, if anything does."""

    token: int
    cache: Any
    interpreter: Interpreter | None = None

    @property
    def past(self) -> int:
        """How many tokens its cache holds."""
        return int(self.cache.layers[0].keys.shape[-2])


@dataclass(slots=True)
class Decoded:
    """What a step gave: for each row its logits `[1, vocab]`, and what the graphs of some have raised."""

    logits: list[Tensor] | None
    failures: dict[int, Exception]


class JoinedRuntime:
    """Decodes rows together.

    Attributes:
        speaking: whose nodes execute now. unlike: sites that a joined step does not show as a lone run does.

    Raises:
        ModelError: this model's rows cannot be joined; the message says why.
    """

    def __init__(self, eager: EagerRuntime, table: SiteTable) -> None:
        self.eager, self.module, self.table = eager, eager.module, table
        self.speaking = Speaking()
        if table.encoder_decoder or table.plain:
            raise ModelError("only decoders that read tokens are joined")
        for config in {id(m.config): m.config for m in self.module.modules() if _is_configured(m)}.values():
            refuse_dynamic_rotary(config)
        self.unlike = self._checked()

    def _checked(self) -> frozenset[str]:
        """Compare rows of several lengths, decoded together, with the same rows alone; gives the sites that differ.

        Raises:
            ModelError: they differ, or their caches are not plain keys and values.
        """
        source = torch.Generator().manual_seed(0)
        rows = [torch.randint(0, self.table.vocab or 3, (n,), generator=source).tolist() for n in (7, 2, 11)]
        joined = [Row(row[-1], self._prefilled(row[:-1])) for row in rows]
        for own in joined:
            refuse_cache(own.cache)
        try:
            together = self.step(joined).logits
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
            raise ModelError(f"its rows do not run together: {error}") from error
        assert together is not None
        for row, ours in zip(rows, together, strict=True):
            with torch.no_grad():
                alone = self.module(input_ids=self._ids([row]), use_cache=False)["logits"][0, -1]
            if (apart := agree(ours[0], alone)) is not None:
                raise ModelError(f"decoded together, its rows give other logits than alone (by {apart:.1e})")
        return self._shown_unlike(joined) | self._shown_unlike(joined[:1])  # and what is not there in a lone run

    def _shown_unlike(self, rows: Sequence[Row]) -> frozenset[str]:
        """Sites that are not there when these rows take a step, or have another shape than they should."""
        longest = max(row.past for row in rows)
        inputs = self._inputs(rows, longest)
        if len(rows) == 1:
            del inputs["attention_mask"]  # a lone run has none
        sizes = {"batch": len(rows), "seq": 1, "context": longest + 1}
        return unlike(self.table, record(self.module, Run((), inputs, sizes), self.table.within), sizes)

    def _prefilled(self, row: Sequence[int]) -> Any:
        with torch.no_grad():
            returned = self.module(input_ids=self._ids([row]), use_cache=True)
        return returned.get("past_key_values")

    def _ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([list(row) for row in rows], device=self.eager.device)

    def step(self, rows: Sequence[Row]) -> Decoded:
        """One pass; each row's cache then holds its token too."""
        pasts = [row.past for row in rows]
        longest = max(pasts)
        inputs = self._inputs(rows, longest)
        self._place(rows, pasts, longest)
        looking = [row.interpreter for row in rows if row.interpreter is not None]
        watch = RowsWatch(self.eager, looking, None, self.speaking, to_the_end=True)
        returned: Any = None
        modules = self.eager.modules
        with torch.no_grad(), suppress(Stopped), modules.watched(watch.visits, watch, attending=watch.inner.attending):
            returned = self.module(**inputs)
        for k, row in enumerate(rows):
            _hand_back(row.cache, inputs["past_key_values"], k)
            if row.interpreter is not None:
                row.interpreter.places = None
        failures = {k: e for k, row in enumerate(rows) for look, e in watch.failures.items() if look is row.interpreter}
        return Decoded(list(returned["logits"][:, -1:].unbind(0)), failures)

    def _inputs(self, rows: Sequence[Row], longest: int) -> dict[str, Any]:
        lengths = torch.tensor([row.past for row in rows], device=self.eager.device)[:, None]
        mask = torch.arange(longest + 1, device=self.eager.device)[None] >= longest - lengths
        return {
            "input_ids": self._ids([[row.token] for row in rows]), "attention_mask": mask.long(),
            "position_ids": lengths, "past_key_values": _joined([row.cache for row in rows], longest),
            "use_cache": True,
        }  # fmt: skip

    def _place(self, rows: Sequence[Row], pasts: Sequence[int], longest: int) -> None:
        sizes = {"batch": len(rows), "seq": 1, "context": longest + 1}
        for k, (row, past) in enumerate(zip(rows, pasts, strict=True)):
            if row.interpreter is not None:
                slot = Slot(k, 1, {"seq": 1, "context": past + 1}, {}, False)
                row.interpreter.places = _Everywhere({0: slot, ALL_ROWS: slot}, sizes)


class _Everywhere:
    """The same place at every event."""

    __slots__ = ("_place",)

    def __init__(self, slots: Mapping[int, Slot], sizes: Mapping[str, int]) -> None:
        self._place = slots, sizes

    def __call__(self, order: int) -> tuple[Mapping[int, Slot], Mapping[str, int]]:
        return self._place


def _is_configured(module: torch.nn.Module) -> bool:
    """Whether a module has a configuration of transformers'."""
    from transformers import PretrainedConfig

    return isinstance(getattr(module, "config", None), PretrainedConfig)


def refuse_cache(cache: Any) -> None:
    """ModelError: a cache holds something else than keys and values that grow."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    kinds = {type(layer).__name__ for layer in cache.layers} if type(cache) is DynamicCache else {type(cache).__name__}
    if kinds != {DynamicLayer.__name__}:
        raise ModelError(f"its cache is {', '.join(sorted(kinds))}, not keys and values of all tokens")


def _joined(caches: Sequence[Any], longest: int) -> Any:
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    for layer in range(len(caches[0].layers)):
        each = [own.layers[layer] for own in caches]
        cache.update(
            _padded([own.keys for own in each], longest), _padded([own.values for own in each], longest), layer
        )
    return cache


def _padded(rows: Sequence[Tensor], longest: int) -> Tensor:
    """Rows `[1, heads, tokens, dim]` under each other, with zeros at the left: `[rows, heads, longest, dim]`."""
    first = rows[0]
    whole = first.new_zeros(len(rows), first.shape[1], longest, first.shape[3])
    for k, row in enumerate(rows):
        whole[k, :, longest - row.shape[-2] :] = row[0]
    return whole


def _hand_back(cache: Any, joined: Any, row: int) -> None:
    """Give a row the key and the value of its new token."""
    for layer, (own, all_rows) in enumerate(zip(cache.layers, joined.layers, strict=True)):
        cache.update(all_rows.keys[row : row + 1, :, -1:], all_rows.values[row : row + 1, :, -1:], layer)
        assert own.keys.shape[-2] <= all_rows.keys.shape[-2]


def cut_back(cache: Any, tokens: int) -> None:
    """Leave so many tokens in a cache: a step that was broken off may have given some layers one more."""
    for layer in cache.layers:
        layer.crop(min(tokens - layer.keys.shape[-2], 0))
