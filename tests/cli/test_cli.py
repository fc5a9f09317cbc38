"""The commands as a shell meets them: what they print, and how they refuse."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import glassworks as gw
from glassworks.cli import main as cli

EIFFEL, COLOSSEUM = "The Eiffel Tower is in the city of", "The Colosseum is in the city of"
COMMANDS = {
    "demo": ["--out"],
    "show": ["--part", "--native", "--json"],
    "run": [
        "--model",
        "--url",
        "--api-key",
        "--prompts",
        "--out",
        "--to",
        "--rows",
        "--max-new-tokens",
        "--decode",
        "--dry-run",
    ],
    "generate": [
        "--file",
        "--out",
        "--max-new-tokens",
        "--temperature",
        "--seed",
        "--stop",
        "--policy",
        "--rows",
        "--device-memory",
        "--host-memory",
        "--dry-run",
    ],
    "measure": [
        "--out",
        "--rows",
        "--prompt-tokens",
        "--repeats",
        "--cpu-seconds",
        "--device-memory",
        "--dry-run",
    ],
    "serve": [
        "--host",
        "--port",
        "--state",
        "--api-key",
        "--policy",
        "--rows",
        "--kv-device",
        "--kv-host",
        "--limit",
        "--quota",
    ],
}


@pytest.fixture(scope="module")
def model():
    return gw.load("toy")


@pytest.fixture(scope="module")
def graph(model, tmp_path_factory):
    """A file with a graph that saves the last word and the residual of a layer."""
    with model.record() as t:
        model.logits[:, -1].argmax(-1).save("word")
        model.layers[2].output.save("resid")
    path = tmp_path_factory.mktemp("graphs") / "graph.safetensors"
    t.graph.save(path)
    return path


@pytest.fixture(scope="module")
def steps(model, tmp_path_factory):
    """A file with a graph of three generation steps."""
    with model.record() as t, t.steps[0:3]:
        model.logits[:, -1].argmax(-1).save("word")
    path = tmp_path_factory.mktemp("graphs") / "steps.safetensors"
    t.graph.save(path)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line as the script does: (exit code, standard output, standard error)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["glassworks", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        return ended.value.code or 0, found.out, found.err

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_an_example_and_the_list_of_flags_is_frozen(command):
    text = CliRunner().invoke(cli.app, [command, "--help"]).stdout
    usage, first = text.strip().split("\n\n")[:2]
    assert usage.startswith("Usage:")
    assert first.strip().startswith(f"Example: glassworks {command}")
    flags = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert flags == [*COMMANDS[command], "--help"]


def test_version(run):
    assert run("--version") == (0, f"glassworks {gw.__version__}\n", "")


# show


def test_show_folds_layers(run):
    code, out, _ = run("show", "toy")
    assert code == 0
    assert "6 layers" in out
    for words in (["layers[0:6].mlp.output", "[batch, seq, 128]", "float32"], ["logits", "[batch, seq, 991]"]):
        assert any(all(word in line for word in words) for line in out.splitlines())


def test_show_a_part(run):
    _, out, _ = run("show", "toy", "--part", "layers.1.attn", "--native")
    assert "layers.1.attn.output" in out
    assert "model.layers.1.self_attn.o_proj.input" in out
    assert "mlp" not in out


def test_show_json(run, model):
    found = json.loads(run("show", "toy", "--json")[1])
    assert found["layers"] == {"layers": 6}
    assert list(found["sites"]) == list(model.table.standard_names)
    assert found["sites"]["logits"]["axes"] == ["batch", "seq", 991]


def test_show_a_graph(run, graph):
    assert run("show", graph)[1] == f"{gw.Graph.load(graph)}\n"
    assert json.loads(run("show", graph, "--json")[1])["invokes"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy", "--part", "layers.0.atn"], "layers.0.attn"),
        (["no.safetensors"], "there is no file"),
        (["."], "cannot load '.'"),
    ],
)
def test_show_refuses(run, words, message):
    code, out, err = run("show", *words)
    assert (code, out) == (2, "")
    assert err.startswith("glassworks: ")
    assert message in err


def test_show_refuses_bytes_that_are_no_graph(run, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no graph")
    code, _, err = run("show", tmp_path / "x.safetensors")
    assert code == 2
    assert "Traceback" not in err


# run


def test_run_prints_saves(run, graph):
    code, out, err = run("run", graph, EIFFEL, COLOSSEUM, "--decode")
    assert code == 0
    assert "word: int64 [2]  ' Paris' ' Rome'\n" in out
    assert "resid: float32 [2, 9, 128]" in out
    assert err.endswith("1 forward pass\n")


def test_run_takes_prompts_from_a_file_or_standard_input(run, graph, tmp_path, monkeypatch):
    (tmp_path / "prompts").write_text(f"{EIFFEL}\n\n{COLOSSEUM}\n")
    from_file = run("run", graph, "--prompts", tmp_path / "prompts", "--rows", "1")
    with (tmp_path / "prompts").open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        from_input = run("run", graph, "--rows", "1")
    assert from_file == from_input
    assert from_file[2].endswith("2 forward passes\n")


def test_run_writes_what_it_saved_and_what_ran(run, graph, model, tmp_path):
    out = tmp_path / "found.safetensors"
    assert run("run", graph, EIFFEL, "Rome is a city in", "--out", out)[1] == f"2 saves of 2 prompts in {out}\n"
    expected = model.run(gw.Graph.load(graph), [EIFFEL, "Rome is a city in"])
    with safe_open(out, framework="pt") as found:
        assert set(found.keys()) == {"word", "resid.0", "resid.1"}
        assert torch.equal(found.get_tensor("word"), expected["word"])
        assert torch.equal(found.get_tensor("resid.1"), expected["resid"][1])
        assert found.metadata()["graph"] == gw.Graph.load(graph).digest
        assert json.loads(found.metadata()["prompts"]) == [EIFFEL, "Rome is a city in"]


def test_run_goes_on_with_a_folder(run, graph, model, tmp_path):
    acts, prompts = tmp_path / "acts", [EIFFEL, "Rome is a city in"]
    for _ in range(2):
        code, out, err = run("run", graph, *prompts, "--to", acts)
        assert (code, out, err) == (0, f"2 saves of 2 prompts in {acts}\n", "")
    expected = model.run(gw.Graph.load(graph), prompts)
    for name, value in gw.results(acts).items():
        torch.testing.assert_close(value, expected[name])
    code, _, err = run("run", graph, EIFFEL, "--to", acts)
    assert code == 2
    assert "other prompts" in err


def test_run_generates(run, steps):
    _, out, err = run("run", steps, "The Louvre is in the city of", "--max-new-tokens", "3", "--decode")
    assert [line.split("  ")[-1] for line in out.splitlines()[1:]] == ["' Paris'", "'.'", "''"]
    assert err.endswith("3 forward passes\n")


def test_a_dry_run_says_what_would_run_and_runs_nothing(run, graph, steps, monkeypatch):
    def fail(*_):
        raise AssertionError("it ran")

    monkeypatch.setattr("glassworks.trace.facade.Model.run", fail)
    _, out, _ = run("run", graph, EIFFEL, COLOSSEUM, "Rome is", "--rows", "2", "--dry-run")
    assert "3 prompts, 21 tokens, 2 batches of at most 2\n" in out
    assert "6 of 6 nodes are needed, for 2 saves: word, resid\n" in out
    assert "forward 1 of 1 for each batch: ends at logits, event" in out
    assert "at most 3 steps: ends at logits" in run("run", steps, "Rome is", "--max-new-tokens", "9", "--dry-run")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", os.devnull], "no prompts"),
        (["--prompts", __file__, "Rome is"], "one or the other"),
        (["--url", "localhost", "Rome is"], "http://"),
        (["--url", "http://127.0.0.1:9", "Rome is"], "no service answers"),
        (["--rows", "0", "Rome is"], "--rows"),
    ],
)
def test_run_refuses(run, graph, words, message):
    code, out, err = run("run", graph, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_run_says_that_a_graph_of_steps_needs_a_number(run, steps):
    code, _, err = run("run", steps, "Rome is")
    assert code == 2
    assert "max_new_tokens" in err


# serve


def test_serve_says_where_and_the_same_graph_runs_there(run, graph, tmp_path):
    command = [sys.executable, "-c", "from glassworks.cli.main import main; main()", "serve", "toy", "--port", "0"]
    command += ["--state", str(tmp_path / "state")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    served = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = re.search(r"http://\S+", served.stdout.readline())[0]
        key = served.stdout.readline().split()[-1]
        there = run("run", graph, EIFFEL, "--decode", "--url", url, "--api-key", key)
        assert there == run("run", graph, EIFFEL, "--decode")
        code, _, err = run("run", graph, EIFFEL, "--url", url, "--api-key", "wrong")
        assert code == 2
        assert "key" in err
    finally:
        served.send_signal(signal.SIGINT)
        assert served.wait(30) == 0
        served.stdout.close()


def test_serve_refuses_an_address_that_it_cannot_have(run, tmp_path):
    code, _, err = run("serve", "toy", "--host", "192.0.2.1", "--state", tmp_path / "state")
    assert code == 2
    assert "cannot listen" in err


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [("--policy", "fifo", "fcfs"), ("--kv-device", "lots", "64MiB"), ("--kv-host", "1 XB", "64MiB")],
)
def test_serve_refuses_what_its_worker_could_not_take_before_it_starts_one(run, tmp_path, option, given, message):
    code, _, err = run("serve", "toy", option, given, "--state", tmp_path / "state")
    assert code == 2
    assert message in err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        ("--limit", "tokens", r"--limit takes name=number; the names are body_bytes, .*, check_bytes; got 'tokens'"),
        ("--limit", "days=3", "--limit takes name=number; the names are body_bytes"),
        ("--limit", "rows=many", "--limit rows takes a whole number, got 'many'"),
        ("--limit", "held_bytes=16 pounds", "a size is a number of bytes, or a text such as '64MiB'"),
        ("--quota", "streams=0", "the quota streams is an int of at least 1, got 0"),
        ("--quota", "run_s=3", "--quota takes name=number; the names are unfinished_jobs"),
    ],
)
def test_serve_says_what_is_no_limit(run, tmp_path, option, given, message):
    code, _, err = run("serve", "toy", option, given, "--state", tmp_path / "state")
    assert code == 2
    assert re.search(message, " ".join(err.split()))
    assert not (tmp_path / "state").exists()


def test_limits_and_quotas_reach_the_service(run, tmp_path, monkeypatch):
    from glassworks.graph.limits import Limits
    from glassworks.serve import supervise
    from glassworks.serve.quotas import Quotas

    served = {}
    monkeypatch.setattr(supervise, "serve", lambda model, **options: served.update(options))
    given = ["--limit", "rows=64", "--limit", "held_bytes=1.5GiB", "--quota", "compute_s=60"]
    assert run("serve", "toy", *given, "--state", tmp_path / "state")[0] == 0
    assert served["limits"] == Limits(rows=64, held_bytes=3 * 2**29)
    assert served["quotas"] == Quotas(compute_s=60)
    code, _, err = run("serve", "toy", "--limit", "rows=1", "--limit", "rows=2", "--state", tmp_path / "state")
    assert code == 2
    assert "--limit rows was given twice" in err


# demo


def test_the_demo_holds_and_leaves_its_files(tmp_path):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100"}
    command = [sys.executable, "-c", "from glassworks.cli.main import main; main()", "demo", "--out", "found"]
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "8 of 8 checks hold" in ran.stdout
    names = {"graph.txt", "lens.png", "lens.safetensors", "patch.png", "patch.safetensors"}
    assert {path.name for path in (tmp_path / "found").iterdir()} == names
    assert all(path.stat().st_size > 1000 for path in (tmp_path / "found").iterdir())
    assert not [path for path in Path(tmp_path).iterdir() if path.name != "found"]


def test_the_demo_fails_when_a_check_does(monkeypatch, tmp_path):
    from glassworks.cli import demo

    for part in ("_lens", "_patch", "_shared"):
        monkeypatch.setattr(demo, part, lambda *_: None)
    monkeypatch.setattr(demo, "_end", lambda *_: None)
    monkeypatch.setattr(demo, "OTHER_ANSWER", " Berlin")
    found = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path)])
    assert "not so" in found.stdout
    assert found.exit_code == 1
