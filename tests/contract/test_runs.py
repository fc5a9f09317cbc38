"""Graphs, runs and results: records, inputs, stored graphs, reductions, streaming, edits, sessions, caches, jobs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import glassworks as gw
from contract.places import OTHER, PROMPT, Place, close
from lines import here

SEQ = len(PROMPT)
PROMPTS = [PROMPT, OTHER, PROMPT[1:], OTHER + PROMPT]


def lone(place: Place, name: str) -> list[torch.Tensor]:
    """A place in lone runs of all the prompts."""
    return [place.oracle.forward(prompt)[name][0] for prompt in PROMPTS]


@pytest.mark.sentence("runs.1")
def test_the_graph(place: Place) -> None:
    """`t.graph`;"""
    with place.model.trace(PROMPT) as t:
        line = here(+1)
        place.model.layers[1].mlp.output[:, -1] = 0
        place.model.logits.save("logits")
    text = str(t.graph)
    assert isinstance(t.graph, gw.Graph)
    assert "layers.1.mlp.output" in text
    assert "logits" in text
    assert Path(line).name in text
    assert len(t.graph.nodes) == len(t.graph)


@pytest.mark.sentence("runs.2")
def test_a_record_does_not_run(inside: Place) -> None:
    """`with model.record() as t:` records and does not run,"""
    with inside.counted("") as ran, inside.model.record() as t:
        inside.model.layers[1].output[:, -1].save("h")
    assert ran == []
    assert "layers.1.output" in str(t.graph)


@pytest.mark.sentence("runs.2", "runs.7")
def test_prompts_of_a_run(place: Place) -> None:
    """and the prompts of `run` fill its one implicit invoke;"""
    with place.model.record() as t:
        place.model.layers[0].output[:, -1] *= 2
        place.model.layers[1].output[:, -1].save("h")

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, -1] *= 2
        return tensor

    for rows in (1, 3, 64):
        results = place.model.run(t.graph, PROMPTS, rows=rows)
        for n, prompt in enumerate(PROMPTS):
            expected = place.oracle.forward(prompt, {"layers.0.output": change})["layers.1.output"]
            close(results["h"][n], expected[0, -1])
    with place.model.record() as t, pytest.raises(gw.GlassworksError), t.invoke(PROMPT):
        pass


@pytest.mark.sentence("runs.3")
def test_inputs(place: Place) -> None:
    """`gw.input(name, shape)`;"""
    with place.model.record() as t:
        vector = gw.input("direction", (32,))
        assert tuple(vector.shape) == (32,)
        place.model.layers[1].output += vector
        place.model.logits[:, -1].save("last")
    for own in (torch.zeros(32), torch.linspace(-1, 1, 32)):
        results = place.model.run(t.graph, [PROMPT], direction=own)
        expected = place.oracle.forward(PROMPT, {"layers.1.output": lambda h, _, own=own: h + own}).logits
        close(torch.as_tensor(results["last"]), expected[:, -1])
    with pytest.raises(gw.InputError, match="direction"):
        place.model.run(t.graph, [PROMPT])


def write_a_graph(model: Any, scale: float = 2.0) -> gw.Graph:
    with model.record() as t:
        model.layers[1].output *= scale
        model.layers[1].output += torch.linspace(0, 1, 32)
        model.logits[:, -1].save("last")
    return t.graph


@pytest.mark.sentence("runs.4")
def test_stored_graphs(place: Place, tmp_path: Any) -> None:
    """`graph.save(path)`, `gw.Graph.load(path)`, `==`, `hash`."""
    graph = write_a_graph(place.model)
    graph.save(tmp_path / "graph.safetensors")
    again = gw.Graph.load(tmp_path / "graph.safetensors")
    assert again == graph
    assert hash(again) == hash(graph)
    assert again == write_a_graph(place.model)
    assert again != write_a_graph(place.model, 3.0)
    assert len({graph, again, write_a_graph(place.model, 3.0)}) == 2
    first, second = (place.model.run(each, PROMPTS)["last"] for each in (graph, again))
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, second, strict=True))
    assert any(tensor.shape == (32,) for tensor in load_file(tmp_path / "graph.safetensors").values())


@pytest.mark.sentence("runs.5")
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_reductions(place: Place, reduce: str) -> None:
    """`value.save(name=None, reduce=None)`, with `"mean"` and `"sum"` over rows and batches, padding left out;"""
    model = place.model
    with model.record() as t:
        model.layers[1].output[:, -1].save("last", reduce=reduce)
    last = torch.stack([tensor[-1] for tensor in lone(place, "layers.1.output")])
    expected = last.mean(0) if reduce == "mean" else last.sum(0)
    for rows in (1, 2, 64):
        close(torch.as_tensor(model.run(t.graph, PROMPTS, rows=rows)["last"]), expected)


@pytest.mark.sentence("runs.5")
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_reductions_of_a_trace(place: Place, reduce: str) -> None:
    """`value.save(name=None, reduce=None)`, with `"mean"` and `"sum"` over rows and batches,"""
    last = torch.stack([tensor[-1] for tensor in lone(place, "layers.1.output")])
    with place.model.trace(PROMPTS):
        saved = place.model.layers[1].output[:, -1].save(reduce=reduce)
    close(saved.value, last.mean(0) if reduce == "mean" else last.sum(0))


@pytest.mark.sentence("runs.5")
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_reductions_leave_padding_out(place: Place, reduce: str) -> None:
    """with `"mean"` and `"sum"` over rows and batches, padding left out;

    Rows of several lengths are reduced over all their tokens, which are the same whatever the batches.
    """
    with place.model.record() as t:
        place.model.layers[1].output.save("all", reduce=reduce)
    tokens = torch.cat(lone(place, "layers.1.output"))
    expected = tokens.mean(0) if reduce == "mean" else tokens.sum(0)
    for rows in (1, 3, 64):
        close(torch.as_tensor(place.model.run(t.graph, PROMPTS, rows=rows)["all"]), expected, tolerance=1e-4)


@pytest.mark.sentence("runs.6")
def test_ragged_rows(place: Place) -> None:
    """ragged rows come back as lists."""
    with place.model.record() as t:
        place.model.layers[1].output.save("h")
    for rows in (1, 3, 64):
        found = place.model.run(t.graph, PROMPTS, rows=rows)["h"]
        assert isinstance(found, list)
        assert [tuple(value.shape) for value in found] == [(len(prompt), 32) for prompt in PROMPTS]
        for value, expected in zip(found, lone(place, "layers.1.output"), strict=True):
            close(value, expected)


@pytest.mark.sentence("runs.7")
def test_results(place: Place) -> None:
    """`model.run(graph, prompts, *, rows=64, to=None, **inputs) -> Results`, a mapping by save name (unnamed saves are
    numbered);"""
    with place.model.record() as t:
        place.model.layers[0].output[:, -1].save()
        place.model.layers[1].output[:, -1].save("named")
        place.model.layers[2].output[:, -1].save()
    results = place.model.run(t.graph, [PROMPT, PROMPT])
    assert len(results) == 3
    assert "named" in results
    assert "nothing" not in results
    numbered = [name for name in results if name != "named"]
    assert all(str(name).isdigit() for name in numbered)
    found = place.oracle.forward(PROMPT)
    for name, layer in zip([numbered[0], "named", numbered[1]], range(3), strict=True):
        value = torch.as_tensor(results[name])
        assert value.shape == (2, 32)
        close(value, found[f"layers.{layer}.output"][:, -1].expand(2, 32))
    assert set(dict(results)) == set(results)


def shards(folder: Path) -> list[dict[str, torch.Tensor]]:
    found = [load_file(path) for path in sorted(folder.rglob("*.safetensors"))]
    return [shard for shard in found if any(name.split(".")[-1] == "h" for name in shard)]


def holds_streamed(place: Place, folder: Path) -> None:
    """The shards hold real tokens, in the order of the manifest, their ids, and where rows begin."""
    found = shards(folder)
    passes = json.loads((folder / "manifest.json").read_text())["passes"]
    order = [row for rows in passes for row in rows]
    assert sorted(order) == list(range(len(PROMPTS)))
    held = [PROMPTS[row] for row in order]
    values = lone(place, "layers.1.output")
    [name] = [name for name in found[0] if name.split(".")[-1] == "h"]
    close(torch.cat([shard[name] for shard in found]), torch.cat([values[row] for row in order]))
    ids = [token for prompt in held for token in prompt]
    whole = [key for key, value in found[0].items() if not value.is_floating_point()]
    streams = {key: [number for shard in found for number in shard[key].flatten().tolist()] for key in whole}
    assert ids in streams.values(), f"no tensor of ids among {whole}"
    [offsets] = [key for key in whole if streams[key] != ids]
    rows = 0
    for shard in found:
        starts = [int(start) for start in shard[offsets].flatten()]
        lengths = [len(prompt) for prompt in held[rows:]]
        begins = [sum(lengths[:k]) for k in range(len(starts))]
        assert starts == begins, f"{offsets}: {starts}, where rows begin at {begins}"
        rows += sum(1 for start in starts if start < len(shard[name]))
    assert rows == len(PROMPTS)


@pytest.mark.sentence("runs.8")
def test_streaming(place: Place, tmp_path: Path) -> None:
    """`to="acts/"` streams safetensors shards of real tokens with ids and row offsets,"""
    with place.model.record() as t:
        place.model.layers[1].output.save("h")
    place.model.run(t.graph, PROMPTS, rows=2, to=str(tmp_path / "acts"))
    holds_streamed(place, tmp_path / "acts")


@pytest.mark.sentence("runs.9")
def test_streaming_resumes(inside: Place, tmp_path: Path) -> None:
    """shows progress, and resumes.

    A run that breaks in its third pass leaves what it had, and another goes on from there.
    """
    with inside.model.record() as t:
        inside.model.layers[1].output.save("h")
    path = inside.embed
    seen: list[int] = []

    def hook(module: Any, args: Any) -> None:
        seen.append(len(args[0]))
        if len(seen) == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "acts"
    handle = inside.bare.get_submodule(path).register_forward_pre_hook(hook)
    try:
        with pytest.raises(KeyboardInterrupt):
            inside.model.run(t.graph, PROMPTS, rows=1, to=folder)
        inside.model.run(t.graph, PROMPTS, rows=1, to=folder)
    finally:
        handle.remove()
    assert len(seen) - 3 < len(PROMPTS)
    holds_streamed(inside, folder)


@pytest.mark.sentence("runs.9")
def test_streaming_shows_progress(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """shows progress, and resumes.

    To a person, that is: on a terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with place.model.record() as t:
        place.model.layers[1].output.save("h")
    place.model.run(t.graph, PROMPTS, rows=2, to=tmp_path / "acts")
    printed = capsys.readouterr()
    assert "4" in printed.out + printed.err


@pytest.mark.sentence("runs.10")
def test_edits(place: Place) -> None:
    """`with model.edit() as edited:` a model that always runs a graph; the sites in the block are `edited`'s; nests;
    the original is untouched."""
    with place.model.edit() as first:
        first.layers[1].output += 1
    with first.edit() as second:
        second.layers[1].output *= 2
    plain = place.oracle.forward(PROMPT)
    one = place.oracle.forward(PROMPT, {"layers.1.output": lambda h, _: h + 1})
    two = place.oracle.forward(PROMPT, {"layers.1.output": lambda h, _: (h + 1) * 2})
    for model, expected in ((second, two), (first, one), (place.model, plain)):
        with model.trace(PROMPT):
            logits = model.logits.save()
        close(logits.value, expected.logits)
        with model.record() as t:
            model.logits.save("logits")
        close(model.run(t.graph, [PROMPT])["logits"], expected.logits)
    same = first.complete(PROMPT, max_new_tokens=4).tokens
    changed = place.oracle.generate(PROMPT, 4, {"layers.1.output": lambda h, _: h + 1}, eos_token_id=2)
    assert same == changed.returned[0].tolist()


@pytest.mark.sentence("runs.11")
def test_sessions(place: Place) -> None:
    """`with model.session():` several traces as one job; values flow between them;"""
    model = place.model
    source = place.oracle.forward(OTHER)["layers.2.output"][:, -1:]
    expected = place.oracle.forward(PROMPT, {"layers.0.output": lambda h, _: h + source}).logits
    with model.session():
        with model.trace(OTHER):
            vector = model.layers[2].output[:, -1:]
            kept = vector.save()
        with model.trace(PROMPT):
            model.layers[0].output += vector
            logits = model.logits.save()
    close(kept.value, source)
    close(logits.value, expected)


@pytest.mark.sentence("runs.11")
def test_nothing_runs_before_a_session_ends(inside: Place) -> None:
    """nothing runs until it ends."""
    model = inside.model
    with inside.counted("") as ran, model.session():
        with model.trace(OTHER):
            model.logits.save()
        with model.generate(PROMPT, max_new_tokens=2) as t, t.steps[0]:
            model.logits.save()
        assert ran == []
    assert len(ran) == 2


@pytest.mark.sentence("runs.12")
def test_caches(place: Place) -> None:
    """`t.cache(sites="layers.*.output", device="cpu", dtype=None)`: final values, keyed by site name."""

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        return tensor * 2

    found = place.oracle.forward(PROMPT, {"layers.1.output": change})
    with place.model.trace(PROMPT) as t:
        cache = t.cache()
        some = t.cache(["layers.0.attn.output", "layers.*.mlp.output"], dtype=torch.float64)
        place.model.layers[1].output *= 2
    assert set(cache) == {f"layers.{n}.output" for n in range(3)}
    for name in cache:
        close(torch.as_tensor(cache[name]), found[name])
        assert torch.as_tensor(cache[name]).device.type == "cpu"
    assert set(some) == {"layers.0.attn.output", *(f"layers.{n}.mlp.output" for n in range(3))}
    for name in some:
        assert torch.as_tensor(some[name]).dtype == torch.float64
        close(torch.as_tensor(some[name]).float(), found[name])
