"""Lets tests import what they share (`from families import ...`): pytest's importlib mode adds no folder.

Tests of different files that use one service stand next to each other, so that as few processes as can be start it;
and first, since they wait most.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

_SLOW_TIMEOUT_S = 3600
"""How long a slow test may take; the others have what pyproject.toml says."""
_SHARED = ("toy_service", "quiet_service")
"""Fixtures that are a service of a whole session. The others are runtimes and places of the kind `http`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SLOW_TIMEOUT_S))
    items.sort(key=lambda item: (not _service(item), _service(item)))


def _service(item: pytest.Item) -> str:
    """The service that a test shares with others; empty: none."""
    names = getattr(item, "fixturenames", ())
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    shared = [name for name in _SHARED if name in names]
    served = [f"http {param[0]}" for param in params if isinstance(param, tuple) and param[1:] == ("http",)]
    return next(iter(shared + served), "")
