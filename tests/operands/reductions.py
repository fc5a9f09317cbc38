"""Arguments of reductions, norms, losses, products and decompositions."""

import math

import torch

from operands.draws import Call, Draw, call, of

# Reductions.


@of("sum mean nansum nanmean prod")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, **d.pick({}, {"dim": d.dim(value.shape), "keepdim": d.flag()}))


@of("amax amin logsumexp")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, dim=d.dim(value.shape), keepdim=d.flag())


@of("std var var_mean std_mean")
def _(d: Draw) -> Call:
    value = d.real(*d.shape(1, 2), 3)
    return call(value, **d.pick({}, {"dim": -1, "keepdim": d.flag(), "correction": d.n(0, 1)}))


@of("max min argmax argmin median nanmedian")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, **d.pick({}, {"dim": d.dim(value.shape), "keepdim": d.flag()}))


@of("mode aminmax")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, dim=d.dim(value.shape), keepdim=d.flag())


of("kthvalue")(lambda d: call(d.real(*d.shape(), 3), d.n(1, 3), dim=-1, keepdim=d.flag()))


@of("all any count_nonzero")
def _(d: Draw) -> Call:
    value = d.bools(*d.shape())
    return call(value, **d.pick({}, {"dim": d.dim(value.shape)}))


@of("norm")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, d.pick(1, 2, math.inf), dim=d.dim(value.shape), keepdim=d.flag())


@of("linalg.vector_norm")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, d.pick(1, 2, 3, math.inf), **d.pick({}, {"dim": d.dim(value.shape), "keepdim": d.flag()}))


of("linalg.norm linalg.matrix_norm")(
    lambda d: call(d.real(*d.shape(0, 1), 3, 2), d.pick("fro", "nuc", 1, math.inf), dim=(-2, -1), keepdim=d.flag())
)


@of("quantile nanquantile")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, d.pick(0.25, 0.5), dim=d.dim(value.shape), keepdim=d.flag())


@of("normalize")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, p=d.pick(1.0, 2.0), dim=d.dim(value.shape))


@of("cosine_similarity")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, d.real(*value.shape), dim=d.dim(value.shape))


@of("pairwise_distance")
def _(d: Draw) -> Call:
    shape = d.shape(2, 2)
    return call(d.real(*shape), d.real(*shape), p=d.pick(1.0, 2.0), keepdim=d.flag())


@of("dist")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(d.real(*shape), d.real(*shape), d.pick(1, 2))


@of("layer_norm")
def _(d: Draw) -> Call:
    value = d.real(*d.shape(1, 2), 4)
    return call(value, (4,), **d.pick({}, {"weight": d.real(4), "bias": d.real(4), "eps": 1e-3}))


of("rms_norm")(lambda d: call(d.real(*d.shape(1, 2), 4), (4,), **d.pick({}, {"weight": d.real(4)})))
of("group_norm")(lambda d: call(d.real(2, 4, 3), 2, **d.pick({}, {"weight": d.real(4), "bias": d.real(4)})))
of("local_response_norm")(lambda d: call(d.real(2, 4, 3), d.n(1, 3)))


REDUCES = ("none", "mean", "sum")


@of("cross_entropy nll_loss")
def _(d: Draw) -> Call:
    rows = d.n(1, 4)
    return call(d.real(rows, 5), d.ints(0, 5, rows), reduction=d.pick(*REDUCES))


@of("multi_margin_loss")
def _(d: Draw) -> Call:
    rows = d.n(1, 4)
    return call(d.real(rows, 5), d.ints(0, 5, rows), reduction=d.pick(*REDUCES))


@of("mse_loss l1_loss smooth_l1_loss huber_loss")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(d.real(*shape), d.real(*shape), reduction=d.pick(*REDUCES))


@of("kl_div")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(d.real(*shape), d.between(0.1, 1, *shape), reduction=d.pick("none", "batchmean", "sum"))


@of("poisson_nll_loss")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(d.real(*shape), d.between(1, 4, *shape), reduction=d.pick(*REDUCES))


@of("binary_cross_entropy")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(d.between(0.05, 0.95, *shape), d.bools(*shape).to(d.dtype), reduction=d.pick(*REDUCES))


@of("binary_cross_entropy_with_logits")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(d.real(*shape), d.bools(*shape).to(d.dtype), reduction=d.pick(*REDUCES))


@of("hinge_embedding_loss soft_margin_loss")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(d.real(*shape), d.bools(*shape).to(d.dtype) * 2 - 1, reduction=d.pick(*REDUCES))


@of("margin_ranking_loss")
def _(d: Draw) -> Call:
    n = d.n(1, 5)
    return call(d.real(n), d.real(n), d.bools(n).to(d.dtype) * 2 - 1, margin=0.5, reduction=d.pick(*REDUCES))


@of("cosine_embedding_loss")
def _(d: Draw) -> Call:
    n = d.n(1, 5)
    return call(d.real(n, 3), d.real(n, 3), d.bools(n).to(d.dtype) * 2 - 1, reduction=d.pick(*REDUCES))


of("triplet_margin_loss")(
    lambda d: call(d.real(3, 4), d.real(3, 4), d.real(3, 4), margin=0.5, reduction=d.pick(*REDUCES))
)
of("renorm")(lambda d: call(d.real(*d.shape(2, 3)), 2, 0, 1.0))
of("diff")(lambda d: call(d.real(*d.shape(), 4), n=d.n(1, 2)))
of("gradient")(lambda d: call(d.real(3, 4), **d.pick({}, {"dim": 1}, {"spacing": 2.0})))
of("trapezoid cumulative_trapezoid")(lambda d: call(d.real(*d.shape(), 4), **d.pick({}, {"dx": 0.5})))
of("cov corrcoef")(lambda d: call(d.real(d.n(1, 4), 5)))
of("glu")(lambda d: call(d.real(*d.shape(), 4), dim=-1))


# Matrices.


@of("matmul")
def _(d: Draw) -> Call:
    n, m, k = d.n(1, 4), d.n(1, 4), d.n(1, 4)
    left, right = d.pick(((n, k), (k, m)), ((2, n, k), (k, m)), ((k,), (k, m)), ((2, n, k), (2, k, m)), ((n, k), (k,)))
    return call(d.real(*left), d.real(*right))


@of("mm")
def _(d: Draw) -> Call:
    k = d.n(1, 4)
    return call(d.real(d.n(1, 4), k), d.real(k, d.n(1, 4)))


@of("bmm")
def _(d: Draw) -> Call:
    b, k = d.n(1, 3), d.n(1, 4)
    return call(d.real(b, d.n(1, 4), k), d.real(b, k, d.n(1, 4)))


@of("mv")
def _(d: Draw) -> Call:
    k = d.n(1, 4)
    return call(d.real(d.n(1, 4), k), d.real(k))


@of("dot vdot inner")
def _(d: Draw) -> Call:
    k = d.n(1, 5)
    return call(d.real(k), d.real(k))


of("outer")(lambda d: call(d.real(d.n(1, 4)), d.real(d.n(1, 4))))
of("linear")(lambda d: call(d.real(*d.shape(), 3), d.real(5, 3), **d.pick({}, {"bias": d.real(5)})))
of("bilinear")(lambda d: call(d.real(2, 3), d.real(2, 4), d.real(5, 3, 4)))
of("tensordot")(
    lambda d: d.pick(call(d.real(2, 3), d.real(3, 4), dims=1), call(d.real(2, 3), d.real(4, 3), dims=([1], [1])))
)
of("kron")(lambda d: call(d.real(*d.shape(2, 2)), d.real(*d.shape(2, 2))))
of("cdist")(lambda d: call(d.real(d.n(1, 4), 3), d.real(d.n(1, 4), 3), p=d.pick(1.0, 2.0)))


@of("linalg.vecdot")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(d.real(*shape), d.real(*shape))


@of("linalg.cross")
def _(d: Draw) -> Call:
    shape = d.shape(0, 2)
    return call(d.real(*shape, 3), d.real(*shape, 3), dim=-1)


of("linalg.multi_dot")(lambda d: call([d.real(2, 3), d.real(3, 4), d.real(4, 2)]))
of("einsum")(
    lambda d: d.pick(
        call("ij,jk->ik", d.real(2, 3), d.real(3, 4)),
        call("bij,bjk,k->bi", d.real(2, 2, 3), d.real(2, 3, 4), d.real(4)),
        call("ij->ji", d.real(2, 3)),
        call("ii->i", d.real(3, 3)),
        call("...d,d->...", d.real(2, 2, 3), d.real(3)),
    )
)


@of("scaled_dot_product_attention")
def _(d: Draw) -> Call:
    own = [d.real(1, 2, 3, 4) for _ in range(3)]
    return call(*own, **d.pick({}, {"is_causal": True}, {"attn_mask": d.real(3, 3)}, {"scale": 0.5}))


of("conv1d conv_transpose1d")(
    lambda d: call(d.real(2, 3, 6), d.real(3, 3, 2), **d.pick({}, {"stride": 2}, {"padding": 1, "bias": d.real(3)}))
)
of("conv2d conv_transpose2d")(
    lambda d: call(d.real(1, 3, 5, 4), d.real(3, 3, 2, 2), **d.pick({}, {"stride": 2}, {"padding": (1, 0)}))
)
of("conv3d")(lambda d: call(d.real(1, 2, 3, 4, 3), d.real(2, 2, 2, 2, 2), **d.pick({}, {"padding": 1})))
of("addmm")(lambda d: call(d.real(2, 4), d.real(2, 3), d.real(3, 4), **d.pick({}, {"beta": 0.5, "alpha": 2})))
of("baddbmm")(lambda d: call(d.real(2, 2, 4), d.real(2, 2, 3), d.real(2, 3, 4), **d.pick({}, {"beta": 0.5})))
of("addbmm")(lambda d: call(d.real(2, 4), d.real(3, 2, 3), d.real(3, 3, 4)))
of("addmv")(lambda d: call(d.real(2), d.real(2, 3), d.real(3), **d.pick({}, {"alpha": 2})))
of("addr")(lambda d: call(d.real(2, 3), d.real(2), d.real(3)))
of("""linalg.svdvals linalg.inv linalg.det linalg.slogdet linalg.matrix_exp linalg.eigvals linalg.eig linalg.cond
linalg.svd linalg.qr linalg.lu""")(lambda d: call(d.square()))
of("linalg.eigh linalg.eigvalsh linalg.cholesky logdet")(lambda d: call(d.definite()))
of("linalg.matrix_rank linalg.pinv")(lambda d: call(d.real(*d.shape(0, 1), 3, 2)))
of("linalg.matrix_power")(lambda d: call(d.square(), d.n(-1, 3)))


@of("linalg.solve")
def _(d: Draw) -> Call:
    matrix = d.square()
    return call(matrix, d.real(*matrix.shape[:-1], 2))


@of("linalg.solve_triangular")
def _(d: Draw) -> Call:
    matrix = d.square()
    return call(matrix.triu(), d.real(*matrix.shape[:-1], 2), upper=True)


@of("cholesky_solve")
def _(d: Draw) -> Call:
    matrix = d.definite()
    return call(d.real(*matrix.shape[:-1], 2), torch.linalg.cholesky(matrix))


of("linalg.lstsq")(lambda d: call(d.real(4, 2), d.real(4, 3)))
of("fft.fft fft.ifft fft.rfft fft.irfft")(
    lambda d: call(d.real(*d.shape(0, 2), 6), **d.pick({}, {"n": 4}, {"norm": "ortho"}))
)
of("fft.fft2 fft.ifft2 fft.rfft2 fft.irfft2 fft.fftn fft.ifftn")(lambda d: call(d.real(*d.shape(0, 1), 4, 6)))
of("fft.fftshift fft.ifftshift")(lambda d: call(d.real(*d.shape())))
