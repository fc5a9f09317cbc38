"""A family in a place where it can be run: here, through `gw.connect`, line by line, over HTTP."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import glassworks as gw
from contract.oracle import Oracle, build, oracle_of
from contract.text import tokenizer
from lines import told
from undisturbed import undisturbed_service

DECODERS = ("gpt2", "llama", "qwen3", "mixtral")
PROMPT = [29, 68, 49, 86, 93]
SOURCE = [60, 14, 74, 45, 41]
START = torch.tensor([[0, 11, 12, 13]])
OTHER = [11, 12, 13]


@dataclass(frozen=True)
class Place:
    """`bare` is the wrapped module where that is in this process, else None."""

    family: str
    kind: str
    model: Any
    bare: Any

    @property
    def oracle(self) -> Oracle:
        return oracle_of(self.family)

    @property
    def live(self) -> bool:
        return self.kind == "live"

    @property
    def here(self) -> bool:
        """Whether the user's code and the model are in one process, without a codec between them."""
        return self.kind in ("local", "live")

    @property
    def stack(self) -> str:
        """Where the module keeps its layers."""
        return "transformer.h" if self.family == "gpt2" else "model.layers"

    @property
    def embed(self) -> str:
        """The module that runs once each step."""
        return "transformer.wte" if self.family == "gpt2" else "model.embed_tokens"

    def block(self, *prompt: Any, **arguments: Any) -> Any:
        """A block over one forward: a trace, or the same line by line."""
        return (self.model.live if self.live else self.model.trace)(*prompt, **arguments)

    def site(self, name: str) -> Any:
        return read(self.model, name)

    @contextmanager
    def counted(self, *paths: str) -> Iterator[list[str]]:
        """Which of these modules ran, in order; of a service elsewhere nothing can be counted."""
        ran: list[str] = []
        with ExitStack() as stack:
            for path in paths:
                own = self.bare.get_submodule(path)
                handle = own.register_forward_pre_hook(lambda *_, path=path: ran.append(path))
                stack.callback(handle.remove)
            yield ran

    def __repr__(self) -> str:
        return f"{self.family}-{self.kind}"


def parent(model: Any, name: str) -> tuple[Any, str]:
    *path, port = name.split(".")
    for part in path:
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model, port


def read(model: Any, name: str) -> Any:
    """`layers.1.attn.output` of a model, as a person would write it."""
    return getattr(*parent(model, name))


def write(model: Any, name: str, value: Any) -> None:
    own, port = parent(model, name)
    setattr(own, port, value)


def close(got: Any, expected: torch.Tensor, *, tolerance: float = 1e-5) -> None:
    """Equal to a tensor, to the tolerance of the laws."""
    torch.testing.assert_close(torch.as_tensor(got), expected.detach(), atol=tolerance, rtol=tolerance)


def same(got: Any, expected: torch.Tensor) -> None:
    """The same whole numbers."""
    assert torch.as_tensor(got).tolist() == expected.tolist()


def names(error: Any, line: str) -> bool:
    """Whether an error tells `file:line`; what a service answers names the file without its folders."""
    return re.search(rf"{re.escape(Path(line).name)}\b", told(error.value)) is not None


def refused(error: Exception, pattern: str) -> None:
    """That an error gives a reason."""
    assert re.search(pattern, str(error)), f"expected {pattern!r} in: {error}"


@cache
def wrapped(family: str) -> tuple[Any, Any]:
    """The module and its model; made once."""
    bare = build(family)
    return bare, gw.wrap(bare, tokenizer(), name=family)


@cache
def connected(family: str) -> Any:
    return gw.connect(wrapped(family)[1])


class Services:
    """Real services over HTTP, one a family, each started when it is first asked for."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._labs: dict[str, Any] = {}

    def lab(self, family: str) -> tuple[Any, Any]:
        """What runs, and a lab connected to it."""
        if family not in self._labs:
            path = str(self._folder(family))
            build(family).save_pretrained(path)
            tokenizer().save_pretrained(path)
            running = self._open.enter_context(undisturbed_service(path))
            self._labs[family] = running, gw.connect(running.url, api_key=running.key)
        return self._labs[family]

    def model(self, family: str) -> Any:
        lab = self.lab(family)[1]
        [name] = lab.models()
        return lab.model(name)

    def close(self) -> None:
        self._open.close()


def place_of(family: str, kind: str, services: Services) -> Place:
    if kind == "http":
        return Place(family, kind, services.model(family), None)
    bare, model = wrapped(family)
    return Place(family, kind, connected(family) if kind == "remote" else model, bare)


def placed(bare: torch.nn.Module, kind: str, **settings: Any) -> Place:
    """A module of the test's own in a place of this process."""
    model = gw.wrap(bare, **settings)
    return Place(type(bare).__name__, kind, gw.connect(model) if kind == "remote" else model, bare)
