"""Results in a folder: written pass by pass while a graph runs over prompts, and read when somebody asks.

    manifest.json              what was run, on what, and in the end the number of shards; written first and last
    graph.safetensors          the graph
    shard-00000.safetensors    one pass (see `shards`); the manifest says which rows it holds (`passes`)

A file appears whole or not at all: it is written under another name and renamed. So a run that was killed goes on after
the last shard that is there, and its files are those of a run that was not. Another model of the same name and sizes is
noticed by some numbers of its weights, which a graph without a forward pass reads, here as on a service.
"""

import hashlib
import heapq
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glassworks.errors import InputError, NotTaken
from glassworks.graph import logs, sites, tree, wire
from glassworks.graph.backend import Inputs, Rows, untaken
from glassworks.graph.graph import Graph
from glassworks.graph.logs import LogEntry
from glassworks.graph.nodes import ALL_ROWS, Node, Ref, Slice
from glassworks.trace.collect import Job
from glassworks.trace.pieces import NOT_TAKEN, Form, Part, Passes, alive_in_order, in_order
from glassworks.trace.shards import Shard, encoded, packed
from glassworks.trace.tensors import TensorConstant, to_blob

FORMAT = 2
MANIFEST, GRAPH = "manifest.json", "graph.safetensors"
_WEIGHTS, _NUMBERS = 256, 64
"""How many weights are looked at, and about how many numbers of each."""
_WORDS = {
    "format": "another format of this folder", "glassworks": "another version of glassworks",
    "torch": "another version of torch", "graph": "another graph", "model": "another model", "sites": "another model",
    "weights": "another model (its weights differ)",
    "prompts": "other prompts", "rows": "another rows=", "max_new_tokens": "another max_new_tokens=",
    "inputs": "other inputs",
}  # fmt: skip


def results(folder: str | Path) -> "StoredResults":
    """What `model.run(..., to=folder)` wrote, whether or not the run has come to its end.

    Raises:
        InputError: the folder holds no results.
    """
    return StoredResults(Path(folder))


def run_to(folder: str | Path, job: Job, model: str, done: Callable[[int], None]) -> "StoredResults":
    """Run a job and write each pass to a folder; go on where an earlier run of the same ended.

    Args:
        model: its name. done: is told how many rows are there.

    Raises:
        InputError: the folder holds something else, or cannot be written.
        GraphError: the graph holds a function of the author's, which cannot be stored.
    """
    forms, path, graph = job.forms(), Path(folder), job.graph.encode()
    manifest = {"run": _identity(job, model), "rows": len(job.prompts), "tokens": sum(map(len, job.prompts))}
    manifest["saves"] = {form.name: form.to_json() for form in forms}
    manifest["passes"] = job.numbers
    whole = _opened(path, manifest, graph)
    there = sum(map(len, job.numbers[:whole]))
    done(there)
    for number, chunk, found in job.passes(range(whole, len(job.numbers))):
        tensors, layout = encoded(chunk, job.parts(forms, chunk, found))
        alive = [[[bool(live) for live in rows] for rows in steps] for steps in found.alive]
        said = [logs.to_json(entry) for entry in found.logs]
        message = {"layout": layout, "forwards": found.forwards, "alive": alive, "logs": said}
        _write(_shard(path, number), packed(tensors, message), f"{number} of {len(job.numbers)} passes are there")
        there += len(chunk)
        done(there)
    _write_json(path / MANIFEST, {**manifest, "shards": len(job.numbers)})
    return StoredResults(path)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.safetensors"


def _identity(job: Job, model: str) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    leaves: list[Any] = []
    inputs = [dict(job.named), dict(job.kwargs), dict(job.generation.options) if job.generation else {}]
    spelled = tree.flatten(inputs, leaves, where="inputs", as_leaf=_as_leaf)
    return {
        "format": FORMAT,
        "glassworks": version("glassworks"),
        "torch": torch.__version__,
        "graph": job.graph.digest,
        "model": model,
        "sites": _digest(sites.to_json(job.table)),
        "weights": _weights(job),
        "prompts": _digest([list(ids) for ids in job.prompts]),
        "inputs": _digest([spelled, [wire.digest(leaf.blob()) for leaf in leaves]]),
        "rows": job.rows,
        "max_new_tokens": None if job.generation is None else job.generation.max_new_tokens,
    }


def _weights(job: Job) -> str:
    """A digest of numbers from all over the model's weights."""
    names = sorted(job.table.parameters)
    nodes: list[Node] = []
    for name in names[:: -(-len(names) // _WEIGHTS)]:
        count = math.prod(job.table.parameters[name][1])
        own = len(nodes)
        index = Slice(None, None, max(1, count // _NUMBERS))
        nodes += [
            Node("parameter", name, (), (), (), ALL_ROWS, None),
            Node("call", "reshape", (Ref(own), -1), (), (own,), ALL_ROWS, None),
            Node("call", "getitem", (Ref(own + 1), index), (), (own + 1,), ALL_ROWS, None),
            Node("save", name, (Ref(own + 2),), (), (own + 2,), ALL_ROWS, None),
        ]
    found = job.backend.run(Graph(tuple(nodes)), Inputs((Rows(ids=(job.prompts[0],)),)))
    return _digest([wire.digest(to_blob(found[name])) for name in found])


def _as_leaf(value: Any) -> TensorConstant | None:
    return TensorConstant(value) if isinstance(value, torch.Tensor) else tree.own_leaf(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# A folder that is written.


def _opened(folder: Path, manifest: dict[str, Any], graph: bytes) -> int:
    """Make the folder ready; gives how many of its passes are there already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _read_manifest(folder) if (folder / MANIFEST).exists() else None
    except OSError as error:
        raise InputError(f"the folder {str(folder)!r} cannot be made or read: {error}") from None
    if held is None:
        strangers = [entry.name for entry in folder.iterdir() if not _is_unfinished(entry)]
        if set(strangers) - {GRAPH}:
            raise InputError(
                f"the folder {str(folder)!r} holds other files ({', '.join(sorted(strangers)[:3])}); give a new or an "
                f"empty one"
            )
        try:
            _write(folder / GRAPH, graph)
            _write_json(folder / MANIFEST, {**manifest, "shards": None})
        except PermissionError as error:
            raise InputError(f"the folder {str(folder)!r} cannot be written: {error}") from None
        return 0
    _check_same(folder, held["run"], manifest["run"])
    return sum(1 for _ in _whole_shards(folder, manifest))


def _check_same(folder: Path, held: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    different = [key for key in given if held.get(key) != given[key]]
    if different:
        words = " and ".join(dict.fromkeys(_WORDS[key] for key in different))
        plain = [f"{key} {held.get(key)!r} there, {given[key]!r} here" for key in different if key in _PLAIN]
        raise InputError(
            f"the folder {str(folder)!r} holds the results of {words}{' (' + '; '.join(plain) + ')' if plain else ''}: "
            f"give a folder of its own, or delete this one"
        )


_PLAIN = ("format", "glassworks", "torch", "model", "rows", "max_new_tokens")


def _whole_shards(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Shard]:
    """The shards that are there without a gap, one open at a time."""
    for number in range(len(manifest["passes"])):
        path = _shard(folder, number)
        try:
            shard = Shard(path) if path.exists() else None
        except ValueError:  # a WireError, or a file of no bytes: it is not whole
            return
        if shard is None:
            return
        yield shard


def _write_json(path: Path, value: Any) -> None:
    _write(path, (json.dumps(value, indent=1) + "\n").encode())


def _write(path: Path, data: bytes, there: str = "nothing has been run") -> None:
    """Write a file that appears whole or not at all."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        error.add_note(f"  {path} could not be written; {there}. Make room and run the same again to go on")
        raise


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".part")


# A folder that is read.


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"the folder {str(folder)!r} holds no results that can be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("run"), dict) or found["run"].get("format") != FORMAT:
        raise InputError(f"the folder {str(folder)!r} holds results of a form that this version does not read")
    return found


class StoredResults(Mapping[str, Any]):
    """Saves by name, read from a folder when they are asked for.

    Attributes:
        path: the folder. complete: whether the run has come to its end; if not, what is there is what it has done: the
            rows of its passes, in the order of the prompts.
    """

    gradients: Mapping[int, Any] = {}

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest = _read_manifest(path)
        self._forms = {name: Form.from_json(name, value) for name, value in self._manifest["saves"].items()}
        self.complete = self._manifest["shards"] is not None

    @property
    def _shards(self) -> Iterator[Shard]:
        return _whole_shards(self.path, self._manifest)

    def _there(self, count: int) -> Passes:
        """The rows of the first passes."""
        return self._manifest["passes"][:count]  # type: ignore[no-any-return]

    def __getitem__(self, name: str) -> Any:
        form, parts, count = self._forms[name], list[Part](), 0
        for shard in self._shards:
            form.gather(parts, shard.part(name))
            count += 1
        found = form.join(parts, self._there(count))
        if found is NOT_TAKEN:
            [line] = untaken(self.graph, {other: None for other in self._forms if other != name}).values()
            raise NotTaken(f"{name!r} was saved in a branch of gw.cond that was not taken\n  at {line}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._forms)

    def __len__(self) -> int:
        return len(self._forms)

    def rows(self, name: str) -> Iterator[Any]:
        """One row after the other, with one pass of each length in memory: a tensor, or a list of an entry a step.

        Raises:
            InputError: a reduction has no rows.
        """
        if self._forms[name].reduce is not None or self._forms[name].axis is None:
            raise InputError(f"the save {name!r} has no rows to go through: take results[{name!r}]")
        each: list[list[int]] = []  # passes of one length follow each other, and their rows ascend
        rows = self._there(sum(1 for _ in self._shards))
        for number, own in enumerate(rows):
            if not number or own[0] < rows[number - 1][-1]:
                each.append([])
            each[-1].append(number)
        for _, found in heapq.merge(*[self._numbered(name, passes) for passes in each], key=lambda pair: pair[0]):
            yield found

    def _numbered(self, name: str, passes: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """The rows of some passes, each with its number."""
        for number in passes:
            part = Shard(_shard(self.path, number)).part(name)
            for k, row in enumerate(self._manifest["passes"][number]):
                entries = [item[k] for item in part.items if isinstance(item, list)]
                yield row, entries if part.listed else entries[0]

    @cached_property
    def graph(self) -> Graph:
        """The graph that was run."""
        return Graph.load(self.path / GRAPH)

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """Token ids of the prompts, a tuple a row."""
        each = [shard.ids for shard in self._shards]
        return in_order([ids for own in each for ids in own], self._there(len(each)))

    @property
    def forwards(self) -> int:
        """How many forward passes were run."""
        return sum(shard.message["forwards"] for shard in self._shards)

    @property
    def alive(self) -> tuple[Any, ...]:
        """Of a generation, for its one invoke which rows were live at each step."""
        each = [shard.message["alive"][0] for shard in self._shards]
        return (alive_in_order(each, self._there(len(each))),)

    @property
    def logs(self) -> list[LogEntry]:
        """What `gw.log` said, in the order of the passes."""
        said = [logs.from_json(entry, "logs") for shard in self._shards for entry in shard.message["logs"]]
        return [replace(entry, line=self.graph.where(entry.node)) for entry in said]

    def __repr__(self) -> str:
        there = (
            f"{self._manifest['rows']} rows" if self.complete else f"{len(self.ids)} of {self._manifest['rows']} rows"
        )
        return f"<results in {str(self.path)!r}: {', '.join(self)} of {there}>"
