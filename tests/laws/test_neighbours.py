"""A neighbour can't be read or touched: whatever an invoke does with its own rows, the others stay as they were.

The attacker stands between two neighbours, and applies each permitted operation to views of its own rows of a layer, in
place and not, and writes what comes of it back. What the neighbours save must be, bit for bit, what they save when the
attacker only reads; what the attacker saves is what it saves alone.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple
from zlib import crc32

import pytest
import torch

import glassworks as gw
from families import FAMILIES
from glassworks.engine.batch import Batch
from glassworks.graph.nodes import ALL_ROWS
from glassworks.graph.operations import OPERATIONS
from glassworks.run.rows import Leaf
from glassworks.trace import binding
from laws.calls import arguments, leaves, perform, put, tensors_in, write, written
from laws.equal import close, same_bits
from laws.test_broken_interpreter import shift_rows
from laws.vocabulary import IN_PLACE as WRITES
from laws.vocabulary import NEEDS_VALUE
from operands import ONLY_IN_PLACE, Call, Draw

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")


class Company(NamedTuple):
    """Prompts of one pass: neighbours above and below the attacker."""

    above: list[list[int]]
    own: list[list[int]]
    below: list[list[int]]


COMPANIES = {
    "equal": Company([[5, 6, 7, 8], [9, 10, 11, 12]], [[21, 22, 23, 24]], [[31, 32, 33, 34]]),
    "padded": Company([[5, 6, 7, 8, 9, 10, 11], [9, 10]], [[21, 22, 23], [24, 25, 26, 27, 28]], [[31, 32, 33, 34]]),
}
FORMS = sorted(set(OPERATIONS) - ONLY_IN_PLACE) + sorted(f"{name}_" for name, own in OPERATIONS.items() if own.inplace)
Attack = Callable[[Any], list[Any]]
"""What an attacker does in its invoke, on its model; gives what it saves."""


@cache
def model(family: str) -> Any:
    """In float64, so that equal numbers in other company are equal enough for a `floor` or a `sort`."""
    return gw.wrap(FAMILIES[family]().double(), name=family)


def places(family: str) -> list[tuple[str, str]]:
    return [(family, company) for company in COMPANIES]


EVERYWHERE = [*places("gpt2"), *places("llama")]


def watched(own: Any) -> list[Any]:
    """What a neighbour saves."""
    return [*[layer.output.save() for layer in own.layers], own.logits.save()]


def in_company(family: str, company: str, attack: Attack) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the neighbours and the attacker save in one forward pass."""
    own, prompts = model(family), COMPANIES[company]
    with own.trace() as t:
        with t.invoke(prompts.above):
            above = watched(own)
        with t.invoke(prompts.own):
            saved = attack(own)
        with t.invoke(prompts.below):
            below = watched(own)
    assert t.forwards == 1
    return [value.value for value in (*above, *below)], [value.value for value in saved]


def alone(family: str, company: str, attack: Attack) -> list[torch.Tensor]:
    own = model(family)
    with own.trace(COMPANIES[company].own):
        saved = attack(own)
    return [value.value for value in saved]


@cache
def undisturbed(family: str, company: str) -> list[torch.Tensor]:
    return in_company(family, company, lambda own: [own.layers[1].output.save()])[0]


def touches_nobody(family: str, company: str, attack: Attack, *, random: bool = False) -> None:
    neighbours, own = in_company(family, company, attack)
    for found, expected in zip(neighbours, undisturbed(family, company), strict=True):
        same_bits(found, expected)
    if not random:  # a random node draws by the number of its row, which differs alone
        for found, expected in zip(own, alone(family, company, attack), strict=True):
            close(found.abs() if found.is_complex() else found, expected.abs() if found.is_complex() else expected)


# Operations.


def operate(own: Any, *, form: str) -> list[Any]:
    """An operation on views of the attacker's rows; what comes of it is saved and written over them."""
    name = form if form in OPERATIONS else form[:-1]
    draw = Draw(crc32(form.encode()))
    draw.dtype = torch.float64
    call = arguments(name, draw, in_place=form != name)
    h = own.layers[1].output
    seen = h.save()
    values = operands(h, call, draw)
    spelling, function = next(iter(written(form).items()))
    given = Call(put(binding.ordered(function, call.args), values), put(call.kwargs, values))
    if form != name:
        write(spelling, function, given, given.args[0])
        results = [given.args[0]]
    else:
        results = leaves(perform(spelling, function, given, {}))
    kept = [item.save() for item in results]
    h = own.layers[1].output
    for item in results:
        write_over(h, item, data_dependent=OPERATIONS[name].data_dependent)
    return [seen, *kept, own.layers[1].output.save(), own.logits.save()]


def operands(h: Any, call: Call, draw: Draw) -> dict[int, Any]:
    """For each tensor of a call a Value: a view of the rows, or, where its numbers matter, these on top of nothing."""
    found = {}
    for tensor in tensors_in([*call.args, call.kwargs]):
        view = h.reshape(-1)[: tensor.numel()].reshape(tensor.shape)
        if id(tensor) in draw.free and tensor.dtype == torch.float64:
            found[id(tensor)] = view
        elif tensor.dtype == torch.bool:
            found[id(tensor)] = ((view * 0).long() + tensor.long()).bool()
        else:
            found[id(tensor)] = (view * 0).to(tensor.dtype) + tensor
    return found


def write_over(h: Any, item: Any, *, data_dependent: bool) -> None:
    """Write numbers over the rows, as many as there are."""
    if data_dependent:
        h[:, -1] = item.to(torch.float64).sum()
        return
    flat = (item.abs() if item.dtype.is_complex else item).to(torch.float64).reshape(-1)
    count = min(flat.numel(), h.numel())
    h.reshape(-1)[:count] = flat[:count]


def an_operation(family: str, company: str, form: str) -> None:
    name = form if form in OPERATIONS else form[:-1]
    touches_nobody(family, company, partial(operate, form=form), random=OPERATIONS[name].random)


@pytest.mark.parametrize("form", FORMS)
def test_no_operation_touches_a_neighbour(form):
    an_operation(*EVERYWHERE[FORMS.index(form) % len(EVERYWHERE)], form)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "company"), EVERYWHERE)
@pytest.mark.parametrize("form", FORMS)
def test_no_operation_touches_a_neighbour_anywhere(family, company, form):
    an_operation(family, company, form)


# Writes through views, gradients, and reads beyond the own rows.


def write_like(own: Any, *, way: str) -> list[Any]:
    """One of the ways in which people write in place."""
    h = own.layers[1].output
    if way in ("heads", "viewed"):  # these speak of one row
        h = own.layers[1].output[:1]
    value = own.layers[0].output * 0.5 if way in NEEDS_VALUE else None
    WRITES[way](h, value[:, -1:] if way == "last_kept" else value)
    return [own.layers[1].output.save(), own.layers[2].input.save(), own.logits.save()]


@pytest.mark.parametrize(("family", "company"), EVERYWHERE)
@pytest.mark.parametrize("way", sorted(WRITES))
def test_no_write_through_a_view_touches_a_neighbour(family, company, way):
    touches_nobody(family, company, partial(write_like, way=way))


def _replace(value: Any) -> None:
    value.grad = value.grad * 2 + 1


def _replace_part(value: Any) -> None:
    value[:, -1].grad = 7.0


def _poison(value: Any) -> None:
    value.grad = float("nan")


def gradients_stay_apart(family: str, company: str, change: Callable[[Any], None]) -> None:
    """Neighbours take gradients too, of a loss of their own; the attacker writes its own gradients."""
    own, prompts = model(family), COMPANIES[company]

    def passes(touch: Callable[[Any], None]) -> list[torch.Tensor]:
        with own.trace() as t:
            with t.invoke(prompts.above):
                above = own.layers[0].output
                logits = own.logits
            with t.invoke(prompts.own):
                late, early, mine = own.layers[1].output, own.layers[0].output, own.logits
            with t.invoke(prompts.below):
                below = own.layers[0].output
                total = logits.sum() + own.logits.sum() * 3 + mine.sum()
            t.backward(total)
            touch(late)
            saved = [above.grad.save(), below.grad.save(), early.grad.save()]
        assert t.forwards == 1
        return [value.value for value in saved]

    calm, changed = passes(lambda late: None), passes(change)
    same_bits(changed[0], calm[0])
    same_bits(changed[1], calm[1])
    assert not torch.equal(changed[2], calm[2])
    with own.trace(prompts.own) as t:
        late, early = own.layers[1].output, own.layers[0].output
        t.backward(own.logits.sum())
        change(late)
        lone = early.grad.save()
    close(changed[2], lone)


@pytest.mark.parametrize(("family", "company"), EVERYWHERE)
@pytest.mark.parametrize("change", [_replace, _replace_part, _poison])
def test_no_gradient_touches_a_neighbour(family, company, change):
    gradients_stay_apart(family, company, change)


BEYOND: dict[str, Callable[[Any], Any]] = {
    "a list": lambda h: h[[len(h)]],
    "a tensor": lambda h: h[torch.tensor([len(h)])],
    "a negative one": lambda h: h[torch.tensor([-len(h) - 1])],
    "index_select": lambda h: h.index_select(0, torch.tensor([len(h)])),
    "take": lambda h: h.take(torch.tensor([h.numel()])),
    "gather": lambda h: h.gather(1, torch.full((len(h), 1, 1), h.shape[1])),
    "embedding": lambda h: torch.nn.functional.embedding(torch.tensor([h.shape[1]]), h[0]),
    "narrow": lambda h: h.narrow(0, 0, len(h) + 1),
    "select": lambda h: h.select(0, len(h)),
    "put": lambda h: h.put(torch.tensor([h.numel()]), torch.zeros(1, dtype=torch.float64)),
    "index_add": lambda h: h.index_add(0, torch.tensor([len(h)]), torch.zeros(1, *h.shape[1:], dtype=torch.float64)),
    "scatter": lambda h: h.scatter(0, torch.full((1, 1, 1), len(h)), 1.0),
    "index_put": lambda h: h.index_put((torch.tensor([len(h)]),), torch.zeros(1, dtype=torch.float64)),
    "index_copy": lambda h: h.index_copy(0, torch.tensor([len(h)]), torch.zeros(1, *h.shape[1:], dtype=torch.float64)),
    "index_fill": lambda h: h.index_fill(0, torch.tensor([len(h)]), 1.0),
    "scatter_add": lambda h: h.scatter_add(0, torch.full((1, 1, 1), len(h)), torch.ones(1, 1, 1, dtype=torch.float64)),
    "masked_scatter": lambda h: torch.zeros(h.numel() + 1, dtype=torch.float64).masked_scatter(
        torch.ones(h.numel() + 1, dtype=torch.bool), h.reshape(-1)
    ),
    "nll_loss": lambda h: torch.nn.functional.nll_loss(h[0], torch.full((h.shape[1],), h.shape[2])),
    "cross_entropy": lambda h: torch.nn.functional.cross_entropy(h[0], torch.full((h.shape[1],), h.shape[2])),
    "multi_margin_loss": lambda h: torch.nn.functional.multi_margin_loss(h[0], torch.full((h.shape[1],), h.shape[2])),
}


def test_a_reach_beyond_wraps_into_the_own_rows_where_torch_wraps_it():
    def wrapped(own: Any) -> list[Any]:
        h = own.layers[1].output
        return [h.take_along_dim(torch.full((1, 1, 1), h.shape[1]), dim=1).save(), h.roll(5, 0).save()]

    touches_nobody("gpt2", "equal", wrapped)


@pytest.mark.parametrize("way", BEYOND)
def test_what_lies_beyond_the_own_rows_cannot_be_reached(way):
    with pytest.raises((IndexError, RuntimeError)):
        touches_nobody("gpt2", "equal", lambda own: [BEYOND[way](own.layers[1].output).save()])


# The law can fail.


def write_everywhere(patch: pytest.MonkeyPatch) -> None:
    """A write goes to every row of the batch that has the same tokens."""
    settle = Leaf._settle

    def everywhere(self: Leaf) -> None:
        pieces = dict(self._pieces)
        settle(self)
        for value in pieces.values():
            self.raw = value[:1, -1:].expand(self.raw.shape).contiguous()

    patch.setattr(Leaf, "_settle", everywhere)


def one_row_too_many(patch: pytest.MonkeyPatch) -> None:
    """An invoke's rows are its own and the next one's first."""
    slots = Batch.slots

    def wider(self: Batch, *args: Any, **options: Any) -> Any:
        found, rows = slots(self, *args, **options), len(self.numbers)
        return {
            k: slot if slot.start + slot.count >= rows else replace(slot, count=slot.count + 1, mask={})
            for k, slot in found.items()
        }

    patch.setattr(Batch, "slots", wider)


def read_every_row(patch: pytest.MonkeyPatch) -> None:
    """What an invoke reads is the whole batch."""
    read = Leaf.read
    patch.setattr(Leaf, "read", lambda self, invoke: read(self, ALL_ROWS))


BROKEN = [shift_rows, write_everywhere, one_row_too_many, read_every_row]
LAWS: dict[str, Callable[[], None]] = {
    "an operation": partial(an_operation, "gpt2", "equal", "exp"),
    "an operation in place": partial(an_operation, "gpt2", "padded", "mul_"),
    "a write through a view": partial(touches_nobody, "llama", "equal", partial(write_like, way="split")),
    "gradients": partial(gradients_stay_apart, "gpt2", "equal", _replace),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("breaks", BROKEN)
def test_the_law_notices(monkeypatch, breaks, law):
    LAWS[law]()
    with monkeypatch.context() as patch:
        breaks(patch)
        with pytest.raises((AssertionError, RuntimeError, IndexError, ValueError)):
            LAWS[law]()
    LAWS[law]()
