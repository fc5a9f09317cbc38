"""Which value a view is a view of: gradients and writes concern the tensor that the model goes on with."""

from collections.abc import Sequence

from glassworks.graph.nodes import Node, Slice, refs_in
from glassworks.graph.operations import OPERATIONS


def is_view(node: Node) -> bool:
    """Whether a call surely gives a view of its first argument: every index basic, no copy possible."""
    if node.kind == "item":
        return True
    if node.kind != "call":
        return False
    operation = OPERATIONS.get(node.target)
    if operation is None or operation.aliasing == "never" or _overlaps(node):
        return False
    return (
        is_basic_index(node.args[1])
        if node.target == "getitem"
        else operation.aliasing == "always" or node.target in RESHAPES
    )


def may_be_view(node: Node) -> bool:
    """Whether a call may give a view of its first argument that cannot be written exactly."""
    operation = OPERATIONS.get(node.target) if node.kind == "call" else None
    if operation is None or node.target in ("getitem", *RESHAPES):
        return False
    return operation.aliasing == "maybe" or _overlaps(node)


def _overlaps(node: Node) -> bool:
    """Whether one element of the first argument may stand at several places of the view."""
    if node.target != "unfold":
        return False
    given = dict(zip(("dimension", "size", "step"), node.args[1:], strict=False)) | dict(node.kwargs)
    return not (type(given.get("size")) is type(given.get("step")) is int and given["size"] <= given["step"])


_CASTS = "to float half bfloat16 double int long bool byte char short type_as"
CASTS = frozenset(_CASTS.split())
"""Operations that give their first argument itself where it has the dtype already."""

RESHAPES = frozenset({"reshape", "flatten", "ravel", "reshape_as", "contiguous"})
"""Operations that are views unless the layout forces a copy; a write through such a copy is refused when it runs."""


def is_basic_index(index: object) -> bool:
    """Ints, slices, None and `...`: torch gives a view. Tensors, lists and bools: a copy."""
    if type(index) is tuple:
        return all(is_basic_index(item) for item in index)
    return index is None or index is Ellipsis or type(index) in (int, Slice)


def base_of(nodes: Sequence[Node], n: int) -> int:
    """The node at the root of a chain of views that starts at a site; any other node is its own base."""
    m = n
    while is_view(nodes[m]) and nodes[m].target != "detach" and len(refs_in(nodes[m].args[0])) == 1:
        m = nodes[m].deps[0]
    return m if nodes[m].kind == "read" else n
