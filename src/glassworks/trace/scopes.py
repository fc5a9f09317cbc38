"""Scopes inside a block: the rows of an invoke, the steps of a generation, one backward."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from glassworks.errors import ScopeError
from glassworks.graph.nodes import Steps
from glassworks.trace.parts import Part
from glassworks.trace.positions import Positions
from glassworks.trace.recorder import caller
from glassworks.trace.value import Value

if TYPE_CHECKING:
    from glassworks.trace.block import Block


class Invoke:
    """The rows of one `t.invoke(...)`."""

    def __init__(self, block: "Block", number: int) -> None:
        self._block, self.number = block, number

    @property
    def tokens(self) -> list[list[str]]:
        """Strings of the tokens, a list a row."""
        return self._block._tokens(self.number)

    @property
    def mask(self) -> torch.Tensor:
        """bool `[batch, seq]`: where a row has a token of its own."""
        return self._block._mask(self.number)

    def find(self, text: str, which: str = "last") -> Positions:
        """As `t.find`, in these rows."""
        return self._block._find(self.number, text, which)

    @property
    def result(self) -> Any:
        """As `t.result`, of these rows."""
        recorder = self._block._own()
        if recorder.closed:
            return self._block._result_after(self.number)
        if self._block._generation is None:
            return Part(self._block._core, None, "").output
        return self._block._tokens_node(recorder, self.number, caller())


class Backward:
    """One `t.backward`; `b.grad(value)` reads its gradient."""

    def __init__(self, node: int) -> None:
        self._node = node

    def grad(self, value: Value) -> Value:
        """The gradient of this backward's loss with respect to `value`, of its shape."""
        return value.grad_of(self._node, caller())


class StepIndex:
    """`t.steps`, waiting for its index."""

    def __init__(self, block: "Block") -> None:
        self._block = block

    def __getitem__(self, index: int | slice) -> "StepScope":
        if isinstance(index, int) and index >= 0:
            return StepScope(self._block, (index, index + 1), True)
        if isinstance(index, slice) and index.step in (None, 1):
            first, end = index.start or 0, index.stop
            if first >= 0 and (end is None or end > first):
                return StepScope(self._block, (first, end), False)
        raise ScopeError(
            f"steps are t.steps[k], t.steps[a:b] or t.steps[:], counted from 0; got {index!r}\n  at {caller()}"
        )


class StepScope:
    """Some steps of a generation: a scope for sites, or a loop over its numbers."""

    def __init__(self, block: "Block", steps: Steps, single: bool) -> None:
        self._block, self._steps, self._single = block, steps, single
        self._outer: list[tuple[Steps | None, bool]] = []

    def __enter__(self) -> "StepScope":
        recorder = self._block._open()
        self._outer.append((recorder.steps, recorder.single))
        if self._block.runs_once:
            raise ScopeError(f"a trace is one forward pass; steps belong to model.generate(...)\n  at {caller()}")
        if recorder.steps is not None:
            raise ScopeError(f"steps inside steps; close the outer ones first\n  at {caller()}")
        recorder.steps, recorder.single = self._steps, self._single
        return self

    def __exit__(self, *error: Any) -> None:
        recorder = self._block._own()
        recorder.steps, recorder.single = self._outer.pop()

    def __iter__(self) -> Iterator[int]:
        first, end = self._steps
        generation = self._block._generation
        if end is None:
            if generation is None:
                raise ScopeError(f"a loop over steps needs an end: t.steps[{first}:n]\n  at {caller()}")
            end = max(generation.max_new_tokens, 1)
        for step in range(first, end):
            with StepScope(self._block, (step, step + 1), True):
                yield step
