"""One forward pass, recorded: every call of every module, and what passed there; what attention was computed from;
and, in modules that are asked for, every operation of their own forward.

The model is left as it was: hooks go, modes and random state come back, whatever happens. Tensors are held
until the forward ends, because only their version counters tell which of them were changed in place after
their event.
"""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from glassworks.errors import ModelError
from glassworks.graph.sites import Port
from glassworks.model.attention import can_listen
from glassworks.model.calls import ATTRIBUTE, gives_tensors, name_of_call, port_of_call
from glassworks.model.runs import Run

Item = tuple[int | str, ...]
"""The keys that lead to a tensor inside a value."""

Listener = Callable[[str, Port, int, Any], None]
"""Is told (path, port, call, value) at each event; the value of a module's or an operation's input is
`(args, kwargs)`."""


@dataclass(slots=True)
class Leaf:
    """A tensor seen at an event, and its version then."""

    tensor: Tensor
    version: int
    storage: int = -1

    @property
    def mutated(self) -> bool:
        return version(self.tensor) != self.version


@dataclass(slots=True)
class Seen:
    """One event of a recorded run. Leaves of `structure` hold items, not yet names."""

    path: str
    port: Port
    call: int
    structure: Any
    leaves: dict[Item, Leaf] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, Port, int]:
        return self.path, self.port, self.call


def record(module: nn.Module, run: Run, within: Collection[str] = ()) -> list[Seen]:
    """All events of a forward pass, in order; with the operations of the modules at the paths `within`."""
    seen: list[Seen] = []

    def listener(path: str, port: Port, call: int, value: Any) -> None:
        event = Seen(path, port, call, None)
        event.structure = _walk(value, (), event.leaves)
        seen.append(event)

    with undisturbed(module), listening(module, listener, within):
        run.call(module)
    _number_storages(module, seen)
    return seen


def _number_storages(module: nn.Module, seen: list[Seen]) -> None:
    """Number the memory behind what modules returned; what is the model's or the caller's own keeps -1."""
    own = [*module.parameters(), *module.buffers()]
    own += [leaf.tensor for event in seen if event.port == "input" and not event.path for leaf in event.leaves.values()]
    taken = {tensor.untyped_storage()._cdata for tensor in own}
    numbers: dict[int, int] = {}
    for event in seen:
        for leaf in event.leaves.values():
            key = leaf.tensor.untyped_storage()._cdata
            if key not in taken and (event.port == "output" or key in numbers):
                leaf.storage = numbers.setdefault(key, len(numbers))


def _walk(value: Any, item: Item, leaves: dict[Item, Leaf]) -> Any:
    if isinstance(value, Tensor):
        leaves[item] = Leaf(value, version(value))
        return {"leaf": item}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_walk(part, (*item, i), leaves) for i, part in enumerate(value)]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _walk(part, (*item, key), leaves) for key, part in value.items()}}
    return {"other": type(value).__name__}


def version(tensor: Tensor) -> int:
    """How often the storage was changed. Inference tensors do not count, nor may a scan change them in place."""
    return 0 if tensor.is_inference() else tensor._version


def pick(value: Any, item: Item) -> Any:
    """The part of a value that the keys lead to."""
    for key in item:
        value = value[key]
    return value


@contextmanager
def listening(module: nn.Module, listener: Listener, within: Collection[str] = ()) -> Iterator[None]:
    """`listener` is told of every event of this thread, in order."""
    calls: Counter[str] = Counter()
    thread = get_ident()
    running: list[tuple[str, int]] = []

    def hook(child: nn.Module, path: str, stack: ExitStack) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            if get_ident() != thread:
                return
            running.append((path, calls[path]))
            calls[path] += 1
            listener(path, "input", running[-1][1], (args, kwargs))

        def after(_: nn.Module, args: Any, output: Any) -> None:
            if get_ident() == thread:
                listener(path, "output", running.pop()[1], output)

        stack.callback(child.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(child.register_forward_hook(after).remove)

    with ExitStack() as stack:
        for path, child in module.named_modules():
            hook(child, path, stack)
        stack.enter_context(_attention_told(module, listener, running, thread))
        if within:
            stack.enter_context(_Operations(listener, running, frozenset(within)))
        yield


class _Operations(TorchFunctionMode):
    """Tells of the operations that the modules at some paths call themselves."""

    def __init__(self, listener: Listener, running: list[tuple[str, int]], within: frozenset[str]) -> None:
        super().__init__()
        self._listener, self._running, self._within = listener, running, within
        self._counts: Counter[tuple[str, int, str]] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        path, call = self._running[-1] if self._running else ("", -1)
        name = name_of_call(func) if path in self._within and call >= 0 else ATTRIBUTE
        if name == ATTRIBUTE:
            return func(*args, **kwargs)
        k = self._counts[path, call, name]
        in_place = name.endswith("_") or bool(kwargs.get("inplace"))
        if in_place:  # it gives a tensor, and what it was given is to be seen as it was
            self._listener(path, port_of_call(name, k, "input"), call, (args, kwargs))
        result = func(*args, **kwargs)
        if in_place or gives_tensors(result):
            self._counts[path, call, name] += 1
            if not in_place:
                self._listener(path, port_of_call(name, k, "input"), call, (args, kwargs))
            self._listener(path, port_of_call(name, k, "output"), call, result)
        return result


def _attention_told(module: nn.Module, listener: Listener, running: list[tuple[str, int]], thread: int) -> Any:
    """While active, `listener` is told of what transformers' attention functions are given."""
    interface = getattr(sys.modules.get("transformers"), "AttentionInterface", None)
    if interface is None:
        return nullcontext()
    paths = {child: path for path, child in module.named_modules()}
    find = interface.get_interface

    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = find(self, *args, **kwargs)

        def told(own: nn.Module, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> Any:
            if get_ident() == thread and running and paths.get(own) == running[-1][0] and can_listen(own):
                for port, tensor in (("query", query), ("key", key), ("value", value)):
                    listener(*running[-1][:1], port, running[-1][1], tensor)
            return function(own, query, key, value, *rest, **named)

        return told

    return mock.patch.object(interface, "get_interface", get_interface)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the modes of all modules and the random state are restored."""
    modes = [(child, child.training) for child in module.modules()]
    devices = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    try:
        for child, _ in modes:
            child.training = False
        with torch.random.fork_rng(sorted(devices)), torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for child, mode in modes:
            child.training = mode


@contextmanager
def fake_model(build: Callable[[], nn.Module]) -> Iterator[nn.Module]:
    """What `build` makes, with tensors that have shapes and no values, and the mode to run it in.

    A mixture of experts runs with `batched_mm`, whose shapes do not depend on the routing. Asked of values
    that it cannot see, transformers takes any row for several packed ones and makes a mask that the real run
    does not have: the question is answered for it while the block lasts.

    Raises:
        ModelError: building it, or anything in the block, failed on tensors without values.
    """
    unpacked = mock.patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None)
    try:
        with unpacked, FakeTensorMode(allow_non_fake_inputs=True):
            module = build()
            can_set = getattr(module, "_can_set_experts_implementation", None)
            if can_set is not None and can_set():
                module.set_experts_implementation("batched_mm")  # type: ignore[operator]
            yield module
    except Exception as error:
        raise ModelError(
            f"expected a model that can be built and run on tensors without values, got "
            f"{type(error).__name__}: {error}; load the weights, then scan it"
        ) from error
