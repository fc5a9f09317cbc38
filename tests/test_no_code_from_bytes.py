"""Nothing in the package can turn bytes into code, and the watch that other tests set would notice."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import glassworks

SOURCE = Path(glassworks.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "yaml", "code",
    "codeop", "runpy", "ctypes", "cffi", "multiprocessing", "concurrent.futures.process", "torch.package", "torch.jit",
    "torch.hub", "torch.multiprocessing", "torch.utils.cpp_extension",
}  # fmt: skip
NAMES = {"eval", "exec", "compile", "__import__", "execfile", "input", "breakpoint"}
ATTRIBUTES = {
    "torch.load", "torch.save", "numpy.load", "np.load", "np.fromfile", "pd.read_pickle", "os.system", "os.popen",
    "os.execv", "os.execve", "os.spawnv", "os.fork", "subprocess.getoutput", "torch.jit.load", "torch.hub.load",
    "torch.serialization.load", "builtins.eval", "builtins.exec", "os.posix_spawn",
}  # fmt: skip
STARTS_PROCESSES = {"serve/supervise.py", "serve/checking.py"}
IMPORTS_BY_NAME = {"__init__.py"}


def used(tree: ast.AST) -> Iterator[str]:
    """What a file imports, the plain names that it calls, and its dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"import {node.module}"
            yield from (f"import {node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield f"call {node.func.id}"
        elif isinstance(node, ast.Attribute):
            yield f"name {ast.unparse(node)}"


def forbidden(text: str, path: str) -> list[str]:
    """What a file may not use."""
    found = []
    for use in used(ast.parse(text)):
        kind, _, name = use.partition(" ")
        if kind == "import":
            bad = name in MODULES or name.split(".")[0] in MODULES
            bad = bad or (name == "subprocess" and path not in STARTS_PROCESSES)
            bad = bad or (name == "importlib.import_module" and path not in IMPORTS_BY_NAME)
        else:
            bad = name in (NAMES if kind == "call" else ATTRIBUTES)
        if bad:
            found.append(use)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_can_make_code_of_bytes(path: Path) -> None:
    assert forbidden(path.read_text(), path.relative_to(SOURCE).as_posix()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import torch.jit", "x = eval(y)", "torch.load(path)",
        "np.load(f, allow_pickle=True)", "exec(text)", "os.system('x')", "import subprocess", "__import__(name)",
        "from importlib import import_module", "import marshal",
    ],
)  # fmt: skip
def test_what_is_forbidden_is_found(text: str) -> None:
    assert forbidden(text, "client/http.py")


def test_weights_are_read_from_safetensors_only() -> None:
    text = (SOURCE / "loading" / "load.py").read_text()
    assert "use_safetensors=True" in text
    assert "trust_remote_code=True" not in "".join(path.read_text() for path in FILES)


PICKLED = "import pickle, collections; given = pickle.dumps(collections.OrderedDict())"
DEEDS = {
    "pickle": (PICKLED, "pickle.loads(given)", "pickle.find_class"),
    "compile": ("", "compile('1', 'x', 'eval')", "compile"),
    "exec": ("made = compile('1', 'x', 'exec')", "exec(made)", "exec"),
    "import": ("", "import colorsys", "import 'colorsys'"),
    "write": ("", "open(path, 'w').close()", "open '"),
    "write by number": ("import os", "os.close(os.open(path, os.O_WRONLY | os.O_CREAT))", "open '"),
    "process": ("import subprocess", "subprocess.run(['true'])", "subprocess.Popen"),
    "shell": ("import os", "os.system('true')", "os.system"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_the_watch_notices(deed: str, tmp_path: Path) -> None:
    before, line, event = DEEDS[deed]
    start = f"import os, signal, sys\n{before}\npath = {str(tmp_path / 'written')!r}\n"
    code = f"{start}os.kill(os.getpid(), signal.SIGUSR1)\n{line}\n"
    environ = {
        **os.environ,
        "GLASSWORKS_AUDIT": str(tmp_path / "log"),
        "PYTHONPATH": str(Path(__file__).parent / "audit"),
    }
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)
    [log] = tmp_path.glob("log.*")
    assert [text for text in log.read_text().splitlines() if text.startswith(event)]


def test_the_watch_hears_nothing_from_what_is_harmless(tmp_path: Path) -> None:
    code = (
        "import os, signal, json\nos.kill(os.getpid(), signal.SIGUSR1)\njson.loads('[1]')\nopen(os.devnull).close()\n"
    )
    environ = {
        **os.environ,
        "GLASSWORKS_AUDIT": str(tmp_path / "log"),
        "PYTHONPATH": str(Path(__file__).parent / "audit"),
    }
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)
    [log] = tmp_path.glob("log.*")
    assert log.read_text() == "armed\n"
