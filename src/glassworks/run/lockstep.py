"""One forward pass of many rows as several of fewer, in step: what looks on sees all rows at once.

Each pass is a coroutine that waits at every event which somebody asks for. When all of them are there, their tensors
are put under each other, the interpreter does its work on the whole, and each pass goes on with its own rows of what
came of it. So an experiment is the same whatever the number of rows in a pass, also where it mixes rows, and so are
gradients.

Between two events one pass runs at a time; what each holds while it waits is there for all of them.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch

from glassworks.errors import ModelError
from glassworks.graph.sites import FOLDED, Site
from glassworks.run.eager import EagerRuntime
from glassworks.run.interpret import Interpreter
from glassworks.run.modules import Stopped
from glassworks.run.pause import Coroutine
from glassworks.run.structures import item_at, replaced


def step_in_parts(
    runtime: EagerRuntime, args: Sequence[Any], inputs: Mapping[str, Any], interpreter: Interpreter, *, rows: int
) -> None:
    """A forward pass over all rows of the interpreter, at most `rows` at a time.

    Args:
        args, inputs: what the module is called with; tensors that have all the rows on their first axis are divided.

    Raises:
        ModelError: a site does not say which of its axes are rows, or the passes took different ways.
    """
    count = len(interpreter.rows)
    spans = [(start, min(start + rows, count)) for start in range(0, count, rows)]
    items = {event: _items(interpreter, event) for event in interpreter.actions}
    parts = [_Part(runtime, _own(args, span, count), _own(inputs, span, count), interpreter, span) for span in spans]
    with ExitStack() as stack, torch.no_grad():  # until the event from which gradients are followed
        for part in parts:
            stack.callback(part.coroutine.stop)
        while True:
            for part in parts:
                part.coroutine.resume()
            if any(part.coroutine.ended for part in parts):
                break
            event = _where(parts)
            joined = _joined(parts, items[event])
            after = interpreter.at(event, joined)
            _handed_back(parts, items[event], joined, after, always=torch.is_grad_enabled())
        if not all(part.coroutine.ended for part in parts):
            _where([])


class _Abandoned(BaseException):
    """Another part has failed: unwind this one."""


class _Part:
    """Some of the rows on their way through the module; to the runtime it is the interpreter that looks on.

    Attributes:
        event, raw: where it waits, and what passes there; `raw` is what it will go on with.
    """

    step = 0

    def __init__(
        self, runtime: EagerRuntime, args: Any, inputs: Any, interpreter: Interpreter, span: tuple[int, int]
    ) -> None:
        self.forward, self.actions = interpreter.forward, interpreter.actions
        self.last, self.table = interpreter.last, interpreter.table
        self.start, self.count = span[0], span[1] - span[0]
        self.sizes = {**interpreter.sizes, "batch": self.count}
        self.event, self.raw = -1, None

        def work() -> None:
            with suppress(_Abandoned):
                runtime.step(args, inputs, [self])  # type: ignore[list-item]

        self.coroutine = Coroutine(work, device=runtime.device)

    def at(self, event: int, raw: Any) -> Any:
        """Wait until all parts are here; gives what this one goes on with."""
        self.event, self.raw = event, raw
        try:
            self.coroutine.pause()
        except Stopped:  # by us, and not because the runtime has seen its last event
            raise _Abandoned from None
        if event == self.forward.follows_from:
            torch.set_grad_enabled(True)  # in this part's own state
        return self.raw


def _own(value: Any, span: tuple[int, int], count: int) -> Any:
    """The rows of one part, of arguments in which tensors have all of them."""
    if isinstance(value, torch.Tensor):
        return value[span[0] : span[1]] if value.ndim and value.shape[0] == count else value
    if isinstance(value, list | tuple):
        return type(value)(_own(item, span, count) for item in value)
    return {key: _own(item, span, count) for key, item in value.items()} if isinstance(value, dict) else value


def _items(interpreter: Interpreter, event: int) -> dict[tuple[int | str, ...], Site]:
    """The tensors of an event that some node touches, each by a site on it."""
    nodes, table = interpreter.frame.nodes, interpreter.table
    touched = [nodes[n].target for n in interpreter.actions[event] if nodes[n].kind in ("read", "write", "skip")]
    for name in touched:
        if not table[name].can_be_shared:
            raise ModelError(
                f"{name} does not say which of its axes are rows, so its rows cannot be divided among passes: give a "
                f"larger rows=, or invokes of their own"
            )
    return {table[name].item: table[name] for name in touched}


def _axis(site: Site) -> int | None:
    """The axis of rows, or of rows and tokens folded, rows first; None: the tensor is the same for all rows."""
    return next((k for k, axis in enumerate(site.axes) if axis == "batch" or axis in FOLDED), None)


def _where(parts: Sequence[_Part]) -> int:
    events = {part.event for part in parts}
    if len(events) != 1:
        raise ModelError("the passes of a forward that was divided took different ways; give a larger rows=")
    return events.pop()


def _joined(parts: Sequence[_Part], items: Mapping[Any, Site]) -> Any:
    """What passes at the event, with the tensors that are touched in one piece."""
    whole = parts[0].raw
    for item, site in items.items():
        axis = _axis(site)
        if axis is not None:
            whole = replaced(whole, item, torch.cat([item_at(part.raw, item) for part in parts], dim=axis))
    return whole


def _handed_back(parts: Sequence[_Part], items: Mapping[Any, Site], before: Any, after: Any, *, always: bool) -> None:
    """Give each part its rows of what the interpreter goes on with; `always`: also where it is what came."""
    total = sum(part.count for part in parts)
    for item, site in items.items():
        axis, value = _axis(site), item_at(after, item)
        if value is item_at(before, item) and not always and not site.inplace:
            continue
        for part in parts:
            own = value
            if axis is not None:
                each = value.shape[axis] // total
                own = value.narrow(axis, part.start * each, part.count * each)
            if site.inplace:
                item_at(part.raw, item).copy_(own)
            else:
                part.raw = replaced(part.raw, item, own)
