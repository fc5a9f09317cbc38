"""The notebook: its cells are those of the tool that writes it, they run, and its pictures are of what they made."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import glassworks as gw
from glassworks import notebook

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cells():
    spec = importlib.util.spec_from_file_location("write_tour", ROOT / "tools" / "write_tour.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.CELLS


@pytest.fixture(scope="module")
def ran(cells):
    """What the code cells leave behind."""
    names = {}
    for cell in cells:
        if cell.startswith(">"):
            lines = [line for line in cell[1:].splitlines() if not line.startswith("%")]
            exec("\n".join(lines), names)
    return names


def test_the_notebook_on_disk_is_what_the_tool_says_and_has_been_run(cells):
    written = json.loads((ROOT / "examples" / "tour.ipynb").read_text())
    assert ["".join(cell["source"]) for cell in written["cells"]] == [cell.removeprefix(">") for cell in cells]
    code = [cell for cell in written["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in code)
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert str(ROOT) not in json.dumps(written)


def test_the_cells_run_and_say_what_is_true(ran):
    assert ran["model"].decode(ran["top"]) == " Paris"
    assert ran["model"].decode(ran["patched"]) == " Rome"
    assert ran["probs"].shape == (1, 4, 9, 9)


def test_an_extension_draws_graphs_models_results_and_values(ran):
    kinds = {}
    formatter = SimpleNamespace(for_type=kinds.__setitem__)
    gw.load_ipython_extension(SimpleNamespace(display_formatter=SimpleNamespace(formatters={"text/html": formatter})))
    shown = {name: kinds[type(ran[name])](ran[name]) for name in ("t", "model", "results", "probs")}
    assert "attn.heads.query" in shown["model"]
    assert "no experts to choose from" in shown["model"]
    assert "layers.2.output" in shown["t"]
    assert "float32 [3, 128]" in shown["results"]
    assert "treescope" in shown["probs"]
    assert kinds[gw.Graph](ran["t"].graph).count("<tr>") == len(ran["t"].graph) + 1


def test_what_is_shown_is_text_and_not_html(ran):
    with ran["model"].record() as t:
        ran["model"].logits.save("<script>alert(1)</script>")
    assert "<script>" not in notebook.of_graph(t.graph)
    assert "&lt;script&gt;" in notebook.of_graph(t.graph)


def test_a_value_without_numbers_and_a_large_one(ran):
    model = ran["model"]
    with model.trace("a") as t:
        value = model.logits
        assert "<code>" in notebook.of_value(value)
    assert "not saved" in notebook.of_value(value)
    assert t.graph is not None
    assert "script" not in notebook.of_array(torch.zeros(1000, 1000))
