"""Sites by the model's own module paths, repeated calls, and operations inside a module's forward."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import glassworks as gw
from contract.oracle import build
from contract.places import PROMPT, Place, close, placed
from families import bert

INPUT = torch.linspace(-1, 1, 8).reshape(2, 4)


def attention_path(case: Place) -> str:
    return "transformer.h.1.attn" if case.family == "gpt2" else "model.layers.1.self_attn"


def projection_path(case: Place) -> str:
    return attention_path(case) + (".c_proj" if case.family == "gpt2" else ".o_proj")


def seen(case: Place, path: str) -> dict[str, Any]:
    """What a module was given and returned, by a plain hook."""
    found: dict[str, Any] = {}

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        found.update(args=args, kwargs=kwargs, output=output)

    handle = case.oracle.stock.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
    case.oracle.stock(torch.tensor([PROMPT]), use_cache=False)
    handle.remove()
    return found


@pytest.mark.sentence("sites.21")
def test_native_paths(case: Place) -> None:
    """Native module paths stand beside: `model.transformer.h[0].attn`, `model["transformer.h.0"]`,"""
    path = projection_path(case)
    expected = seen(case, path)["output"]
    model = case.model
    with case.block(PROMPT):
        by_path = model[path].output.save()
        own = model.transformer.h[1].attn.c_proj if case.family == "gpt2" else model.model.layers[1].self_attn.o_proj
        by_name = own.output.save()
        inner = model[path.rpartition(".")[0]][path.rpartition(".")[2]].output.save()
    for got in (by_path, by_name, inner):
        close(got.value, expected)


@pytest.mark.sentence("sites.21")
def test_writes_by_native_paths(case: Place) -> None:
    """Native module paths stand beside:"""
    path = projection_path(case)
    expected = case.oracle.forward(PROMPT, {"layers.1.attn.output": lambda tensor, _: tensor * 3}).logits
    with case.block(PROMPT):
        case.model[path].output *= 3
        logits = case.model.logits.save()
    close(logits.value, expected)


@pytest.mark.sentence("sites.21")
def test_a_child_named_output(kind: str) -> None:
    """`node["output"]` for a child of that name."""
    bare = bert()
    found: list[torch.Tensor] = []
    handle = bare.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *args: found.append(args[2]))
    bare(torch.tensor([PROMPT]))
    handle.remove()
    case = placed(bare, kind)
    with case.block(PROMPT):
        got = case.model.bert.encoder.layer[0]["output"].dense.output.save()
    close(got.value, found[0])


@pytest.mark.sentence("sites.22")
def test_structure_of_an_output(case: Place) -> None:
    """A native `.output` has the structure that the module returned (indexable, unpackable);"""
    path = attention_path(case)
    expected = seen(case, path)["output"]
    with case.block(PROMPT):
        output = case.model[path].output
        indexed = output[0].save()
        first, weights = output
        unpacked = first.save()
    assert len(expected) == 2
    assert weights is None
    close(indexed.value, expected[0])
    close(unpacked.value, expected[0])


@pytest.mark.sentence("sites.22")
def test_a_part_of_an_output_is_written(case: Place) -> None:
    """A native `.output` has the structure that the module returned (indexable, unpackable);"""
    expected = case.oracle.forward(PROMPT, {"layers.1.attn.output": lambda tensor, _: tensor * 0}).logits
    with case.block(PROMPT):
        case.model[attention_path(case)].output[0][:] = 0
        logits = case.model.logits.save()
    close(logits.value, expected)


@pytest.mark.sentence("sites.23")
def test_inputs(case: Place) -> None:
    """`.input` is the first tensor argument; `.inputs` is `(args, kwargs)`."""
    expected = seen(case, attention_path(case))
    named = not expected["args"]
    tensor = expected["kwargs"]["hidden_states"] if named else expected["args"][0]
    with case.block(PROMPT):
        node = case.model[attention_path(case)]
        first = node.input.save()
        args, kwargs = node.inputs
        assert len(args) == len(expected["args"])
        assert set(kwargs) == set(expected["kwargs"])
        again = (kwargs["hidden_states"] if named else args[0]).save()
        if case.family != "gpt2":
            cosine = kwargs["position_embeddings"][0].save()
    close(first.value, tensor)
    close(again.value, tensor)
    if case.family != "gpt2":
        close(cosine.value, expected["kwargs"]["position_embeddings"][0])


class Twice(nn.Module):
    """Calls one module two times, and some operations of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.modes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.append(torch._C._len_torch_function_stack())
        x = torch.tanh(self.shared(x))
        x = torch.tanh(self.shared(x) + 1)
        return self.head(x).softmax(-1)


def twice() -> Twice:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Twice()


@pytest.mark.sentence("sites.24")
def test_a_module_that_is_called_twice(kind: str) -> None:
    """A module called more than once in a forward: `node.call(k).output`;"""
    bare = twice()
    first = bare.shared(INPUT)
    second = bare.shared(first.tanh())
    case = placed(bare, kind)
    with case.block(INPUT):
        got = [case.model.shared.call(k).output.save() for k in range(2)]
    close(got[0].value, first)
    close(got[1].value, second)


@pytest.mark.sentence("sites.24")
def test_a_call_is_written(kind: str) -> None:
    """A module called more than once in a forward: `node.call(k).output`;"""
    bare = twice()
    case = placed(bare, kind)
    with case.block(INPUT):
        case.model.shared.call(1).output = torch.zeros(4)
        got = case.model.head.output.save()
    close(got.value, bare.head(torch.ones(2, 4).tanh()))


@pytest.mark.sentence("sites.24")
def test_which_call(kind: str) -> None:
    """without `call` it is an error that says how often."""
    case = placed(twice(), kind)
    with pytest.raises(gw.UnknownSite, match=r"2|twice|two") as caught, case.block(INPUT):
        case.model.shared.output.save()
    assert "call(" in str(caught.value)
    assert __file__ in str(caught.value)


@cache
def eager(family: str, remote: bool) -> tuple[Any, Any]:
    """A model whose own attention calls softmax; the remote one was never run locally."""
    bare = build(family)
    bare.set_attn_implementation("eager")
    return bare, placed(bare, "remote" if remote else "local", name=family).model


@pytest.fixture(params=["gpt2", "llama", "qwen3", "mixtral"])
def attends(request: pytest.FixtureRequest, kind: str) -> Place:
    bare, model = eager(request.param, kind == "remote")
    return Place(request.param, kind, model, bare)


@pytest.mark.sentence("sites.25")
def test_an_operation(attends: Place) -> None:
    """`node.op("softmax", k=0).output`: the k-th call of an operation inside that module's forward;"""
    path = attention_path(attends)
    with attends.block(PROMPT):
        probs = attends.model[path].op("softmax", k=0).output.save()
    close(probs.value, attends.oracle.forward(PROMPT)["layers.1.attn.probs"])
    with attends.block(PROMPT):
        attends.model[path].op("softmax", k=0).output[:, 2] = 0.0
        logits = attends.model.logits.save()

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, 2] = 0.0
        return tensor

    close(logits.value, attends.oracle.forward(PROMPT, {"layers.1.attn.probs": change}).logits)


@pytest.mark.sentence("sites.25")
def test_which_operation(kind: str) -> None:
    """the k-th call of an operation inside that module's forward;"""
    bare = twice()
    first = bare.shared(INPUT).tanh()
    second = (bare.shared(first) + 1).tanh()
    case = placed(bare, kind)
    with case.block(INPUT):
        got = [case.model.op("tanh", k=k).output.save() for k in range(2)]
    close(got[0].value, first)
    close(got[1].value, second)
    with case.block(INPUT):
        case.model.op("tanh", k=1).output = torch.zeros(4)
        result = case.model.output.save()
    close(result.value, bare.head(torch.zeros(2, 4)).softmax(-1))
    with pytest.raises(gw.UnknownSite, match="tanh"), case.block(INPUT):
        case.model.op("tanh", k=2).output.save()


@pytest.mark.sentence("sites.25")
def test_operations_of_children_are_the_children_s(case: Place) -> None:
    """inside that module's forward;"""
    with pytest.raises(gw.UnknownSite), case.block(PROMPT):
        case.model.op("silu", k=0).output.save()


@pytest.mark.sentence("sites.26")
def test_operations_are_listed(attends: Place) -> None:
    """`print(node.ops())` lists them."""
    listed = str(attends.model[attention_path(attends)].ops())
    assert "softmax" in listed
    assert "matmul" in listed
    assert "silu" not in listed


@pytest.mark.sentence("sites.27")
def test_operations_cost_when_used(blocks: str) -> None:
    """It costs only when used."""
    bare = twice()
    case = placed(bare, blocks)
    with case.model.trace(INPUT):
        case.model.op("tanh", k=0).output.save()
    bare.modes.clear()
    with case.model.trace(INPUT):
        case.model.head.output.save()
        case.model.shared.call(0).output.save()
    bare(INPUT)
    assert bare.modes == [0, 0]
