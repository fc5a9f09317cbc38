"""Operations inside a module's own forward: which torch calls count, and what they are called.

A call counts if it gives tensors; attributes and sizes do not. Calls inside child modules belong to the children. The
name is torch's, without the underscores and the `r` of operators: `a + b`, `torch.add` and `Tensor.add` are `add`.
"""

from typing import Any

from torch import Tensor

ATTRIBUTE = "get"
"""What reading an attribute of a tensor is called; it is no operation."""

_OPERATORS = {"truediv": "div", "floordiv": "floor_divide", "mod": "remainder", "and": "bitwise_and"}
_REFLECTED = frozenset({"radd", "rmul", "rsub", "rdiv", "rtruediv", "rpow", "rmatmul"})
_AUGMENTED = frozenset({"iadd", "imul", "isub", "itruediv", "ipow", "iand", "ior"})


def name_of_call(function: Any) -> str:
    """What an operation is called in the name of a site."""
    name = str(getattr(function, "__name__", type(function).__name__))
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        if name in _AUGMENTED:
            return _OPERATORS.get(name[1:], name[1:]) + "_"
        name = name[1:] if name in _REFLECTED else name
    return _OPERATORS.get(name, name)


def port_of_call(name: str, k: int, end: str) -> str:
    """The port of the `input`, `(args, kwargs)`, or `output` of an operation's k-th call in a module's forward."""
    return f"op({name},{k}).{end}"


def gives_tensors(value: Any) -> bool:
    """Whether a call's result is one or several tensors."""
    if isinstance(value, Tensor):
        return True
    return isinstance(value, tuple | list) and any(isinstance(item, Tensor) for item in value)
