"""Looking into a module while it runs: what its attention is computed from, and the operations of its own forward.

It costs only when somebody asks: then the module's attention function is ours for the time of the run, and a function
mode stands around its forward. Calls inside child modules are the children's, so these are watched too, to know.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from glassworks.errors import ModelError
from glassworks.graph.sites import ATTENTION_PORTS, Event, SiteTable
from glassworks.model.attention import LISTENING, Listener
from glassworks.model.calls import ATTRIBUTE, gives_tensors, name_of_call, port_of_call

Tell = Callable[[int, Any], Any]
"""Is told (event, value); gives what the model goes on with."""


class Inner:
    """What is asked for inside modules.

    Attributes:
        ports: (path, call) -> port -> event. attending: paths of the modules whose attention is looked into.
        totals: (path, call) -> how often each operation was called when the module was looked into.
    """

    def __init__(self) -> None:
        self.ports: dict[tuple[str, int], dict[str, int]] = {}
        self.attending: set[str] = set()
        self.totals: dict[tuple[str, int], Counter[str]] = {}

    def add(self, event: Event, order: int) -> None:
        """Ask for an event that is neither a module's input nor its output."""
        self.ports.setdefault((event.path, event.call), {})[event.port] = order
        if event.port in ATTENTION_PORTS:
            self.attending.add(event.path)

    def children(self, table: SiteTable | None) -> set[str]:
        """Modules inside those whose operations are asked for."""
        places = {place for place, ports in self.ports.items() if any(map(is_operation, ports))}
        paths = {path for path, _ in places}
        if table is None or not paths:
            return set()
        for event in table.events:
            if (event.path, event.call) in places and is_operation(event.port) and event.port.endswith(".output"):
                self.totals.setdefault((event.path, event.call), Counter())[_name(event.port)] += 1
        return {e.path for e in table.events for path in paths if not path or e.path.startswith(f"{path}.")} - {""}


def is_operation(port: str) -> bool:
    """Whether an event's port is that of an operation."""
    return port.startswith("op(")


def _name(port: str) -> str:
    return port[3:].partition(",")[0]


@contextmanager
def looking(
    module: torch.nn.Module,
    ports: Mapping[str, int],
    tell: Tell,
    *,
    inside: Callable[[], bool],
    materialise: Callable[[], bool],
    totals: Mapping[str, int] | None = None,
) -> Iterator[None]:
    """While active, the events at these ports of a running module are told.

    `inside`: whether no child is running. `materialise`: whether scores or probabilities are asked for. `totals`: how
    often each operation was called when the module was looked into.

    Raises:
        ModelError: one that is asked for was called more or less often than that: nobody knows which call is which.
    """
    attention = [port for port in ports if port in ATTENTION_PORTS]
    with ExitStack() as stack:
        if attention:
            listener = Listener(module, _at(ports, tell), materialise=materialise, events=ports)
            token = LISTENING.set(listener)
            stack.callback(LISTENING.reset, token)
        calls = _Calls(ports, tell, inside)
        if len(attention) < len(ports):
            stack.enter_context(calls)
        yield
        if totals is not None:
            calls.check(totals, type(module).__name__)


def _at(ports: Mapping[str, int], tell: Tell) -> Callable[[str, torch.Tensor], torch.Tensor]:
    return lambda port, tensor: tell(ports[port], tensor) if port in ports else tensor


class _Calls(TorchFunctionMode):
    """Tells of the operations that were asked for, in one call of a module."""

    def __init__(self, ports: Mapping[str, int], tell: Tell, inside: Callable[[], bool]) -> None:
        super().__init__()
        self._ports, self._tell, self._inside = ports, tell, inside
        self._names = frozenset(_name(port) for port in ports if is_operation(port))
        self._counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of_call(func)
        if name == ATTRIBUTE or name not in self._names or not self._inside():
            return func(*args, **kwargs)
        k = self._counts[name]
        entering, leaving = (self._ports.get(port_of_call(name, k, end)) for end in ("input", "output"))
        if entering is not None:
            args, kwargs = self._tell(entering, (args, kwargs))
        result = func(*args, **kwargs)
        if not gives_tensors(result):
            return result
        self._counts[name] = k + 1
        return result if leaving is None else self._tell(leaving, result)

    def check(self, totals: Mapping[str, int], kind: str) -> None:
        """Whether each operation that was asked for was called as often as when it was looked into."""
        for name in sorted(self._names):
            called, known = self._counts[name], totals.get(name, 0)
            if called != known:
                raise ModelError(
                    f"this time {kind} called {name} {called} times, and {known} times when it was looked into, so "
                    f".op({name!r}, k) may be another call. Padding, a cache, and reading scores or probabilities "
                    f"change what it calls: read one prompt at a time, or a standard site"
                )
