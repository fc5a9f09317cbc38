"""The runtimes that every law is asked of: one model of each family, and five ways to run it.

A new runtime joins the laws by one more entry in `KINDS`.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import glassworks as gw
from families import FAMILIES
from undisturbed import undisturbed_service

SOURCE_ONLY = ("t5",)
"""Families with an encoder: a prompt is what the encoder reads."""


@dataclass(frozen=True)
class Runtime:
    """A model of a family on a runtime. `bare` is the same model as transformers has it, in this process."""

    family: str
    kind: str
    bare: torch.nn.Module
    model: Any

    @property
    def two(self) -> bool:
        """Whether there is an encoder."""
        return self.family in SOURCE_ONLY

    @property
    def layers(self) -> Any:
        """The layers of the stack that ends in the logits."""
        return self.model.decoder.layers if self.two else self.model.layers

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What goes to the model beside a lone prompt, so that every stack reads several tokens."""
        return {"decoder_input_ids": torch.tensor([[0, 11, 12, 13]])} if self.two else {}

    def forward(self, prompt: list[int], **arguments: Any) -> Any:
        """The plain forward of the bare module."""
        own = dict(arguments)
        if self.two:
            own.setdefault("decoder_input_ids", torch.tensor([[0]]))
        with torch.no_grad():
            return self.bare(input_ids=torch.tensor([prompt]), use_cache=False, **own)

    def __repr__(self) -> str:
        return f"{self.family}-{self.kind}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


class Services:
    """Real services, one a family, each started when it is first asked for."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._models: dict[str, Any] = {}

    def model(self, family: str) -> Any:
        if family not in self._models:
            path = str(self._folder(family))
            bare(family).save_pretrained(path)
            running = self._open.enter_context(undisturbed_service(path))
            lab = gw.connect(running.url, api_key=running.key)
            [name] = lab.models()
            self._models[family] = lab.model(name)
        return self._models[family]

    def close(self) -> None:
        self._open.close()


@cache
def bare(family: str) -> torch.nn.Module:
    return FAMILIES[family]()


@cache
def eager(family: str) -> Any:
    return gw.wrap(bare(family), name=family)


@cache
def staged(family: str) -> Any:
    return gw.wrap(bare(family), name=family, stages=2)


@cache
def engine(family: str) -> Any:
    """Blocks run among an engine's requests: packed where rows can be told apart, else by themselves."""
    return eager(family).on(gw.Engine(eager(family), kv=gw.KVBudget(device="4MiB", host="16MiB"), poison=True))


@cache
def in_process(family: str) -> Any:
    return gw.connect(eager(family))


class Lived:
    """A model whose traces run line by line, for laws whose blocks are written in the order of the forward pass."""

    def __init__(self, model: Any) -> None:
        self.__dict__["_model"] = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, "live" if name == "trace" else name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)


KINDS: dict[str, Callable[[str, Services], Any]] = {
    "eager": lambda family, services: eager(family),
    "staged": lambda family, services: staged(family),
    "engine": lambda family, services: engine(family),
    "inprocess": lambda family, services: in_process(family),
    "http": lambda family, services: services.model(family),
}


def lived(family: str) -> Runtime:
    return Runtime(family, "live", bare(family), Lived(eager(family)))


def runtime(family: str, kind: str, services: Services) -> Runtime:
    if kind == "live":
        return lived(family)
    return Runtime(family, kind, bare(family), KINDS[kind](family, services))


def local(family: str) -> Runtime:
    return Runtime(family, "eager", bare(family), eager(family))
