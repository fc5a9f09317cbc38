"""A forward pass that stands still while somebody writes: the live runtime's half of `model.live`.

The pass is a coroutine. It is told to go to an event, and waits there with what passes; nodes are then performed on it
one at a time, by the same interpreter as everywhere. Every module is watched from the beginning, because a wrapper put
on a module that is running already is never seen; nothing happens at an event that nobody asked for.

Surprises this file settles:
- Wrappers are put on and taken off by whoever drives the pass, not inside it: a pass that cannot be unwound (its thread
  is another) still leaves the model as it was.
- Edits of the model come first at each event, also at events where the pass does not wait.
- A skip spares its module if the pass has not come into it yet; attention is written out in the layers whose scores or
  probabilities are gone to, and in no others.
- Any value that was read may be changed in place by a later line, so what shares memory with such a site is copied.
- A table in which somebody looked into one more module numbers events anew.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glassworks.errors import ModelError, ScopeError
from glassworks.graph.sites import ATTENTION_PORTS, SiteTable
from glassworks.run.eager import EagerRuntime, Visits, Watch, ask
from glassworks.run.inside import Inner
from glassworks.run.interpret import Interpreter
from glassworks.run.modules import WATCHING
from glassworks.run.pause import Coroutine
from glassworks.run.rows import Leaf

BEGINNING = -1
"""The event of a pass that has not begun."""


class LiveInterpreter(Interpreter):
    """Performs nodes on what passes at the event where the pass waits.

    Attributes:
        event: where that is.
    """

    event = BEGINNING
    _raw: Any
    _leaves: dict[Any, Leaf]

    def open(self, event: int, raw: Any) -> None:
        """The pass has come to an event."""
        self.event, self._raw, self._leaves = event, raw, {}

    def close(self) -> Any:
        """The pass goes on: gives what with."""
        raw, leaves = self._raw, self._leaves
        del self._raw, self._leaves
        return self.settled(raw, leaves)

    def perform(self, n: int) -> None:
        """Run one node now."""
        if self.frame.nodes[n].kind in ("read", "write", "skip"):
            self.touch(n, self._leaves, self._raw)
        else:
            self._perform(n)

    def look(self, table: SiteTable) -> None:
        """Go on with a table that knows more events."""
        moved = {order: table.by_event[key] for key, order in self.table.by_event.items()}
        self.actions = {moved[event]: members for event, members in self.actions.items()}
        self.event = moved.get(self.event, BEGINNING)
        self.table, self._quick = table, {}
        self.forward.notes["changed"] = self._changed_in_place()

    def _changed_in_place(self) -> frozenset[int]:
        return frozenset(site.storage for site in self.table.sites.values() if site.inplace)


class LivePass:
    """One forward pass, from event to event.

    Args:
        args, inputs: what the module is called with.
    """

    def __init__(
        self, runtime: EagerRuntime, args: Sequence[Any], inputs: Mapping[str, Any], interpreter: LiveInterpreter
    ) -> None:
        modules, module = runtime.modules, runtime.module
        self._interpreter, self._modules = interpreter, modules
        self._watch = watch = _LiveWatch(modules, interpreter)
        self._held: frozenset[str] = frozenset()
        self._attended: list[str] = []

        def work() -> None:
            WATCHING.set(watch)  # in a context of its own
            module(*args, **inputs)

        self.coroutine = watch.coroutine = Coroutine(work, device=runtime.device)

    @property
    def event(self) -> int:
        """Where the pass waits; after its end, past every event."""
        return len(self._interpreter.table.events) if self.coroutine.ended else self._interpreter.event

    @property
    def table(self) -> SiteTable:
        """The events, as they are numbered now."""
        return self._interpreter.table

    def look(self, table: SiteTable) -> None:
        """Go on with a table that knows more events."""
        self._interpreter.look(table)
        self._watch.look()

    def go_to(self, event: int) -> None:
        """Go on to an event that lies ahead. What the model raises is raised here.

        Raises:
            ModelError: the pass ended without coming by it.
        """
        if not self._held:
            paths = frozenset(self._watch.visits)
            self._modules.hold(paths)
            self._held = paths
            self._attend(self._interpreter.actions)
        self._watch.wanted = event
        self._watch.check()
        self._attend([event])
        self.coroutine.resume()
        if self.coroutine.ended:
            raise ModelError(
                f"the forward pass has ended and did not come by {self.table.events[event].path}: with these arguments "
                f"the model takes another way than when it was wrapped"
            )

    def _attend(self, events: Sequence[int] | Mapping[int, Any]) -> None:
        """Look into the attention of the modules in which these events are."""
        for event in events:
            own = self.table.events[event]
            if own.port in ATTENTION_PORTS and own.path not in self._attended:
                self._modules.attend([own.path])
                self._attended.append(own.path)

    def skip(self, path: str) -> None:
        """Let the module at a path, which the pass has not come into yet, not run: its output is to be written."""
        self._watch.spared = self._watch.spared | {path}

    def stop(self, *, from_finalizer: bool = False) -> None:
        """Unwind the pass wherever it stands, and leave the model as it was."""
        self._watch.wanted = BEGINNING
        try:
            self.coroutine.stop()
        finally:
            held, attended, self._held, self._attended = self._held, self._attended, frozenset(), []
            if from_finalizer:
                self._modules.abandon(held, attended)
            else:
                self._modules.attend_no_more(attended)
                self._modules.release(held)


class _LiveWatch(Watch):
    """Sees every event, and waits at the one that is wanted.

    Modules that are running hold on to the numbers of their events, so events have numbers here that never change.
    """

    coroutine: Coroutine

    def __init__(self, owner: Any, interpreter: LiveInterpreter) -> None:
        super().__init__(owner, [interpreter])
        self._only, self.last = None, None
        self.wanted = BEGINNING
        self._own = interpreter
        self._numbers: dict[Any, int] = {}
        self._orders: dict[int, int] = {}
        self._entered: dict[tuple[str, int], Mapping[str, int]] = {}
        self.look()

    def look(self) -> None:
        """See every event of the interpreter's table."""
        visits: Visits = {}
        inner = Inner()
        for event, own in enumerate(self._own.table.events):
            number = self._numbers.setdefault((own.path, own.port, own.call), len(self._numbers))
            self._orders[number] = event
            ask(visits, inner, own, number)
        self.visits, self.inner = visits, inner

    def check(self) -> None:
        """Whether the wanted event can still be seen.

        Raises:
            ScopeError: it is an operation of a module that the pass came into before anybody looked into it.
        """
        own = self._own.table.events[self.wanted]
        ports = self._entered.get((own.path, own.call))
        if ports is not None and own.port not in ("input", "output", *ports):
            raise ScopeError(
                f"the forward pass is inside {own.path} already, and came in before its operations were asked for: ask "
                f"for one, or for .ops(), further above"
            )

    def _inside(self, path: str, k: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        self._entered[path, k] = self.inner.ports.get((path, k), {})
        return super()._inside(path, k, forward)

    def _totals(self, path: str, k: int) -> Mapping[str, int] | None:
        """Every operation of the module is watched, and few are meant."""
        return None

    def _shows(self, ports: Mapping[str, int]) -> bool:
        asked = {self.wanted, *self._own.actions}
        return any(port in ports and self._orders[ports[port]] in asked for port in ("scores", "probs"))

    def _tell(self, event: int, raw: Any, *, stop: bool = True) -> Any:
        event = self._orders[event]
        if event in self._own.actions:
            raw = self._own.at(event, raw)
        if event != self.wanted:
            return raw
        self._own.open(event, raw)
        self.coroutine.pause()
        return self._own.close()
