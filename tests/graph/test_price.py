"""Prices by class and form, without torch: bounds from above that stay near the truth."""

import pytest

from glassworks.graph.operations import OPERATIONS, Operation
from glassworks.graph.price import FREE, Form, Price, price


def cost(name: str, *shapes: tuple[int, ...], out: tuple[int, ...] | None = None, args: tuple = (), **kwargs) -> Price:
    results = [] if out is None else [Form(out, 4)]
    return price(OPERATIONS[name], [Form(shape, 4) for shape in shapes], results, args, kwargs)


def test_a_view_is_free_and_what_may_copy_is_not():
    assert cost("expand", (1, 8), out=(10**9, 8)) == FREE
    assert cost("reshape", (10, 8), out=(80,)) == Price(80, 320)


def test_what_is_made_is_paid():
    assert cost("repeat", (8,), out=(8000,)).bytes == 32_000
    assert cost("zeros_like", (8,), out=(8,)).bytes >= 32
    assert cost("add", (5, 1), (1, 7), out=(5, 7)).bytes >= 140


@pytest.mark.parametrize(
    ("name", "shapes", "out", "multiplications"),
    [
        ("matmul", [(3, 5, 7), (7, 11)], (3, 5, 11), 3 * 5 * 7 * 11),
        ("bmm", [(3, 5, 7), (3, 7, 11)], (3, 5, 11), 3 * 5 * 7 * 11),
        ("addmm", [(5, 11), (5, 7), (7, 11)], (5, 11), 5 * 7 * 11),
        ("addbmm", [(5, 11), (3, 5, 7), (3, 7, 11)], (5, 11), 3 * 5 * 7 * 11),
        ("linear", [(5, 7), (11, 7)], (5, 11), 5 * 7 * 11),
        ("dot", [(9,), (9,)], (), 9),
        ("outer", [(9,), (8,)], (9, 8), 72),
        ("kron", [(9, 2), (8, 3)], (72, 6), 72 * 6),
        ("tensordot", [(5, 7, 9), (7, 9, 11)], (5, 11), 5 * 7 * 9 * 11),
        ("cdist", [(5, 7), (11, 7)], (5, 11), 5 * 7 * 11),
        ("scaled_dot_product_attention", [(2, 9, 8)] * 3, (2, 9, 8), 2 * 9 * 9 * 16),
        ("conv1d", [(2, 6, 20), (8, 6, 3)], (2, 8, 18), 2 * 8 * 18 * 6 * 3),
        ("bilinear", [(5, 3), (5, 4), (6, 3, 4)], (5, 6), 5 * 6 * 3 * 4),
    ],
)
def test_products(name, shapes, out, multiplications):
    flops = cost(name, *shapes, out=out).flops
    assert 2 * multiplications <= flops <= 4 * multiplications + 8


def test_an_equation_pays_for_what_stands_between():
    """`i,j,k->` makes n by n on the way to one number; three labels summed at once cost their product."""
    vectors = [(1000,)] * 3
    found = cost("einsum", *vectors, out=(), args=("i,j,k->",))
    assert found.flops >= 2 * 10**6
    kept = cost("einsum", *vectors, out=(1000, 1000, 1000), args=("i,j,k->ijk",))
    assert kept.flops >= 2 * 10**9
    assert kept.bytes >= 4 * 10**9
    dots = cost("einsum", (3, 5, 7), (3, 7, 2), out=(3, 5, 2), args=("...ij,...jk->...ik",))
    assert dots.flops == 2 * 3 * 5 * 7 * 2


def test_a_loss_pays_for_its_broadcast():
    assert cost("mse_loss", (10**5, 1), (1, 10**5), out=()).bytes >= 4 * 10**10
    assert cost("dist", (10**5, 1), (1, 10**5), out=()).flops >= 10**10


def test_decompositions_grow_with_the_cube():
    small, large = (cost("linalg.svd", (n, n), out=(n, n)).flops for n in (100, 1000))
    assert large == 1000 * small
    assert cost("linalg.matrix_power", (9, 9), out=(9, 9), args=(None, 2**60)).flops > 60 * 9**3


def test_choices_are_counted_as_they_are_marked():
    assert cost("combinations", (100,), out=(4950, 2), args=(None, 2)).flops >= 10**4
    assert cost("combinations", (10**6,), args=(None, 10**9)).flops >= 2**62


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_every_operation_has_a_price_that_grows(operation: Operation):
    """Ten times the rows cost more, unless it costs nothing at all."""
    found = []
    for rows in (10, 100):
        forms = [Form((rows, 8, 8), 4), Form((rows, 8, 8), 4), Form((rows, 8, 8), 4)]
        found.append(price(operation, forms, forms[:1], (None, 2)))
    assert found[1].flops > found[0].flops or operation.aliasing == "always"
    assert all(each.flops >= 0 and each.bytes >= 0 for each in found)
