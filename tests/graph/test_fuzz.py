"""Bytes of every sort to everything that reads bytes: a message is read or refused with a place, and nothing else."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glassworks.errors import GlassworksError, WireError
from glassworks.graph import messages, wire
from glassworks.graph.backend import Results
from glassworks.graph.check import check_request
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from hostile_seeds import STEER, TABLE, honest, seeds
from mutations import WAYS, mutated

READERS: dict[str, Callable[[bytes], Any]] = {
    "unpack": wire.unpack,
    "request": messages.decode_request,
    "inputs": messages.decode_inputs,
    "results": messages.decode_results,
    "error": messages.decode_error,
    "files": messages.decode_files,
    "graph": Graph.decode,
    "tensor": messages.decode_tensor,
}
SEEDS = [
    *seeds(),
    messages.encode_inputs(honest()[2].inputs),
    messages.encode_results([Results({"s": STEER, "t": [STEER, STEER]}, 3, [[[True]]], {0: STEER})]),
    messages.encode_error(ValueError("wrong")),
    messages.encode_files({"tokenizer.json": b"{}"}),
    messages.encode_tensor(STEER),
    honest()[1].graph.encode(),
]
LIMITS = Limits(nodes=100, tokens=100)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["version", "float32", "0x1p+0", "read", "call", "a.output"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["version", "model", "experiments", "leaves", "graph", "nodes", "kind", "args", "ref", "tuple", "float",
             "leaf", "dict", "inputs", "invokes", "ids", "named", "rows", "kwargs", "generation", "links", "constants",
             "seed"]
        ),
        inner,
        max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip


def read(reader: str, data: bytes) -> Any:
    """What a reader makes of bytes; None where it refuses them, with a place."""
    refused = ""
    try:
        return READERS[reader](data)
    except WireError as error:
        refused = str(error)
    assert 0 < len(refused) < 1000
    return None


@pytest.mark.parametrize("reader", READERS)
def test_an_honest_message_is_read(reader: str) -> None:
    assert any(read(reader, data) is not None for data in SEEDS)


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300))
@example(data=b"")
@example(data=b"\x02\0\0\0\0\0\0\0{}")
@example(data=b"\x80\x04\x95")
def test_any_bytes(reader: str, data: bytes) -> None:
    read(reader, data)


@pytest.mark.parametrize("reader", ["request", "inputs", "results", "files", "graph", "tensor"])
@settings(max_examples=150, deadline=None)
@given(value=JSON)
def test_any_json(reader: str, value: Any) -> None:
    """A well-formed file whose message is any JSON at all, in the place of each message."""
    name = "request" if reader == "request" else reader
    for message in (value, {name: value}):
        try:
            data = wire.pack(message, {})
        except ValueError:
            return  # NaN is not JSON: we cannot send it
        read(reader, data)


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_messages_of_every_kind(count: int) -> None:
    done = set()
    for number in range(count):
        way, data = mutated(SEEDS, number)
        done.add(way.split(" and ")[0])
        for reader in READERS:
            read(reader, data)
    assert done == set(WAYS)


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_what_is_read_is_checked_without_a_surprise(count: int) -> None:
    own = seeds()
    passed = refused = 0
    for number in range(count):
        request = read("request", mutated(own, number)[1])
        if request is not None:
            try:
                check_request(request, TABLE, LIMITS)
                passed += 1
            except GlassworksError:
                refused += 1
    assert passed > count / 100
    assert refused > count / 20


def test_what_is_read_can_be_written_again() -> None:
    """And then reads the same: what a reader lets pass is a message of ours."""
    again = 0
    for number in range(600):
        request = read("request", mutated(seeds(), number)[1])
        if request is not None:
            if any(isinstance(own, wire.Absent) for e in request.experiments for own in e.graph.constants):
                continue  # what it stands for is elsewhere
            data = messages.encode_request(request.model, request.experiments)
            back = messages.decode_request(data)
            assert [e.graph for e in back.experiments] == [e.graph for e in request.experiments]
            assert messages.encode_request(back.model, back.experiments) == data
            again += 1
    assert again > 20


HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ATHERIS, reason="atheris is in the extra `fuzz`, for Linux")
def test_guided_by_coverage(tmp_path: Path) -> None:
    """libFuzzer looks for bytes that reach new lines of the codec and the checks: 20,000 of them."""
    script = Path(__file__).parents[1] / "fuzz_codec.py"
    command = [sys.executable, str(script), "-runs=20000", "-max_len=4096", "-rss_limit_mb=1024", "-timeout=10"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "Done 20000 runs" in ran.stderr
