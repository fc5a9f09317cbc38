"""Messages as bytes, and graphs in them."""

import json
import math
import struct

import pytest
import safetensors.torch
import torch

import glassworks as gw
from glassworks.graph import wire
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import Dtype, Listed, Node, Ref, Slice
from glassworks.trace.tensors import TensorConstant, from_blob, to_blob

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_tensors_come_back_bit_for_bit(dtype, shape):
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    blob = to_blob(tensor)
    _, blobs = wire.unpack(wire.pack({}, {"a": blob}))
    back = from_blob(blobs["a"])
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_the_library_reads_our_files(tmp_path):
    tensors = {"x": torch.randn(2, 3), "y": torch.randn(4).bfloat16(), "z": torch.arange(5)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(wire.pack({"hello": 1}, {name: to_blob(tensor) for name, tensor in tensors.items()}))
    read = safetensors.torch.load_file(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


ARGUMENTS = [
    1, 1.0, True, None, "sum", -0.0, math.inf, -math.inf, 0.1, 2**62, ..., Slice(None, -1, 2), Dtype("float32"),
    (1, (2, 3)), Listed([1, 2]), Listed([Listed([]), 1.5]), 1 + 2j,
]  # fmt: skip


@pytest.mark.parametrize("argument", ARGUMENTS, ids=repr)
def test_arguments_come_back_exactly(argument):
    graph = Graph(
        (Node("input", "x", (), (), (), -1, None), Node("call", "add", (Ref(0), argument), (), (0,), -1, None))
    )
    back = Graph.decode(graph.encode())
    assert back == graph
    assert hash(back) == hash(graph)
    assert repr(back.nodes[1].args[1]) == repr(argument)
    assert type(back.nodes[1].args[1]) is type(argument)


def test_nan_survives():
    graph = Graph((Node("call", "add", (math.nan,), (), (), -1, None),))
    assert math.isnan(Graph.decode(graph.encode()).nodes[0].args[0])
    assert Graph.decode(graph.encode()) == graph


def test_equal_looking_numbers_are_different_graphs():
    one, real, true = (Graph((Node("call", "add", (value,), (), (), -1, None),)) for value in (1, 1.0, True))
    assert one != real != true != one
    assert Graph((Node("call", "add", (-0.0,), (), (), -1, None),)) != Graph(
        (Node("call", "add", (0.0,), (), (), -1, None),)
    )


def test_constants_count_by_value_and_lines_do_not():
    node = Node("constant", "", (0,), (), (), -1, None)
    same = [Graph((node,), (None,), (TensorConstant(torch.tensor([value])),)) for value in (1.0, 1.0, 2.0)]
    assert same[0] == same[1]
    assert same[0] != same[2]
    net = gw.wrap(torch.nn.Identity())
    graphs = []
    for _ in range(2):
        with net.record() as t:
            net.output.save("x")
        graphs.append(t.graph)
    with net.record() as t:
        net.output.save("x")
    assert graphs[0] == graphs[1] == t.graph


def test_no_absolute_path_travels():
    net = gw.wrap(torch.nn.Identity())
    with net.record() as t:
        net.output.save("x")
    data = t.graph.encode()
    assert b"test_wire.py" in data
    assert b"/test_wire.py" not in data


def broken(data, change):
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h: h["a"].update(dtype="F99"), "dtype"),
        (lambda h: h["a"].update(data_offsets=[0, 4]), "bytes"),
        (lambda h: h["a"].update(data_offsets=[4, 12]), "bytes"),
        (lambda h: h["a"].update(shape=[-2]), "sizes"),
        (lambda h: h["a"].update(shape=[3]), "fill"),
        (lambda h: h["a"].update(more=1), "must have"),
        (lambda h: h.pop("__metadata__"), "__metadata__"),
        (lambda h: h["__metadata__"].update(glassworks="["), "JSON"),
        (lambda h: h["__metadata__"].update(glassworks="[]"), "object"),
        (lambda h: h["__metadata__"].update(glassworks='{"a": NaN}'), "NaN"),
        (lambda h: h["__metadata__"].update(glassworks='{"a": 1, "a": 2}'), "twice"),
        (lambda h: h["__metadata__"].update(glassworks="9" * 5000), "JSON"),
    ],
)
def test_a_wrong_header_is_refused_by_field(change, match):
    data = wire.pack({}, {"a": to_blob(torch.ones(2))})
    with pytest.raises(gw.WireError, match=match):
        wire.unpack(broken(data, change))


@pytest.mark.parametrize("cut", [0, 5, 8, 20, -1])
def test_cut_bytes_are_refused(cut):
    data = wire.pack({}, {"a": to_blob(torch.ones(2))})
    with pytest.raises(gw.WireError):
        wire.unpack(data[:cut])
