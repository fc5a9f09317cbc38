"""`glassworks keys`: beside a service or before one, and what it never prints."""

import sys

import pytest
from typer.testing import CliRunner

from glassworks.cli import main as cli
from glassworks.serve.keys import Keys
from glassworks.serve.state import State


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command line as the script does: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["glassworks", "keys", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        return ended.value.code or 0, found.out, found.err

    return run


@pytest.mark.parametrize(
    ("command", "flags"), [("add", ["--state", "--weight"]), ("list", ["--state"]), ("revoke", ["--state"])]
)
def test_help_begins_with_an_example_and_the_list_of_flags_is_frozen(command, flags):
    text = CliRunner().invoke(cli.app, ["keys", command, "--help"]).stdout
    assert text.strip().split("\n\n")[1].strip().startswith(f"Example: glassworks keys {command}")
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  --")] == [*flags, "--help"]


def test_a_key_is_added_listed_and_revoked(run, tmp_path):
    code, key, err = run("add", "ann", "--weight", "2.5")
    assert (code, err) == (0, "")
    key = key.strip()
    assert key.startswith("gw-")
    with State.hold(tmp_path / "glassworks-state") as state:
        keys = Keys(state)
        row = keys.owner(key)
        assert (row.name, row.weight) == ("ann", 2.5)
        _, out, _ = run("list")
        assert out.splitlines()[1].split()[:3] == [row.id, "ann", "2.5"]
        assert key not in out
        assert run("revoke", "ann") == (0, f"{row.id} (ann) is let in no more\n", "")
        assert Keys(state).owner(key) is None
    _, out, _ = run("list")
    assert out.splitlines()[1].count("UTC") == 2


def test_another_folder(run, tmp_path):
    code, key, _ = run("add", "ann", "--state", "there")
    assert code == 0
    with State.visit(tmp_path / "there") as state:
        assert Keys(state).owner(key.strip()) is not None
    assert not (tmp_path / "glassworks-state").exists()


@pytest.mark.parametrize("words", [("list",), ("revoke", "ann")])
def test_a_folder_without_a_service_is_said_and_not_made(run, tmp_path, words):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "'glassworks-state' holds no state of a service" in err
    assert list(tmp_path.iterdir()) == []


def test_refusals_are_one_message(run):
    run("add", "ann")
    assert run("add", "ann")[2].startswith("glassworks: 'ann' has a key already (key-")
    assert run("revoke", "bob")[2] == "glassworks: no key that is let in is named 'bob'; there are ann\n"


def test_without_the_extra_it_is_said_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr("glassworks.cli.extras.find_spec", lambda name: None)
    code, _, err = run("list")
    assert code == 2
    assert "pip install 'glassworks[serve]'" in err
