"""Arguments of views, and of operations that gather, scatter, order or make tensors."""

import torch

from operands.draws import Call, Draw, call, in_place, of
from operands.elementwise import other

# Views, and what may be one.


of("view reshape")(lambda d: call(d.real(2, 6), d.pick((12,), (3, 4), (-1, 2), (2, 3, 2))))
of("squeeze")(lambda d: d.pick(call(d.real(2, 1, 3)), call(d.real(2, 1, 3), 1), call(d.real(1, 2), dim=0)))


@of("unsqueeze")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, d.dim(value.shape))


of("transpose")(lambda d: call(d.real(*d.shape(2, 3)), 0, -1))
of("permute")(lambda d: call(d.real(2, 3, 4), d.pick((0, 2, 1), (2, 0, 1), (-1, 0, 1))))
of("movedim")(lambda d: call(d.real(2, 3, 4), *d.pick((0, 2), ((0, 1), (1, 2)))))
of("expand broadcast_to")(lambda d: call(d.real(2, 1), d.pick((2, 3), (4, 2, 3))))
of("expand_as")(lambda d: call(d.real(2, 1), d.real(2, 3)))
of("view_as reshape_as")(lambda d: call(d.real(2, 6), d.real(3, 4)))
of("narrow")(lambda d: call(d.real(*d.shape(), 4), -1, d.n(0, 2), d.n(1, 2)))
of("select")(lambda d: call(d.real(*d.shape(), 4), -1, d.n(-4, 3)))
of("diagonal linalg.diagonal")(lambda d: call(d.real(*d.shape(0, 1), 3, 4), offset=d.n(-1, 1)))


@of("unbind")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, d.dim(value.shape))


of("split")(lambda d: call(d.real(*d.shape(), 5), d.pick(2, 3, [1, 4]), dim=-1))
of("split_with_sizes")(lambda d: call(d.real(*d.shape(), 5), (2, 3), dim=-1))
of("chunk")(lambda d: call(d.real(*d.shape(), 5), d.n(1, 4), dim=-1))
of("tensor_split")(lambda d: call(d.real(*d.shape(), 5), d.pick(2, 3, (1, 3)), dim=-1))
of("hsplit")(lambda d: call(d.real(3, 4), 2))
of("vsplit")(lambda d: call(d.real(4, 3), 2))
of("dsplit")(lambda d: call(d.real(2, 3, 4), 2))
of("unflatten")(lambda d: call(d.real(*d.shape(), 6), -1, (2, 3)))
of("flatten")(lambda d: call(d.real(2, 3, 4), **d.pick({}, {"start_dim": 1}, {"start_dim": 0, "end_dim": 1})))
of("unfold")(lambda d: call(d.real(*d.shape(), 6), -1, d.n(1, 4), d.n(1, 2)))
of("t")(lambda d: call(d.real(*d.shape(1, 2))))
of("mT mH")(lambda d: call(d.real(*d.shape(2, 3))))


@of("ravel contiguous float half bfloat16 double int long bool byte char short atleast_1d atleast_2d atleast_3d")
def _(d: Draw) -> Call:
    value = d.between(0, 9, *d.shape()).to(d.pick(torch.float32, torch.float16, torch.int64, torch.float64))
    return call(value)


of("to")(lambda d: call(d.real(*d.shape()), d.pick(torch.float64, torch.float32, torch.int64, d.ints(0, 2, 1))))
of("type_as")(lambda d: call(d.real(*d.shape()), d.pick(d.ints(0, 2, 1), d.real(1))))
of("sum_to_size")(lambda d: call(d.real(2, 3), d.pick((2, 3), (1, 3), (3,))))
of("broadcast_tensors")(lambda d: call(d.real(2, 1), d.real(3)))
of("meshgrid")(lambda d: call(d.real(2), d.real(3), indexing=d.pick("ij", "xy")))


@of("getitem")
def _(d: Draw) -> Call:
    value = d.real(3, 4, 2)
    index = d.pick(
        0,
        -1,
        (slice(None), -1),
        (Ellipsis, slice(0, 2)),
        slice(None, None, 2),
        (None, slice(1, 3)),
        [0, 2],
        (slice(None), [0, 3]),
        d.ints(0, 3, 2),
        (d.ints(0, 3, 2), d.ints(0, 4, 2)),
        d.bools(3, 4),
        value > 0,
    )
    return call(value, index)


# Gathering and scattering.


of("index_select")(lambda d: call(d.real(3, 4), d.n(0, 1), d.ints(0, 3, d.n(1, 4))))
of("gather")(lambda d: call(d.real(3, 4), 1, d.ints(0, 4, 3, d.n(1, 4))))
of("take_along_dim")(lambda d: call(d.real(3, 4), d.ints(0, 4, 3, 2), dim=1))
of("take")(lambda d: call(d.real(3, 4), d.ints(-12, 12, *d.shape())))
of("embedding")(lambda d: call(d.ints(0, 5, *d.shape()), d.real(5, 3)))
of("one_hot")(lambda d: call(d.ints(0, 5, *d.shape()), *d.pick((), (6,))))
of("repeat tile")(lambda d: call(d.real(2, 3), d.pick((2, 1), (2, 1, 3))))
of("repeat_interleave")(lambda d: call(d.real(2, 3), d.pick(2, d.ints(0, 3, 2)), dim=0))


@of("cat stack hstack vstack dstack column_stack")
def _(d: Draw) -> Call:
    shape = d.shape(1, 3)
    return call([d.real(*shape) for _ in range(d.n(1, 3))])


of("block_diag")(lambda d: call(d.real(2, 1), d.real(1, 3)))
of("cartesian_prod")(lambda d: d.pick(call(d.real(2), d.real(3)), call(d.real(3))))
of("combinations")(lambda d: call(d.real(4), r=d.n(1, 3), with_replacement=d.flag()))
of("flip")(lambda d: call(d.real(2, 3, 4), d.pick((0,), (1, 2), (-1,))))
of("fliplr flipud")(lambda d: call(d.real(*d.shape(2, 3))))
of("roll")(lambda d: call(d.real(2, 3), *d.pick((1,), (-1, 0), ((1, 2), (0, 1)))))
of("rot90")(lambda d: call(d.real(2, 3), d.n(0, 3), (0, 1)))
of("diag diagflat")(lambda d: call(d.real(*d.shape(1, 2)), d.n(-1, 1)))
of("diag_embed")(lambda d: call(d.real(*d.shape()), offset=d.n(-1, 1)))
of("pad")(
    lambda d: d.pick(
        call(d.real(2, 3), (1, 2)),
        call(d.real(2, 3), (0, 0, 1, 0), value=-2.0),
        call(d.real(1, 2, 4), (1, 1), mode="reflect"),
        call(d.real(1, 2, 4), (2, 1), mode="replicate"),
    )
)
of("tril triu")(lambda d: call(d.real(*d.shape(2, 3)), d.n(-1, 1)))
of("trace")(lambda d: call(d.real(*d.shape(2, 2))))
of("searchsorted")(lambda d: call(d.real(5).sort().values, d.real(*d.shape()), right=d.flag()))
of("bucketize")(lambda d: call(d.real(*d.shape()), d.real(5).sort().values, right=d.flag()))
of("select_scatter")(lambda d: call(d.real(3, 4), d.real(3), 1, d.n(0, 3)))
of("slice_scatter")(lambda d: call(d.real(3, 4), d.real(3, 2), 1, 1, 3))
of("diagonal_scatter")(lambda d: call(d.real(3, 3), d.real(3)))
of("max_pool1d")(lambda d: call(d.real(2, 3, 6), d.n(1, 3), **d.pick({}, {"stride": 2})))
of("avg_pool1d")(lambda d: call(d.real(2, 3, 6), d.n(1, 3), **d.pick({}, {"stride": 2})))
of("max_pool2d avg_pool2d")(lambda d: call(d.real(1, 2, 6, 4), d.pick(2, (3, 1))))
of("lp_pool1d")(lambda d: call(d.real(2, 3, 6).abs(), 2.0, 2))
of("adaptive_avg_pool1d adaptive_max_pool1d")(lambda d: call(d.real(2, 3, 6), d.n(1, 4)))
of("adaptive_avg_pool2d")(lambda d: call(d.real(1, 2, 6, 4), (2, 3)))
of("interpolate")(
    lambda d: d.pick(call(d.real(1, 2, 4), scale_factor=2.0), call(d.real(1, 2, 4, 3), size=(3, 5), mode="bilinear"))
)
of("grid_sample")(lambda d: call(d.real(1, 2, 4, 3), d.between(-1, 1, 1, 2, 2, 2), align_corners=d.flag()))
of("fold")(lambda d: call(d.real(1, 12, 4), (4, 3), (2, 2), stride=(2, 1)))
of("pixel_shuffle")(lambda d: call(d.real(1, 8, 2, 3), 2))
of("pixel_unshuffle")(lambda d: call(d.real(1, 2, 4, 6), 2))
of("channel_shuffle")(lambda d: call(d.real(1, 4, 3), 2))
of("unravel_index")(lambda d: call(d.ints(0, 12, *d.shape()), (3, 4)))


@in_place("setitem")
def _(d: Draw) -> Call:
    value = d.real(3, 4)
    index, shape = d.pick(
        (0, (4,)), ((slice(None), -1), (3,)), (slice(0, 2), (2, 4)), ([0, 2], (2, 4)), (d.ints(0, 3, 1), (1, 4))
    )
    return call(value, index, d.pick(d.real(*shape), 1.5))


of("fill")(lambda d: call(d.real(*d.shape()), d.pick(0.5, d.real())))
in_place("zero")(lambda d: call(d.real(*d.shape())))


@in_place("copy")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, other(d, value, d.real))


in_place("fill_diagonal")(lambda d: call(d.real(3, 4), 0.5))
of("scatter")(lambda d: call(d.real(3, 4), 1, _unique(d), d.pick(d.real(3, 2), 0.5)))


def _unique(d: Draw) -> torch.Tensor:
    """Indices of two different columns a row, so that the order of writing does not matter."""
    return torch.stack([torch.randperm(4, generator=d.source)[:2] for _ in range(3)])


of("scatter_add")(lambda d: call(d.real(3, 4), 1, d.ints(0, 4, 3, 2), d.real(3, 2)))
of("scatter_reduce")(
    lambda d: call(
        d.real(3, 4), 1, d.ints(0, 4, 3, 2), d.real(3, 2), d.pick("sum", "amax", "mean"), include_self=d.flag()
    )
)
of("index_add")(lambda d: call(d.real(3, 4), 0, d.ints(0, 3, 2), d.real(2, 4), **d.pick({}, {"alpha": 2})))
of("index_copy")(lambda d: call(d.real(3, 4), 0, torch.randperm(3, generator=d.source)[:2], d.real(2, 4)))
of("index_fill")(lambda d: call(d.real(3, 4), 1, d.ints(0, 4, 2), 0.5))


@of("index_put")
def _(d: Draw) -> Call:
    rows = torch.randperm(3, generator=d.source)[:2]
    return call(d.real(3, 4), (rows, d.ints(0, 4, 2)), d.real(2), **d.pick({}, {"accumulate": True}))


of("masked_scatter")(lambda d: call(d.real(3, 4), d.bools(3, 4), d.real(12)))
of("put")(
    lambda d: call(
        d.real(3, 4), torch.randperm(12, generator=d.source)[:3], d.real(3), **d.pick({}, {"accumulate": True})
    )
)


# Sizes that depend on values.


@of("masked_select")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, other(d, value, d.bools))


of("nonzero")(lambda d: call(d.bools(*d.shape()), **d.pick({}, {"as_tuple": True})))
of("argwhere")(lambda d: call(d.bools(*d.shape())))
of("unique unique_consecutive")(
    lambda d: call(
        d.ints(0, 3, *d.shape()), **d.pick({}, {"return_inverse": True}, {"return_counts": True}, {"dim": 0})
    )
)
of("bincount")(lambda d: call(d.ints(0, 5, d.n(1, 9)), **d.pick({}, {"minlength": 7})))


# Order.


@of("sort argsort")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, dim=d.dim(value.shape), descending=d.flag())


of("topk")(lambda d: call(d.real(*d.shape(), 5), d.n(1, 5), dim=-1, largest=d.flag()))
of("msort")(lambda d: call(d.real(*d.shape())))
of("histc")(lambda d: call(d.real(*d.shape()), bins=d.n(1, 5), min=-2, max=2))


# New tensors.


of("zeros_like ones_like")(lambda d: call(d.real(*d.shape()), **d.pick({}, {"dtype": torch.int64})))
of("full_like")(lambda d: call(d.real(*d.shape()), 2.5))
of("new_zeros new_ones")(lambda d: call(d.real(*d.shape()), (2, 3)))
of("new_full")(lambda d: call(d.real(*d.shape()), (2, 3), 1.5))
of("rand_like randn_like")(lambda d: call(d.real(*d.shape())))
of("randint_like")(lambda d: call(d.real(*d.shape()), *d.pick((5,), (2, 9))))
of("bernoulli")(lambda d: call(d.between(0, 1, *d.shape())))
of("multinomial")(lambda d: call(d.between(0.1, 1, *d.shape(0, 1), 5), d.n(1, 4), replacement=d.flag()))


@of("normal")
def _(d: Draw) -> Call:
    shape = d.shape()
    return d.pick(call(d.real(*shape), d.between(0.5, 2, *shape)), call(d.real(*shape), 0.5))


of("dropout")(lambda d: call(d.real(*d.shape()), d.pick(0.0, 0.5, 1.0), training=d.flag()))
