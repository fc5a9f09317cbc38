"""The fake model for every test of this folder, and small experiments on it."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from glassworks.graph.backend import Experiment, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Node, Ref, SentLine


def _load() -> ModuleType:
    path = Path(__file__).with_name("fake_worker.py")
    spec = importlib.util.spec_from_file_location("fake_worker", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_worker"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake() -> Iterator[ModuleType]:
    yield _load()
    sys.modules.pop("fake_worker", None)


def make_experiment(*calls: tuple[str, *tuple[Any, ...]], tokens: int = 3) -> Experiment:
    """Read `a.output`, call operations on it in turn, save the last as "s"."""
    nodes = [Node("read", "a.output", (), (), (), 0, None)]
    for name, *args in calls:
        last = len(nodes) - 1
        nodes.append(Node("call", name, (Ref(last), *args), (), (last,), ALL_ROWS, None))
    last = len(nodes) - 1
    nodes.append(Node("save", "s", (Ref(last),), (), (last,), ALL_ROWS, None))
    lines = tuple(SentLine("work.py", 10 + n) for n in range(len(nodes)))
    return Experiment(Graph(tuple(nodes), lines), Inputs((Rows(ids=((1,) * tokens,)),)))


@pytest.fixture(scope="session")
def experiment() -> Any:
    return make_experiment


@pytest.fixture(scope="session")
def toy() -> Any:
    """The toy, here."""
    import glassworks as gw

    return gw.load("toy")


@pytest.fixture(scope="session")
def toy_service() -> Iterator[Any]:
    """The toy in a service that several files use, and may kill processes of: `crowd.is_up` says when it is back."""
    from glassworks.serve.supervise import running_service
    from serve.crowd import KEYS

    with running_service("toy", keys=KEYS) as found:
        yield found
