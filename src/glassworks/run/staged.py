"""A pipeline of two stages in this process: what proves that the runtime seam does not assume one forward pass.

Each stage runs the model's own forward. The first ends where the second begins; the second passes over everything
before that border and takes what a message brings instead. A graph has one frame a stage: values that a node of the
other stage needs cross as explicit messages. Forward only: gradients would have to cross back.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from glassworks.errors import ModelError
from glassworks.graph.place import Forward
from glassworks.graph.sites import SiteTable
from glassworks.run.eager import EagerRuntime, Watch
from glassworks.run.frame import Frame
from glassworks.run.interpret import Interpreter
from glassworks.run.modules import Stopped


@dataclass(frozen=True, slots=True)
class Message:
    """What crosses the border in one step: the outputs of modules, by path, and the values of nodes, by graph."""

    outputs: Mapping[str, Any]
    values: Sequence[Mapping[int, Any]]


class StagedRuntime:
    """Two stages over one module, split in the middle of its layers.

    Raises:
        ModelError: a model with fewer than two layers in the stack that is split.
    """

    def __init__(self, module: torch.nn.Module, table: SiteTable) -> None:
        stack = table.layers.get("decoder" if table.encoder_decoder else "", ())
        if len(stack) < 2:
            raise ModelError(f"two stages need two layers; {table.family} has {len(stack)}")
        self._whole = EagerRuntime(module)
        self.module, self.modules = module, self._whole.modules
        self._table = table
        half = len(stack) // 2
        self._before = stack[:half]
        self.border = table.by_event[(stack[half - 1], "output", 0)]
        self._passed = (*self._before, "encoder") if table.encoder_decoder else self._before

    @property
    def unembed(self) -> Any:
        """From the last residual to the logits."""
        return self._whole.unembed

    @unembed.setter
    def unembed(self, unembed: Any) -> None:
        self._whole.unembed = unembed

    @property
    def device(self) -> torch.device | None:
        """Where the module's weights are."""
        return self._whole.device

    def parameter(self, path: str) -> torch.Tensor:
        """A weight by name."""
        return self._whole.parameter(path)

    def call_module(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A module of the model as a pure function."""
        return self._whole.call_module(path, args, kwargs)

    def step(
        self,
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        interpreters: Sequence[Interpreter],
        cache: dict[str, Any] | None = None,
    ) -> Any:
        """One forward pass in two halves; see `base`."""
        if any(interpreter.forward.has_backward for interpreter in interpreters):
            raise ModelError("a pipeline of two stages takes no gradients; load the model in one")
        lasts = [interpreter.last for interpreter in interpreters]
        ends_below = all(last is not None and last <= self.border for last in lasts)
        first = [self._part(interpreter, upper=False) for interpreter in interpreters]
        message = self._first(args, inputs, interpreters, first, cache)
        if ends_below:
            self._gather(interpreters, first)
            return None
        second = [self._part(interpreter, upper=True) for interpreter in interpreters]
        for interpreter, values in zip(second, message.values, strict=True):
            for n, value in values.items():
                interpreter.frame.values[n] = value
        returned = self._second(args, inputs, second, message, cache)
        self._gather(interpreters, [*first, *second])
        return returned

    # The halves.

    def _first(
        self,
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        whole: Sequence[Interpreter],
        parts: Sequence[Interpreter],
        cache: dict[str, Any] | None,
    ) -> Message:
        """Up to the border: what the second half needs to know."""
        watch = _FirstHalf(self.modules, parts, border=self.border, keep=self._passed)
        own = (
            dict(inputs)
            if cache is None
            else {**inputs, "use_cache": True, "past_key_values": self._cache(cache, "first", 0)}
        )
        with (
            suppress(Stopped),
            torch.no_grad(),
            self.modules.watched(watch.visits, watch, attending=watch.inner.attending),
        ):
            self.module(*args, **own)
        values = [self._crossing(interpreter, part) for interpreter, part in zip(whole, parts, strict=True)]
        return Message(watch.kept, values)

    def _second(
        self,
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        parts: Sequence[Interpreter],
        message: Message,
        cache: dict[str, Any] | None,
    ) -> Any:
        watch = _SecondHalf(self.modules, parts, message=message, last_layer=self._before[-1])
        own = (
            dict(inputs)
            if cache is None
            else {
                **inputs,
                "use_cache": True,
                "past_key_values": self._cache(cache, "second", len(self._before)),
            }
        )
        with (
            suppress(Stopped),
            torch.no_grad(),
            self.modules.watched(watch.visits, watch, attending=watch.inner.attending),
        ):
            return self.module(*args, **own)
        return None

    def _cache(self, cache: dict[str, Any], stage: str, first_layer: int) -> Any:
        """A stage's own keys and values. Lengths are asked of layer 0, which the second stage does not have."""
        from glassworks.run.stage_cache import stage_cache

        if stage not in cache:
            cache[stage] = stage_cache(self.module, first_layer, encoder_decoder=self._table.encoder_decoder)
        return cache[stage]

    # Frames.

    def _part(self, interpreter: Interpreter, *, upper: bool) -> Interpreter:
        """The interpreter of one stage: its own frame, and the nodes of its own events."""
        own = interpreter.frame
        frame = Frame(own.graph, own.plan, named=own.named, device=own.device, parameter=own.parameter)
        before = {*own.plan.prelude, *(n for n in own.plan.needed if own.values[n] is not None)}
        for n in before:
            frame.values[n] = own.values[n]
        frame.history = {n: dict(steps) for n, steps in own.history.items()}
        frame.saves, frame.logs = {}, own.logs
        part = Interpreter(
            frame, _half(interpreter.forward, self.border, upper), interpreter.table,
            slots=interpreter.slots, rows=interpreter.rows, callee=self,
        )  # fmt: skip
        part.step, part.sizes, part.states = interpreter.step, interpreter.sizes, interpreter.states
        part.actions = {event: nodes for event, nodes in interpreter.actions.items() if (event > self.border) == upper}
        part.last = interpreter.last
        if not interpreter._quick:  # in a generation, not every node of an event runs at every step
            part._quick = {}
        return part

    def _crossing(self, whole: Interpreter, part: Interpreter) -> Mapping[int, Any]:
        """Values that the first stage made and a node of the second reads."""
        nodes = whole.frame.nodes
        wanted = {
            d for event, members in whole.forward.actions if event > self.border for n in members for d in nodes[n].deps
        }
        return {n: part.frame.values[n] for n in wanted if part.frame.values[n] is not None}

    def _gather(self, whole: Sequence[Interpreter], parts: Sequence[Interpreter]) -> None:
        """Hand what the stages saved, and what later passes need, to the frame of the request."""
        for k, part in enumerate(parts):
            frame = whole[k % len(whole)].frame
            for name, value in part.frame.saves.items():
                frame.saves[name] = frame.saves.get(name, []) + value if isinstance(value, list) else value
            for n in (n for members in part.actions.values() for n in members):
                if part.frame.values[n] is not None:
                    frame.values[n] = part.frame.values[n]
            frame.history.update(part.frame.history)


def _half(forward: Forward, border: int, upper: bool) -> Forward:
    return replace(forward, actions=tuple(a for a in forward.actions if (a[0] > border) == upper), notes={})


class _FirstHalf(Watch):
    """Watches up to the border, and keeps the outputs that stand for what comes before it."""

    def __init__(self, owner: Any, interpreters: Sequence[Interpreter], *, border: int, keep: Sequence[str]) -> None:
        super().__init__(owner, interpreters)
        self.kept: dict[str, Any] = {}
        self._border = border
        table = interpreters[0].table
        self._border_path = table.events[border].path
        self.visits = {**{path: [] for path in keep}, **self.visits}
        self.last = None if self.last is None or self.last > border else self.last

    def visit(self, path: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        returned = super().visit(path, forward, args, kwargs)
        if path == self._border_path or path == "encoder":
            self.kept[path] = returned
        if path == self._border_path:
            raise Stopped
        return returned


class _SecondHalf(Watch):
    """Passes over what comes before the border: every module there returns what the message says."""

    def __init__(self, owner: Any, interpreters: Sequence[Interpreter], *, message: Message, last_layer: str) -> None:
        super().__init__(owner, interpreters)
        self._message, self._last_layer = message, last_layer
        table = interpreters[0].table
        stack = table.layers["decoder" if table.encoder_decoder else ""]
        self._passed = stack[: stack.index(last_layer) + 1]
        extra = [path for path in message.outputs if path != last_layer]
        self.visits = {**{path: [] for path in (*self._passed, *extra)}, **self.visits}

    def visit(self, path: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if path in self._passed:
            return self._message.outputs[self._last_layer]
        if path in self._message.outputs:
            return self._message.outputs[path]
        return super().visit(path, forward, args, kwargs)
