"""The pages about a service: their code runs against one, and what their tables name is there."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from glassworks.graph.limits import Limits
from glassworks.serve.quotas import Quotas
from glassworks.serve.supervise import Running, running_service
from migration import run

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["coming-from-ndif.md", "operating.md"]


def text(page: str) -> str:
    return (DOCS / page).read_text()


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running_service("toy") as running:
        yield running


@pytest.fixture(scope="module")
def schema(service: Running) -> Any:
    return httpx.get(f"{service.url}/openapi.json").json()


@pytest.mark.parametrize("page", PAGES)
def test_the_code_runs(page: str, service: Running, tmp_path: Path, monkeypatch: Any) -> None:
    if page == "operating.md":
        pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"url": service.url, "key": service.key}
    codes = re.findall(r"^```python\n(.*?)^```$", text(page), flags=re.DOTALL | re.MULTILINE)
    assert codes
    for number, code in enumerate(codes):
        names = run(code, tmp_path / f"block_{number}.py", names)


def test_the_table_of_paths_has_every_one(schema: Any) -> None:
    section = text("operating.md").split("## HTTP")[1].split("## ")[0]
    for path in schema["paths"]:
        plain = re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), path)
        assert plain in section or plain.rpartition("/")[2] in section, path


def test_metrics_that_are_named_are_there(service: Running) -> None:
    told = httpx.get(f"{service.url}/metrics").text
    names = set(re.findall(r"glassworks_[a-z_]+", text("operating.md")))
    assert len(names) > 8
    assert [name for name in names if name not in told] == []


def test_defaults_are_what_the_page_says() -> None:
    quotas, limits = Quotas(), Limits()
    page = text("operating.md")
    for value in (quotas.unfinished_jobs, quotas.compute_s, quotas.streams, limits.run_s, limits.max_new_tokens):
        assert f"| {value} |" in page, value
    assert f"{limits.rows}, {limits.tokens}, {limits.tokens_per_row} |" in page
    assert (quotas.stored_bytes, quotas.events, limits.body_bytes, limits.result_bytes) == (2**32, 20_000, 2**28, 2**28)


def test_the_state_folder_holds_what_the_page_says(service: Running) -> None:
    section = text("operating.md").split("## The state folder")[1].split("## ")[0]
    named = set(re.findall(r"`([a-z.]+)/?`", section))
    for name in os.listdir(service.state):
        assert name.removesuffix("-wal").removesuffix("-shm") in named, name
