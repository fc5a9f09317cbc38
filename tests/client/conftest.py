"""The bundled model behind a fake service that runs its jobs for real."""

from collections.abc import Iterator
from typing import Any

import pytest

import glassworks as gw
from client.fake_service import FakeService, served

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="session")
def local() -> Any:
    return gw.load("toy")


@pytest.fixture
def service(local: Any) -> FakeService:
    return FakeService(gw.connect(local).backend.transport.handle)


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    with served(service) as found:
        yield found


@pytest.fixture
def lab(url: str) -> Any:
    return gw.connect(url, api_key="gw-test", patience_s=5.0)


@pytest.fixture
def model(lab: Any, service: FakeService) -> Any:
    found = lab.model("toy")
    service.asked.clear()
    return found
