"""Prices of calls on real torch: shapes as torch gives them, work as it counts it, and what depends on numbers."""

import itertools
import math
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glassworks.errors import LimitExceeded
from glassworks.graph.operations import OPERATIONS
from glassworks.serve.pricing import NeedsValues, quote, quote_now, tensors_in
from glassworks.trace import binding

torch.manual_seed(0)
CUBE, SQUARES, ROW = torch.rand(2, 3, 4), torch.rand(3, 4, 4), torch.rand(4)
MATRIX, MASK, PLACES = torch.rand(3, 4), torch.rand(2, 3, 4) > 0.5, torch.randint(0, 2, (2, 3, 4))
INDEX, SPD = torch.tensor([0, 1, 1, 0]), torch.eye(4) + 0.1
GIVEN = [
    (CUBE,), (SQUARES,), (CUBE, CUBE), (ROW, ROW), (CUBE, 1), (CUBE, 0, 1), (SQUARES, SQUARES), (ROW, INDEX),
    (CUBE, MASK, 1.0), (CUBE, (4, 3, 2)), (ROW, ROW, ROW), (MATRIX,), (SPD, SPD, SPD), (PLACES, 5), ([CUBE, CUBE],),
    ([ROW, ROW],), (CUBE, 0, INDEX[:2], CUBE), (CUBE, -1, PLACES, CUBE), (CUBE, -1, INDEX), (INDEX,), (MASK,),
    (INDEX, MATRIX), (MATRIX, INDEX[:3]), ("ij,jk", MATRIX, MATRIX.T), (CUBE, MASK, CUBE), (ROW,), (SPD,), (SPD, 3),
    (MATRIX, MATRIX[0]), (CUBE, torch.float64), (CUBE, 2, 0, 1), (CUBE, (1, 1)), (PLACES,), (MATRIX, SQUARES[0]),
    (MATRIX, MATRIX[0], ROW), (MATRIX.T, MATRIX), (SPD[0], SPD, ROW), (MATRIX[:, :3], MATRIX, MATRIX[0][:3]),
    (MATRIX[0], SPD, ROW), (CUBE, (4,)), (CUBE, -1, (2, 2)), (CUBE, CUBE, torch.ones(2, 3)),
    (MATRIX, 0, INDEX[:2], 1.0),
    (CUBE, MATRIX, 0, 1), (CUBE, -1, PLACES, CUBE, "sum"), (CUBE, (INDEX[:2],), CUBE[:2] * 0), (MATRIX, 1.0),
    (torch.rand(2, 3), torch.rand(2, 3)), (SPD, torch.rand(3, 4, 4), torch.rand(3, 4, 4)), (torch.rand(1, 4, 3), SPD),
    (torch.rand(1, 2, 8, 8), torch.rand(5, 2, 3, 3)), (CUBE, 2, 3, 4), (MATRIX, 2, 3, 4), (MATRIX, 2, 3), (CUBE, 4, 0),
    (torch.rand(5, 3), torch.rand(5, 4), torch.rand(6, 3, 4)), (torch.rand(4, 3), torch.rand(4, 3), torch.ones(4)),
    (torch.rand(2, 6, 20), torch.rand(8, 6, 3)), (torch.rand(2, 3), torch.rand(2, 3)), ((SPD, SPD, SPD),), (CUBE, 0.5),
    (torch.rand(1, 2, 3), torch.rand(1, 3)), (torch.rand(3, 3), torch.rand(3, 3)), (CUBE, CUBE[:, :1], CUBE), (CUBE, 0),
    (CUBE, -1, PLACES), (CUBE, MASK), (CUBE, (2, 3), 1.0), (SPD, SPD, 1),
]  # fmt: skip


def works(name):
    """Arguments on which torch performs an operation, and what it gives."""
    for args in GIVEN:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return args, binding.bound(name)(*args)
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError, AssertionError):
            continue
    raise AssertionError(f"no arguments for {name}: add some to GIVEN")


def as_meta(value):
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    return type(value)(map(as_meta, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_is_priced_before_or_at_the_latest_when_it_runs(name):
    args, result = works(name)
    try:
        price, found = quote(name, as_meta(args), {})
        shapes = [tuple(tensor.shape) for tensor in tensors_in(found)]
        assert shapes == [tuple(tensor.shape) for tensor in tensors_in(result)]
        now = quote_now(name, args, {})
        assert now == price
    except NeedsValues:
        price = quote_now(name, args, {})
    if OPERATIONS[name].aliasing != "always":
        assert price.bytes >= sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(result))


COUNTED = {
    "matmul": (torch.rand(3, 5, 7), torch.rand(7, 11)),
    "linear": (torch.rand(6, 7), torch.rand(11, 7)),
    "bmm": (torch.rand(3, 5, 7), torch.rand(3, 7, 11)),
    "addmm": (torch.rand(5, 11), torch.rand(5, 7), torch.rand(7, 11)),
    "einsum": ("bij,bjk,kl->il", torch.rand(3, 5, 7), torch.rand(3, 7, 11), torch.rand(11, 2)),
    "tensordot": (torch.rand(5, 7, 9), torch.rand(7, 9, 11), 2),
    "linalg.multi_dot": ([torch.rand(5, 7), torch.rand(7, 11), torch.rand(11, 3)],),
    "conv1d": (torch.rand(2, 6, 20), torch.rand(8, 6, 3)),
    "conv2d": (torch.rand(2, 6, 20, 20), torch.rand(8, 6, 3, 3)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_work_is_what_torch_counts(name):
    with FlopCounterMode(display=False) as counter:
        binding.bound(name)(*COUNTED[name])
    counted = counter.get_total_flops()
    assert counted > 0
    assert counted <= quote_now(name, COUNTED[name], {}).flops <= 4 * counted


# Sizes that depend on numbers.

TEN = torch.arange(10)


@pytest.mark.parametrize(
    ("name", "args", "elements"),
    [
        ("masked_select", (TEN, TEN > 6), 3),
        ("masked_select", (torch.rand(5, 10), TEN > 6), 15),
        ("nonzero", (TEN,), 9),
        ("argwhere", (torch.ones(2, 3),), 12),
        ("where", (TEN > 6,), 3),
        ("bincount", (TEN * 100,), 901),
        ("bincount", (TEN, None, 5000), 5000),
        ("one_hot", (TEN,), 100),
        ("repeat_interleave", (torch.rand(10, 2), TEN, 0), 90),
        ("repeat_interleave", (torch.rand(10, 2), torch.tensor(3), 1), 60),
        ("getitem", (torch.rand(10, 4), TEN > 6), 12),
        ("getitem", (torch.rand(10, 4), (slice(None), torch.tensor([True, False, True, False]))), 20),
        ("getitem", (torch.rand(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)), 24),
        ("getitem", (torch.rand(10, 4), (slice(torch.tensor(2), torch.tensor(5)),)), 12),
        ("repeat", (torch.rand(4), torch.tensor(50)), 200),
    ],
)
def test_numbers_decide_when_they_are_there(name, args, elements):
    with pytest.raises(NeedsValues):
        quote(name, as_meta_deep(args), {})
    found = quote_now(name, args, {})
    result = binding.bound(name)(*args)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(result))
    assert size <= found.bytes <= 4 * size + 64
    assert elements == sum(tensor.numel() for tensor in tensors_in(result))


def as_meta_deep(value):
    if isinstance(value, slice):
        return slice(*map(as_meta_deep, (value.start, value.stop, value.step)))
    if isinstance(value, tuple):
        return tuple(map(as_meta_deep, value))
    return as_meta(value)


@pytest.mark.parametrize(
    ("name", "args", "count"),
    [
        ("unbind", (torch.empty(10**6, device="meta"),), 10**6),
        ("split", (torch.empty(10**6, device="meta"), 2), 5 * 10**5),
        ("chunk", (torch.empty(10**6, device="meta"), 10**5), 10**5),
        ("tensor_split", (torch.empty(3, device="meta"), 10**9), 10**9),
        ("split", (torch.empty(2, 10**6, device="meta"), 2, -1), 5 * 10**5),
    ],
)
def test_a_call_that_gives_too_many_tensors_is_refused_before_they_are_made(name, args, count):
    with pytest.raises(LimitExceeded, match=f"results of {name}: {count} tensors asked for, 16384 allowed"):
        quote(name, args, {})


def test_equal_looking_numbers_have_quotes_of_their_own():
    """1 and True and 1.0 are one key of a dict, and three results for torch."""
    whole = torch.empty(3, dtype=torch.int64, device="meta")
    for number, dtype in itertools.chain(((1, torch.int64), (1.0, torch.float32), (True, torch.int64)) * 2):
        assert quote("add", (whole, number), {})[1].dtype == dtype


def test_combinations_are_those_of_torch():
    for count, again in ((2, False), (3, True)):
        found = quote("combinations", (torch.empty(6, device="meta"), count, again), {})[1]
        assert found.shape == torch.combinations(torch.rand(6), count, again).shape
    assert quote("combinations", (torch.empty(10**6, device="meta"), 10**6), {})[0].flops > math.comb(10**6, 3)
