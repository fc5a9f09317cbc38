"""Lets tests import what they share (`from families import ...`): pytest's importlib mode adds no folder.

Tests of different files that use one service stand next to each other, so that as few processes as can be start it.
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
    items.sort(key=lambda item: _service(item) or "without")


def _service(item: pytest.Item) -> str:
    """The service that a test shares with others; empty: none."""
    names = getattr(item, "fixturenames", ())
    callspec = getattr(item, "callspec", None)
    params = callspec.params.values() if callspec is not None else ()
    served = [f"http {family}" for family, kind in (p for p in params if isinstance(p, tuple) and len(p) == 2)
              if kind == "http"]  # fmt: skip
    return next((name for name in _SHARED if name in names), served[0] if served else "")
