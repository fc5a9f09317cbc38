"""`model.run(..., to=folder)`: what is written, that a run goes on where it was cut short, and what is refused."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import glassworks as gw
from families import FAMILIES, gpt2
from glassworks.trace import stored

RAGGED = [[5 + k % 7 + j for j in range(1 + (k * 3) % 6)] for k in range(11)]
EQUAL = [[5 + k, 6, 7, 8] for k in range(7)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def graph(model: Any) -> gw.Graph:
    with model.record() as t:
        h = model.layers[1].output
        h.save("h")
        h[:, :-1].save("shorter")
        model.logits[:, -1].argmax(-1).save("top")
        (h @ h.transpose(1, 2)).save("gram")
        h.save("mean", reduce="mean")
        h[:, -1].save("sum", reduce="sum")
    return t.graph


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
        return
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


class Cut(Exception):
    """A run ends here."""


def cut_after(patch: pytest.MonkeyPatch, passes: int) -> None:
    """The run breaks off when it is about to rename the file of that pass."""
    replace = os.replace

    def breaks(source: Any, target: Any) -> None:
        if Path(target).name == f"shard-{passes:05}.safetensors":
            raise Cut
        replace(source, target)

    patch.setattr(stored.os, "replace", breaks)


# What is there.


@pytest.mark.parametrize("prompts", [RAGGED, EQUAL, RAGGED[:1]])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_what_is_read_back_is_what_a_run_in_memory_gives(model, graph, tmp_path, prompts, rows):
    expected = model.run(graph, prompts, rows=rows)
    found = model.run(graph, prompts, rows=rows, to=tmp_path / "acts")
    assert list(found) == list(expected)
    assert found.complete
    assert found.forwards == expected.forwards
    assert found.ids == [tuple(prompt) for prompt in prompts]
    for again in (found, gw.results(tmp_path / "acts"), gw.results(str(tmp_path / "acts"))):
        for name in expected:
            same(again[name], expected[name])
    assert found.graph == graph


def test_a_shard_is_a_safetensors_file_of_real_tokens(model, graph, tmp_path):
    model.run(graph, RAGGED, rows=4, to=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "graph.safetensors", "manifest.json", *[f"shard-{k:05}.safetensors" for k in range(4)]
    ]  # fmt: skip
    passes = json.loads((tmp_path / "manifest.json").read_text())["passes"]
    assert passes == [[1, 3, 5, 7], [9], [0, 2, 4, 6], [8, 10]]
    for path, rows in zip(sorted(tmp_path.glob("shard-*")), passes, strict=True):
        own = load_file(path)
        offsets = own["offsets"].tolist()
        assert own["saves.h"].shape == (sum(len(RAGGED[row]) for row in rows), 32)
        assert own["saves.top"].shape == (len(rows),)
        for row, (start, end) in zip(rows, pairwise(offsets), strict=True):
            assert own["ids"][start:end].tolist() == RAGGED[row]
            with model.trace(RAGGED[row]):
                alone = model.layers[1].output.save()
            torch.testing.assert_close(own["saves.h"][start:end], alone.value[0], atol=1e-5, rtol=1e-5)


def test_rows_are_gone_through_one_by_one(model, graph, tmp_path):
    found = model.run(graph, RAGGED, rows=4, to=tmp_path)
    for name in ("h", "gram", "shorter"):
        same(list(found.rows(name)), found[name])
    with pytest.raises(gw.InputError, match="no rows"):
        next(found.rows("mean"))


def test_a_generation_is_stored_step_by_step(model, tmp_path):
    with model.generate(EQUAL[0], max_new_tokens=3) as t:
        with t.steps[:]:
            model.logits[:, -1].save("each")
            model.layers[0].output.save("h")
            model.logits[:, -1].save("mean", reduce="mean")
        with t.steps[1]:
            model.layers[1].output.save("second")
        t.result.save("new")
    for prompts in (EQUAL, RAGGED):
        expected = model.run(t.graph, prompts, rows=3, max_new_tokens=3)
        found = model.run(t.graph, prompts, rows=3, max_new_tokens=3, to=tmp_path / str(len(prompts)))
        assert isinstance(found["each"], list)
        for name in expected:
            same(found[name], expected[name])
        assert list(found.alive) == [list(rows) for rows in expected.alive]


def test_a_remote_model_writes_the_same_files(model, graph, bare, tmp_path):
    remote = gw.connect(gw.wrap(bare, name=model._core.name))
    model.run(graph, RAGGED, rows=4, to=tmp_path / "here")
    remote.run(graph, RAGGED, rows=4, to=tmp_path / "there")
    assert files(tmp_path / "here") == files(tmp_path / "there")


# Cut short.


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_run_goes_on_where_it_was_cut_and_leaves_the_same_files(model, graph, tmp_path, monkeypatch, after):
    model.run(graph, RAGGED, rows=4, to=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, after)
        model.run(graph, RAGGED, rows=4, to=tmp_path / "cut")
    begun = gw.results(tmp_path / "cut")
    assert not begun.complete
    there = sorted(row for own in [[1, 3, 5, 7], [9], [0, 2, 4, 6]][:after] for row in own)
    assert begun.ids == [tuple(RAGGED[row]) for row in there]
    assert f"{len(there)} of 11 rows" in repr(begun)
    if there:
        expected = model.run(graph, [RAGGED[row] for row in there], rows=4)
        for name in expected:
            same(begun[name], expected[name])
        same(list(begun.rows("top")), list(expected["top"]))
    with passes_counted(model) as passes:
        again = model.run(graph, RAGGED, rows=4, to=tmp_path / "cut")
    assert len(passes) == 4 - after
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert again.complete


@contextmanager
def passes_counted(model: Any) -> Iterator[list[int]]:
    """A number for each forward pass of the model."""
    passes: list[int] = []
    handle = model.backend.runtime.module.register_forward_pre_hook(lambda *args: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import glassworks as gw
from families import gpt2
from trace_stored import PROMPTS, graph_of
model = gw.wrap(gpt2())
print("ready", flush=True)
model.run(graph_of(model), PROMPTS, rows=2, to={folder!r})
"""


@pytest.mark.slow
def test_a_process_that_is_killed_anywhere_loses_no_whole_pass(tmp_path):
    """Killed again and again, at other moments, until it is done; the files are those of one run."""
    from trace_stored import PROMPTS, graph_of

    model = gw.wrap(gpt2())
    model.run(graph_of(model), PROMPTS, rows=2, to=tmp_path / "whole")
    folder, before = tmp_path / "killed", 0
    code = KILLED.format(tests=str(ROOT / "tests"), folder=str(folder))
    for attempt in range(12):
        running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path)
        assert running.stdout.readline() == b"ready\n"
        time.sleep(0.05 * attempt)
        running.send_signal(signal.SIGKILL)
        running.stdout.close()
        if running.wait() == 0:
            break
        there = len(gw.results(folder).ids) if (folder / "manifest.json").exists() else 0
        assert there >= before
        before = there
    model.run(graph_of(model), PROMPTS, rows=2, to=folder)
    assert files(folder) == files(tmp_path / "whole")


def test_a_file_that_is_not_whole_is_written_again(model, graph, tmp_path):
    model.run(graph, RAGGED, rows=4, to=tmp_path)
    expected = files(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    (tmp_path / ".shard-00002.safetensors.part").write_bytes(b"half")
    model.run(graph, RAGGED, rows=4, to=tmp_path)
    assert files(tmp_path) == expected


def test_a_run_that_is_done_runs_nothing(model, graph, tmp_path):
    model.run(graph, RAGGED, rows=4, to=tmp_path)
    with passes_counted(model) as passes:
        model.run(graph, RAGGED, rows=4, to=tmp_path)
    assert passes == []


def test_branches_and_logs_are_kept(model, tmp_path, capsys):
    with model.record() as t:
        h = model.layers[1].output[:, -1]

        def large():
            return (h * 2).save("large")

        gw.cond(model.ids[0, -1] > 8, large, lambda: h.save("small"))
        gw.log("here", h.mean())
    for name, prompts in (("both", RAGGED), ("one", [[5, 6]] * 3)):
        expected = model.run(t.graph, prompts, rows=3)
        capsys.readouterr()
        found = model.run(t.graph, prompts, rows=3, to=tmp_path / name)
        told = capsys.readouterr().out
        assert [str(entry) for entry in found.logs] == told.splitlines()
        assert [(entry.text, entry.rows) for entry in found.logs] == [(e.text, e.rows) for e in expected.logs]
        for save in ("large", "small"):
            if save in expected.untaken:
                with pytest.raises(gw.NotTaken, match=f"'{save}' was saved in a branch.*\n.*test_stored.py"):
                    found[save]
                continue
            for own, other in zip(found[save], expected[save], strict=True):
                assert (own is None) == (other is None)
                assert own is None or torch.equal(own, other)


def test_a_graph_with_a_function_of_the_authors_is_refused(model, tmp_path):
    with model.record() as t:
        gw.apply(lambda h: h * 2, model.layers[0].output).save("x")
    with pytest.raises(gw.GraphError, match="your own code"):
        model.run(t.graph, EQUAL, to=tmp_path / "acts")
    assert not (tmp_path / "acts").exists()


# What is refused.


def test_another_graph_model_or_prompts_are_refused(model, graph, tmp_path):
    model.run(graph, RAGGED, rows=4, to=tmp_path)
    before = files(tmp_path)
    with model.record() as t:
        model.layers[0].output.save("h")
    for own, prompts, rows, says in (
        (t.graph, RAGGED, 4, "another graph"), (graph, RAGGED[1:], 4, "other prompts"),
        (graph, RAGGED, 5, "another rows= .rows 4 there, 5 here."),
    ):  # fmt: skip
        with pytest.raises(gw.InputError, match=f"holds the results of {says}.*give a folder of its own"):
            model.run(own, prompts, rows=rows, to=tmp_path)
    with pytest.raises(gw.InputError, match="another model"):
        gw.wrap(FAMILIES["llama"]()).run(graph, RAGGED, rows=4, to=tmp_path)
    assert files(tmp_path) == before


def test_another_model_of_the_same_name_and_sizes_is_refused(model, graph, tmp_path):
    model.run(graph, RAGGED, rows=4, to=tmp_path)
    other = gpt2()
    with torch.no_grad():
        other.transformer.h[0].mlp.c_proj.weight *= 1.5
    with pytest.raises(gw.InputError, match=r"another model \(its weights differ\)"):
        gw.wrap(other).run(graph, RAGGED, rows=4, to=tmp_path)


def test_other_inputs_are_refused(model, tmp_path):
    with model.record() as t:
        model.layers[0].output += gw.input("steer", (32,))
        model.logits[:, -1].save("last")
    model.run(t.graph, EQUAL, to=tmp_path, steer=torch.zeros(32))
    with pytest.raises(gw.InputError, match="other inputs"):
        model.run(t.graph, EQUAL, to=tmp_path, steer=torch.ones(32))


def test_a_folder_with_other_files_is_left_alone(model, graph, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(gw.InputError, match=r"holds other files \(thesis.txt\)"):
        model.run(graph, EQUAL, to=tmp_path)
    assert files(tmp_path) == {"thesis.txt": b"do not touch"}
    with pytest.raises(gw.InputError, match="no results"):
        gw.results(tmp_path)


def test_no_prompts_are_refused_before_a_folder_is_made(model, graph, tmp_path):
    with pytest.raises(gw.InputError, match="a prompt is"):
        model.run(graph, [], to=tmp_path / "acts")
    assert not (tmp_path / "acts").exists()


def test_a_folder_that_cannot_be_made_is_named(model, graph, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(gw.InputError, match="cannot be made"):
        model.run(graph, EQUAL, to=tmp_path / "file" / "acts")


def test_a_save_without_rows_is_refused_before_anything_runs(model, tmp_path):
    with model.record() as t:
        model.layers[0].output.mean().save("x")
    with passes_counted(model) as passes:
        for options in ({}, {"to": tmp_path / "acts"}):
            with pytest.raises(gw.GraphError, match="no axis of rows"):
                model.run(t.graph, EQUAL, rows=2, **options)
    assert passes == []
    found = model.run(t.graph, EQUAL, to=tmp_path / "one")
    same(found["x"], model.run(t.graph, EQUAL)["x"])


def test_a_format_that_a_file_cannot_hold_is_named(model, tmp_path):
    with model.record() as t:
        model.layers[0].output.to(torch.complex128).save("x")
    with pytest.raises(gw.InputError, match="'x' is complex128, which a safetensors file cannot hold"):
        model.run(t.graph, EQUAL, to=tmp_path)


def test_a_full_disk_loses_nothing_that_is_there(model, graph, tmp_path, monkeypatch):
    model.run(graph, RAGGED, rows=4, to=tmp_path / "whole")
    written = []

    def full(number: int) -> None:
        written.append(number)
        if len(written) == 4:  # graph, manifest, a shard
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as caught:
        patch.setattr(stored.os, "fsync", full)
        model.run(graph, RAGGED, rows=4, to=tmp_path / "acts")
    assert "1 of 4 passes are there. Make room and run the same again" in "".join(caught.value.__notes__)
    assert [path.name for path in (tmp_path / "acts").glob(".*")] == []
    assert len(gw.results(tmp_path / "acts").ids) == 4
    model.run(graph, RAGGED, rows=4, to=tmp_path / "acts")
    assert files(tmp_path / "acts") == files(tmp_path / "whole")


def test_a_plain_module_has_no_rows_to_stream(tmp_path):
    net = gw.wrap(torch.nn.Linear(3, 3))
    with net.record() as t:
        net.output.save("x")
    with pytest.raises(gw.InputError, match="prompts of tokens"):
        net.run(t.graph, torch.ones(1, 3), to=tmp_path)


# Memory and progress.


@pytest.mark.slow
def test_memory_is_bounded_by_a_pass_and_not_by_the_prompts(model, tmp_path, monkeypatch):
    with model.record() as t:
        model.layers[1].output.save("h")
        model.layers[0].output.save("mean", reduce="mean")
    most: dict[int, int] = {}
    write = stored._write

    def counting(path: Path, *rest: Any) -> None:
        gc.collect()
        live = sum(
            o.numel() for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.ndim and o.shape[-1] == 32
        )
        most[count] = max(most.get(count, 0), live)
        write(path, *rest)

    monkeypatch.setattr(stored, "_write", counting)
    for count in (8, 80):
        model.run(t.graph, [[5, 6, 7, 8]] * count, rows=4, to=tmp_path / str(count))
    assert most[80] <= most[8] + 4 * 4 * 32


@pytest.mark.slow
def test_a_reduction_in_memory_keeps_one_sum(model, monkeypatch):
    with model.record() as t:
        model.layers[0].output.save("mean", reduce="mean")
    live: list[int] = []
    run = type(model.backend).run

    def counting(*args: Any, **options: Any) -> Any:
        gc.collect()
        live.append(sum(1 for o in gc.get_objects() if issubclass(type(o), torch.Tensor)))
        return run(*args, **options)

    monkeypatch.setattr(type(model.backend), "run", counting)
    model.run(t.graph, [[5, 6, 7, 8]] * 40, rows=4)
    assert max(live[2:]) == min(live[2:])


@pytest.mark.parametrize(("wanted", "shown"), [(True, True), (None, False), (False, False)])
def test_progress_is_shown_on_a_terminal_or_if_asked(model, graph, tmp_path, capsys, wanted, shown):
    model.run(graph, EQUAL, rows=2, to=tmp_path, progress=wanted)
    told = capsys.readouterr()
    assert ("7/7" in told.err) is shown
    assert told.out == ""


def test_progress_is_shown_on_a_terminal(model, graph, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal then
    model.run(graph, EQUAL, rows=2, to=tmp_path)
    assert "rows" in capsys.readouterr().err
    model.run(graph, EQUAL, rows=2)
    assert capsys.readouterr().err == ""


def test_one_file_is_open_at_a_time(model, tmp_path):
    with model.record() as t:
        model.logits[:, -1].argmax(-1).save("top")
    found = model.run(t.graph, [[5, 6]] * 40, rows=1, to=tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    most = max(len(os.listdir("/proc/self/fd")) for _ in found.rows("top"))
    assert most <= before + 2
    assert found["top"].shape == (40,)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_the_manifest_says_what_was_run(model, graph, tmp_path):
    model.run(graph, RAGGED, rows=4, to=tmp_path)
    said = json.loads((tmp_path / "manifest.json").read_text())
    assert said["shards"] == 4
    assert said["rows"] == len(RAGGED)
    assert said["tokens"] == sum(map(len, RAGGED))
    assert said["run"]["graph"] == graph.digest
    assert said["saves"]["h"]["labels"] == ["batch", ["seq", 0], 32]
    assert said["saves"]["shorter"]["labels"] == ["batch", ["seq", 1], 32]
