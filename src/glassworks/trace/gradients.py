"""A gradient as something that can be written in place: `h.grad[:, -1] = 0`, `h.grad *= 3`.

A gradient that was read is a Value; an operation in place on it, or on a view of it, writes the gradient, on its way to
earlier sites, as one on a site's value writes the site.
"""

from typing import Any

from glassworks.errors import GraphError
from glassworks.graph.nodes import ALL_ROWS, Line, Node, Ref
from glassworks.trace.recorder import Recorder


class Gradient:
    """The gradient of one backward with respect to one value.

    Attributes:
        name: by which its versions are counted. scopes: node that read it -> the rows and steps that were open.
    """

    def __init__(self, block: Recorder, value: int, backward: int) -> None:
        self._block, self._value, self._backward = block, value, backward
        self.name = f"the gradient of %{value} by %{backward}"
        self.scopes: dict[int, Any] = {}

    def read(self, line: Line) -> int:
        """The node of the gradient."""
        own = (self._value, self._backward)
        node = self._block.add(Node("grad", "", (Ref(own[0]), Ref(own[1])), (), own, ALL_ROWS, None), line)
        self.scopes[node] = self._block.invoke, self._block.steps
        return node

    def write(self, new: int, line: Line) -> int:
        """Put node `new` in its place."""
        own = (self._value, self._backward, new)
        return self._block.add(Node("grad_write", "", tuple(Ref(n) for n in own), (), own, ALL_ROWS, None), line)

    def check_upstream(self, place: Any, line: Line) -> None:
        """Any site may be written: a backward sees the forward pass as it was."""

    def gradient(self, backward: int | None, line: Line) -> Any:
        """Refused."""
        raise GraphError(f"the gradient of a gradient is not taken; write the loss that you mean\n  at {line}")


def gradient_of(block: Recorder, value: int, backward: int) -> Gradient:
    """The one gradient of these, known to the block, so that what is done to it in place is written."""
    found = Gradient(block, value, backward)
    return block.derived.setdefault(found.name, found)  # type: ignore[no-any-return]
