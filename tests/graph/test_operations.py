"""The table of permitted operations and its binding to torch."""

import operator

import pytest
import torch
import torch.nn.functional as F

import glassworks as gw
from glassworks.graph.operations import OPERATIONS, look_up
from glassworks.trace import binding


def test_there_are_enough_after_merging_spellings():
    assert len(OPERATIONS) >= 250
    assert len({binding.bound(name) for name in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_name_is_bound(name):
    assert callable(binding.bound(name))
    if OPERATIONS[name].inplace:
        assert callable(binding.bound(f"{name}_"))


def test_nothing_that_reaches_storage_or_the_global_generator():
    forbidden = (
        "as_strided set_ resize_ data empty empty_like new_empty rand randn apply_ map_ share_memory_ view_as_real"
    )
    assert not set(forbidden.split()) & set(OPERATIONS)


@pytest.mark.parametrize(
    "spellings",
    [
        (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__),
        (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__),
        (torch.cat, torch.concat, torch.concatenate),
        (torch.clamp, torch.clip, torch.Tensor.clip),
        (F.softmax, torch.softmax, torch.Tensor.softmax),
        (torch.transpose, torch.swapaxes, torch.Tensor.swapdims),
    ],
)
def test_spellings_of_one_operation_are_one(spellings):
    assert len({binding.name_of(function) for function in spellings}) == 1


def test_in_place_forms_work_on_a_copy():
    base = torch.zeros(3)
    assert binding.bound("add_")(base, 1).tolist() == [1, 1, 1]
    assert binding.bound("setitem_")(base, 0, 5.0).tolist() == [5, 0, 0]
    assert base.tolist() == [0, 0, 0]


def test_in_place_spellings():
    assert binding.name_of(torch.Tensor.__iadd__) == binding.name_of(torch.Tensor.add_) == "add_"
    assert binding.name_of(torch.Tensor.__setitem__) == "setitem_"


@pytest.mark.parametrize("name", ["as_strided", "data_ptr", "set_", "resize_", "normal_", "__class__"])
def test_what_is_not_in_the_table_is_not_performed(name):
    with pytest.raises(gw.UnknownOperation, match="not a permitted operation"):
        binding.bound(name)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(gw.UnknownOperation, match="softmax"):
        look_up("sofmax")
    with pytest.raises(gw.UnknownOperation, match="not a permitted"):
        binding.name_of(torch.Tensor.as_strided)


@pytest.mark.parametrize("name", ["sub", "div", "pow", "floordiv", "mod"])
def test_reflected_operators(name):
    function = {"sub": operator.sub, "div": operator.truediv, "pow": operator.pow, "floordiv": operator.floordiv}.get(
        name, operator.mod
    )
    net = gw.wrap(torch.nn.Identity())
    x = torch.tensor([1.5, 2.0, 4.0])
    with net.trace(x):
        left, right = function(7.0, net.output).save(), function(net.output, 2.0).save()
    assert torch.equal(left.value, function(7.0, x))
    assert torch.equal(right.value, function(x, 2.0))


@pytest.mark.parametrize("name", ["equal", "allclose"])
def test_what_would_give_a_plain_bool_says_what_gives_a_value(name):
    x = torch.ones(3)
    net = gw.wrap(torch.nn.Identity())
    with pytest.raises(gw.UnknownOperation, match=r"\.all\(\), which is a Value"), net.trace(x):
        getattr(torch, name)(net.output, x)
    with pytest.raises(gw.UnknownOperation, match=r"\.all\(\), which is a Value"), net.trace(x):
        getattr(net.output, name)(x)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda v: F.relu(v, True), "inplace=True"),
        (lambda v: F.embedding(v.long(), torch.ones(3, 2), None, 1.0), "max_norm"),
        (lambda v: F.embedding(v.long(), torch.ones(3, 2), max_norm=1.0), "max_norm"),
        (lambda v: v.view(torch.int32), r"\.to\(dtype\)"),
        (lambda v: F.scaled_dot_product_attention(v, v, v, dropout_p=0.5), "global generator"),
        (lambda v: v.to("cpu"), "device"),
        (lambda v: torch.add(v, v, out=torch.ones(3)), "out="),
    ],
)
def test_arguments_that_leave_the_graph_are_refused(write, says):
    net = gw.wrap(torch.nn.Identity())
    with pytest.raises((gw.GraphError), match=says), net.trace(torch.ones(1, 1, 3)):
        write(net.output)
