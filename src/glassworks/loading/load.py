"""`gw.load`: real loading code for Hugging Face ids and folders, and the bundled toy.

Configuration and tokenizer are read at once, weights when something runs: until then the site table comes from a copy
of the model without weights. Weights are read from safetensors only; nothing is ever unpickled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from glassworks.engine.local import HasLocal, LocalBackend
from glassworks.errors import ModelError
from glassworks.graph.backend import Draft, Experiment, Generation, Inputs, Live, Results
from glassworks.graph.graph import Graph
from glassworks.graph.jobs import Job
from glassworks.graph.sites import SiteTable
from glassworks.loading.wrap import local_backend
from glassworks.model.anatomy import build_table_fake
from glassworks.model.text import TokenizerText
from glassworks.trace.facade import Model
from glassworks.trace.parts import Core

_LITTLE_BYTES = 200 * 10**6


def load(
    name: str | Path, *, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> Model:
    """A model by name.

    Args:
        name: `"toy"` (bundled), a Hugging Face id, or a folder in its format.
        dtype: number format of the weights; None takes the checkpoint's own (the toy: float32).
        device: where the weights go; None takes an accelerator if there is one.

    Raises:
        ModelError: no such model, no safetensors, a number format that does not exist.
    """
    path = str(files("glassworks.model") / "toy") if name == "toy" else str(name)
    own_dtype = _dtype("float32" if dtype is None and name == "toy" else dtype)
    own_device = torch.device(device) if device is not None else _default_device()
    source = _Source(str(name), path, own_dtype, own_device)
    text = source.text()
    return Model(Core(source, text=text, table=source.sites(), name=str(name), device=own_device))


def _default_device() -> torch.device:
    return (
        torch.accelerator.current_accelerator() or torch.device("cpu")
        if torch.accelerator.is_available()
        else torch.device("cpu")
    )


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    if dtype is None:
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ModelError(f"dtype is a torch number format such as 'float32' or 'bfloat16', got {dtype!r}")
    return found


class _Source(HasLocal):
    """A backend whose weights are read when they are first needed."""

    def __init__(self, name: str, path: str, dtype: torch.dtype | str, device: torch.device) -> None:
        self._name, self._path, self._dtype, self._device = name, path, dtype, device
        self._lock = Lock()
        self._loaded: LocalBackend | None = None
        self._config = _quietly(name, lambda: _auto("AutoConfig").from_pretrained(path))
        self._table = self._table_without_weights()

    def text(self) -> TokenizerText | None:
        """The tokenizer, if the model has one."""
        try:
            return TokenizerText(_auto("AutoTokenizer").from_pretrained(self._path))
        except (OSError, ValueError, KeyError):
            return None

    def _table_without_weights(self) -> SiteTable:
        kind = _kind(self._config)
        wanted = self._dtype if isinstance(self._dtype, torch.dtype) else getattr(self._config, "dtype", None)
        try:
            return build_table_fake(lambda: kind._from_config(self._config, dtype=wanted or torch.float32))
        except ModelError:
            return self.loaded.sites()

    @property
    def loaded(self) -> LocalBackend:
        """The backend with its weights, read now if need be."""
        with self._lock:
            if self._loaded is None:
                with _no_bar_for_little(self._path):
                    module = _quietly(self._name, self._read)
                self._loaded = local_backend(module.to(self._device).eval())
            return self._loaded

    @property
    def local(self) -> LocalBackend:
        """What runs it, with its weights."""
        return self.loaded

    def _read(self) -> Any:
        return _kind(self._config).from_pretrained(self._path, dtype=self._dtype, use_safetensors=True)

    def sites(self, inputs: Inputs | None = None, *, within: frozenset[str] = frozenset()) -> SiteTable:
        """The site table, known without weights unless operations inside modules are asked for."""
        if self._loaded is None and within <= set(self._table.within):
            return self._table
        return self.loaded.sites(inputs, within=within)

    def run(self, graph: Graph, inputs: Inputs, generation: Generation | None = None) -> Results:
        """Run a graph; see `engine.local`."""
        return self.loaded.run(graph, inputs, generation)

    def run_session(self, experiments: Sequence[Experiment]) -> list[Results]:
        """Several experiments in order."""
        return self.loaded.run_session(experiments)

    def submit(self, experiments: Sequence[Experiment]) -> Job:
        """Several experiments in order, at once; a job that has ended."""
        return self.loaded.submit(experiments)

    def live(self, draft: Draft, inputs: Inputs, *, within: frozenset[str] = frozenset()) -> Live:
        """Begin to run an experiment while it is written; see `engine.local`."""
        return self.loaded.live(draft, inputs, within=within)


@contextmanager
def _no_bar_for_little(path: str) -> Iterator[None]:
    """transformers shows a progress bar for each model it reads; a model that is read in a moment needs none."""
    from transformers.utils import logging

    folder = Path(path)
    little = folder.is_dir() and sum(file.stat().st_size for file in folder.glob("*.safetensors")) < _LITTLE_BYTES
    if not little or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _auto(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _kind(config: Any) -> Any:
    """The class of a configuration's model: the one that it names, or the one for its kind of text model."""
    import transformers

    for name in getattr(config, "architectures", None) or []:
        if (kind := getattr(transformers, name, None)) is not None:
            return kind
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    return auto._model_mapping[type(config)]


def _quietly(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot load {name!r}: {error}\n  expected 'toy', a Hugging Face id, or a folder with config.json and "
            f"safetensors weights"
        ) from error
