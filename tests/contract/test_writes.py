"""Writes: in place as in torch, replacing, skipping; which of several lines counts; what is run at all."""

from typing import Any

import pytest
import torch

import glassworks as gw
from contract.places import OTHER, PROMPT, Place, close, names, placed
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


def stack(case: Place) -> str:
    return "transformer.h" if case.family == "gpt2" else "model.layers"


@pytest.mark.sentence("writes.8")
def test_skip(case: Place) -> None:
    """`layer.skip(value)` is a write of the output"""
    found = case.oracle.forward(PROMPT)
    expected = case.oracle.forward(PROMPT, {SITE: lambda *_: found["layers.0.output"] * 2}).logits
    with case.block(PROMPT):
        case.model.layers[1].skip(case.model.layers[0].output * 2)
        own = case.model.layers[1].output.save()
        logits = case.model.logits.save()
    close(own.value, found["layers.0.output"] * 2)
    close(logits.value, expected)


@pytest.mark.sentence("writes.8")
def test_skip_spares_the_work(inside: Place) -> None:
    """that spares the work where nothing else depends on it;"""
    model, path = inside.model, stack(inside)
    paths = [f"{path}.{n}.mlp" for n in range(3)]
    with inside.counted(*paths) as ran, model.trace(PROMPT):
        model.layers[1].skip(model.layers[1].input)
        model.logits.save()
    assert ran == [paths[0], paths[2]]
    clean = inside.oracle.forward(PROMPT)
    with inside.counted(*paths) as ran, model.trace() as t:
        with t.invoke(PROMPT):
            model.layers[1].skip(model.layers[1].input)
            skipped = model.logits.save()
        with t.invoke(OTHER):
            other = model.logits.save()
    assert ran == paths
    close(skipped.value, inside.oracle.forward(PROMPT, {SITE: lambda *_: clean["layers.0.output"]}).logits)
    close(other.value, inside.oracle.forward(OTHER).logits)


@pytest.mark.sentence("writes.8")
def test_skip_in_generation(place: Place) -> None:
    """`layer.skip(value)` is a write of the output"""
    oracle = place.oracle
    before: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor, _: int) -> None:
        before.append(tensor)

    expected = oracle.generate(PROMPT, 4, {"layers.0.output": keep, SITE: lambda *_: before[-1]})
    with place.model.generate(PROMPT, max_new_tokens=4) as t, t.steps[:]:
        place.model.layers[1].skip(place.model.layers[1].input)
        logits = place.model.logits.save()
    assert torch.equal(t.result, expected.returned)
    close(logits[3], expected.visits["logits"][3])


@pytest.mark.sentence("writes.9")
def test_inside_a_skipped_layer(case: Place) -> None:
    """its inner sites can't be read."""
    with pytest.raises(gw.GlassworksError, match="skip") as caught, case.block(PROMPT):
        first = here(+1)
        case.model.layers[1].skip(case.model.layers[1].input)
        second = here(+1)
        case.model.layers[1].mlp.output.save()
    assert names(caught, first) or names(caught, second)


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
        model[f"{stack(place)}.1"].output[:] = 0
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


@pytest.mark.sentence("writes.14")
def test_a_value_before_it_can_exist(place: Place) -> None:
    """A value used before it can exist is an error that names both lines, raised when the block ends, before anything
    runs."""
    ended = False
    with pytest.raises(gw.OrderError) as caught, place.model.trace(PROMPT):
        first = here(+1)
        late = place.model.layers[2].output
        second = here(+1)
        place.model.layers[0].output = late * 2
        place.model.logits.save()
        ended = True
    assert ended
    assert names(caught, first)
    assert names(caught, second)


@pytest.mark.sentence("writes.14")
def test_nothing_ran(inside: Place) -> None:
    """raised when the block ends, before anything runs."""
    with inside.counted("", inside_embed(inside)) as ran, pytest.raises(gw.OrderError), inside.model.trace(PROMPT):
        inside.model.embed.output.save()
        inside.model.layers[0].output = inside.model.layers[2].output
        inside.model.logits.save()
    assert ran == []


def inside_embed(case: Place) -> str:
    return "transformer.wte" if case.family == "gpt2" else "model.embed_tokens"


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


@pytest.mark.sentence("writes.16")
def test_another_pass_supplies_it(place: Place) -> None:
    """Between invokes, where another pass can supply a value, another pass does."""
    model = place.model
    late = place.oracle.forward(OTHER)["layers.2.output"][:, -1]

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, 0] = late
        return tensor

    expected = place.oracle.forward(PROMPT, {"layers.0.output": change}).logits
    for swapped in (False, True):
        with model.trace() as t:
            with t.invoke(OTHER):
                value = model.layers[2].output[:, -1]
            if swapped:
                with t.invoke(OTHER):
                    model.logits.save()
            with t.invoke(PROMPT):
                model.layers[0].output[:, 0] = value
                logits = model.logits.save()
        close(logits.value, expected)


@pytest.mark.sentence("writes.16")
def test_a_cycle_is_refused(place: Place) -> None:
    """where another pass can supply a value, another pass does.

    Here none can: each invoke waits for the other.
    """
    model = place.model
    with pytest.raises(gw.OrderError), model.trace() as t:
        with t.invoke(PROMPT):
            first = model.layers[2].output
        with t.invoke(PROMPT):
            model.layers[0].output = first
            second = model.layers[2].output
        with t.invoke(PROMPT):
            model.logits.save()
        model.layers[0].output[:1] = second
        model.logits.save()


@pytest.mark.sentence("writes.17")
def test_only_what_saves_need(inside: Place) -> None:
    """Only what saves need runs,"""
    model, path = inside.model, stack(inside)
    heavy = inside.counted(f"{path}.1", f"{path}.2", "lm_head")
    with heavy as ran, model.trace(PROMPT):
        model.layers[0].output.save()
        _ = model.logits.softmax(-1)
        model.lm_head(model.layers[2].output)
        model.layers[2].output += 1
    assert ran == []


@pytest.mark.sentence("writes.18")
def test_the_forward_stops(inside: Place) -> None:
    """and the forward stops after the last site needed;"""
    model, path = inside.model, stack(inside)
    paths = [f"{path}.{n}" for n in range(3)]
    with inside.counted(*paths, "lm_head") as ran, model.trace(PROMPT):
        model.layers[1].output.save()
    assert ran == paths[:2]
    with inside.counted(f"{path}.1.mlp", *paths) as ran, model.trace(PROMPT):
        model.layers[1].attn.output.save()
    assert ran == paths[:2]
    with inside.counted(*paths, "lm_head") as ran, model.trace(PROMPT):
        model.logits.save()
    assert ran == [*paths, "lm_head"]


@pytest.mark.sentence("writes.19")
def test_nothing_saved(inside: Place) -> None:
    """with nothing saved nothing runs."""
    with inside.counted("", inside_embed(inside)) as ran:
        with inside.model.trace(PROMPT):
            inside.model.layers[1].output += 1
        with inside.model.generate(PROMPT, max_new_tokens=3) as t, t.steps[0]:
            inside.model.layers[1].output += 1
    assert ran == []


@pytest.mark.sentence("writes.20")
def test_reading_the_result(inside: Place) -> None:
    """In `generate`, reading `t.result` after the block needs no save and runs all steps;"""
    embed = inside_embed(inside)
    expected = inside.oracle.generate(PROMPT, 5).returned
    with inside.counted(embed) as ran:
        with inside.model.generate(PROMPT, max_new_tokens=5) as t:
            pass
        assert ran == []
        assert torch.equal(torch.as_tensor(t.result), expected)
        assert len(ran) == 5
        assert torch.equal(torch.as_tensor(t.result), expected)
        assert len(ran) == 5


@pytest.mark.sentence("writes.21")
def test_only_the_steps_that_saves_need(inside: Place) -> None:
    """otherwise only the steps that saves need."""
    embed = inside_embed(inside)
    counted = inside.counted(embed, "lm_head")
    with counted as ran, inside.model.generate(PROMPT, max_new_tokens=5) as t, t.steps[0:2]:
        inside.model.layers[0].output.save()
    assert ran.count(embed) == 2
    assert ran.count("lm_head") == 1
    assert torch.equal(torch.as_tensor(t.result), inside.oracle.generate(PROMPT, 5).returned)


@pytest.mark.sentence("writes.22")
def test_logs_are_always_needed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """`gw.log(...)` and `gw.apply(..., effect=True)` are always needed."""
    expected = place.oracle.forward(PROMPT)["layers.1.output"].mean()
    with place.model.trace(PROMPT):
        gw.log("mean", place.model.layers[1].output.mean())
    printed = capsys.readouterr()
    assert "mean" in printed.out + printed.err
    assert f"{float(expected):.3f}"[:5] in printed.out + printed.err


@pytest.mark.sentence("writes.22")
def test_effects_are_always_needed(local: Place) -> None:
    """`gw.apply(..., effect=True)` are always needed."""
    seen: list[Any] = []
    with local.model.trace(PROMPT):
        gw.apply(lambda value: seen.append(value) or value, local.model.layers[1].output)
    assert seen == []
    with local.model.trace(PROMPT):
        gw.apply(seen.append, local.model.layers[1].output, effect=True)
    assert len(seen) == 1
    close(seen[0], local.oracle.forward(PROMPT)["layers.1.output"])


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
