"""Lets tests import what they share (`from families import ...`): pytest's importlib mode adds no folder."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

_SLOW_TIMEOUT_S = 3600
"""How long a slow test may take; the others have what pyproject.toml says."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SLOW_TIMEOUT_S))
