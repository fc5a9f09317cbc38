"""Bodies that are never in one piece in memory: parts one after the other, each bytes or something that gives bytes.

Framed, the receiver can tell the parts apart: their number and lengths stand first, 8 bytes each, little-endian.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Protocol

from glassworks.errors import WireError


class Content(Protocol):
    """Bytes that can be had in pieces, as often as one likes."""

    @property
    def size_bytes(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...


Whole = bytes | bytearray
Body = Whole | Content


class Parts:
    """Bodies one after the other."""

    def __init__(self, parts: Iterable[Body]) -> None:
        self._parts = list(parts)

    @property
    def size_bytes(self) -> int:
        return sum(map(size_of, self._parts))

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, Whole):
                yield bytes(part)
            else:
                yield from part


def size_of(body: Body) -> int:
    """Of a body, in bytes."""
    return len(body) if isinstance(body, Whole) else body.size_bytes


def joined(body: Body) -> Whole:
    """A body in one piece, uncopied if it is that."""
    return body if isinstance(body, Whole) else b"".join(body)


def framed(parts: Iterable[Body]) -> Parts:
    """Parts that `split` tells apart."""
    own = list(parts)
    return Parts([struct.pack(f"<{len(own) + 1}Q", len(own), *map(size_of, own)), *own])


def split(data: Whole) -> list[memoryview]:
    """The parts that were framed. WireError: the lengths do not fit."""
    view = memoryview(data)
    if len(view) < 8 or 8 * ((count := struct.unpack_from("<Q", view)[0]) + 1) > len(view):
        raise WireError(f"bytes 0:8 must hold the number of the parts; got {len(view)} bytes in all")
    start, parts = 8 * (count + 1), []
    for size in struct.unpack_from(f"<{count}Q", view, 8):
        parts.append(view[start : start + size])
        start += size
    if start != len(view):
        raise WireError(f"the parts end at byte {start}, and {len(view)} bytes came")
    return parts
