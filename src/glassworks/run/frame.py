"""A frame: the state of one graph in one request. Values so far, and what has been saved. Never inside the graph.

A graph that is still being written has a frame too, which grows with it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from glassworks.graph.backend import Draft
from glassworks.graph.logs import LogEntry
from glassworks.graph.place import Plan
from glassworks.run.watch import watch
from glassworks.trace.tensors import as_tensor


class Frame:
    """Values of the nodes, by position.

    Attributes:
        values: a tensor (or several) for each node that has run and is still needed.
        saves: what was kept, by name; a list where there is an entry a step.
        history: node of many steps -> step -> value, where a later pass needs it.
        gradients: constant -> the gradient that backwards have added for it.
        given: memory of the model's outputs that a save has given away; another save of it copies.
        early: nodes that a backward has computed before their turn.
        logs: what `gw.log` has said so far.
        watch: who is told of the run, if anybody is.
        spent_s: seconds of its nodes in passes that others shared.
    """

    def __init__(
        self,
        graph: Draft,
        plan: Plan,
        *,
        named: Mapping[str, Any],
        device: torch.device | None,
        parameter: Callable[[str], torch.Tensor],
    ) -> None:
        self.graph, self.plan = graph, plan
        self.nodes = graph.nodes
        self.values: list[Any] = [None] * len(graph.nodes)
        self.saves: dict[str, Any] = {}
        self.history: dict[int, dict[int, Any]] = {}
        self.gradients: dict[int, torch.Tensor] = {}
        self.early: set[int] = set()
        self.given: set[int] = set()
        self.logs: list[LogEntry] = []
        self.named, self.device, self.parameter = named, device, parameter
        self.watch = watch()
        self.spent_s = 0.0
        self.takes_gradients = any(forward.has_backward for forward in plan.forwards)

    def constant(self, node: int) -> torch.Tensor:
        """A captured tensor, on the device of use; one that trains is a leaf of its own."""
        own = self.nodes[node]
        tensor = as_tensor(self.graph.constants[own.args[0]]).detach()
        tensor = self._placed(tensor)
        if self.takes_gradients and tensor.is_inference():
            tensor = tensor.clone()
        return tensor.detach().requires_grad_() if own.target and self.takes_gradients else tensor

    def input(self, name: str) -> torch.Tensor:
        """A tensor that was given by name."""
        return self._placed(as_tensor(self.named[name]).detach())

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.device is None or tensor.device == self.device else tensor.to(self.device)
