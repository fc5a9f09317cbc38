"""HTTP in front of the service: keys, sizes, statuses, headers, and no torch anywhere near."""

import ast
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

import glassworks
from glassworks.errors import LimitExceeded, Unauthorized
from glassworks.graph import messages
from glassworks.serve.models import Models
from services import ANN, Here, service_here, worker_here

RUN = "/v1/models/small/run"


@pytest.fixture(scope="module")
def here(fake: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A model, and one whose worker is not there."""
    folder = tmp_path_factory.mktemp("web")
    with worker_here(folder / "w", fake.FakeBackend(), fake.LIMITS) as path:
        sockets = {"small": path, "org/gone": str(folder / "gone")}
        with service_here(folder, sockets, limits=fake.LIMITS) as found:
            yield found


@pytest.fixture(scope="module")
def app(here: Here) -> Any:
    return here.app


def ask(
    app: Any, method: str, path: str, *, key: str | None = ANN, raises: bool = True, **options: Any
) -> httpx.Response:
    async def send() -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=raises)
        async with httpx.AsyncClient(transport=transport, base_url="http://lab", headers=headers) as client:
            return await client.request(method, path, **options)

    return anyio.run(send)


# Keys.


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/small/sites", "/v1/models/small/tokenizer"])
@pytest.mark.parametrize("key", [None, "", ANN[:-1], ANN + "2", "é", "x" * 10_000])
def test_without_a_known_key_the_answer_is_401(app: Any, path: str, key: str | None) -> None:
    options = {"headers": {"Authorization": f"Bearer {key}".encode()}} if key == "é" else {}
    answer = ask(app, "GET", path, key=None if key == "é" else key, **options)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    with pytest.raises(Unauthorized, match="key"):
        raise messages.decode_error(answer.content)


def test_another_scheme_is_no_key(app: Any) -> None:
    assert ask(app, "GET", "/v1/models", key=None, auth=("gw", ANN)).status_code == 401


def test_a_body_is_not_read_without_a_key(app: Any) -> None:
    read: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"x"

    assert ask(app, "POST", RUN, key="wrong", content=body()).status_code == 401
    assert not read


# Answers.


def test_the_routes(app: Any, fake: Any, experiment: Any) -> None:
    models = ask(app, "GET", "/v1/models").json()
    assert models["models"] == [{"name": "small"}, {"name": "org/gone"}]
    assert [(own["id"], own["object"], own["owned_by"]) for own in models["data"]] == [
        ("small", "model", "glassworks"), ("org/gone", "model", "glassworks"),
    ]  # fmt: skip
    sites = ask(app, "GET", "/v1/models/small/sites")
    assert sites.headers["Content-Type"] == "application/json"
    assert sites.json()["family"] == "Fake"
    assert messages.decode_files(ask(app, "GET", "/v1/models/small/tokenizer").content) == {"tokenizer.json": b"{}"}
    answer = ask(app, "POST", RUN, content=messages.encode_request("small", [experiment()]))
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert messages.decode_results(answer.content)[0]["s"] == fake.zeros(1, 3, 8)


@pytest.mark.parametrize(
    ("status", "calls", "tokens"),
    [(422, [("system",)], 3), (422, [("div", 0)], 3), (422, [("exp",)], 3), (422, [], 601), (422, [], 500)],
)
def test_refusals_are_json(app: Any, experiment: Any, status: int, calls: Any, tokens: int) -> None:
    body = messages.encode_request("small", [experiment(*calls, tokens=tokens)])
    answer = ask(app, "POST", RUN, content=body)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["error"]["version"] == 1


def test_other_statuses(app: Any) -> None:
    assert ask(app, "POST", RUN, content=b"nonsense").status_code == 400
    assert ask(app, "POST", "/v1/models/large/run", content=b"").status_code == 404
    assert ask(app, "GET", "/v1/models/large/sites").status_code == 404
    assert ask(app, "GET", "/nowhere").status_code == 404


def test_a_missing_worker_is_503_with_retry_after(app: Any) -> None:
    for path, key in (("/v1/models/org/gone/sites", ANN), ("/healthz", None)):
        answer = ask(app, "GET", path, key=key)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"
    error = messages.decode_error(ask(app, "GET", "/v1/models/org/gone/sites").content)
    assert "the worker that holds 'org/gone' is not there" in str(error)
    assert "/" not in str(error).replace("org/gone", ""), "no path of the machine's"


def test_a_fault_of_the_service_is_500_without_its_insides(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(models: Any) -> list[str]:
        raise OSError("/secret/path")

    monkeypatch.setattr(Models, "names", property(broken))
    answer = ask(app, "GET", "/v1/models", raises=False)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "its log says why" in str(messages.decode_error(answer.content))


# Sizes.


def test_an_announced_body_over_the_limit_is_refused_unread(app: Any) -> None:
    read: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"x" * 2**21

    answer = ask(app, "POST", RUN, content=body(), headers={"Content-Length": str(2**21)})
    assert answer.status_code == 413
    assert not read
    with pytest.raises(LimitExceeded, match="2097152 bytes or more, 1048576 allowed"):
        raise messages.decode_error(answer.content)


@pytest.mark.parametrize("path", [RUN, "/v1/models/small/sites"])
def test_an_unannounced_body_is_read_up_to_the_limit_only(app: Any, path: str) -> None:
    read: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        for _ in range(1000):
            read.append(2**16)
            yield bytes(2**16)

    assert ask(app, "POST", path, content=body()).status_code == 413
    assert sum(read) <= 2**20 + 2 * 2**16


# What the schema says, and what is not imported.


def test_the_schema_describes_the_run(app: Any) -> None:
    schema = ask(app, "GET", "/openapi.json", key=None).json()
    run = schema["paths"]["/v1/models/{name}/run"]["post"]
    assert run["requestBody"]["content"]["application/octet-stream"]["schema"]["format"] == "binary"
    assert "safetensors" in run["description"]
    assert {"200", "400", "401", "404", "413", "422", "503"} <= set(run["responses"])
    assert run["security"]
    assert "/v1/models/{name}/sites" in schema["paths"]


HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "glassworks.run",
    "glassworks.engine",
    "glassworks.loading",
    "glassworks.trace",
)


TORCH = (
    "worker.py", "host.py", "connect.py", "local.py", "checker.py", "checks.py", "pricing.py", "quote.py",
    "spending.py", "completing.py", "completions.py", "selftest.py", "tasks.py", "together.py", "tokenizers.py",
)  # fmt: skip
"""Files of `serve` that the worker, the checker or the caller's own process have; the web process has none of them."""
HTTP = ("app.py", "web.py", "http_base.py", "http_jobs.py", "http_models.py", "http_openai.py")


@pytest.mark.parametrize(
    "module", ["glassworks.serve.web", "glassworks.serve.supervise", "glassworks.client", "glassworks.graph.check"]
)
def test_no_torch_is_imported(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(found.stdout)
    assert module in loaded
    assert [name for name in loaded if name.startswith(HEAVY)] == []


def test_only_the_worker_may_import_what_runs() -> None:
    root = Path(glassworks.__file__).parent
    for path in (path for part in ("client", "serve", "graph") for path in (root / part).glob("*.py")):
        names = {name for node in ast.walk(ast.parse(path.read_text())) for name in _imported(node)}
        if path.name not in TORCH:
            assert [name for name in names if name.startswith(HEAVY)] == [], path.name
        if path.name not in HTTP:
            assert [name for name in names if name.startswith(("fastapi", "pydantic"))] == [], path.name
        assert "pickle" not in names


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_health_is_answered_while_runs_wait(app: Any, experiment: Any) -> None:
    slow = messages.encode_request("small", [experiment(("mul", 1.0))])
    order: list[str] = []

    async def one(client: httpx.AsyncClient, name: str, method: str, path: str, body: bytes | None) -> None:
        await client.request(method, path, content=body)
        order.append(name)

    async def both() -> None:
        transport = httpx.ASGITransport(app=app)
        headers = {"Authorization": f"Bearer {ANN}"}
        client = httpx.AsyncClient(transport=transport, base_url="http://lab", headers=headers)
        async with client, anyio.create_task_group() as group:
            group.start_soon(partial(one, client, "run", "POST", RUN, slow))
            await anyio.sleep(0.2)
            group.start_soon(partial(one, client, "models", "GET", "/v1/models", None))

    anyio.run(both)
    assert order == ["models", "run"]
