"""Errors carry the user's line: which line of a test that is."""

import sys
from typing import Any


def here(offset: int = 0) -> str:
    """`file:line` of the caller's line, moved by `offset` lines."""
    frame = sys._getframe(1)
    return f"{frame.f_code.co_filename}:{frame.f_lineno + offset}"


def told(error: BaseException) -> str:
    """All that an error says, notes included."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def names(error: Any, line: str) -> bool:
    return line in told(error.value if hasattr(error, "value") else error)
