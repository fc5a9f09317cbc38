"""The page for people who come from NNsight: its code runs, its tables show nothing else, and NNsight says the same.

A block of NNsight's is marked `python nnsight`; the block after it is the same experiment here. A block marked
`python service` needs a service.
"""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glassworks.serve.supervise import running_service
from migration import PAGE, pairs, run, sections, tensors

SECTIONS = sections()
MINE = {name: [code for mark, code in found if mark == "python"] for name, found in SECTIONS.items()}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page starts from."""
    [code] = MINE["start"]
    return run(code, tmp_path_factory.mktemp("page") / "start.py", {})


@pytest.mark.parametrize("section", [name for name, code in MINE.items() if code and name != "start"])
def test_the_code_of_a_section_runs(section: str, start: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names = start
    for number, code in enumerate(MINE[section]):
        names = run(code, tmp_path / f"block_{number}.py", names)


def rows() -> Iterator[tuple[str, str]]:
    """(feature, what the column "here" says) of every row of every table."""
    column = None
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells:
            column = None
        elif "here" in cells:
            column = cells.index("here")
        elif column is not None and set(line) - set("|- "):
            yield cells[0], cells[column]


def test_every_piece_of_code_in_a_column_here_is_in_a_block_that_runs() -> None:
    everything = "\n".join(code for found in SECTIONS.values() for mark, code in found if mark != "python nnsight")
    pieces = [(feature, piece) for feature, here in rows() for piece in re.findall(r"`([^`]+)`", here)]
    assert len(pieces) > 150
    assert [(feature, piece) for feature, piece in pieces if piece not in everything] == []


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """What NNsight's blocks leave behind."""
    if importlib.util.find_spec("nnsight") is None:
        pytest.skip("nnsight is not installed")
    folder = tmp_path_factory.mktemp("nnsight")
    script = Path(__file__).with_name("migration.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return [load_file(folder / f"{number}.safetensors") for number in range(len(pairs()))]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(pairs())))
def test_nnsight_leaves_the_same_behind(number: int, theirs: Any, start: dict[str, Any], tmp_path: Path) -> None:
    own = tensors(run(pairs()[number][1], tmp_path / "own.py", start), start)
    both = own.keys() & theirs[number].keys()
    assert both, (own.keys(), theirs[number].keys())
    for name in both:
        torch.testing.assert_close(own[name], theirs[number][name], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_blocks_for_a_service_run(start: dict[str, Any], tmp_path: Path) -> None:
    blocks = [code for found in SECTIONS.values() for mark, code in found if mark == "python service"]
    assert blocks
    with running_service("toy") as running:
        names = {**start, "url": running.url, "key": running.key}
        for number, code in enumerate(blocks):
            names = run(code, tmp_path / f"service_{number}.py", names)
