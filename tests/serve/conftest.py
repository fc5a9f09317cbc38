"""The fake model for every test of this folder, and small experiments on it."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from glassworks.graph.backend import Experiment, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.messages import encode_request
from glassworks.graph.nodes import ALL_ROWS, Node, Ref, SentLine
from played import Played
from services import Here, answers, service_here, worker_here


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


@pytest.fixture(scope="module")
def here(fake: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A service with the fake model, in threads of this process; jobs run one after the other."""
    folder = tmp_path_factory.mktemp("here")
    with (
        worker_here(folder / "w", fake.FakeBackend(), fake.LIMITS) as path,
        service_here(folder, {"small": path}, limits=fake.LIMITS) as found,
    ):
        yield found


@pytest.fixture
def stage(fake: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """Begins a service with a worker that the test plays: (service, worker)."""
    with ExitStack() as stack:

        def begin(**options: Any) -> tuple[Here, Played]:
            worker = Played(tmp_path / "w", answers(fake))
            stack.callback(worker.close)
            found = stack.enter_context(service_here(tmp_path, {"small": str(tmp_path / "w")}, **options))
            worker.appear()
            assert found.ask("GET", "/v1/models/small/sites").status_code == 200
            return found, worker

        yield lambda **options: begin(**{"limits": fake.LIMITS, **options})


@pytest.fixture(scope="session")
def body() -> bytes:
    """A request that runs."""
    return encode_request("small", [make_experiment()])


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


@pytest.fixture(scope="session")
def quiet_service() -> Iterator[Any]:
    """The toy in a service that several files use, and leave alive."""
    from glassworks.serve.supervise import running_service

    with running_service("toy") as found:
        yield found
