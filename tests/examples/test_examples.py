"""Every example runs, says something, and uses the public namespace only."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
SAYS = {
    "ablation": "the original, still:  fact, agreement, induction, indirect object",
    "activation_patching": "after layer 0: Rome",
    "any_module": "error without it",
    "attribution": "layer 5 mlp",
    "control": "The Brandenburg Gate is in the city of Berlin",
    "live": "The Eiffel Tower is in the city of Rome",
    "logit_lens": "after layer 5:  Paris",
    "remote": "the same bits: True",
    "service": "to the other key it is unknown",
    "serving": "The Louvre is in the city of Rome",
    "steering": "The Louvre is in the city of Rome",
    "stored_graph": "Paris  Rome  Berlin  London  Moscow  Athens  Tokyo  Cairo",
}


def test_each_example_is_listed_here():
    assert [path.stem for path in EXAMPLES] == sorted(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert SAYS[path.stem] in capfd.readouterr().out
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_by_itself(path, tmp_path):
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, path], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert SAYS[path.stem] in ran.stdout
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_uses_the_public_namespace(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    names = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith("glassworks.")]
    assert not [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")
                and not node.attr.startswith("__")]  # fmt: skip
