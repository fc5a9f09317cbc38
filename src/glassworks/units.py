"""Sizes as people write them, parsed once at the edge: everything inside counts bytes as ints."""

import re

from glassworks.errors import InputError

_FACTORS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_FACTORS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)\s*")


def parse_bytes(size: int | str) -> int:
    """`"12GiB"` -> 12884901888; an int is a number of bytes already.

    Raises:
        InputError: not a size, with the units that are known.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = _PATTERN.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise InputError(
            f"expected a size such as '64MiB' or a number of bytes, got {size!r}; units: {', '.join(_FACTORS)}"
        )
    return int(float(match[1]) * _FACTORS[match[2]])


def format_bytes(size_bytes: int) -> str:
    """`12884901888` -> `"12 GiB"`, in binary units, to three figures."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
