"""`t.state(init)`: a value that is carried from one step of a generation to the next.

Reading gives what was assigned above in the same step, else what the step before left, else `init`. Assignments are
nodes that take effect for later lines of their step and for all later steps; which of them hold at a step is known only
when it runs, where scopes of steps overlap, so a read names every assignment that it may see.
"""

from typing import Any

from glassworks.errors import GraphError, ScopeError
from glassworks.graph.nodes import ALL_ROWS, Line, Node, Ref, Steps
from glassworks.trace.recorder import Recorder, caller
from glassworks.trace.value import Value

_Scope = tuple[int, Steps | None]
"""(invoke, steps) of a line."""


class State:
    """A value that steps hand on: `s.value` reads it and `s.value = new` assigns it, for the rows that are open.

    It keeps the shape that it starts with; one that starts as a number takes the shape of what is assigned. In a block
    with invokes each has its own.

    Attributes:
        now: scope -> the node that a read there gives; `latest`: the same as seen from outside of an open branch.
    """

    def __init__(self, recorder: Recorder, init: Any, line: Line) -> None:
        self._block, self._line = recorder, line
        if self._in_a_branch():
            raise GraphError(f"make the state before gw.cond, and assign it in the branches\n  at {line}")
        first = recorder.node_of(init, line)
        self._node = recorder.add(Node("state", "", (Ref(first),), (), (first,), ALL_ROWS, None), line)
        self._carries: list[tuple[_Scope, int]] = []
        self.now: dict[_Scope, int] = {}
        self.latest: dict[_Scope, int] = {}

    @property
    def value(self) -> Any:
        """What the state is at this line, in the step that runs."""
        line = caller()
        return Value(self._block, self._read(self._scope(line), line), line)

    @value.setter
    def value(self, new: Any) -> None:
        line = caller()
        scope, block = self._scope(line), self._block
        node = block.node_of(new, line)
        self._check_shape(node, line)
        merged = node
        if self._in_a_branch():
            block.branches.remember(self, "now")
            old = self.latest[scope] if scope in self.latest else self._carried(scope, line)
            merged = block.branches.merged(node, old, line)
        own = (self._node, merged)
        carry = block.add(Node("carry", "", (Ref(self._node), Ref(merged)), (), own, *scope), line)
        self._carries.append((scope, carry))
        self.now = {**{k: n for k, n in self.now.items() if not _overlap(k, scope)}, scope: node}
        self.latest = {**{k: n for k, n in self.latest.items() if not _overlap(k, scope)}, scope: merged}

    def settle(self) -> None:
        """After a condition: what its branches assigned is what the condition chose."""
        self.now = self.latest

    def _in_a_branch(self) -> bool:
        return self._block.branches is not None and bool(self._block.branches.guard)

    def _read(self, scope: _Scope, line: Line) -> int:
        if scope in self.now:
            return self.now[scope]
        node = self._carried(scope, line)
        if not self._in_a_branch():
            self.now, self.latest = {**self.now, scope: node}, {**self.latest, scope: node}
        return node

    def _carried(self, scope: _Scope, line: Line) -> int:
        """A node that gives the state at this line: the last assignment above that holds in the step, or what came."""
        own = (self._node, *[carry for other, carry in self._carries if _overlap(scope, other)])
        return self._block.add(Node("carried", "", tuple(Ref(n) for n in own), (), own, *scope), line)

    def _scope(self, line: Line) -> _Scope:
        block = self._block
        if block.closed or block.sealed:
            raise ScopeError(f"a state lives in its block, which has ended: save s.value in it\n  at {line}")
        if block.steps is None and block.needs_steps:
            raise ScopeError(
                "in a generate block a state needs its steps: `with t.steps[0:5]:` (or [:]) around it, or "
                f"`for step in t.steps[0:5]:`\n  at {line}"
            )
        if any((invoke == ALL_ROWS) != (block.invoke == ALL_ROWS) for invoke, _ in self.latest):
            raise ScopeError(
                f"a state is used in invokes, each of which has its own, or for all rows outside of them, not both\n"
                f"  state at {self._line}\n  used at  {line}"
            )
        return block.invoke, block.steps

    def _check_shape(self, new: int, line: Line) -> None:
        known = [self._block.known(n) for n in (self._node, new)]
        if any(own is None for own in known):
            return
        first, other = (tuple(own.shape) for own in known)
        if first and first != other:
            raise GraphError(
                f"a state keeps the shape that it starts with, {list(first)}; assigned was {list(other)}. Start it "
                f"from a value of that shape, or from a number\n  state at    {self._line}\n  assigned at {line}"
            )


def _overlap(one: _Scope, other: _Scope) -> bool:
    """Whether two scopes share rows and steps."""
    if one[0] != other[0]:
        return False
    a, b = one[1] or (0, None), other[1] or (0, None)
    return (a[1] is None or b[0] < a[1]) and (b[1] is None or a[0] < b[1])
