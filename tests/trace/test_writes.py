"""Writes: what in place means, what is cast, what is refused, and in which order lines count."""

from typing import Any

import pytest
import torch

import glassworks as gw
from lines import here, told

PROMPT = [5, 6, 7, 8]


def output(model: Any, change: Any) -> torch.Tensor:
    """The output of layer 1 after `change` was applied to it, as a later read sees it."""
    with model.trace(PROMPT):
        change(model.layers[1].output)
        saved = model.layers[1].output.save()
    return saved.value


def clean(model: Any) -> torch.Tensor:
    with model.trace(PROMPT):
        saved = model.layers[1].output.save()
    return saved.value


def _index(h: Any) -> None:
    h[:, -1] = 2.0


def _augmented(h: Any) -> None:
    h[:, 1:3] += 1.0


def _nested(h: Any) -> None:
    h[:, -1][:, 3:5] *= 2.0


def _view(h: Any) -> None:
    h.view(1, 4, 4, 8)[:, :, 2] = 0.0


def _reshape(h: Any) -> None:
    h.reshape(4, 32)[2] = 1.0


def _transpose(h: Any) -> None:
    h.transpose(1, 2)[:, 5] = 1.0


def _split(h: Any) -> None:
    parts = h.split(8, dim=-1)
    parts[1].mul_(3.0)
    parts[3].add_(1.0)


def _unbind(h: Any) -> None:
    h.unbind(1)[2].add_(1.0)


def _iterated(h: Any) -> None:
    [row] = h
    row[0] = 9.0


def _chunk(h: Any) -> None:
    h.chunk(2, dim=1)[1].mul_(0.0)


def _squeezed(h: Any) -> None:
    h.squeeze(0)[1] = -1.0


def _mask(h: Any) -> None:
    h[h > 0] = 0.0


def _tensor_index(h: Any) -> None:
    h[:, torch.tensor([0, 2])] = 1.0


def _zeroed(h: Any) -> None:
    h.zero_()


def _filled(h: Any) -> None:
    h[:, 0].fill_(3.0)


def _copied(h: Any) -> None:
    h[:, 0].copy_(torch.arange(32.0))


def _negated(h: Any) -> None:
    h.neg_().clamp_(max=0.5)


def _masked(h: Any) -> None:
    h.masked_fill_(h < 0, 1.0)


def _index_added(h: Any) -> None:
    h.index_add_(1, torch.tensor([0, 1]), torch.ones(1, 2, 32))


def _two_live_views(h: Any) -> None:
    first = h[:, 0]
    h[:, 0] = 5.0
    first += 1.0


def _overlapping_views(h: Any) -> None:
    rows, columns = h[:, :2], h[..., :8]
    rows += 1.0
    columns *= 2.0


@pytest.mark.parametrize(
    "change",
    [
        _index, _augmented, _nested, _view, _reshape, _transpose, _split, _unbind, _iterated, _chunk, _squeezed, _mask,
        _tensor_index, _zeroed, _filled, _copied, _negated, _masked, _index_added,
    ],
)  # fmt: skip
def test_in_place_means_what_it_means_in_torch(model: Any, change: Any) -> None:
    expected = clean(model).clone()
    change(expected)
    assert torch.equal(output(model, change), expected)


@pytest.mark.parametrize("change", [_two_live_views, _overlapping_views])
def test_two_views_that_are_both_written_are_right_or_refused(model: Any, change: Any) -> None:
    expected = clean(model).clone()
    change(expected)
    try:
        found = output(model, change)
    except gw.WriteError:
        return
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["add", "mul", "sub", "truediv"])
def test_augmented_assignment_of_a_site(model: Any, name: str) -> None:
    expected = clean(model)
    with model.trace(PROMPT):
        match name:
            case "add":
                model.layers[1].output += 1
            case "mul":
                model.layers[1].output *= 2
            case "sub":
                model.layers[1].output -= 1
            case _:
                model.layers[1].output /= 2
        saved = model.layers[1].output.save()
    expected = {"add": expected + 1, "mul": expected * 2, "sub": expected - 1, "truediv": expected / 2}[name]
    assert torch.equal(saved.value, expected)


def test_augmented_assignment_writes_once(model: Any) -> None:
    with model.trace(PROMPT) as t:
        model.layers[1].output += 1
        model.layers[1].output[:, -1] += 1
        model.logits.save()
    assert sum(node.kind == "write" for node in t.graph) == 2


def test_a_handle_follows_its_own_writes(model: Any) -> None:
    with model.trace(PROMPT):
        h = model.layers[1].output
        before = (h * 1).save()
        h[:, 0] = 1.0
        h[:, 1] = 2.0
        after = h.save()
    assert torch.equal(after.value[:, 2:], before.value[:, 2:])
    assert after.value[0, 0, 0] == 1.0
    assert after.value[0, 1, 0] == 2.0
    assert before.value[0, 0, 0] != 1.0


def test_a_save_keeps_what_it_was_when_the_same_handle_is_saved_again(model: Any) -> None:
    with model.trace(PROMPT):
        h = model.layers[1].output
        before = h.save()
        h[:, -1] = 0
        after = h.save()
    assert not bool(after.value[:, -1].any())
    assert bool(before.value[:, -1].any())


def test_a_save_before_a_write_keeps_what_it_was(model: Any) -> None:
    with model.trace(PROMPT):
        h = model.layers[1].output
        before = h.save()
        h[:, -1] = 0
        model.logits.save()
    assert torch.equal(before.value, clean(model))


def test_a_computed_value_is_changed_alone(model: Any) -> None:
    with model.trace(PROMPT):
        doubled = model.layers[1].output * 2
        doubled[:, -1] = 0
        doubled += 1
        changed = doubled.save()
        site = model.layers[1].output.save()
    assert torch.equal(site.value, clean(model))
    expected = clean(model) * 2
    expected[:, -1] = 0
    assert torch.equal(changed.value, expected + 1)


def test_a_stale_handle_is_refused(model: Any) -> None:
    with pytest.raises(gw.WriteError) as caught, model.trace(PROMPT):
        old, new = model.layers[1].output, model.layers[1].output
        new[:, 0] = 1.0
        line = here(+1)
        old[:, 1] = 1.0
    assert line in told(caught.value)
    assert here(-5) in told(caught.value)


def test_a_stale_handle_still_reads(model: Any) -> None:
    with model.trace(PROMPT):
        old, new = model.layers[1].output, model.layers[1].output
        new[:] = 0
        kept = old.save()
    assert torch.equal(kept.value, clean(model))


def test_a_copy_is_not_written_through(model: Any) -> None:
    """A reshape that would copy is refused at its line, never dropped."""
    with pytest.raises((gw.WriteError, ValueError)) as caught, model.trace(PROMPT):
        line = here(+1)
        model.layers[1].output.transpose(1, 2).reshape(128)[3:9] = 0.0
        model.logits.save()
    assert line in told(caught.value)
    assert "view" in told(caught.value)


def test_a_write_is_cast(model: Any) -> None:
    value = torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(1, 4, 32)
    with model.trace(PROMPT):
        model.layers[1].output = value
        back = model.layers[1].output.save()
    assert back.value.dtype == torch.float32
    assert torch.equal(back.value, value.to(torch.float32))


@pytest.mark.parametrize("value", [0, 1.5, torch.ones(32), torch.ones(4, 1), torch.tensor(2, dtype=torch.int64)])
def test_a_write_is_broadcast(model: Any, value: Any) -> None:
    with model.trace(PROMPT):
        model.layers[1].output = value
        back = model.layers[1].output.save()
    assert torch.equal(back.value, torch.as_tensor(value).to(torch.float32).expand(1, 4, 32))


def test_a_write_that_does_not_broadcast_is_an_error_at_its_line(model: Any) -> None:
    with pytest.raises((ValueError, gw.GraphError)) as caught, model.trace(PROMPT):
        line = here(+1)
        model.layers[1].output = torch.ones(31)
        model.logits.save()
    assert line in told(caught.value)
    assert "31" in told(caught.value)
    assert "32" in told(caught.value)


def test_an_outside_tensor_is_not_written(model: Any) -> None:
    outside = torch.zeros(1, 4, 32)
    for change in ("item", "in place", "augmented"):
        with pytest.raises(gw.WriteError) as caught, model.trace(PROMPT):
            value = model.layers[1].output
            line = here(+7)
            match change:
                case "item":
                    outside[:] = value
                case "in place":
                    outside.add_(value)
                case _:
                    outside += value
        file, _, number = line.rpartition(":")
        assert any(f"{file}:{int(number) - k}" in told(caught.value) for k in (4, 2, 0))
    assert not bool(outside.any())


# Order.


def test_sites_downstream_see_a_write_wherever_its_line_stands(model: Any) -> None:
    with model.trace(PROMPT):
        late = model.layers[2].output.save()
        model.layers[0].output = 0.0
    with model.trace(PROMPT):
        model.layers[0].output = 0.0
        expected = model.layers[2].output.save()
    assert torch.equal(late.value, expected.value)


def test_sites_that_hold_one_tensor_are_ordered_by_when_they_are_visited(model: Any) -> None:
    with model.trace(PROMPT):
        following = model.layers[2].input.save()
        earlier = model.layers[1].output.save()
        model.layers[2].input = 0.0
        model.layers[1].output = 1.0
    assert bool((earlier.value != 1.0).any())
    assert bool((following.value == 1.0).all())


def test_two_names_of_one_place_are_one_place(model: Any) -> None:
    with model.trace(PROMPT):
        model.layers[1].output[:, 0] = 1.0
        native = model.transformer.h[1].output
        native[:, 1] = 2.0
        saved = model.layers[1].output.save()
        by_path = model["transformer.h.1"].output.save()
    assert saved.value[0, 0, 0] == 1.0
    assert saved.value[0, 1, 0] == 2.0
    assert torch.equal(saved.value, by_path.value)


def test_a_value_used_before_it_can_exist_names_both_lines(model: Any, bare: Any) -> None:
    calls = []
    handle = bare.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(gw.OrderError) as caught, model.trace(PROMPT):
            read, late = here(+1), model.layers[2].output
            write = here(+1)
            model.layers[0].output = late
            model.logits.save()
    finally:
        handle.remove()
    assert write in told(caught.value)
    assert read.rpartition(":")[0] in told(caught.value)
    assert f"{read.rpartition(':')[0]}:{int(read.rpartition(':')[2]) - 1}" in told(caught.value)
    assert calls == []


# Skips.


def test_a_skip_spares_the_work(model: Any, bare: Any) -> None:
    calls = []
    handle = bare.transformer.h[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    try:
        with model.trace(PROMPT):
            model.layers[1].skip(model.layers[0].output)
            after = model.layers[1].output.save()
            before = model.layers[0].output.save()
            model.logits.save()
    finally:
        handle.remove()
    assert torch.equal(after.value, before.value)
    assert calls == []


def test_a_read_before_the_line_of_a_skip_is_the_modules_own(model: Any) -> None:
    with model.trace(PROMPT):
        own = model.layers[1].output.save()
        model.layers[1].skip(model.layers[0].output)
        model.logits.save()
    assert torch.equal(own.value, clean(model))


def test_inner_sites_of_a_skipped_module_are_refused(model: Any) -> None:
    with pytest.raises(gw.ScopeError) as caught, model.trace(PROMPT):
        line = here(+1)
        model.layers[1].mlp.output.save()
        model.layers[1].skip(model.layers[0].output)
        model.logits.save()
    assert line in told(caught.value)


def test_a_skip_of_one_invoke_leaves_others_alone(model: Any) -> None:
    with model.trace() as t:
        with t.invoke(PROMPT):
            model.layers[1].skip(model.layers[0].output)
            model.logits.save()
        with t.invoke(PROMPT):
            other = model.layers[1].output.save()
    torch.testing.assert_close(other.value, clean(model), atol=1e-5, rtol=1e-5)


# Needed work.


def test_nothing_saved_runs_nothing(model: Any, bare: Any) -> None:
    calls = []
    handle = bare.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with model.trace(PROMPT) as t:
            model.layers[1].output[:] = 0
            model.logits.softmax(-1)
    finally:
        handle.remove()
    assert calls == []
    assert t.forwards == 0


def test_a_forward_stops_after_the_last_site_needed(model: Any, bare: Any) -> None:
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_, k=k: calls.append(k)) for k, layer in enumerate(bare.transformer.h)
    ]
    try:
        with model.trace(PROMPT):
            model.layers[1].mlp.output.save()
            model.layers[2].output = 0.0
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [0]
