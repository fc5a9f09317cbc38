"""Importing the package has no effects and needs nothing heavy."""

import json
import os
import subprocess
import sys

PROBE = """
import json, os, sys, time, warnings
def state():
    hooks = [sys.meta_path, sys.path_hooks, sys.path, warnings.filters]
    functions = [sys.excepthook, sys.displayhook, sys.unraisablehook, sys.breakpointhook, warnings.showwarning]
    return [list(map(id, each)) for each in hooks], list(map(id, functions)), dict(os.environ), sys.gettrace()
before, modules = state(), set(sys.modules)
begun = time.perf_counter()
{line}
took_s = time.perf_counter() - begun
print(json.dumps({{"same": state() == before, "took_s": took_s, "modules": sorted(set(sys.modules) - modules)}}))
"""
HEAVY = {"torch", "numpy", "transformers", "safetensors", "tokenizers", "greenlet", "scipy", "einops", "matplotlib"}
SERVICES = {"httpx", "fastapi", "uvicorn", "starlette", "typer", "rich"}


def probe(line, folder):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-B", "-c", PROBE.format(line=line)]
    ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    assert not list(folder.iterdir()), "importing creates no files"
    found = json.loads(ran.stdout)
    assert found["same"], "importing changes hooks, filters, paths or the environment"
    print(f"{line}: {1000 * found['took_s']:.0f} ms")
    return {name.partition(".")[0] for name in found["modules"]}


def test_the_package(tmp_path):
    assert not probe("import glassworks", tmp_path) & (HEAVY | SERVICES)


def test_the_names_that_need_no_torch(tmp_path):
    line = "import glassworks; glassworks.Graph; glassworks.operations(); dir(glassworks)"
    assert not probe(line, tmp_path) & (HEAVY | SERVICES)


def test_the_command_line(tmp_path):
    assert not probe("import glassworks.cli.main", tmp_path) & (HEAVY | SERVICES - {"typer", "rich"})


def test_every_public_name_is_there():
    import glassworks

    for name in glassworks.__all__:
        assert getattr(glassworks, name) is not None
    assert sorted(glassworks.__all__) == list(glassworks.__all__)


def test_names_stay_what_they_are_whatever_is_imported_first():
    code = "import glassworks as gw; first = gw.wrap, gw.load; assert first == (gw.wrap, gw.load), gw.load; "
    code += "assert all(map(callable, first)), first"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
