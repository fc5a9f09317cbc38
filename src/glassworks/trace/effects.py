"""`gw.log` and `gw.apply`: what is done with values while the model runs, rather than computed from them.

A log is data like any other node, and travels. A function of the author's is held by the graph whole: nothing looks
inside, it runs where the author's code runs, and a graph that holds one cannot be stored or sent.
"""

from collections.abc import Callable
from typing import Any

from glassworks.errors import GraphError
from glassworks.graph.logs import CHARACTERS
from glassworks.graph.nodes import ALL_ROWS, Line, Node, Ref, refs_in
from glassworks.trace.block import open_recorder
from glassworks.trace.recorder import Recorder, caller
from glassworks.trace.value import Value


def log(*parts: Any) -> None:
    """Print a line when the values exist: where it was written, the step and the rows, and the parts, tensors short.

    It is always needed, also where nothing is saved. A remote run prints here, while it runs. After the block
    `t.logs` holds the entries.

    Args:
        parts: text, Values, tensors, numbers.

    Example:
        with model.trace(prompt) as t:
            gw.log("norm of the last residual", model.layers[-1].output[:, -1].norm(dim=-1))
    """
    line = caller()
    recorder = open_recorder("gw.log", line)
    if any(isinstance(part, str) and len(part) > CHARACTERS for part in parts):
        raise GraphError(f"one line of a log has at most {CHARACTERS} characters\n  at {line}")
    _add(recorder, "log", "", (), parts, line)


def apply(function: Callable[..., Any], *values: Any, effect: bool = False, results: int | None = None) -> Any:
    """Call a function of yours on the tensors, whole, when they exist: a custom `autograd.Function`, numpy, `print`.

    It runs in this process, so a remote model refuses it. It is given copies, so that what it changes in place stays
    its own; gradients flow through it where torch lets them. Tensors that train go in as arguments, not by closure.

    Args:
        function: is given the values in this order, as tensors.
        effect: always call it, also if nobody uses what it gives; it may then return anything.
        results: how many tensors it returns, where it returns a tuple; None: it returns one tensor (or an array, or a
            number).

    Returns:
        A Value, or a tuple of `results` Values; their shapes are not known before it runs.
    """
    line = caller()
    recorder = open_recorder("gw.apply", line)
    if not callable(function):
        raise GraphError(f"gw.apply takes a function and then its values; got {type(function).__name__}\n  at {line}")
    if results is not None and (type(results) is not int or results < 1):
        raise GraphError(f"results is how many tensors the function returns, at least 1; got {results!r}\n  at {line}")
    recorder.functions.append(function)
    kind, name = "effect" if effect else "apply", _name(function)
    n = _add(recorder, kind, name, (len(recorder.functions) - 1,), values, line, results)
    if results is None:
        return Value(recorder, n, line)
    items = [Node("item", "", (Ref(n), k), (), (n,), ALL_ROWS, None) for k in range(results)]
    return tuple([Value(recorder, recorder.add(item, line), line) for item in items])


def _add(
    recorder: Recorder,
    kind: str,
    target: str,
    first: tuple[Any, ...],
    given: tuple[Any, ...],
    line: Line,
    results: int | None = None,
) -> int:
    args = (*first, *[recorder.argument(item, [], line) for item in given])
    keywords = () if results is None else (("results", results),)
    own = Node(kind, target, args, keywords, tuple(refs_in(args)), recorder.invoke, recorder.steps)
    return recorder.add(own, line)


def _name(function: Callable[..., Any]) -> str:
    """What to call a function in print."""
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", type(function).__name__)
    return f"{owner.__name__}.{name}" if isinstance(owner, type) else str(name)
