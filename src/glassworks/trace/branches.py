"""`gw.cond`: a condition as flat nodes with guards.

Both branches are recorded at once, as ordinary Python. While a branch is open, what it computes gets the branch's
guard, and so is run only if the branch is taken; reads and captured tensors stay as they are. A write in a branch
becomes a write of `new if pred else old`, where `old` is what the site held at that line, so that everything downstream
of the site sees it and placement need not know about branches.

Python's own state is put back when a branch ends: a handle that was written to is what it was before, because the other
branch starts from there, and because after the condition only the site knows which of the two happened.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from glassworks.errors import GraphError, ScopeError
from glassworks.graph.nodes import ALL_ROWS, GUARDED, Guards, Line, Node, Ref
from glassworks.trace.block import open_recorder
from glassworks.trace.recorder import Recorder, caller
from glassworks.trace.state import State
from glassworks.trace.value import Value

_SHARED = frozenset({"constant", "input", "parameter", "result", "write", "carry"})
"""What belongs to the whole block, wherever its line stands."""

_GRADIENTS = frozenset({"backward", "grad", "grad_write"})


def cond(pred: Any, a: Any, b: Any) -> Any:
    """`a` where `pred` holds, `b` where it does not; only the branch that is taken is run.

    Args:
        pred: one element, not zero for true; for a choice in each row, `torch.where`. In a generation it is asked anew
            at each step. In a live block it is asked at once, and the other branch is not even recorded.
        a, b: Values, tensors or numbers, or functions of no arguments that return them, in tuples, lists and dicts of
            one structure, or None. Both functions are called at once, to be recorded; they may write and save. A value
            saved in the branch that is not taken raises `NotTaken` when it is used.

    Returns:
        What the branches return, with Values for its leaves; gradients flow through the branch that is taken.

    Raises:
        GraphError: `pred` has several elements; the branches return different structures.
        ScopeError: a Value of one branch is used in the other, or outside.
    """
    line = caller()
    recorder = open_recorder("gw.cond", line)
    if recorder.is_live:
        chosen = a if recorder.numbers(_predicate(recorder, pred, line), "gw.cond") else b
        return _called(chosen, line) if callable(chosen) else chosen
    if recorder.branches is None:
        recorder.branches = Branches(recorder)
    return recorder.branches.choose(pred, a, b, line)


class Branches:
    """The branches of one block: which are open, and to which each node belongs.

    Attributes:
        guard: of the branches that are open, outermost first.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.guard: Guards = ()
        self._recorder = recorder
        self._home: dict[int, Guards] = {}
        self._changed: list[tuple[Any, dict[str, Any]]] = []

    # What is recorded while a branch is open.

    def admitted(self, node: Node, line: Line) -> Node:
        """The node as it is written here, with the guard of the open branch. Refuses what belongs to another branch."""
        for used in node.operands:
            self._check_home(used, line)
        if node.kind in _SHARED or not self.guard:
            return node
        if node.kind in _GRADIENTS:
            raise GraphError(
                f"gradients are taken outside of a branch: return the loss from gw.cond, and write t.backward(loss) "
                f"after it\n  at {line}"
            )
        return self._at_home(node)

    def _at_home(self, node: Node) -> Node:
        """Note where the next node belongs, and guard it if its kind is run by choice."""
        if not self.guard:
            return node
        self._home[len(self._recorder.nodes)] = self.guard
        if node.kind not in GUARDED:
            return node
        return node._replace(when=self.guard, deps=(*node.operands, *[predicate for predicate, _ in self.guard]))

    def _check_home(self, node: int, line: Line) -> None:
        own = self._home.get(node)
        if own is not None and own != self.guard[: len(own)]:
            raise ScopeError(
                f"this Value belongs to a branch of gw.cond, which may not be taken: return it from the function, and "
                f"use what gw.cond gives\n  value at {self._recorder.lines[node]}\n  used at  {line}"
            )

    def merged(self, new: int, old: int, line: Line) -> int:
        """The node of what a place holds after the open branches: `new` if all of them are taken, else `old`."""
        self._check_home(new, line)
        guard, value = self.guard, new
        while self.guard:
            predicate, wanted = self.guard[-1]
            self.guard = self.guard[:-1]
            value = self._cond(predicate, *((value, old) if wanted else (old, value)), line)
        self.guard = guard
        return value

    @contextmanager
    def outside(self) -> Iterator[None]:
        """What is written meanwhile belongs to no branch."""
        guard, self.guard = self.guard, ()
        try:
            yield
        finally:
            self.guard = guard

    def _cond(self, predicate: int, a: int, b: int, line: Line) -> int:
        """A choice in the branch that is open; its two values belong to the branches inside."""
        own = (predicate, a, b)
        node = self._at_home(Node("cond", "", tuple(Ref(n) for n in own), (), own, ALL_ROWS, None))
        self._recorder.nodes.append(node)
        self._recorder.lines.append(line)
        return len(self._recorder.nodes) - 1

    def remember(self, thing: Any, *names: str) -> None:
        """Before a branch changes attributes of a handle: they are put back when it ends."""
        if self.guard:
            self._changed.append((thing, {name: getattr(thing, name) for name in names}))

    # A condition.

    def choose(self, pred: Any, a: Any, b: Any, line: Line) -> Any:
        """See `cond`."""
        recorder = self._recorder
        predicate = _predicate(recorder, pred, line)
        self._check_home(predicate, line)
        before, mark = dict(recorder._written), len(self._changed)
        first, leaves_a, handles = self._record(a, (predicate, True), line)
        written, recorder._written = recorder._written, dict(before)
        second, leaves_b, more = self._record(b, (predicate, False), line)
        recorder._written = _advanced(before, written, recorder._written)
        if first != second:
            raise GraphError(
                f"both branches of gw.cond return one structure; a gives {_spelled(first)}, b gives {_spelled(second)}"
                f"\n  at {line}"
            )
        assert len(self._changed) == mark
        for state in dict.fromkeys(thing for thing in (*handles, *more) if isinstance(thing, State)):
            self.remember(state, "now")
            state.settle()
        found = [self._cond(predicate, x, y, line) for x, y in zip(leaves_a, leaves_b, strict=True)]
        return _built(first, iter([Value(recorder, n, line) for n in found]))

    def _record(self, branch: Any, guard: tuple[int, bool], line: Line) -> tuple[Any, list[int], list[Any]]:
        """A branch's structure, the nodes of its leaves, and the handles that it changed, which are as before."""
        mark, leaves = len(self._changed), list[int]()
        self.guard = (*self.guard, guard)
        try:
            found = _called(branch, line) if callable(branch) else branch
            structure = self._flattened(found, leaves, line)
        finally:
            self.guard = self.guard[:-1]
            changed, self._changed = self._changed[mark:], self._changed[:mark]
            for thing, before in reversed(changed):
                for name, value in before.items():
                    setattr(thing, name, value)
        return structure, leaves, [thing for thing, _ in changed]

    def _flattened(self, found: Any, leaves: list[int], line: Line) -> Any:
        """A comparable description of a structure; the nodes of its leaves go to `leaves`."""
        if found is None:
            return None
        if isinstance(found, Value | torch.Tensor | bool | int | float | complex):
            leaves.append(self._recorder.node_of(found, line))
            self._check_home(leaves[-1], line)
            return "a Value"
        if isinstance(found, tuple | list):
            return type(found), tuple([self._flattened(item, leaves, line) for item in found])
        if isinstance(found, dict):
            return tuple(found), tuple([self._flattened(item, leaves, line) for item in found.values()])
        raise GraphError(
            f"a branch of gw.cond returns Values, tensors or numbers, tuples, lists or dicts of them, or None; got "
            f"{type(found).__name__}\n  at {line}"
        )


def _called(branch: Callable[..., Any], line: Line) -> Any:
    try:
        inspect.signature(branch).bind()
    except (TypeError, ValueError) as error:
        raise GraphError(f"a branch of gw.cond is a function of no arguments: {error}\n  at {line}") from None
    return branch()


def _predicate(recorder: Recorder, pred: Any, line: Line) -> int:
    """The node of a predicate. One of several elements is refused, here or, if that is not known yet, when it runs."""
    node = recorder.node_of(pred, line)
    known = recorder.known(node)
    shape = () if known is None else tuple(known.shape)
    if any(size not in (1, None) for size in shape):
        raise GraphError(
            f"the predicate of gw.cond has one element, got shape {list(shape)}: reduce it (.any(), .all()), or choose "
            f"for each row with torch.where(pred, a, b)\n  at {line}"
        )
    return node


def _advanced(before: dict[Any, int], first: dict[Any, int], second: dict[Any, int]) -> dict[Any, int]:
    """How often each place was written, after both branches: past what either of them knew, where either wrote."""
    found = dict(before)
    for place in {**first, **second}:
        old = before.get(place, 0)
        a, b = first.get(place, 0), second.get(place, 0)
        if a != old or b != old:
            found[place] = a + b + 1
    return found


def _built(structure: Any, leaves: Iterator[Value]) -> Any:
    """The structure again, with Values for its leaves."""
    if structure is None:
        return None
    if structure == "a Value":
        return next(leaves)
    kind, inner = structure
    items = [_built(item, leaves) for item in inner]
    if isinstance(kind, tuple):
        return dict(zip(kind, items, strict=True))
    return kind._make(items) if hasattr(kind, "_make") else kind(items)


def _spelled(structure: Any) -> str:
    """A structure as an error names it."""
    if structure is None or structure == "a Value":
        return str(structure)
    kind, inner = structure
    if isinstance(kind, tuple):
        return f"a dict with {', '.join(map(str, kind)) or 'nothing'}"
    return f"a {kind.__name__} of {len(inner)}"
