"""How a running model is watched: the `forward` of the modules that a run asks for, and of no others, is wrapped.

A wrapper stands on the instance only while some run needs it, looks up that run in a context variable, and otherwise
calls what was there before. So a model called by itself is the bare model, several runs in several threads do not meet,
and a deep copy of an idle model copies no wrapper.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Any, Protocol

import torch

from glassworks.errors import ModelError

WATCHING: ContextVar["Watcher | None"] = ContextVar("glassworks_watching", default=None)


class Stopped(BaseException):
    """Unwinds a forward pass after the last event that is needed. Not an Exception: models catch those."""


class Watcher(Protocol):
    """What is told of the modules it asked for."""

    token: object

    def visit(self, path: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A module is called; gives what it is to return."""


class Modules:
    """The modules of one model, by path, and the wrappers of those that have been watched.

    A wrapper knows this object by a token only: a model that nobody holds is freed at once, without a cycle to collect.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.root = module
        self.by_path: dict[str, torch.nn.Module] = dict(module.named_modules(remove_duplicate=False))
        self.token = object()
        self._watched: dict[str, int] = {}
        self._before: dict[str, Any] = {}
        self._ready: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {}
        self._places = {path: _place(self.by_path, path) for path in self.by_path if path}
        self._lock = Lock()

    @contextmanager
    def watched(self, paths: Collection[str], watcher: Watcher) -> Iterator[None]:
        """Within the block the watcher is told of these modules, in this context."""
        self.hold(paths)
        token = WATCHING.set(watcher)
        try:
            yield
        finally:
            WATCHING.reset(token)
            self.release(paths)

    def hold(self, paths: Collection[str]) -> None:
        """Wrap modules that nobody watches yet."""
        watched = self._watched
        with self._lock:
            for path in paths:
                self.current(path)
            for path in paths:
                count = watched.get(path, 0)
                watched[path] = count + 1
                if not count:
                    ready = self._ready.get(path)
                    own = self.by_path[path].__dict__ if ready is None else ready[0]
                    if "forward" in own:
                        self._before[path] = own["forward"]
                        own["forward"] = _wrapper(path, own["forward"], self.token)
                    else:
                        own["forward"] = self._prepared(path) if ready is None else ready[1]

    def current(self, path: str) -> torch.nn.Module:
        """The module at a path. ModelError: another one has taken its place since the model was wrapped."""
        module = self.by_path[path]
        if path:
            siblings, name = self._places[path]
            if siblings.get(name) is not module:
                raise ModelError(f"{path} was replaced since the model was wrapped; wrap the model again")
        return module

    def release(self, paths: Iterable[str]) -> None:
        """Put back what stood there, where nobody watches any more."""
        watched = self._watched
        with self._lock:
            for path in paths:
                watched[path] -= 1
                if not watched[path]:
                    if path in self._before:
                        self.by_path[path].__dict__["forward"] = self._before.pop(path)
                    else:
                        del self._ready[path][0]["forward"]

    def _prepared(self, path: str) -> Callable[..., Any]:
        """The wrapper of a module that has no `forward` of its own on the instance; made once."""
        module = self.by_path[path]
        wrapper = _wrapper(path, partial(_forward, module), self.token)
        self._ready[path] = (module.__dict__, wrapper)
        return wrapper


def _place(by_path: Mapping[str, torch.nn.Module], path: str) -> tuple[dict[str, Any], str]:
    """Where a module hangs: its parent's children, and its name among them."""
    parent, _, name = path.rpartition(".")
    return by_path[parent]._modules, name


def _forward(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a module's class, as it is now."""
    return type(module).forward(module, *args, **kwargs)


def _wrapper(path: str, forward: Callable[..., Any], token: object) -> Callable[..., Any]:
    def watched_forward(*args: Any, **kwargs: Any) -> Any:
        watcher = WATCHING.get()
        if watcher is None or watcher.token is not token:
            return forward(*args, **kwargs)
        return watcher.visit(path, forward, args, kwargs)

    return watched_forward


@contextmanager
def unwatched() -> Iterator[None]:
    """Within the block modules run without being watched: a module called as a pure function."""
    token = WATCHING.set(None)
    try:
        yield
    finally:
        WATCHING.reset(token)
