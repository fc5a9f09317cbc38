"""From the last residual to the logits, as a pure function.

Where the final norm and the head are all there is between, they are called. Where a family does more (T5 scales, Gemma
caps), the model's own forward is run with its layers passed over: each returns the given residual.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from glassworks.graph.sites import SiteTable
from glassworks.run.modules import Modules
from glassworks.run.structures import built


def unembed_by_modules(modules: Modules, norm: str, head: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The head on the norm, by their paths: residual `[..., d_model]` -> logits `[..., vocab]`."""
    return lambda resid: modules.current(head)(modules.current(norm)(resid))


class UnembedByModel:
    """The whole model, its layers passed over."""

    def __init__(self, modules: Modules, table: SiteTable) -> None:
        self._modules, self._table = modules, table
        self._layers = table.layers["decoder" if table.encoder_decoder else ""]

    def __call__(self, resid: torch.Tensor) -> torch.Tensor:
        """Residual `[..., d_model]` -> logits `[..., vocab]`."""
        flat = resid.reshape(-1, 1, resid.shape[-1])
        ids = torch.zeros(flat.shape[:2], dtype=torch.long, device=flat.device)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if self._table.encoder_decoder:
            from transformers.modeling_outputs import BaseModelOutput

            inputs = {
                "decoder_input_ids": ids,
                "encoder_outputs": BaseModelOutput(last_hidden_state=flat),
                "use_cache": False,
            }
        with self._modules.watched(self._layers, _PassOver(self._modules, self._table, flat)):
            logits = self._modules.root(**inputs)["logits"]
        return logits.reshape(*resid.shape[:-1], logits.shape[-1])  # type: ignore[no-any-return]


class _PassOver:
    def __init__(self, owner: Modules, table: SiteTable, resid: torch.Tensor) -> None:
        self.token, self._table, self._resid = owner.token, table, resid
        self._layers = table.layers["decoder" if table.encoder_decoder else ""]

    def visit(self, path: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if path not in self._layers:
            return forward(*args, **kwargs)
        event = self._table.events[self._table.by_event[(path, "output", 0)]]
        return built(event.structure, self._resid)
