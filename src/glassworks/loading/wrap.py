"""`gw.wrap`: a module in memory gets a runtime, a site table and a facade. It still behaves as before by itself."""

from typing import Any

import torch

from glassworks.engine.local import LocalBackend
from glassworks.engine.sampling import settings_of
from glassworks.errors import InputError, ModelError
from glassworks.graph.sites import SiteTable
from glassworks.loading.tables import ImageTables, ModelTables, PlainTables
from glassworks.model.anatomy import build_table
from glassworks.model.identity import unembed_is_plain
from glassworks.model.runs import reads_images
from glassworks.model.text import TokenizerText
from glassworks.run.eager import EagerRuntime
from glassworks.run.staged import StagedRuntime
from glassworks.run.unembed import UnembedByModel, unembed_by_modules
from glassworks.trace.facade import Model
from glassworks.trace.parts import Core


def wrap(module: torch.nn.Module, tokenizer: Any = None, *, name: str | None = None, stages: int = 1) -> Model:
    """A model of any `nn.Module`; a Hugging Face model gets its standard sites too.

    Args:
        module: left as it is: called by itself it behaves as before.
        tokenizer: of transformers; without one, prompts are token ids.
        name: what to call it. stages: 2 runs it as a pipeline of two stages in this process (forward only).

    Raises:
        ModelError: not a module, or one that does not run.
    """
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"wrap takes an nn.Module, got {type(module).__name__}; gw.load takes ids and folders")
    text = None if tokenizer is None else TokenizerText(tokenizer)
    if not is_pretrained(module):
        if text is not None or stages != 1:
            raise InputError("a tokenizer and stages belong to Hugging Face models; this is a plain module")
        backend = LocalBackend(EagerRuntime(module), PlainTables(module))
        table = backend.sites()
    else:
        backend = local_backend(module, stages=stages)
        table = backend.sites()
    own = name or getattr(getattr(module, "config", None), "name_or_path", "") or type(module).__name__
    return Model(
        Core(
            backend,
            text=text,
            table=table,
            name=own,
            device=lambda: backend.runtime.device or torch.device("cpu"),
        )
    )


def is_pretrained(module: torch.nn.Module) -> bool:
    """Whether a module is one of transformers'."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(module).__mro__)


def local_backend(module: torch.nn.Module, *, stages: int = 1) -> LocalBackend:
    """The backend of a Hugging Face model in memory."""
    table = build_table(module)
    runtime: EagerRuntime | StagedRuntime
    if stages == 1:
        runtime = EagerRuntime(module)
    elif stages == 2:
        runtime = StagedRuntime(module, table)
    else:
        raise InputError(f"stages is 1 or 2, got {stages}")
    if "logits" in table.sites and table.layers and table.vocab:
        runtime.unembed = _unembed(module, table, runtime)
    tables = ImageTables(module, table) if reads_images(module) else ModelTables(module, table)
    return LocalBackend(runtime, tables, defaults=settings_of(module))


def _unembed(module: torch.nn.Module, table: SiteTable, runtime: Any) -> Any:
    if not unembed_is_plain(module, table):
        return UnembedByModel(runtime.modules, table)
    prefix = "decoder." if table.encoder_decoder else ""
    return unembed_by_modules(runtime.modules, table.modules[f"{prefix}norm"], table.modules["lm_head"])
