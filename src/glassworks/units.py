"""Sizes with their units, read once, at the edge: "64MiB" is 67108864 bytes."""

import re

from glassworks.errors import InputError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def size_bytes(size: str | int) -> int:
    """Bytes of a size such as `"64MiB"`, `"1.5GB"` or a number of bytes.

    Raises:
        InputError: it is not one.
    """
    if type(size) is int and size >= 0:
        return size
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None or found[2] not in _UNITS:
        raise InputError(f"a size is a number of bytes, or a text such as '64MiB' ({', '.join(_UNITS)}); got {size!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def spelled(size: int) -> str:
    """A number of bytes for people: `"64.0 MiB"`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.1f} {unit}"
    return f"{size} B"
