"""Gradients: `autograd.grad` on the tensors that the model goes on with, inside the forward pass, at the loss's event.

The gradient of a view of a site is the same view of the site's gradient (autograd itself calls a view unused). Writing
a gradient is a hook that puts the new value back where the view lies. Parameters' `.grad` stays untouched.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from glassworks.graph.views import base_of
from glassworks.run.rows import Leaf
from glassworks.trace import binding
from glassworks.trace.shapes import arguments

if TYPE_CHECKING:
    from glassworks.run.interpret import Interpreter


def as_base(leaf: Leaf, invoke: int) -> torch.Tensor:
    """A site's value at which gradients can be taken: the model goes on with this very tensor."""
    value = leaf.read(invoke)
    if leaf.site.inplace:
        return _held(leaf, invoke, value)
    base = value if value.requires_grad else value.detach().requires_grad_(value.is_floating_point())
    if base is not leaf.raw:
        leaf.write(invoke, base, exact=True)
    return base


def as_leaf(value: torch.Tensor) -> torch.Tensor:
    """A computed value at which gradients can be taken; one that depends on nothing that is followed becomes a leaf."""
    followed = value.requires_grad or not value.is_floating_point()
    return value if followed else value.detach().requires_grad_()


def _held(leaf: Leaf, invoke: int, value: torch.Tensor) -> torch.Tensor:
    """The same of a tensor that the model holds: a base is copied into it, and has its gradient."""
    base = value.detach().clone().requires_grad_()
    if value.requires_grad:
        base = value.clone()
    leaf.write(invoke, base)
    return base


def run_backward(interpreter: "Interpreter", n: int) -> None:
    """Take the derivatives of one loss and give its gradient nodes their values."""
    frame = interpreter.frame
    nodes = frame.nodes
    loss = frame.values[nodes[n].deps[0]]
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise ValueError(f"a loss has one element; this one has shape {list(loss.shape)}. Reduce it: .sum() or .mean()")
    if not loss.requires_grad:
        raise RuntimeError("the loss does not depend on anything that gradients reach: it was detached, or never did")
    asked = [m for m in sorted(frame.plan.needed) if nodes[m].kind in ("grad", "grad_write") and nodes[m].deps[1] == n]
    by_base: dict[int, list[int]] = {}
    for m in asked:
        by_base.setdefault(base_of(nodes, nodes[m].deps[0]), []).append(m)
    trained = [m for m in frame.plan.prelude if nodes[m].kind == "constant" and nodes[m].target]
    found = _derivatives(interpreter, loss, by_base, [*by_base, *trained])
    for base, members in by_base.items():
        if found.get(base) is None:  # the loss does not depend on it
            _hook(interpreter, base, members)(torch.zeros_like(frame.values[base]))
    for m in trained:
        if (gradient := found.get(m)) is not None:
            k = nodes[m].args[0]
            frame.gradients[k] = frame.gradients[k] + gradient if k in frame.gradients else gradient


def _derivatives(
    interpreter: "Interpreter", loss: torch.Tensor, by_base: dict[int, list[int]], wanted: list[int]
) -> dict[int, Any]:
    """Node -> the gradient of `loss`, or None; hooks run what reads and writes gradients on the way."""
    values = interpreter.frame.values
    reached = [m for m in wanted if values[m].requires_grad]
    if not reached:
        return {}
    hooks = [values[base].register_hook(_hook(interpreter, base, by_base[base])) for base in by_base if base in reached]
    try:
        found = torch.autograd.grad(
            loss.reshape(()), [values[m] for m in reached], retain_graph=True, allow_unused=True
        )
    finally:
        for hook in hooks:
            hook.remove()
    return dict(zip(reached, found, strict=True))


def _hook(interpreter: "Interpreter", base: int, members: list[int]) -> Any:
    """Runs, when the gradient of a base is known, what reads and writes it, in program order."""
    frame = interpreter.frame

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for m in members:
                node = frame.nodes[m]
                views = views_between(frame.nodes, node.deps[0], base)
                if node.kind == "grad":
                    frame.values[m] = through(interpreter, gradient, views)
                else:
                    new = interpreter.compute(node.deps[2])
                    if new is None:
                        raise ValueError(
                            "the gradient that is written depends on one that comes later in the backward pass"
                        )
                    gradient = gradient.clone()
                    part = through(interpreter, gradient, views)
                    part.copy_(new.expand(part.shape) if new.shape != part.shape else new)
        return gradient

    return hook


def views_between(nodes: Sequence[Any], n: int, base: int) -> list[int]:
    """The views that lead from a base to node `n`."""
    chain = []
    while n != base:
        chain.append(n)
        n = nodes[n].deps[0]
    return chain[::-1]


def through(interpreter: "Interpreter", tensor: Any, views: list[int]) -> Any:
    """The same views of another tensor."""
    frame = interpreter.frame
    for n in views:
        node = frame.nodes[n]
        if node.kind == "item":
            tensor = tensor[node.args[1]]
        else:
            args, kwargs = arguments(node, frame.values.__getitem__)
            tensor = binding.bound(node.target)(tensor, *args[1:], **kwargs)
    return tensor
