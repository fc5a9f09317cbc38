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

from glassworks.graph.sites import ATTENTION_PORTS, Event, SiteTable
from glassworks.model.attention import LISTENING, Listener
from glassworks.model.calls import ATTRIBUTE, gives_tensors, name_of_call, port_of_call

Tell = Callable[[int, Any], Any]
"""Is told (event, value); gives what the model goes on with."""


class Inner:
    """What is asked for inside modules.

    Attributes:
        ports: (path, call) -> port -> event. attending: paths of the modules whose attention is looked into.
    """

    def __init__(self) -> None:
        self.ports: dict[tuple[str, int], dict[str, int]] = {}
        self.attending: set[str] = set()

    def add(self, event: Event, order: int) -> None:
        """Ask for an event that is neither a module's input nor its output."""
        self.ports.setdefault((event.path, event.call), {})[event.port] = order
        if event.port in ATTENTION_PORTS:
            self.attending.add(event.path)

    def children(self, table: SiteTable | None) -> set[str]:
        """Modules inside those whose operations are asked for."""
        paths = {path for (path, _), ports in self.ports.items() if any(map(_is_operation, ports))}
        if table is None or not paths:
            return set()
        return {e.path for e in table.events for path in paths if not path or e.path.startswith(f"{path}.")} - {""}


def _is_operation(port: str) -> bool:
    return port.startswith("op(")


@contextmanager
def looking(
    module: torch.nn.Module,
    ports: Mapping[str, int],
    tell: Tell,
    *,
    inside: Callable[[], bool],
    materialise: Callable[[], bool],
) -> Iterator[None]:
    """While active, the events at these ports of a running module are told.

    `inside`: whether no child is running. `materialise`: whether scores or probabilities are asked for.
    """
    attention = [port for port in ports if port in ATTENTION_PORTS]
    with ExitStack() as stack:
        if attention:
            listener = Listener(module, _at(ports, tell), materialise=materialise)
            token = LISTENING.set(listener)
            stack.callback(LISTENING.reset, token)
        if len(attention) < len(ports):
            stack.enter_context(_Calls(ports, tell, inside))
        yield


def _at(ports: Mapping[str, int], tell: Tell) -> Callable[[str, torch.Tensor], torch.Tensor]:
    return lambda port, tensor: tell(ports[port], tensor) if port in ports else tensor


class _Calls(TorchFunctionMode):
    """Tells of the operations that were asked for, in one call of a module."""

    def __init__(self, ports: Mapping[str, int], tell: Tell, inside: Callable[[], bool]) -> None:
        super().__init__()
        self._ports, self._tell, self._inside = ports, tell, inside
        self._names = frozenset(port[3:].partition(",")[0] for port in ports if _is_operation(port))
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
