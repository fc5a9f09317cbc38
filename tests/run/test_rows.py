"""One invoke's part of a batch: read, written, padded, folded."""

import pytest
import torch

from glassworks.graph.nodes import ALL_ROWS
from glassworks.graph.sites import Site
from glassworks.run.rows import Leaf, Slot

WIDTH, TOKENS = 3, 5


def leaf(axes=("batch", "seq", WIDTH), *, unfold=False):
    raw = torch.arange(4.0 * TOKENS * WIDTH).reshape(4, TOKENS, WIDTH) + 1
    if unfold or "batch*seq" in axes:
        raw = raw.reshape(-1, WIDTH)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    slots = {
        0: Slot(0, 1, {"seq": 2}, {}, False),
        1: Slot(1, 1, {"seq": TOKENS}, {}, False),
        2: Slot(2, 2, {"seq": 3}, {"seq": mask}, False),
        ALL_ROWS: Slot(0, 4, {}, {}, False),
    }
    return Leaf(raw, Site("x", 0, (), axes, "float32", unfold), slots, {"batch": 4, "seq": TOKENS}), raw


FOLDED = [(("batch", "seq", WIDTH), False), (("batch", "seq", WIDTH), True)]


@pytest.mark.parametrize(("axes", "unfold"), FOLDED)
def test_an_invoke_sees_its_own_rows_and_its_own_tokens(axes, unfold):
    own, raw = leaf(axes, unfold=unfold)
    full = raw.reshape(4, TOKENS, WIDTH)
    assert torch.equal(own.read(0), full[:1, -2:])
    assert torch.equal(own.read(1), full[1:2])


def test_padding_inside_an_invoke_reads_as_zero():
    own, raw = leaf()
    value = own.read(2)
    assert not bool(value[0, 0].any())
    assert torch.equal(value[0, 1:], raw[2, -2:])
    assert torch.equal(value[1], raw[3, -3:])


@pytest.mark.parametrize(("axes", "unfold"), FOLDED)
def test_a_write_reaches_its_own_places_and_no_other(axes, unfold):
    own, raw = leaf(axes, unfold=unfold)
    own.write(0, torch.tensor(-1.0))
    own.write(2, torch.tensor(-2.0))
    found, before = own.result().reshape(4, TOKENS, WIDTH), raw.reshape(4, TOKENS, WIDTH)
    changed = found != before
    expected = torch.zeros(4, TOKENS, dtype=torch.bool)
    expected[0, -2:] = expected[2, -2:] = expected[3, -3:] = True
    assert torch.equal(changed.all(-1), expected)
    assert own.result().shape == raw.shape
    assert bool((before > 0).all())


def test_what_was_written_is_read_back_cast_and_broadcast():
    own, _ = leaf()
    own.write(0, torch.tensor(7, dtype=torch.int64))
    assert own.read(0).dtype == torch.float32
    assert own.read(0).shape == (1, 2, WIDTH)
    assert own.read(ALL_ROWS)[0, -1, 0] == 7


def test_a_value_that_does_not_fit_is_refused_with_both_shapes():
    own, _ = leaf()
    with pytest.raises(ValueError, match=r"\[1, 4, 3\].*\[1, 2, 3\]"):
        own.write(0, torch.zeros(1, 4, 3))


def test_a_site_that_is_folded_is_read_and_written_folded():
    """As the module returned it, and as its shape in a block says."""
    own, raw = leaf(("batch*seq", WIDTH))
    full = raw.reshape(4, TOKENS, WIDTH)
    assert torch.equal(own.read(0), full[0, -2:])
    assert torch.equal(own.read(2)[1:], torch.cat([full[2, -2:], full[3, -3:]]))
    assert not bool(own.read(2)[0].any())
    new = torch.arange(6.0 * WIDTH).reshape(6, WIDTH) - 100
    own.write(2, new)
    found = own.result().reshape(4, TOKENS, WIDTH)
    assert own.result().shape == raw.shape
    assert torch.equal(found[2, -2:], new[1:3])
    assert torch.equal(found[3, -3:], new[3:])
    assert torch.equal(found[2, :3], full[2, :3])
    assert torch.equal(found[:2], full[:2])
