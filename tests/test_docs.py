"""Documents are current: the page of the commands, the code of the README, and links to files."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def write_docs():
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools" / "write_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "errors.md", "operations.md"])
def test_a_generated_page_is_what_its_source_says(page):
    tool = write_docs()
    assert (tool.DOCS / page).read_text() == tool.PAGES[page](), "run `make docs`"


def test_the_page_of_operations_has_every_one_and_every_class():
    from glassworks.graph.operations import OPERATIONS

    tool = write_docs()
    page = tool.operations()
    assert {operation.cost for operation in OPERATIONS.values()} == set(tool.CLASSES)
    assert all(f"\n| {name} |" in page for name in OPERATIONS)


def test_the_code_of_the_readme_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "README.md"
    namespace = {}
    printed = []
    for number, code in enumerate(blocks(page, "python")):
        path = tmp_path / ("example.py" if number == 0 else f"block_{number}.py")
        path.write_text(code)
        exec(compile(code, str(path), "exec"), namespace)
        printed.append(capsys.readouterr().out)
    for line in blocks(page, "text")[0].splitlines():
        assert line in printed[0].splitlines()
    assert printed[1] == " Rome 1\n"


def test_the_code_of_the_page_on_serving_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    codes = blocks(ROOT / "docs" / "coming-from-fastserve-and-vllm.md", "python")
    for number, code in enumerate(codes):
        path = tmp_path / f"block_{number}.py"
        path.write_text(code)
        exec(compile(code, str(path), "exec"), namespace)
    printed = capsys.readouterr().out
    for words in ("may come to 100", "MiB hold 16 such requests", "times better than fcfs", "first token mean"):
        assert words in printed


def test_code_comes_by_the_tenth_line_of_the_readme():
    assert "```python" in "\n".join((ROOT / "README.md").read_text().splitlines()[:10])


def test_the_list_of_pages_has_every_page():
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "README.md").read_text())
    pages = {page.name for page in (ROOT / "docs").iterdir()} - {"README.md"}
    assert pages <= set(links), pages - set(links)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link
