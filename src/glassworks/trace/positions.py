"""Positions of tokens, one a row, as `t.find` gives them: `value[:, positions]` is `[batch, ...]`."""

from typing import Any

from glassworks.errors import GraphError


class Positions(tuple[int, ...]):
    """One position a row, counted in the padded batch. Where all rows agree it is used as that int."""

    __slots__ = ()

    def __add__(self, other: Any) -> "Positions":
        """The positions `other` tokens later."""
        return Positions(position + other.__index__() for position in self)

    def __sub__(self, other: Any) -> "Positions":
        """The positions `other` tokens earlier."""
        return Positions(position - other.__index__() for position in self)

    def __repr__(self) -> str:
        return f"Positions({list(self)})"

    def __index__(self) -> int:
        if len(set(self)) != 1:
            raise GraphError(f"the rows have different positions, {list(self)}: use them as value[:, positions]")
        return self[0]


def with_positions(index: Any) -> Any:
    """An index in which `[:, positions]` picks each row's own position."""
    if type(index) is Positions:
        return index.__index__()
    if type(index) is not tuple or not any(type(item) is Positions for item in index):
        return index
    if type(index[1]) is Positions and len(set(index[1])) > 1 and index[0] == slice(None):
        return (list(range(len(index[1]))), list(index[1]), *index[2:])
    return tuple(item.__index__() if type(item) is Positions else item for item in index)
