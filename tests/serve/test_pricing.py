"""Prices of calls on real torch: shapes as torch gives them, work as it counts it, and what depends on numbers."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glassworks.errors import LimitExceeded
from glassworks.graph.operations import OPERATIONS
from glassworks.serve.pricing import NeedsValues, operation_of, quote, quote_now, tensors_in
from glassworks.trace import binding
from operands import IN_PLACE, OPERANDS, Draw

CALLS = [name for name in sorted({*OPERANDS, *IN_PLACE}) if name.rstrip("_") in OPERATIONS]
SEEDS = range(6)


def drawn(name: str, seed: int) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Arguments of a call, and what torch gives for them."""
    draw = Draw(seed)
    call = (IN_PLACE.get(name) or OPERANDS[name])(draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call.args, call.kwargs, perform(name, call.args, call.kwargs)


def perform(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return binding.bound(name)(*args, **kwargs)


def as_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, slice):
        return slice(*map(as_meta, (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {key: as_meta(item) for key, item in value.items()}
    return type(value)(map(as_meta, value)) if type(value) in (list, tuple) else value


def test_every_operation_has_arguments() -> None:
    assert set(OPERATIONS) <= {*OPERANDS, *[name.rstrip("_") for name in IN_PLACE]}


@pytest.mark.parametrize("name", CALLS)
def test_every_operation_is_priced_before_or_at_the_latest_when_it_runs(name: str) -> None:
    """The shapes are torch's own, both prices agree, and what is made is paid."""
    for seed in SEEDS:
        args, kwargs, result = drawn(name, seed)
        made = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(result))
        try:
            price, found = quote(name, as_meta(args), as_meta(kwargs))
            shapes = [tuple(tensor.shape) for tensor in tensors_in(found)]
            assert shapes == [tuple(tensor.shape) for tensor in tensors_in(result)], (args, kwargs)
            if name not in AT_MOST:
                assert quote_now(name, args, kwargs) == price
        except NeedsValues:
            price = quote_now(name, args, kwargs)
        if operation_of(name).aliasing != "always":
            assert price.bytes >= made, (args, kwargs)


AT_MOST = ("one_hot", "repeat_interleave", "unique", "where")
"""Priced by their numbers when these are there, whether or not a shape was known before."""


COUNTED = {
    "matmul": (torch.rand(3, 5, 7), torch.rand(7, 11)),
    "linear": (torch.rand(6, 7), torch.rand(11, 7)),
    "bmm": (torch.rand(3, 5, 7), torch.rand(3, 7, 11)),
    "addmm": (torch.rand(5, 11), torch.rand(5, 7), torch.rand(7, 11)),
    "einsum": ("bij,bjk,kl->il", torch.rand(3, 5, 7), torch.rand(3, 7, 11), torch.rand(11, 2)),
    "tensordot": (torch.rand(5, 7, 9), torch.rand(7, 9, 11), 2),
    "linalg.multi_dot": ([torch.rand(5, 7), torch.rand(7, 11), torch.rand(11, 3)],),
    "conv1d": (torch.rand(2, 6, 20), torch.rand(8, 6, 3)),
    "conv_transpose1d": (torch.rand(2, 6, 20), torch.rand(6, 8, 3)),
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
        quote(name, as_meta(args), {})
    found = quote_now(name, args, {})
    result = binding.bound(name)(*args)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(result))
    assert size <= found.bytes <= 4 * size + 64
    assert elements == sum(tensor.numel() for tensor in tensors_in(result))


@pytest.mark.parametrize(
    ("name", "args", "count"),
    [
        ("unbind", (torch.empty(10**6, device="meta"),), 10**6),
        ("split", (torch.empty(10**6, device="meta"), 2), 5 * 10**5),
        ("chunk", (torch.empty(10**6, device="meta"), 10**5), 10**5),
        ("hsplit", (torch.empty(0, device="meta"), 10**9), 10**9),
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
