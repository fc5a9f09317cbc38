"""Arguments for each permitted operation: one way to make random ones, by name of the operation.

`OPERANDS[name](draw)` gives a `Call`. Tensors that may hold any number are made by `draw.real`, so that a test may put
activations in their place; `IN_PLACE` holds what differs for the in-place form.
"""

from operands import elementwise, reductions, shapes
from operands.draws import IN_PLACE, ONLY_IN_PLACE, OPERANDS, Call, Draw

__all__ = ["IN_PLACE", "ONLY_IN_PLACE", "OPERANDS", "Call", "Draw", "elementwise", "reductions", "shapes"]
