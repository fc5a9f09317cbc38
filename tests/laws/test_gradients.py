# ruff: noqa: SIM117
"""Gradients against plain autograd: tensor hooks on the bare module, here and remotely."""

from typing import Any

import pytest
import torch

import glassworks as gw
from laws.checks import PROMPT
from laws.equal import close, same_bits
from laws.places import read
from laws.reference import hooked, map_of
from laws.runtimes import Runtime


def name(runtime: Runtime, layer: int, what: str = "output") -> str:
    return f"{'decoder.' if runtime.two else ''}layers.{layer}.{what}"


def plain(runtime: Runtime, actions: dict[str, Any], loss: Any, prompt: list[int] = PROMPT) -> Any:
    """Run the bare module with gradients; `actions` see the tensors; gives the loss."""
    own = dict(runtime.arguments)
    places = map_of(runtime.family).places
    with torch.enable_grad():
        returned = hooked(
            runtime.bare, places, actions,
            lambda: runtime.bare(input_ids=torch.tensor([prompt]), use_cache=False, **own),
        )  # fmt: skip
        return loss(returned.logits)


def kept(into: dict[str, torch.Tensor], key: str) -> Any:
    """An action that makes what passes a leaf of its own and keeps it."""

    def action(tensor: torch.Tensor) -> torch.Tensor:
        into[key] = tensor.detach().requires_grad_()
        return into[key]

    return action


def seen(into: dict[str, torch.Tensor], key: str) -> Any:
    """An action that keeps what passes, and its gradient."""

    def action(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        own = own.clone()
        own.retain_grad()
        into[key] = own
        return own

    return action


def score(logits: Any) -> Any:
    return logits[:, -1, 7] - logits[:, -1, 9] * 0.5


@pytest.fixture(autouse=True)
def parameters_are_left_alone(differentiable: Runtime) -> Any:
    yield
    assert all(parameter.grad is None for parameter in differentiable.bare.parameters())


WHOLE = ["output", "input", "attn.output", "attn.input", "mlp.output", "mlp.input"]
INSIDE = ["mid", "mlp.neurons", "mlp.router.output", *(f"attn.heads.{p}" for p in ("query", "key", "value", "output"))]


@pytest.mark.parametrize("what", [*WHOLE, *INSIDE, "attn.scores", "attn.probs"])
def test_gradients_of_sites(differentiable: Runtime, what: str) -> None:
    runtime, expected = differentiable, {}
    sites = [name(runtime, layer, what) for layer in range(3)]
    if sites[0] not in runtime.model.table.sites:
        assert what in ("mlp.neurons", "mlp.router.output")
        return
    loss = plain(runtime, {site: seen(expected, site) for site in sites}, score)
    loss.backward()
    runtime.bare.zero_grad()
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        values = [read(runtime.model, site) for site in sites]
        t.backward(score(runtime.model.logits).sum())
        found = [value.grad.save() for value in values]
        assert [gradient.shape for gradient in found] == [value.shape for value in values]
    for site, gradient in zip(sites, found, strict=True):
        close(gradient, expected[site].grad)
        assert float(gradient.value.abs().max()) > 1e-4


@pytest.mark.parametrize("what", ["mid", "attn.heads.output", "attn.probs"])
def test_gradients_of_what_was_overwritten(differentiable: Runtime, what: str) -> None:
    """The old handle has none where it was written over, the new one has all of it."""
    runtime = differentiable
    site = name(runtime, 1, what)
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        old = read(runtime.model, site)
        old_twin = old * 1.0
        read(runtime.model, site)[:, 0] *= 0.5
        new = read(runtime.model, site)
        t.backward(score(runtime.model.logits).sum())
        found, whole, unused = new.grad.save(), old.grad.save(), old_twin.grad.save()
    assert float(found.value.abs().max()) > 1e-5
    same_bits(unused, torch.zeros_like(unused.value))
    close(whole.value[:, 0], found.value[:, 0] * 0.5)
    close(whole.value[:, 1:], found.value[:, 1:])


def test_gradients_of_slices_and_views(differentiable: Runtime) -> None:
    runtime = differentiable
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        h = runtime.layers[1].output
        parts = {
            "last": h[:, -1],
            "columns": h[..., 3:9],
            "transposed": h.transpose(1, 2),
            "heads": h.reshape(1, h.shape[1], 4, 8)[:, :, 2],
            "unbound": h.unbind(1)[0],
            "split": h.split(16, dim=-1)[1],
        }
        t.backward(score(runtime.model.logits).sum())
        whole = h.grad.save()
        found = {key: part.grad.save() for key, part in parts.items()}
        again = h[:, -1].grad.save()
    g = whole.value
    same_bits(again, g[:, -1])
    expected = {
        "last": g[:, -1],
        "columns": g[..., 3:9],
        "transposed": g.transpose(1, 2),
        "heads": g.reshape(1, g.shape[1], 4, 8)[:, :, 2],
        "unbound": g.unbind(1)[0],
        "split": g.split(16, dim=-1)[1],
    }
    for key, gradient in expected.items():
        same_bits(found[key], gradient)
    assert float(g.abs().max()) > 1e-4


def test_a_gradient_of_a_slice_alone(differentiable: Runtime) -> None:
    runtime = differentiable

    def taken(sliced: bool) -> torch.Tensor:
        with runtime.model.trace(PROMPT, **runtime.arguments) as t:
            part = runtime.layers[1].output[:, -1] if sliced else runtime.layers[1].output
            t.backward(score(runtime.model.logits).sum())
            found = part.grad.save()
        return found.value

    same_bits(taken(True), taken(False)[:, -1])


def test_gradients_of_computed_values(differentiable: Runtime) -> None:
    runtime = differentiable
    steer = torch.linspace(-1, 1, 32)
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        doubled = runtime.layers[0].output * 2 + steer
        runtime.layers[0].output = doubled
        b = t.backward((runtime.model.logits[:, -1] ** 2).mean())
        found = b.grad(doubled).save()
    expected: dict[str, torch.Tensor] = {}

    def action(tensor: torch.Tensor) -> torch.Tensor:
        expected["doubled"] = (tensor * 2 + steer).detach().requires_grad_()
        return expected["doubled"]

    loss = plain(runtime, {name(runtime, 0): action}, lambda logits: (logits[:, -1] ** 2).mean())
    [gradient] = torch.autograd.grad(loss, [expected["doubled"]])
    close(found, gradient)


def test_overwritten_positions_have_no_gradient_in_the_old_handle(differentiable: Runtime) -> None:
    runtime = differentiable
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        old = runtime.layers[0].output
        new = runtime.layers[0].output
        new[:, 1] = 0.5
        t.backward(score(runtime.model.logits).sum())
        before, after = old.grad.save(), new.grad.save()
    assert not bool(before.value[:, 1].any())
    assert bool(after.value[:, 1].any())
    kept_rows = [k for k in range(before.shape[1]) if k != 1]
    close(before.value[:, kept_rows], after.value[:, kept_rows])


def test_writing_a_gradient_is_a_tensor_hook(differentiable: Runtime) -> None:
    runtime = differentiable
    upper, lower = name(runtime, 2), name(runtime, 0)
    expected: dict[str, torch.Tensor] = {}

    def halve(tensor: torch.Tensor) -> torch.Tensor:
        tensor.register_hook(lambda gradient: gradient * 0.5 + 0.01)
        return tensor

    loss = plain(runtime, {lower: kept(expected, "lower"), upper: halve}, score)
    [gradient] = torch.autograd.grad(loss.sum(), [expected["lower"]])
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        low, high = runtime.layers[0].output, runtime.layers[2].output
        t.backward(score(runtime.model.logits).sum())
        high.grad = high.grad * 0.5 + 0.01
        found = low.grad.save()
    close(found, gradient)


def test_writing_a_gradient_of_a_slice(differentiable: Runtime) -> None:
    runtime = differentiable
    upper, lower = name(runtime, 1), name(runtime, 0)
    expected: dict[str, torch.Tensor] = {}

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        def hook(gradient: torch.Tensor) -> torch.Tensor:
            changed = gradient.clone()
            changed[:, -1] = 0
            return changed

        tensor.register_hook(hook)
        return tensor

    loss = plain(runtime, {lower: kept(expected, "lower"), upper: cut}, score)
    [gradient] = torch.autograd.grad(loss.sum(), [expected["lower"]])
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        low, high = runtime.layers[0].output, runtime.layers[1].output[:, -1]
        t.backward(score(runtime.model.logits).sum())
        high.grad = torch.zeros(32)
        found = low.grad.save()
    close(found, gradient)


def test_two_backwards(differentiable: Runtime) -> None:
    runtime = differentiable
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        h = runtime.layers[1].output
        logits = runtime.model.logits[:, -1]
        first = t.backward(logits[:, 3].sum())
        one = h.grad.save()
        t.backward(logits[:, 4].sum())
        two = h.grad.save()
        again = first.grad(h).save()
    expected: list[torch.Tensor] = []
    for token in (3, 4):
        leaves: dict[str, torch.Tensor] = {}
        loss = plain(runtime, {name(runtime, 1): kept(leaves, "h")}, lambda logits, k=token: logits[:, -1, k].sum())
        expected += torch.autograd.grad(loss, [leaves["h"]])
    close(one, expected[0])
    close(two, expected[1])
    close(again, expected[0])


def test_a_gradient_of_a_loss_at_a_layer_stops_early(differentiable: Runtime) -> None:
    runtime = differentiable
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        low, high = runtime.layers[0].output, runtime.layers[1].output
        t.backward(high[:, -1].pow(2).sum())
        found = low.grad.save()
        own = high.grad.save()
        value = high.save()
    leaves: dict[str, torch.Tensor] = {}
    both = {name(runtime, 0): kept(leaves, "low"), name(runtime, 1): seen(leaves, "high")}
    plain(runtime, both, lambda logits: logits)
    with torch.enable_grad():
        [gradient] = torch.autograd.grad(leaves["high"][:, -1].pow(2).sum(), [leaves["low"]])
    close(found, gradient)
    assert not bool(own.value[:, :-1].any())
    close(own.value[:, -1], 2 * value.value[:, -1])
    assert not value.value.requires_grad


@pytest.fixture
def in_company(differentiable: Runtime) -> Runtime:
    if differentiable.kind == "live":
        pytest.skip("a live block has one invoke")
    return differentiable


def test_gradients_in_company(in_company: Runtime) -> None:
    runtime = in_company
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    with runtime.model.trace() as t:
        found = []
        for k, prompt in enumerate(prompts):
            with t.invoke(prompt):
                h = runtime.layers[1].output
                b = t.backward(runtime.model.logits[:, -1, 3 + k].sum())
                found.append(b.grad(h).save())
    for k, prompt in enumerate(prompts):
        with runtime.model.trace(prompt) as t:
            h = runtime.layers[1].output
            t.backward(runtime.model.logits[:, -1, 3 + k].sum())
            own = h.grad.save()
        close(found[k], own.value)


def test_a_gradient_across_passes_is_refused(in_company: Runtime) -> None:
    runtime = in_company
    with pytest.raises(gw.GraphError, match="gradient"), runtime.model.trace() as t:
        with t.invoke([5, 6, 7]):
            clean = runtime.layers[2].output
        with t.invoke([8, 9, 10]):
            runtime.layers[0].output = clean
            t.backward(runtime.model.logits[:, -1, 3].sum())
            clean.grad.save()


def test_a_loss_with_several_elements_is_refused(differentiable: Runtime) -> None:
    runtime = differentiable
    with pytest.raises((ValueError, gw.GraphError)) as caught, runtime.model.trace(PROMPT, **runtime.arguments) as t:
        h = runtime.layers[1].output
        t.backward(runtime.model.logits[:, -1])
        h.grad.save()
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "test_gradients.py:" in told
    assert "one element" in told


@pytest.mark.parametrize("ambient", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_ambient_mode_does_not_matter(differentiable: Runtime, ambient: Any) -> None:
    runtime = differentiable

    def found() -> torch.Tensor:
        with runtime.model.trace(PROMPT, **runtime.arguments) as t:
            h = runtime.layers[1].output
            t.backward(score(runtime.model.logits).sum())
            gradient = h.grad.save()
        return gradient.value

    expected = found()
    with ambient():
        inside = found()
    same_bits(inside, expected)


def test_captured_tensors_train(differentiable: Runtime) -> None:
    """Twice, so that gradients add up; through the user's own graph, so that what lies behind a tensor learns too."""
    runtime = differentiable
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 32))
    scale = torch.nn.Parameter(torch.tensor(0.5))
    for _ in range(2):
        with runtime.model.trace(PROMPT, **runtime.arguments) as t:
            runtime.layers[0].output[:, -1] += scale * weight
            t.backward(score(runtime.model.logits).sum())
    own = torch.nn.Parameter(weight.detach().clone())
    factor = torch.nn.Parameter(torch.tensor(0.5))

    def action(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[:, -1] += factor * own
        return changed

    loss = plain(runtime, {name(runtime, 0): action}, score)
    gradients = torch.autograd.grad(loss.sum(), [own, factor])
    close(weight.grad, 2 * gradients[0])
    close(scale.grad, 2 * gradients[1])


def test_captured_tensors_train_where_the_loss_uses_them(differentiable: Runtime) -> None:
    runtime = differentiable
    probe = torch.linspace(-1, 1, 32).requires_grad_()
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        h = runtime.layers[1].output
        kept_h = h.save()
        t.backward(((h @ probe) ** 2).mean())
    own = probe.detach().clone().requires_grad_()
    ((kept_h.value @ own) ** 2).mean().backward()
    close(probe.grad, own.grad)


def test_a_plain_loop_learns(differentiable: Runtime) -> None:
    runtime = differentiable
    steer = torch.zeros(32, requires_grad=True)
    optimizer = torch.optim.Adam([steer], lr=0.1)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        with runtime.model.trace(PROMPT, **runtime.arguments) as t:
            runtime.layers[1].output[:, -1] += steer
            loss = -runtime.model.logits[:, -1].log_softmax(-1)[:, 7].mean()
            t.backward(loss)
            kept_loss = loss.save()
        optimizer.step()
        losses.append(float(kept_loss))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


def test_a_tensor_that_no_backward_asks_for_stays_untouched(differentiable: Runtime) -> None:
    steer = torch.zeros(32, requires_grad=True)
    with differentiable.model.trace(PROMPT, **differentiable.arguments):
        differentiable.layers[1].output[:, -1] += steer
        saved = differentiable.model.logits.save()
    assert steer.grad is None
    assert not saved.value.requires_grad


def test_backward_belongs_to_a_trace(differentiable: Runtime) -> None:
    with pytest.raises(gw.GraphError, match=r"test_gradients\.py:"):
        with differentiable.model.generate(PROMPT, max_new_tokens=2) as t, t.steps[0]:
            t.backward(differentiable.model.logits[:, -1].sum())
            differentiable.layers[0].output.grad.save()


def test_a_gradient_needs_a_backward_above(differentiable: Runtime) -> None:
    with pytest.raises(gw.GraphError, match="backward"), differentiable.model.trace(PROMPT):
        differentiable.layers[0].output.grad.save()


def test_a_gradient_written_in_place(differentiable: Runtime) -> None:
    """Through the whole, through a view, and by assignment: the same as a tensor hook that does it."""
    runtime = differentiable
    early, late = name(runtime, 0), name(runtime, 1)

    def change(gradient: torch.Tensor) -> torch.Tensor:
        changed = gradient.clone()
        changed[:, -1] = 0
        changed[:, 0] *= 3
        return changed * 0.5

    expected: dict[str, torch.Tensor] = {}

    def hook(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor.clone()
        own.register_hook(change)
        return own

    loss = plain(runtime, {early: seen(expected, early), late: hook}, score)
    loss.backward()
    runtime.bare.zero_grad()
    with runtime.model.trace(PROMPT, **runtime.arguments) as t:
        first, second = read(runtime.model, early), read(runtime.model, late)
        t.backward(score(runtime.model.logits).sum())
        second.grad[:, -1] = 0
        second.grad[:, 0] *= 3
        second.grad *= 0.5
        found = first.grad.save()
    close(found, expected[early].grad)
