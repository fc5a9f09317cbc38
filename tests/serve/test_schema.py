"""The description of the service holds: every path is in it, and what generated requests come to is as it says."""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from glassworks.serve.supervise import Running, running_service

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance, ignored_auth, unsupported_method,
]  # fmt: skip
OPEN = {"/healthz", "/metrics"}
FEW, MANY = 4, 60


@pytest.fixture(scope="module")
def running(fake: Any) -> Iterator[Running]:
    with running_service("small", keys=["gw-a"], limits=fake.LIMITS, worker_command=fake.FAKE) as found:
        yield found


@pytest.fixture(scope="module")
def schema(running: Running) -> Any:
    found = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    found.config.update(base_url=running.url)
    return found


def test_every_path_is_described(here: Any) -> None:
    paths = {
        (route.path.replace(":path", ""), method.lower())
        for route in here.app.routes
        for method in route.methods - {"HEAD"}
        if route.path != "/openapi.json"
    }
    described = here.ask("GET", "/openapi.json", key=None).json()
    found = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert found == paths
    for path, method in sorted(found):
        own = described["paths"][path][method]
        assert own.get("description") or own.get("summary"), path
        assert bool(own.get("security")) == ("401" in own["responses"]) == (path not in OPEN), path
        if method in ("post", "put") and not path.endswith("cancel"):
            assert {"408", "413", "415", "422", "429"} <= set(own["responses"]), path
            assert "requestBody" in own
    assert list(described["components"]["securitySchemes"]) == ["HTTPBearer"]


def tried(schema: Any, key: str, examples: int) -> int:
    """Requests that were made from the description, good ones and bad ones."""
    made = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            made += _tried(operation, mode, key, examples)
    return made


def _tried(operation: Any, mode: Any, key: str, examples: int) -> int:
    made = 0

    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal made
        made += 1
        answer = case.call(headers={"Authorization": f"Bearer {key}"}, timeout=60)
        case.validate_response(answer, checks=CHECKS)

    try:
        send()
    except hypothesis.errors.Unsatisfiable:  # nothing about this operation can be wrong
        assert mode is schemathesis.GenerationMode.NEGATIVE
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_generated_requests_come_to_what_the_description_says(running: Running, schema: Any, examples: int) -> None:
    web, worker = running.web, running.worker
    made = tried(schema, "gw-a", examples)
    assert made > 20 * examples
    assert (running.web, running.worker) == (web, worker)
