"""Gradients beside autograd on the same model with hooks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import glassworks as gw
from contract.places import OTHER, PROMPT, SOURCE, START, Place, close, refused

SEQ = len(PROMPT)
TARGET = 17


def gradients(case: Place, names: list[str], prompt: list[int] = PROMPT, **arguments: Any) -> list[torch.Tensor]:
    """Of the target's logit with respect to places, by autograd."""
    found = case.oracle.differentiable(prompt, **arguments)
    loss = found.logits[0, -1, TARGET]
    return list(torch.autograd.grad(loss, [found[name] for name in names]))


@pytest.mark.sentence("gradients.1")
@pytest.mark.parametrize("name", ["embed.output", "layers.0.output", "layers.1.mlp.output", "layers.2.input", "logits"])
def test_reading(case: Place, name: str) -> None:
    """`b = t.backward(loss)`. `value.grad` reads, ... the gradient of the last backward above;"""
    [expected] = gradients(case, [name])
    with case.block(PROMPT) as t:
        value = case.site(name)
        t.backward(case.model.logits[0, -1, TARGET])
        gradient = value.grad
        assert tuple(gradient.shape) == tuple(value.shape)
        saved = gradient.save()
    close(saved.value, expected)
    assert saved.value.abs().max() > 0


@pytest.mark.sentence("gradients.1")
def test_many_at_once(place: Place) -> None:
    """`value.grad` reads, ... the gradient of the last backward above;"""
    names = [f"layers.{n}.{part}" for n in range(3) for part in ("input", "attn.output", "mlp.output", "output")]
    expected = gradients(place, names)
    with place.model.trace(PROMPT) as t:
        values = [place.site(name) for name in names]
        t.backward(place.model.logits[0, -1, TARGET])
        saved = [value.grad.save() for value in values]
    for value, tensor in zip(saved, expected, strict=True):
        close(value.value, tensor)


@pytest.mark.sentence("gradients.1")
def test_gradients_of_a_source(encdec: Place) -> None:
    """`value.grad` reads, ... the gradient of the last backward above;"""
    names = ["encoder.layers.1.output", "decoder.layers.0.cross_attn.output"]
    expected = gradients(encdec, names, SOURCE, decoder_input_ids=START)
    with encdec.model.trace(SOURCE, decoder_input_ids=START) as t:
        values = [encdec.site(name) for name in names]
        t.backward(encdec.model.logits[0, -1, TARGET])
        saved = [value.grad.save() for value in values]
    for value, tensor in zip(saved, expected, strict=True):
        close(value.value, tensor)


@pytest.mark.sentence("gradients.1")
def test_writing(case: Place) -> None:
    """assigning it writes, the gradient of the last backward above;"""
    found = case.oracle.differentiable(PROMPT)
    found["layers.1.output"].register_hook(lambda gradient: gradient * 2 + 1)
    [expected] = torch.autograd.grad(found.logits[0, -1, TARGET], [found["layers.0.output"]])
    with case.block(PROMPT) as t:
        early = case.model.layers[0].output
        late = case.model.layers[1].output
        t.backward(case.model.logits[0, -1, TARGET])
        late.grad = late.grad * 2 + 1
        written = late.grad.save()
        saved = early.grad.save()
    [plain] = gradients(case, ["layers.1.output"])
    close(written.value, plain * 2 + 1)
    close(saved.value, expected)


@pytest.mark.sentence("gradients.1")
def test_augmented_writing(place: Place) -> None:
    """assigning it writes, the gradient of the last backward above;"""
    [early_gradient, late_gradient] = gradients(place, ["layers.0.output", "layers.1.output"])
    with place.model.trace(PROMPT) as t:
        early, late = place.model.layers[0].output, place.model.layers[1].output
        t.backward(place.model.logits[0, -1, TARGET])
        late.grad *= 3
        saved = [early.grad.save(), late.grad.save()]
    close(saved[0].value, early_gradient * 3)
    close(saved[1].value, late_gradient * 3)


@pytest.mark.sentence("gradients.1", "gradients.2")
def test_two_backwards(place: Place) -> None:
    """`value.grad` reads, and assigning it writes, the gradient of the last backward above; `b.grad(value)` that of
    this one."""
    found = place.oracle.differentiable(PROMPT)
    hidden = found["layers.1.output"]
    [first] = torch.autograd.grad(found.logits[0, -1, TARGET], [hidden], retain_graph=True)
    [second] = torch.autograd.grad(found.logits[0, 1].norm(), [hidden])
    model = place.model
    with model.trace(PROMPT) as t:
        value = model.layers[1].output
        a = t.backward(model.logits[0, -1, TARGET])
        after_first = value.grad.save()
        b = t.backward(model.logits[0, 1].norm())
        after_second = value.grad.save()
        own = [a.grad(value).save(), b.grad(value).save()]
    close(after_first.value, first)
    close(after_second.value, second)
    close(own[0].value, first)
    close(own[1].value, second)


@pytest.mark.sentence("gradients.2")
def test_this_backward(case: Place) -> None:
    """`b.grad(value)` that of this one."""
    [expected] = gradients(case, ["layers.1.output"])
    with case.block(PROMPT) as t:
        value = case.model.layers[1].output
        b = t.backward(case.model.logits[0, -1, TARGET])
        saved = b.grad(value).save()
    close(saved.value, expected)


@pytest.mark.sentence("gradients.3")
def test_slices(case: Place) -> None:
    """Slices and derived sites have gradients."""
    [expected] = gradients(case, ["layers.1.output"])
    with case.block(PROMPT) as t:
        hidden = case.model.layers[1].output
        last = hidden[:, -1]
        part = hidden.view(1, SEQ, 4, 8)[:, 1:3, 2]
        t.backward(case.model.logits[0, -1, TARGET])
        saved = [last.grad.save(), part.grad.save()]
    close(saved[0].value, expected[:, -1])
    close(saved[1].value, expected.view(1, SEQ, 4, 8)[:, 1:3, 2])


DERIVED: dict[str, Callable[[Any], Any]] = {
    "layers.1.mid": lambda model: model.layers[1].mid,
    "layers.1.attn.probs": lambda model: model.layers[1].attn.probs,
    "layers.1.attn.heads.output": lambda model: model.layers[1].attn.heads.output,
    "layers.1.attn.heads.query": lambda model: model.layers[1].attn.heads.query,
    "layers.1.attn.heads.value": lambda model: model.layers[1].attn.heads.value,
}


@pytest.mark.sentence("gradients.3")
@pytest.mark.parametrize("name", list(DERIVED))
def test_derived_sites(case: Place, name: str) -> None:
    """Slices and derived sites have gradients."""
    [expected] = gradients(case, [name])
    with case.block(PROMPT) as t:
        value = DERIVED[name](case.model)
        t.backward(case.model.logits[0, -1, TARGET])
        saved = value.grad.save()
    close(saved.value, expected)


@pytest.mark.sentence("gradients.3")
def test_one_head(case: Place) -> None:
    """Slices and derived sites have gradients."""
    [expected] = gradients(case, ["layers.1.attn.heads.output"])
    with case.block(PROMPT) as t:
        value = case.model.layers[1].attn.heads[2].output
        t.backward(case.model.logits[0, -1, TARGET])
        saved = value.grad.save()
    close(saved.value, expected[:, :, 2])


@pytest.mark.sentence("gradients.3")
def test_gradients_of_a_router(moe: Place) -> None:
    """derived sites have gradients."""
    [expected] = gradients(moe, ["layers.1.mlp.router.output"])
    with moe.block(PROMPT) as t:
        value = moe.model.layers[1].mlp.router.output
        t.backward(moe.model.logits[0, -1, TARGET])
        saved = value.grad.save()
    close(saved.value, expected)
    assert saved.value.abs().max() > 0


@pytest.mark.sentence("gradients.1")
def test_after_a_write(place: Place) -> None:
    """the gradient of the last backward above;

    Positions that were overwritten have no part in the loss before the write, and full part after it.
    """
    leaf = torch.full((1, 32), 0.3, requires_grad=True)

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, 1] = leaf
        return tensor

    found = place.oracle.differentiable(PROMPT, {"layers.1.output": change})
    earlier, later, own = torch.autograd.grad(
        found.logits[0, -1, TARGET], [found["layers.0.output"], found["layers.1.output"], leaf]
    )
    model = place.model
    with model.trace(PROMPT) as t:
        early = model.layers[0].output
        before = model.layers[1].output + 0
        stale = model.layers[1].output
        model.layers[1].output[:, 1] = torch.full((1, 32), 0.3)
        after = model.layers[1].output
        t.backward(model.logits[0, -1, TARGET])
        saved = [early.grad.save(), after.grad.save(), stale.grad.save()]
        before.save()
    close(saved[0].value, earlier)
    close(saved[1].value, later)
    close(saved[1].value[:, 1], own)
    assert (saved[2].value[:, 1] == 0).all()
    close(saved[2].value[:, 2:], later[:, 2:])


@pytest.mark.sentence("gradients.4")
def test_without_gradients(inside: Place) -> None:
    """Everything no gradient needs runs under `no_grad`;"""
    path = inside.stack
    enabled: dict[int, bool] = {}
    handles = [
        inside.bare.get_submodule(f"{path}.{n}.mlp").register_forward_hook(
            lambda *_, n=n: enabled.__setitem__(n, torch.is_grad_enabled())
        )
        for n in range(3)
    ]
    try:
        with inside.model.trace(PROMPT):
            inside.model.logits.save()
        assert enabled == {0: False, 1: False, 2: False}
        with inside.model.trace(PROMPT) as t:
            value = inside.model.layers[1].output
            t.backward(inside.model.logits[0, -1, TARGET])
            value.grad.save()
        assert enabled == {0: False, 1: False, 2: True}
    finally:
        for handle in handles:
            handle.remove()
    assert all(parameter.grad is None for parameter in inside.bare.parameters())


@pytest.mark.sentence("gradients.5")
def test_saved_values_are_detached(case: Place) -> None:
    """saved Values are detached."""
    leaf = torch.zeros(32, requires_grad=True)
    with case.block(PROMPT) as t:
        case.model.layers[0].output += leaf
        hidden = case.model.layers[1].output
        kept = hidden.save()
        loss = case.model.logits[0, -1, TARGET]
        t.backward(loss)
        gradient, final = hidden.grad.save(), loss.save()
    for value in (kept, gradient, final):
        assert not value.value.requires_grad
        assert value.value.grad_fn is None


@pytest.mark.sentence("gradients.6")
def test_captured_leaves(case: Place) -> None:
    """`t.backward` adds to the `.grad` of every captured tensor that requires it,"""
    leaf = torch.linspace(-1, 1, 32).requires_grad_()
    frozen = torch.ones(32)
    found = case.oracle.differentiable(PROMPT, {"layers.1.output": lambda tensor, _: tensor + leaf * 2})
    [expected] = torch.autograd.grad(found.logits[0, -1, TARGET], [leaf])
    for times in (1, 2):
        with case.block(PROMPT) as t:
            case.model.layers[1].output += leaf * 2 * frozen
            loss = case.model.logits[0, -1, TARGET]
            t.backward(loss)
            saved = loss.save()
        assert leaf.grad is not None
        close(leaf.grad, expected * times)
    assert frozen.grad is None
    close(saved.value, found.logits[0, -1, TARGET])


@pytest.mark.sentence("gradients.6")
def test_through_the_graph_of_the_user(case: Place) -> None:
    """through the user's own autograd graph, locally and remotely:

    The captured tensor is computed outside from parameters; those get the gradients.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 32))
    code = torch.linspace(0, 1, 4, requires_grad=True)
    own = [code, *make.parameters()]
    found = case.oracle.differentiable(PROMPT, {"layers.1.output": lambda tensor, _: tensor + make(code)})
    expected = torch.autograd.grad(found.logits[0, -1, TARGET], own)
    vector = make(code)
    with case.block(PROMPT) as t:
        case.model.layers[1].output += vector
        t.backward(case.model.logits[0, -1, TARGET])
    for tensor, gradient in zip(own, expected, strict=True):
        assert tensor.grad is not None
        close(tensor.grad, gradient)


@pytest.mark.sentence("gradients.6")
def test_modules_of_the_user_have_gradients(case: Place) -> None:
    """`t.backward` adds to the `.grad` of every captured tensor that requires it, through the user's own autograd
    graph, locally and remotely:"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        probe = torch.nn.Linear(32, 2)
    hidden = case.oracle.differentiable(PROMPT)["layers.1.output"].detach()
    expected = torch.autograd.grad(
        torch.nn.functional.cross_entropy(probe(hidden[0]), torch.tensor([0, 1, 0, 1, 1])), list(probe.parameters())
    )
    with case.block(PROMPT) as t:
        scores = probe(case.model.layers[1].output[0])
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1, 0, 1, 1]))
        t.backward(loss)
    for parameter, gradient in zip(probe.parameters(), expected, strict=True):
        assert parameter.grad is not None
        close(parameter.grad, gradient)


@pytest.mark.sentence("gradients.8")
def test_a_gradient_across_passes(place: Place) -> None:
    """A gradient across passes is right or refused.

    The value of one invoke is written earlier in another, which takes a second pass; the loss is in the second.
    """
    source = place.oracle.differentiable(OTHER)
    found = place.oracle.differentiable(PROMPT, {"layers.0.output": lambda h, _: h + source["layers.2.output"][:, -1:]})
    [expected] = torch.autograd.grad(found.logits[0, -1, TARGET], [source["layers.1.output"]])
    model = place.model
    try:
        with model.trace() as t:
            with t.invoke(OTHER):
                early = model.layers[1].output
                vector = model.layers[2].output[:, -1:]
            with t.invoke(PROMPT):
                model.layers[0].output += vector
                t.backward(model.logits[0, -1, TARGET])
                saved = early.grad.save()
    except gw.GraphError as error:
        refused(error, "pass")
    else:
        close(saved.value, expected)


@pytest.mark.sentence("gradients.8")
def test_leaves_across_passes(place: Place) -> None:
    """A gradient across passes is right or refused."""
    leaf = torch.zeros(32, requires_grad=True)
    source = place.oracle.differentiable(OTHER, {"layers.0.output": lambda h, _: h + leaf})
    found = place.oracle.differentiable(PROMPT, {"layers.0.output": lambda h, _: h + source["layers.2.output"][:, -1:]})
    [expected] = torch.autograd.grad(found.logits[0, -1, TARGET], [leaf])
    model = place.model
    try:
        with model.trace() as t:
            with t.invoke(OTHER):
                model.layers[0].output += leaf
                vector = model.layers[2].output[:, -1:]
            with t.invoke(PROMPT):
                model.layers[0].output += vector
                t.backward(model.logits[0, -1, TARGET])
    except gw.GraphError as error:
        refused(error, "pass")
    else:
        assert leaf.grad is not None
        close(leaf.grad, expected)


@pytest.mark.sentence("gradients.8")
@pytest.mark.parametrize("rows", [1, None])
def test_gradients_between_invokes(place: Place, rows: int | None) -> None:
    """A gradient across passes is right or refused.

    Within one pass, a gradient flows from one invoke's rows to another's.
    """
    source = place.oracle.differentiable(OTHER)

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        return torch.cat([source["layers.1.output"][:, -1:], tensor[:, 1:]], 1)

    found = place.oracle.differentiable(PROMPT, {"layers.1.output": change})
    [expected] = torch.autograd.grad(found.logits[0, -1, TARGET], [source["layers.0.output"]])
    model = place.model
    try:
        with model.trace(rows=rows) as t:
            with t.invoke(OTHER):
                early = model.layers[0].output
                vector = model.layers[1].output[:, -1]
            with t.invoke(PROMPT):
                model.layers[1].output[:, 0] = vector
                t.backward(model.logits[0, -1, TARGET])
                saved = early.grad.save()
    except gw.GraphError as error:
        refused(error, "pass" if rows == 1 else "never")
    else:
        close(saved.value, expected)


@pytest.mark.sentence("gradients.1")
def test_in_generation_it_is_refused(place: Place) -> None:
    """`b = t.backward(loss)`.

    A loss over steps would need all of them to be kept.
    """
    with pytest.raises(gw.GraphError), place.model.generate(PROMPT, max_new_tokens=3) as t, t.steps[0]:
        t.backward(place.model.logits[0, -1, TARGET])
        place.model.layers[1].output.grad.save()
