"""How a running model is watched: the `forward` of the modules that a run asks for, and of no others, is wrapped.

A wrapper stands on the instance only while some run needs it, looks up that run in a context variable, and otherwise
calls what was there before. So a model called by itself is the bare model, several runs in several threads do not meet,
and a deep copy of an idle model copies no wrapper.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, Protocol

import torch

from glassworks.errors import ModelError
from glassworks.model.attention import listening_config

WATCHING: ContextVar["Watcher | None"] = ContextVar("glassworks_watching", default=None)


_Ready = tuple[torch.nn.Module, dict[str, Any], Mapping[str, Any], str, Callable[..., Any], Callable[..., Any]]


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
        self._ready: dict[str, _Ready] = {}
        self._configs: dict[str, Any] = {}
        self._attended: dict[str, int] = {}
        self._abandoned: list[tuple[Collection[str], Collection[str]]] = []
        self._lock = Lock()

    def watched(self, paths: Collection[str], watcher: Watcher, *, attending: Collection[str] = ()) -> "_Watched":
        """Within the block the watcher is told of these modules, in this context.

        `attending`: those whose attention function is to be seen (see `model.attention`).
        """
        return _Watched(self, paths, watcher, attending)

    def attend(self, paths: Collection[str]) -> None:
        """Put our attention function before that of modules where nobody has yet."""
        with self._lock:
            for path in paths:
                count = self._attended.get(path, 0)
                self._attended[path] = count + 1
                if not count:
                    module: Any = self.by_path[path]
                    self._configs[path] = module.config
                    module.config = listening_config(module.config)

    def attend_no_more(self, paths: Collection[str]) -> None:
        """Put back the configuration that stood there, where nobody attends any more."""
        with self._lock:
            for path in paths:
                self._attended[path] -= 1
                if not self._attended[path]:
                    module: Any = self.by_path[path]
                    module.config = self._configs.pop(path)

    def hold(self, paths: Collection[str]) -> None:
        """Wrap modules that nobody watches yet. ModelError: one was replaced since the model was wrapped."""
        watched, known = self._watched, self._ready
        if self._abandoned:
            self.abandon(*self._abandoned.pop())
        with self._lock:
            ready = [known.get(path) or self._prepared(path) for path in paths]
            for path, (module, _, siblings, name, _, _) in zip(paths, ready, strict=True):
                if siblings.get(name) is not module:
                    self.current(path)
            for path, (module, own, _, _, forward, wrapper) in zip(paths, ready, strict=True):
                count = watched.get(path, 0)
                watched[path] = count + 1
                if count:
                    continue
                if "forward" in own:
                    self._before[path] = own["forward"]
                    own["forward"] = _wrapper(path, own["forward"], self.token)
                elif type(module).forward is forward:
                    own["forward"] = wrapper
                else:  # the class was given another one
                    own["forward"] = self._prepared(path)[-1]

    def current(self, path: str) -> torch.nn.Module:
        """The module at a path. ModelError: another one has taken its place since the model was wrapped."""
        siblings, name = _place(self.by_path, path)
        if siblings.get(name) is not self.by_path[path]:
            raise ModelError(f"{path} was replaced since the model was wrapped; wrap the model again")
        return self.by_path[path]

    def abandon(self, paths: Collection[str], attending: Collection[str]) -> None:
        """Release, and attend no more, from a finalizer.

        It may run inside a `hold` of the same thread, and cannot wait. What cannot be done is done at the next `hold`.
        """
        if self._lock.locked():
            self._abandoned.append((paths, attending))
        else:
            self.attend_no_more(attending)
            self.release(paths)

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
                        del self._ready[path][1]["forward"]

    def _prepared(self, path: str) -> _Ready:
        """What wrapping a module takes, made once: its own attributes, its place, its class's forward, the wrapper."""
        module = self.by_path[path]
        forward = type(module).forward
        wrapper = _wrapper(path, forward.__get__(module), self.token)
        self._ready[path] = (module, module.__dict__, *_place(self.by_path, path), forward, wrapper)
        return self._ready[path]


def _place(by_path: Mapping[str, torch.nn.Module], path: str) -> tuple[Mapping[str, Any], str]:
    """Where a module hangs: its parent's children, and its name among them; the root hangs on itself."""
    if not path:
        return {"": by_path[""]}, ""
    parent, _, name = path.rpartition(".")
    return by_path[parent]._modules, name


class _Watched:
    """Around a forward pass. No generator: a trace may be a pass of tens of microseconds."""

    __slots__ = ("attending", "modules", "paths", "token", "watcher")

    def __init__(self, modules: Modules, paths: Collection[str], watcher: Watcher, attending: Collection[str]) -> None:
        self.modules, self.paths, self.watcher, self.attending = modules, paths, watcher, attending

    def __enter__(self) -> None:
        self.modules.hold(self.paths)
        if self.attending:
            self.modules.attend(self.attending)
        self.token = WATCHING.set(self.watcher)

    def __exit__(self, *error: object) -> None:
        WATCHING.reset(self.token)
        if self.attending:
            self.modules.attend_no_more(self.attending)
        self.modules.release(self.paths)


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
