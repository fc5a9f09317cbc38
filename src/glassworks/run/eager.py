"""The eager runtime: an unmodified module in this process, with the modules that somebody asked for being watched."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from glassworks.errors import ModelError
from glassworks.graph.sites import Event
from glassworks.run.inside import Inner, is_operation, looking
from glassworks.run.interpret import Interpreter
from glassworks.run.modules import Modules, Stopped, unwatched
from glassworks.run.structures import built

Visits = dict[str, list[tuple[int | None, int | None]]]


class EagerRuntime:
    """Performs forward steps of one module and visits just the sites that some graph asks for."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.modules = Modules(module)
        self._first = next(module.parameters(), None)
        self.unembed: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def device(self) -> torch.device | None:
        """Where the module's weights are; None if it has none."""
        return None if self._first is None else self._first.device

    def parameter(self, path: str) -> torch.Tensor:
        """A weight by name."""
        return self.module.get_parameter(path)

    def step(
        self,
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        interpreters: Sequence[Interpreter],
        cache: dict[str, Any] | None = None,
    ) -> Any:
        """One forward pass; see `base`."""
        if cache is not None:
            inputs = {**inputs, "use_cache": True, **cache}
        if any(i.forward.follows_from is not None for i in interpreters):
            with torch.no_grad():  # until the event from which gradients are followed
                returned = self._watched(args, inputs, interpreters)
        else:
            returned = self._watched(args, inputs, interpreters)
        if cache is not None and returned is not None:
            name = state_name(returned)
            cache[name] = returned[name]
        return returned

    def _watched(self, args: Sequence[Any], inputs: Mapping[str, Any], interpreters: Sequence[Interpreter]) -> Any:
        watch = Watch(self.modules, interpreters)
        if watch.last is not None and watch.last < 0:
            return None
        returned = None
        with suppress(Stopped), self.modules.watched(watch.visits, watch, attending=watch.inner.attending):
            returned = self.module(*args, **inputs)
        watch.check()
        return returned

    def call_module(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A module of the model, or `unembed`, as a pure function: it fires no sites."""
        with unwatched():
            if path == "unembed":
                if self.unembed is None:
                    raise ModelError("this model has no logits to unembed to")
                return self.unembed(*args)
            return self.modules.current(path)(*args, **kwargs)


def state_name(returned: Any) -> str:
    """What a family calls what it wants back at the next step: keys and values, or the state of a recurrence."""
    return next((name for name in ("past_key_values", "cache_params") if name in returned), "past_key_values")


class Watch:
    """One forward pass of some graphs: sends each event to the graphs that wait for it, and stops after the last."""

    def __init__(self, owner: Modules, interpreters: Sequence[Interpreter]) -> None:
        self.token = owner.token
        self.interpreters = interpreters
        only = interpreters[0] if len(interpreters) == 1 else None
        self.last = _last(interpreters) if only is None else only.last
        self.visits, self.inner = _visits(interpreters)
        self._modules = owner.by_path
        self._running: list[str] = []
        self.spared = _spared(interpreters) if only is None else only.forward.spared
        self._calls: dict[str, int] = {}
        self._only = None if self.spared else only
        # The short way: the first call of a module whose output, before the last event, is all that one graph asks for.
        self._outputs: dict[str, int] = {}
        if self._only is not None and not self.inner.ports:
            self._outputs, self._at = _outputs(self._only, self.visits, self.last), self._only.at
        self._told = len(self._outputs)  # and each is taken out as it is told

    def visit(self, path: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A watched module is called."""
        event = self._outputs.pop(path, None)
        if event is not None:
            self._calls[path] = 1
            return self._at(event, forward(*args, **kwargs))
        calls = self.visits.get(path)
        if calls is None:  # watched for a run in another thread
            return forward(*args, **kwargs)
        k = self._calls.get(path, 0)
        self._calls[path] = k + 1
        entering, leaving = calls[k] if k < len(calls) else (None, None)
        if entering is not None:
            args, kwargs = self._tell(entering, (args, kwargs))
        if self.inner.ports:
            forward = self._inside(path, k, forward)
        returned = self._spare(path, args, kwargs) if path in self.spared else forward(*args, **kwargs)
        if leaving is None:
            return returned
        return self._tell(leaving, returned)

    def _inside(self, path: str, k: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of a module, which somebody may look into."""
        ports = self.inner.ports.get((path, k), {})
        operations = any(map(is_operation, ports))

        def entered(*args: Any, **kwargs: Any) -> Any:
            self._running.append(path)
            try:
                with looking(
                    self._modules[path], ports, self._tell_on if operations else self._tell,
                    inside=lambda: self._running[-1] == path, materialise=lambda: self._shows(ports),
                    totals=self._totals(path, k),
                ):  # fmt: skip
                    returned = forward(*args, **kwargs)
                if operations and self.last in ports.values():
                    raise Stopped
                return returned
            finally:
                self._running.pop()

        return entered

    def _totals(self, path: str, k: int) -> Mapping[str, int] | None:
        """How often each operation must be called in a module; None where any number will do."""
        return self.inner.totals.get((path, k), {})

    def _tell_on(self, event: int, raw: Any) -> Any:
        """`_tell`, without stopping: whether an operation was the one that was meant shows at its module's end."""
        return self._tell(event, raw, stop=False)

    def _shows(self, ports: Mapping[str, int]) -> bool:
        """Whether somebody asks for scores or probabilities among these ports."""
        return "scores" in ports or "probs" in ports

    def _tell(self, event: int, raw: Any, *, stop: bool = True) -> Any:
        """Let the graphs that wait for an event see it; stop if it was the last."""
        self._told += 1
        if self._only is not None:
            raw = self._only.at(event, raw)
        else:
            for interpreter in self.interpreters:
                if event in interpreter.actions:
                    raw = interpreter.at(event, raw)
        if event == self.last and stop:
            raise Stopped
        return raw

    def check(self) -> None:
        """Whether the pass came by every site that was asked for: nothing is dropped in silence.

        Raises:
            ModelError: names a site that it did not reach.
        """
        only = self._only
        asked = {event for i in self.interpreters for event in i.actions} if only is None else only.actions
        if self._told - len(self._outputs) < len(asked) and all(i.step == 0 for i in self.interpreters):
            table = self.interpreters[0].table
            paths = sorted(
                {table.events[event].path for event in asked if self._calls.get(table.events[event].path, 0) == 0}
            )
            raise ModelError(
                f"the forward pass did not come by {', '.join(paths) or 'every site that was asked for'}: with these "
                f"arguments the model takes another way than when it was wrapped"
            )

    def _spare(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The output of a module that need not run, to be written: zeros in the form of its site."""
        [interpreter, *_] = self.interpreters
        table = interpreter.table
        event = table.events[table.by_event[(path, "output", 0)]]
        site = next(s for s in table.sites.values() if s.order == table.by_event[(path, "output", 0)] and not s.unfold)
        like = next(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        shape = site.shape(interpreter.sizes)
        return built(event.structure, torch.zeros(shape, dtype=getattr(torch, site.dtype), device=like.device))


def _last(interpreters: Sequence[Interpreter]) -> int | None:
    """The last event that one of them needs; None: the model's own return is needed."""
    lasts = [interpreter.last for interpreter in interpreters]
    return None if None in lasts or not lasts else max(lasts)  # type: ignore[type-var]


def _spared(interpreters: Sequence[Interpreter]) -> frozenset[str]:
    """Modules that none of them needs."""
    return frozenset.intersection(*[i.forward.spared for i in interpreters]) if interpreters else frozenset()


def _visits(interpreters: Sequence[Interpreter]) -> tuple[Visits, Inner]:
    """Path -> (event before, event after) for each call that some graph waits for; and what it waits for inside."""
    if len(interpreters) == 1 and interpreters[0].step == 0:
        notes = interpreters[0].forward.notes
        if "visits" not in notes:
            notes["visits"] = _merged(interpreters)
        return notes["visits"]  # type: ignore[no-any-return]
    return _merged(interpreters)


def _outputs(only: Interpreter, visits: Visits, last: int | None) -> dict[str, int]:
    """Path -> event of its first call's output, of modules that nothing else is asked of."""
    notes, key = only.forward.notes, f"outputs until {last}"
    if only.step == 0 and key in notes:
        return dict(notes[key])
    found = {
        path: calls[0][1]
        for path, calls in visits.items()
        if calls and calls[0][0] is None and calls[0][1] is not None and calls[0][1] != last
    }
    if only.step == 0:
        notes[key] = found
    return dict(found)


def _merged(interpreters: Sequence[Interpreter]) -> tuple[Visits, Inner]:
    found: Visits = {}
    inner = Inner()
    for interpreter in interpreters:
        table = interpreter.table
        for event in [
            *interpreter.actions,
            *[_output_of(path, interpreter) for path in interpreter.forward.spared],
        ]:
            if 0 <= event < len(table.events):
                ask(found, inner, table.events[event], event)
    for path in inner.children(interpreters[0].table if interpreters else None):
        found.setdefault(path, [])
    return found, inner


def ask(visits: Visits, inner: Inner, own: Event, event: int) -> None:
    """Add an event to what is asked for."""
    calls = visits.setdefault(own.path, [])
    while len(calls) <= own.call:
        calls.append((None, None))
    before, after = calls[own.call]
    if own.port == "input":
        calls[own.call] = (event, after)
    elif own.port == "output":
        calls[own.call] = (before, event)
    else:
        inner.add(own, event)


def _output_of(path: str, interpreter: Interpreter) -> int:
    return interpreter.table.by_event[(path, "output", 0)]
