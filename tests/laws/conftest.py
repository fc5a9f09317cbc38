"""`runtime` goes over every family on every runtime; those that start a service for a rarer family are slow."""

from collections.abc import Iterator

import pytest

from families import FAMILIES
from laws.runtimes import KINDS, Runtime, Services, lived
from laws.runtimes import runtime as make_runtime

SERVED = ("gpt2",)


def pairs(kinds: tuple[str, ...]) -> list[object]:
    return [
        pytest.param(
            (family, kind),
            id=f"{family}-{kind}",
            marks=[pytest.mark.slow] if kind == "http" and family not in SERVED else [],
        )
        for family in FAMILIES
        for kind in kinds
    ]


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    found = Services(lambda family: tmp_path_factory.mktemp(family))
    yield found
    found.close()


@pytest.fixture(scope="session", params=pairs(tuple(KINDS)))
def runtime(request: pytest.FixtureRequest, services: Services) -> Runtime:
    return make_runtime(*request.param, services)


@pytest.fixture(scope="session", params=pairs(tuple(kind for kind in KINDS if kind != "eager")))
def elsewhere(request: pytest.FixtureRequest, services: Services) -> Runtime:
    return make_runtime(*request.param, services)


@pytest.fixture(scope="session", params=list(FAMILIES))
def here(request: pytest.FixtureRequest, services: Services) -> Runtime:
    return make_runtime(request.param, "eager", services)


@pytest.fixture(scope="session", params=list(FAMILIES))
def live(request: pytest.FixtureRequest) -> Runtime:
    """Blocks run line by line."""
    return lived(request.param)


@pytest.fixture(scope="session", params=pairs((*(kind for kind in KINDS if kind != "staged"), "live")))
def differentiable(request: pytest.FixtureRequest, services: Services) -> Runtime:
    """The runtimes that take gradients."""
    return make_runtime(*request.param, services)
