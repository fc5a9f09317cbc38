"""`place` goes over the families and the ways to run them; `case` adds line-by-line execution; `encdec` is T5.

Services over HTTP are slow to start, so those are for `make test-all`; so are connected models of families that differ
from others in nothing that travels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from contract.places import DECODERS, Place, Services, place_of

KINDS = ("local", "remote", "http")
SELDOM = {("qwen3", "remote"), ("mixtral", "remote")}
UNTRAINED = SELDOM | {("qwen3", "local"), ("mixtral", "local")}


def grid(families: Sequence[str], kinds: Sequence[str], seldom: set[tuple[str, str]] | None = None) -> list[object]:
    """Places to go over; those over HTTP and the seldom ones are slow."""
    rare = SELDOM if seldom is None else seldom
    return [
        pytest.param(
            (family, kind),
            id=f"{family}-{kind}",
            marks=[pytest.mark.slow] if kind == "http" or (family, kind) in rare else [],
        )
        for family in families
        for kind in kinds
    ]


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    found = Services(lambda family: tmp_path_factory.mktemp(family))
    yield found
    found.close()


@pytest.fixture(scope="session", params=grid(DECODERS, KINDS))
def place(request: pytest.FixtureRequest, services: Services) -> Place:
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(DECODERS, KINDS, UNTRAINED))
def trained(request: pytest.FixtureRequest, services: Services) -> Place:
    """As `place`; of two families, the rest with the slow tests."""
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(DECODERS, (*KINDS, "live")))
def case(request: pytest.FixtureRequest, services: Services) -> Place:
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(DECODERS, ("local", "remote")))
def inside(request: pytest.FixtureRequest, services: Services) -> Place:
    """Where the model is in this process, so that what runs can be counted."""
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(DECODERS, ("live",)))
def live(request: pytest.FixtureRequest, services: Services) -> Place:
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(("t5",), KINDS))
def encdec(request: pytest.FixtureRequest, services: Services) -> Place:
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(("t5",), (*KINDS, "live")))
def encdec_case(request: pytest.FixtureRequest, services: Services) -> Place:
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(("gpt2", "llama", "qwen3"), (*KINDS, "live")))
def dense(request: pytest.FixtureRequest, services: Services) -> Place:
    """Families whose MLP is one MLP."""
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(("mixtral",), (*KINDS, "live"), set()))
def moe(request: pytest.FixtureRequest, services: Services) -> Place:
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(("bloom",), ("local", "remote", "live")))
def bloom(request: pytest.FixtureRequest, services: Services) -> Place:
    return place_of(*request.param, services)


@pytest.fixture(scope="session", params=grid(("llama", "qwen3", "mixtral"), (*KINDS, "live")))
def rotary(request: pytest.FixtureRequest, services: Services) -> Place:
    return place_of(*request.param, services)


@pytest.fixture(params=["local", "remote", "live"])
def kind(request: pytest.FixtureRequest) -> str:
    """The ways to run a model of the test's own."""
    return request.param


@pytest.fixture(params=["local", "remote"])
def blocks(request: pytest.FixtureRequest) -> str:
    """The same, without line-by-line execution."""
    return request.param


@pytest.fixture(scope="session", params=grid(DECODERS, ("local",)))
def local(request: pytest.FixtureRequest, services: Services) -> Place:
    return place_of(*request.param, services)


@pytest.fixture(params=["remote", pytest.param("http", marks=pytest.mark.slow)])
def connection(
    request: pytest.FixtureRequest, services: Services, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[bytes]]:
    """A model, and the bodies that were sent to it."""
    model = place_of("llama", request.param, services).model
    own = model.backend.transport
    sent: list[bytes] = []
    real = type(own).send

    def send(self: Any, request: Any) -> Any:
        if self is own:
            sent.append(request.body or b"")
        return real(self, request)

    monkeypatch.setattr(type(own), "send", send)
    return model, sent


@pytest.fixture(scope="session", params=grid(DECODERS, ("remote", "http")))
def apart(request: pytest.FixtureRequest, services: Services) -> Place:
    """A model behind a service."""
    return place_of(*request.param, services)
