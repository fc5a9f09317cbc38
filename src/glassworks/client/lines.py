"""The author's own lines in what a service says: files travel without their folders, and are at home here.

A line is put back only where it can mean one file.
"""

import re
from collections.abc import Iterable

from glassworks.graph.graph import Graph


def with_own_lines(error: Exception, graphs: Iterable[Graph]) -> Exception:
    """The error, with `file.py:12` spelled as the author's editor finds it."""
    lines = _own_lines(graphs)
    if not lines:
        return error
    known = re.compile(r"(?<![\w/\\.])(?:" + "|".join(map(re.escape, lines)) + r")(?!\d)")

    def spelled(text: str) -> str:
        return known.sub(lambda found: lines[found[0]], text)

    if error.args and isinstance(error.args[0], str):
        error.args = (spelled(error.args[0]), *error.args[1:])
    if hasattr(error, "__notes__"):
        error.__notes__ = [spelled(note) for note in error.__notes__]
    return error


def _own_lines(graphs: Iterable[Graph]) -> dict[str, str]:
    """Line as it travels -> as it is here; without those that two files share."""
    found: dict[str, set[str]] = {}
    for graph in graphs:
        for line in graph.lines:
            if line is not None:
                name = line.file.replace("\\", "/").rpartition("/")[2]
                found.setdefault(f"{name}:{line.number}", set()).add(str(line))
    return {sent: own.pop() for sent, own in found.items() if len(own) == 1}
