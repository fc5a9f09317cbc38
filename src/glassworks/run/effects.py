"""What a run does besides computing: lines of a log, and functions of the author's, called whole."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from glassworks.errors import GraphError
from glassworks.graph import logs
from glassworks.graph.logs import LogEntry
from glassworks.run.modules import unwatched

if TYPE_CHECKING:
    from glassworks.run.interpret import Interpreter

_SHOWN = 6


def say(interpreter: "Interpreter", n: int) -> None:
    """One entry of the log, kept and told."""
    frame = interpreter.frame
    parts, _ = interpreter.arguments(n)
    if len(frame.logs) > logs.ENTRIES:
        return
    full = len(frame.logs) == logs.ENTRIES
    text = f"the log is full: {logs.ENTRIES} entries" if full else " ".join(map(_spelled, parts))
    rows = tuple(interpreter.rows_of(n))
    entry = LogEntry(
        logs.one_line(text),
        n,
        None if frame.plan.steps[n] is None else interpreter.step,
        rows if len(rows) > 1 or frame.graph.invokes > 1 else (),
        frame.graph.where(n),
    )
    frame.logs.append(entry)
    logs.tell(entry)


def _spelled(part: Any) -> str:
    if not isinstance(part, torch.Tensor):
        return str(part)
    flat = part.detach().flatten()
    numbers = [f"{item:.4g}" if isinstance(item, float) else str(item) for item in flat[:_SHOWN].tolist()]
    if part.ndim == 0:
        return numbers[0]
    more = " ..." if flat.numel() > _SHOWN else ""
    return f"{str(part.dtype).removeprefix('torch.')}{list(part.shape)} [{', '.join(numbers)}{more}]"


def applied(interpreter: "Interpreter", n: int) -> Any:
    """What a function of the author's gives for copies of its values."""
    frame = interpreter.frame
    node = frame.nodes[n]
    (k, *given), keywords = interpreter.arguments(n)
    function: Callable[..., Any] = frame.graph.functions[k]
    with unwatched():  # it may run the model: that is no part of this pass
        found = function(*[_copied(item) for item in given])
    count = keywords.get("results")
    if count is None:
        return _tensor(found, frame.device, node.target, may_be_nothing=node.kind == "effect")
    if not isinstance(found, Sequence) or len(found) != count:
        got = f"{len(found)} results" if isinstance(found, Sequence) else type(found).__name__
        raise GraphError(f"gw.apply({node.target}, results={count}) expects a tuple of {count} tensors, got {got}")
    return tuple([_tensor(item, frame.device, node.target) for item in found])


def _copied(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return item.clone()
    return type(item)(_copied(part) for part in item) if type(item) in (list, tuple) else item


def _tensor(found: Any, device: torch.device | None, name: str, *, may_be_nothing: bool = False) -> Any:
    """What a function gave, as a tensor where values live; numbers and arrays are taken for one."""
    if isinstance(found, bool | int | float | complex) or type(found).__module__ == "numpy":
        found = torch.as_tensor(found)
    if isinstance(found, torch.Tensor):
        return found if device is None or found.device == device else found.to(device)
    if may_be_nothing:
        return None
    several = f"; where it returns several, write results={len(found)}" if isinstance(found, tuple | list) else ""
    raise GraphError(f"gw.apply({name}) expects a tensor, got {type(found).__name__}{several}")
