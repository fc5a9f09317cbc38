"""Plain modules, and that a wrapped module by itself is the module it was."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import glassworks as gw
from families import FAMILIES
from lines import here, told


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {"scaled": self.linear(x) * scale, "same": x}


class Net(nn.Module):
    """Modules that return a mapping and a tuple, take keywords, and are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.twice = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.twice(self.twice(x).relu())
        found = self.inner(x, scale=2.0)
        out, _ = self.lstm(found["scaled"])
        if shift is not None:
            out = out + shift
        return self.head(out), found["same"]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture(scope="module")
def model(net: nn.Module) -> gw.Model:
    return gw.wrap(net)


@pytest.fixture(params=["trace", "live"])
def block(request: pytest.FixtureRequest, model: gw.Model) -> Any:
    """Both blocks over one forward pass; lines that both are given are in forward order."""
    return getattr(model, request.param)


X = torch.linspace(-1, 1, 2 * 5 * 8).reshape(2, 5, 8)


def test_reads_and_the_result(block: Any, model: Any, net: Any) -> None:
    with block(X) as t:
        scaled = model.inner.output["scaled"].save()
        hidden = model.lstm.output[0].save()
        logits, same = t.result
        logits.save()
        same.save()
    with torch.no_grad():
        expected = net(X)
        inner = net.inner(expected[1], scale=2.0)["scaled"]
    assert torch.equal(logits.value, expected[0])
    assert torch.equal(same.value, expected[1])
    assert torch.equal(scaled.value, inner)
    assert hidden.shape == (2, 5, 8)


def test_writes(block: Any, model: Any, net: Any) -> None:
    with block(X) as t:
        model.inner.output["scaled"][:, 0] = 0.0
        logits = t.result[0].save()
    with torch.no_grad():
        handle = net.inner.register_forward_hook(lambda m, a, o: {**o, "scaled": _zeroed(o["scaled"])})
        expected = net(X)[0]
        handle.remove()
    assert torch.equal(logits.value, expected)


def _zeroed(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed[:, 0] = 0.0
    return changed


def test_keyword_arguments(block: Any, net: Any) -> None:
    shift = torch.ones(8)
    with block(X, shift=shift) as t:
        logits = t.result[0].save()
    with torch.no_grad():
        assert torch.equal(logits.value, net(X, shift=shift)[0])


def test_inputs_are_arguments_and_keywords(block: Any, model: Any) -> None:
    with block(X):
        args, kwargs = model.inner.inputs
        first = args[0].save()
        same = model.inner.input.save()
        model.head.output.save()
    assert torch.equal(first.value, same.value)
    assert "scale" in list(kwargs)


def test_a_skip_of_one_call_leaves_the_others(block: Any, model: Any, net: Any) -> None:
    with block(X):
        first = model.twice.call(0).output.save()
        model.twice.call(1).skip(torch.ones(8))
        entering = model.inner.input.save()
    with torch.no_grad():
        assert torch.equal(first.value, net.twice(X))
    assert bool((entering == 1).all())
    with block(X):
        model.twice.call(0).skip(torch.ones(8))
        second = model.twice.call(1).output.save()
    with torch.no_grad():
        torch.testing.assert_close(second.value, net.twice(torch.ones_like(X)))


def test_a_module_called_twice_says_how_often(block: Any, model: Any) -> None:
    with pytest.raises(gw.UnknownSite) as caught, block(X):
        line = here(+1)
        _ = model.twice.output
    assert "2 times" in told(caught.value)
    assert line in told(caught.value)


def test_invokes_are_passes_of_their_own(model: Any, net: Any) -> None:
    other = torch.ones(3, 2, 8)
    with model.trace() as t:
        with t.invoke(X):
            one = model.head.output.save()
        with t.invoke(other):
            two = model.head.output.save()
    assert t.forwards == 2
    with torch.no_grad():
        assert torch.equal(one.value, net(X)[0])
        assert torch.equal(two.value, net(other)[0])


def test_a_patch_between_invokes(model: Any, net: Any) -> None:
    with model.trace() as t:
        with t.invoke(X):
            clean = model.inner.output["scaled"]
        with t.invoke(X * 0):
            model.inner.output["scaled"][:] = clean
            patched = model.head.output.save()
    with torch.no_grad():
        torch.testing.assert_close(patched.value, net(X)[0])


def test_gradients_of_a_plain_module(block: Any, model: Any, net: Any) -> None:
    with block(X) as t:
        h = model.inner.output["scaled"]
        t.backward(model.head.output.pow(2).sum())
        found = h.grad.save()
    kept: list[torch.Tensor] = []

    def hook(module: Any, args: Any, output: Any) -> Any:
        kept.append(output["scaled"].detach().requires_grad_())
        return {**output, "scaled": kept[0]}

    handle = net.inner.register_forward_hook(hook)
    loss = net(X)[0].pow(2).sum()
    handle.remove()
    [expected] = torch.autograd.grad(loss, kept)
    torch.testing.assert_close(found.value, expected)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_through_the_codec(model: Any, net: Any) -> None:
    remote = gw.connect(model)
    with remote.trace(X):
        remote.inner.output["scaled"][:, 0] = 0.0
        there = remote.head.output.save()
    with model.trace(X):
        model.inner.output["scaled"][:, 0] = 0.0
        here_too = model.head.output.save()
    assert torch.equal(there.value, here_too.value)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_wrapped_model_by_itself_is_the_model(family: str) -> None:
    module = FAMILIES[family]()
    ids = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    if family == "t5":
        ids["decoder_input_ids"] = torch.tensor([[0, 3]])
    before_keys = {name: set(own.__dict__) for name, own in module.named_modules()}
    with torch.no_grad():
        before = module(**ids).logits
    model = gw.wrap(module)
    layers = model.decoder.layers if family == "t5" else model.layers
    for _ in range(2):
        with model.trace([5, 6, 7, 8]) as t:
            layers[1].output[:, -1] = 0
            t.backward(model.logits[:, -1, 3].sum())
            layers[0].output.grad.save()
    with pytest.raises(IndexError), model.trace([5, 6]):
        layers[1].output[:, 9].save()
    with model.generate([5, 6, 7], max_new_tokens=3) as t:
        pass
    assert t.result.shape[0] == 1
    with torch.no_grad():
        after = module(**ids).logits
    assert torch.equal(before, after)
    assert {name: set(own.__dict__) for name, own in module.named_modules()} == before_keys
    assert not any("forward" in own.__dict__ for own in module.modules())
    assert not any(own._forward_hooks or own._forward_pre_hooks for own in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())
    twin = copy.deepcopy(module)
    with torch.no_grad():
        assert torch.equal(twin(**ids).logits, before)


def test_a_forward_that_is_not_ours_is_kept(net: Any) -> None:
    module = Net().eval()
    own = module.head.forward
    module.head.forward = lambda x: own(x) * 2
    replaced = module.head.forward
    model = gw.wrap(module)
    with model.trace(X):
        saved = model.head.output.save()
    assert module.head.__dict__["forward"] is replaced
    with torch.no_grad():
        assert torch.equal(saved.value, module(X)[0])


def test_using_one_name_of_the_package_leaves_the_others() -> None:
    gw.wrap(nn.Linear(2, 2))
    assert all(callable(getattr(gw, name)) for name in ("load", "wrap", "connect", "input", "values"))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(gw.ModelError):
        gw.wrap("gpt2")
