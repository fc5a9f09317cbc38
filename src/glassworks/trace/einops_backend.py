"""einops on Values: its torch backend, told that a Value is one of its tensors. Registered once einops is loaded."""

from functools import cache
from typing import Any

from glassworks.trace.value import Value


@cache
def register_with_einops() -> None:
    """Make einops take Values. It finds its backends among the subclasses of its own."""
    from einops import _backends

    class ValueBackend(_backends.TorchBackend):  # type: ignore[misc]
        def is_appropriate_type(self, tensor: Any) -> bool:
            return isinstance(tensor, Value)

    _backends._type2backend[Value] = ValueBackend()
