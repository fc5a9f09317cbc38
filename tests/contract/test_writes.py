"""Writes: in place as in torch, replacing, skipping; which of several lines counts; what is run at all."""

from typing import Any

import pytest
import torch

import glassworks as gw
from contract.places import PROMPT, Place, close, names, placed
from lines import here, told

SITE = "layers.1.output"


def edited(case: Place, edit: Any, *, site: str = SITE) -> Any:
    """What an execution changed by `edit` gives: torch's own meaning of the same lines, on a clone, in a hook."""

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        with torch.no_grad():
            tensor = tensor.detach()
            result = edit(tensor)
        return tensor if result is None else result

    return case.oracle.forward(PROMPT, {site: change})


def _assign(h: Any) -> None:
    h[:, -1] = 0


def _assign_many(h: Any) -> None:
    h[:, 1:3, ::2] = torch.arange(16.0)


def _assign_mask(h: Any) -> None:
    h[h > 0.5] = 0.5


def _assign_index(h: Any) -> None:
    h[:, torch.tensor([0, 3])] = 1.0


def _assign_ellipsis(h: Any) -> None:
    h[..., None, 3] = 2.0


def _assign_itself(h: Any) -> None:
    h[:, 0] = h[:, 2] * 2


def _augmented(h: Any) -> Any:
    h += 1.5
    h *= 2
    h -= torch.arange(32.0)
    h /= 3
    return h


def _augmented_part(h: Any) -> None:
    h[:, 1] += 5
    h[:, 2] *= 0


def _method(h: Any) -> None:
    h.mul_(0.5).add_(1.0)
    h.clamp_(-1, 1)


def _method_of_mask(h: Any) -> None:
    h.masked_fill_(h < 0, 0.0)


def _zero(h: Any) -> None:
    h[:, 0].zero_()


def _copy(h: Any) -> None:
    h[:, 0].copy_(h[:, 1])


def _index_copy(h: Any) -> None:
    h.index_fill_(1, torch.tensor([1]), 3.0)


def _view(h: Any) -> None:
    h.view(1, 5, 4, 8)[:, :, 2] = 0


def _reshape(h: Any) -> None:
    h.reshape(5, 32)[3] += torch.linspace(-1, 2, 32)


def _transpose(h: Any) -> None:
    h.transpose(1, 2)[:, 4] = -1


def _permute(h: Any) -> None:
    h.permute(2, 0, 1)[7].fill_(0.25)


def _unbind(h: Any) -> None:
    rows = h.unbind(1)
    rows[3].mul_(2)
    rows[0][:, 5:9] = 0


def _split(h: Any) -> None:
    first, second = h.split(16, dim=-1)
    first += 1
    second[:, -1] = 0


def _chunk(h: Any) -> None:
    h.chunk(2, -1)[1].neg_()


def _iterated(h: Any) -> None:
    for row in h:
        row[2] = 0


def _views_of_views(h: Any) -> None:
    h[:, 1:].transpose(0, 1)[2].view(4, 8)[1] = 7


def _unsqueeze(h: Any) -> None:
    h.unsqueeze(0).squeeze(1)[:, 1] = 0


def _narrow(h: Any) -> None:
    h.narrow(1, 2, 2).mul_(-1)


def _two_views(h: Any) -> None:
    part = h[:, 2]
    h += 1
    part *= 2


def _swap(h: Any) -> None:
    h[:, 0], h[:, 1] = h[:, 1].clone(), h[:, 0].clone()


def _diagonal(h: Any) -> None:
    h[0].diagonal().zero_()


IN_PLACE = [
    _assign, _assign_many, _assign_mask, _assign_index, _assign_ellipsis, _assign_itself, _augmented, _augmented_part,
    _method, _method_of_mask, _zero, _copy, _index_copy, _two_views, _swap,
]  # fmt: skip
VIEWS = [
    _view, _reshape, _transpose, _permute, _unbind, _split, _chunk, _iterated, _views_of_views, _unsqueeze, _narrow,
    _diagonal,
]  # fmt: skip


def holds_in_place(case: Place, edit: Any) -> None:
    expected = edited(case, edit)
    with case.block(PROMPT):
        value = case.model.layers[1].output
        edit(value)
        own = value.save()
        again = case.model.layers[1].output.save()
        logits = case.model.logits.save()
    close(own.value, expected[SITE])
    close(again.value, expected[SITE])
    close(logits.value, expected.logits)
    assert not torch.allclose(logits.value, case.oracle.forward(PROMPT).logits, atol=1e-3)


@pytest.mark.sentence("writes.1")
@pytest.mark.parametrize("edit", IN_PLACE)
def test_in_place(case: Place, edit: Any) -> None:
    """In place means what it means in torch. Index assignment, augmented assignment and torch's in-place methods on a
    Value read from a site, ... write through to the site and advance that Value"""
    holds_in_place(case, edit)


@pytest.mark.sentence("writes.2")
@pytest.mark.parametrize("edit", VIEWS)
def test_views(case: Place, edit: Any) -> None:
    """or on a view of one (slice, `view`, `reshape`, `transpose`, `unbind`, `split`), write through to the site and
    advance that Value"""
    holds_in_place(case, edit)


@pytest.mark.sentence("writes.1")
def test_augmented_assignment_of_a_site(case: Place) -> None:
    """augmented assignment and torch's in-place methods on a Value read from a site,"""
    expected = edited(case, lambda h: h * 2 + 1, site="layers.1.mlp.output").logits
    with case.block(PROMPT):
        case.model.layers[1].mlp.output *= 2
        case.model.layers[1].mlp.output += 1
        logits = case.model.logits.save()
    close(logits.value, expected)


@pytest.mark.sentence("writes.3")
def test_views_that_cannot_be_written(case: Place) -> None:
    """(where writing through a view cannot be done exactly it is refused with the line to write instead, never
    dropped);

    Here `reshape` has to copy, so torch itself would write to the copy alone.
    """
    with pytest.raises(gw.WriteError) as caught, case.block(PROMPT):
        flat = case.model.layers[1].output.transpose(1, 2).reshape(-1)
        line = here(+1)
        flat[0] = 1.0
        case.model.logits.save()
    assert names(caught, line)
    assert "output" in str(caught.value)
    assert "=" in str(caught.value)


@pytest.mark.sentence("writes.4")
def test_computed_values(case: Place) -> None:
    """on any other computed Value they update that Value alone."""
    found = case.oracle.forward(PROMPT)
    with case.block(PROMPT):
        hidden = case.model.layers[1].output
        double = hidden * 2
        double[:, 0] = 5
        double += 1
        picked = hidden[:, torch.tensor([1, 2])]
        picked.zero_()
        saved = [hidden.save(), double.save(), picked.save(), case.model.logits.save()]
    expected = found[SITE].detach() * 2
    expected[:, 0] = 5
    close(saved[0].value, found[SITE])
    close(saved[1].value, expected + 1)
    close(saved[2].value, torch.zeros(1, 2, 32))
    close(saved[3].value, found.logits)


@pytest.mark.sentence("writes.5")
def test_what_was_saved_earlier(case: Place) -> None:
    """A Value saved or used earlier keeps what it was."""
    found = case.oracle.forward(PROMPT)[SITE]
    with case.block(PROMPT):
        hidden = case.model.layers[1].output
        saved = hidden.save()
        used = hidden + 1
        part = hidden[:, 0].clone()
        hidden[:] = 0
        hidden += 3
        later = [used.save(), part.save(), hidden.save()]
    close(saved.value, found)
    close(later[0].value, found + 1)
    close(later[1].value, found[:, 0])
    close(later[2].value, torch.full_like(found, 3.0))


@pytest.mark.sentence("writes.6")
def test_replacing(case: Place) -> None:
    """`site = value` replaces."""
    expected = edited(case, lambda h: h.flip(1).exp().log1p())
    with case.block(PROMPT):
        case.model.layers[1].output = case.model.layers[1].output.flip(1).exp().log1p()
        own = case.model.layers[1].output.save()
        logits = case.model.logits.save()
    close(own.value, expected[SITE])
    close(logits.value, expected.logits)
    with case.block(PROMPT):
        case.model.layers[1].output = torch.linspace(0, 1, 32)
        logits = case.model.logits.save()
    close(logits.value, edited(case, lambda h: torch.linspace(0, 1, 32).expand(h.shape)).logits)


@pytest.mark.sentence("writes.7")
@pytest.mark.parametrize("value", [3, 2.5, True, torch.arange(32), torch.linspace(0, 1, 32, dtype=torch.float64)])
def test_writes_are_cast(case: Place, value: Any) -> None:
    """A write is cast to the site's dtype and must broadcast to its shape,"""
    expected = torch.as_tensor(value).float().expand(1, len(PROMPT), 32)
    with case.block(PROMPT):
        case.model.layers[1].output = value
        own = case.model.layers[1].output
        assert own.dtype == torch.float32
        assert tuple(own.shape) == (1, len(PROMPT), 32)
        saved = own.save()
        logits = case.model.logits.save()
    close(saved.value, expected)
    close(logits.value, edited(case, lambda h: expected).logits)


@pytest.mark.sentence("writes.7")
@pytest.mark.parametrize("shape", [(31,), (2, 5, 32), (5, 5, 32), (1, 1, 5, 32)])
def test_writes_that_do_not_fit(case: Place, shape: tuple[int, ...]) -> None:
    """must broadcast to its shape, else an error at its line."""
    with pytest.raises(gw.WriteError) as caught, case.block(PROMPT):
        line = here(+1)
        case.model.layers[1].output = torch.zeros(shape)
        case.model.logits.save()
    assert names(caught, line)
    with pytest.raises((gw.WriteError, gw.GraphError, RuntimeError)) as caught, case.block(PROMPT):
        line = here(+1)
        case.model.layers[1].output[:, :2] = torch.zeros(3, 7)
        case.model.logits.save()
    assert names(caught, line)


@pytest.mark.sentence("writes.10")
def test_the_order_of_lines_between_sites(place: Place) -> None:
    """Between sites the forward pass decides, whatever the order of lines;"""
    found = place.oracle.forward(PROMPT)

    def first(tensor: torch.Tensor, _: int) -> torch.Tensor:
        return tensor * 2

    expected = place.oracle.forward(PROMPT, {"layers.0.output": first, SITE: lambda h, _: h + 1})
    model = place.model
    with model.trace(PROMPT):
        logits = model.logits.save()
        model.layers[1].output += 1
        late = model.layers[1].input.save()
        model.layers[0].output *= 2
        early = model.layers[0].input.save()
    close(logits.value, expected.logits)
    close(late.value, found["layers.0.output"] * 2)
    close(early.value, found["layers.0.input"])


@pytest.mark.sentence("writes.11")
def test_the_order_of_lines_at_one_site(case: Place) -> None:
    """at one site the order of lines does;"""
    found = case.oracle.forward(PROMPT)[SITE]
    model = case.model
    with case.block(PROMPT):
        seen = [model.layers[1].output.save()]
        model.layers[1].output += 1
        seen.append(model.layers[1].output.save())
        model.layers[1].output = model.layers[1].output * 2
        seen.append(model.layers[1].output.save())
        model.layers[1].output[:, 0] = 0
        logits = model.logits.save()
    for value, expected in zip(seen, (found, found + 1, (found + 1) * 2), strict=True):
        close(value.value, expected)

    def edit(h: torch.Tensor) -> torch.Tensor:
        h = (h + 1) * 2
        h[:, 0] = 0
        return h

    close(logits.value, edited(case, edit).logits)


@pytest.mark.sentence("writes.12")
def test_sites_of_one_tensor(place: Place) -> None:
    """sites that hold the same tensor are ordered by when they are visited;

    A layer's output is the next layer's input; the output is visited first, so its write comes first.
    """
    model = place.model
    found = place.oracle.forward(PROMPT)
    with model.trace(PROMPT):
        model.layers[2].input *= 10
        model.layers[1].output += 1
        before = model.layers[1].output.save()
        after = model.layers[2].input.save()
        logits = model.logits.save()
    close(before.value, found[SITE] + 1)
    close(after.value, (found[SITE] + 1) * 10, tolerance=1e-4)
    close(logits.value, place.oracle.forward(PROMPT, {SITE: lambda h, _: (h + 1) * 10}).logits)
    with model.trace(PROMPT):
        seen = model.layers[1].output.save()
        model[f"{place.stack}.1"].output[:] = 0
        alias = model.layers[1].output.save()
    close(seen.value, found[SITE])
    close(alias.value, torch.zeros_like(found[SITE]))


@pytest.mark.sentence("writes.13")
def test_edits_come_first(place: Place) -> None:
    """edits come before the block."""
    with place.model.edit() as changed:
        changed.layers[1].output += 1
    found = place.oracle.forward(PROMPT)[SITE]
    with changed.trace(PROMPT):
        seen = changed.layers[1].output.save()
        changed.layers[1].output *= 2
        logits = changed.logits.save()
    close(seen.value, found + 1)
    close(logits.value, edited(place, lambda h: (h + 1) * 2).logits)


@pytest.mark.sentence("writes.15")
def test_a_write_is_upstream(place: Place) -> None:
    """Within one invoke a write is upstream of that invoke's reads at downstream sites, wherever their lines stand: a
    clean value needs an invoke of its own."""
    model = place.model
    expected = edited(place, lambda h: h * 0, site="layers.0.output")
    with model.trace() as t:
        with t.invoke(PROMPT):
            read = model.layers[2].output.save()
            model.layers[0].output[:] = 0
        with t.invoke(PROMPT):
            clean = model.layers[2].output.save()
    close(read.value, expected["layers.2.output"])
    close(clean.value, place.oracle.forward(PROMPT)["layers.2.output"])


@pytest.mark.sentence("writes.1", "writes.6")
def test_writes_of_a_plain_module(kind: str) -> None:
    """Index assignment, augmented assignment and torch's in-place methods on a Value read from a site,"""
    case = placed(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)), kind)
    own = case.bare
    with torch.no_grad():
        hidden = own[0](torch.ones(3, 4))
        hidden[1] = 0
        expected = own[1](hidden * 2)
    with case.block(torch.ones(3, 4)):
        case.model["0"].output[1] = 0
        case.model["0"].output *= 2
        got = case.model["1"].output.save()
    close(got.value, expected)


@pytest.mark.sentence("writes.3")
def test_the_line_to_write_instead(place: Place) -> None:
    """it is refused with the line to write instead,"""
    with pytest.raises(gw.WriteError) as caught, place.model.trace(PROMPT):
        place.model.layers[1].output.transpose(1, 2).reshape(-1).zero_()
        place.model.logits.save()
    assert "=" in told(caught.value)
