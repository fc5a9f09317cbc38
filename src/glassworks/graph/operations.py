"""The table of permitted operations: names and what may be relied on, by class. Their binding to torch is in `trace`.

Nothing here reaches storage (`as_strided`, `set_`, `resize_`, `.data`, views of another dtype), reads uninitialised
memory (`empty*`), names a device or an `out=`, or uses the global random generator. The spellings of one operation
(`torch.matmul`, `Tensor.matmul`, `@`) are one entry.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from glassworks.errors import UnknownOperation

Cost = Literal["view", "elementwise", "reduction", "gather", "sort", "matmul", "decomposition", "create"]
Aliasing = Literal["never", "always", "maybe"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What holds of one operation whatever its arguments.

    `aliasing`: every result is a view of the first argument (or that argument itself), none is, or it depends.
    `random`: draws by (seed, node, row, step). `data_dependent`: the size or the number of its results may depend on
    values. `inplace`: torch has the in-place method, which works on a copy here. `cost`: the class by which it is
    priced; a `sort` takes n log n.
    """

    name: str
    cost: Cost
    aliasing: Aliasing = "never"
    random: bool = False
    data_dependent: bool = False
    inplace: bool = False


_UNARY = """abs neg sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan asin acos
atan sinh cosh tanh asinh acosh atanh sigmoid logit erf erfc erfinv ceil floor round trunc frac relu logical_not
bitwise_not nan_to_num deg2rad rad2deg sinc lgamma digamma polygamma mvlgamma i0 clamp clamp_min clamp_max sgn"""
_UNARY_PLAIN = """isnan isinf isfinite isposinf isneginf isreal signbit angle frexp gelu silu mish softplus softsign
relu6 hardtanh hardsigmoid hardswish elu selu celu leaky_relu logsigmoid tanhshrink hardshrink softshrink threshold
softmin special.entr special.ndtr special.ndtri special.log_ndtr special.erfcx special.i0e special.i1 special.i1e
special.bessel_j0 special.bessel_j1"""
_BINARY = """add sub mul div floor_divide remainder fmod pow atan2 hypot eq ne lt le gt ge logical_and logical_or
logical_xor bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift copysign nextafter xlogy lerp
addcmul addcdiv heaviside float_power masked_fill gcd lcm ldexp igamma igammac"""
_BINARY_PLAIN = """maximum minimum fmax fmin logaddexp logaddexp2 where rsub rpow isclose rdiv rfloordiv rmod prelu
special.xlog1py special.zeta complex polar isin"""
_REDUCTION = """sum mean prod std var amax amin aminmax max min argmax argmin norm logsumexp all any median nanmean
nansum nanmedian quantile nanquantile count_nonzero softmax log_softmax normalize var_mean std_mean mode kthvalue
cosine_similarity pairwise_distance dist layer_norm rms_norm group_norm local_response_norm cross_entropy nll_loss
mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits
cosine_embedding_loss margin_ranking_loss hinge_embedding_loss soft_margin_loss multi_margin_loss triplet_margin_loss
poisson_nll_loss linalg.vector_norm linalg.norm cummax cummin logcumsumexp diff gradient trapezoid
cumulative_trapezoid cov corrcoef glu"""
_REDUCTION_INPLACE = "cumsum cumprod renorm"
_MATMUL = """matmul mm bmm mv dot vdot inner outer linear tensordot kron cdist linalg.vecdot linalg.cross
linalg.multi_dot scaled_dot_product_attention conv1d conv2d conv3d conv_transpose1d conv_transpose2d bilinear"""
_MATMUL_INPLACE = "baddbmm addmm addmv addbmm addr"
_DECOMPOSITION = """linalg.svd linalg.svdvals linalg.qr linalg.lu linalg.eig linalg.eigvals linalg.eigh linalg.eigvalsh
linalg.inv linalg.pinv linalg.solve linalg.solve_triangular linalg.det linalg.slogdet logdet linalg.cholesky
cholesky_solve linalg.matrix_norm linalg.matrix_rank linalg.cond linalg.matrix_power linalg.matrix_exp"""
_FOURIER = """fft.fft fft.ifft fft.rfft fft.irfft fft.fft2 fft.ifft2 fft.rfft2 fft.irfft2 fft.fftn fft.ifftn"""
_VIEW = """view squeeze unsqueeze transpose permute movedim expand expand_as broadcast_to narrow select diagonal
linalg.diagonal unbind split split_with_sizes chunk hsplit vsplit dsplit unflatten unfold t mT mH view_as detach
positive real imag"""
_VIEW_OR_COPY = """reshape flatten ravel contiguous reshape_as to float half bfloat16 double int long bool byte char
short type_as sum_to_size atleast_1d atleast_2d atleast_3d broadcast_tensors meshgrid"""
_GATHER = """index_select gather take_along_dim take embedding repeat tile cat stack hstack vstack dstack column_stack
flip fliplr flipud roll rot90 diag diag_embed diagflat pad clone searchsorted bucketize block_diag combinations
select_scatter slice_scatter diagonal_scatter max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_max_pool1d lp_pool1d interpolate grid_sample fold pixel_shuffle pixel_unshuffle
channel_shuffle unravel_index trace fft.fftshift fft.ifftshift"""
_GATHER_INPLACE = """setitem scatter scatter_add scatter_reduce index_add index_copy index_fill index_put
masked_scatter put copy fill zero fill_diagonal tril triu"""
_DATA_DEPENDENT = """masked_select nonzero argwhere unique unique_consecutive bincount repeat_interleave one_hot"""
_SORT = "sort argsort topk histc msort"
_CREATE = "zeros_like ones_like full_like new_zeros new_ones new_full"
_RANDOM = "rand_like randn_like randint_like bernoulli multinomial normal"


_SEVERAL = """topk sort max min median nanmedian mode kthvalue cummax cummin aminmax var_mean std_mean frexp gradient
unbind split split_with_sizes chunk hsplit vsplit dsplit tensor_split meshgrid broadcast_tensors unravel_index
atleast_1d atleast_2d atleast_3d unique unique_consecutive nonzero max_pool1d max_pool2d adaptive_max_pool1d linalg.svd
linalg.qr linalg.lu linalg.eig linalg.eigh linalg.slogdet linalg.lstsq"""
SEVERAL = frozenset(_SEVERAL.split())
"""Operations that may give several tensors, depending on their arguments."""


def _build() -> dict[str, Operation]:
    table: dict[str, Operation] = {}

    def add(names: str, cost: Cost, **flags: object) -> None:
        for name in names.split():
            if name in table:
                raise AssertionError(f"{name} stands in two classes")
            table[name] = Operation(name, cost, **flags)  # type: ignore[arg-type]

    add(_UNARY, "elementwise", inplace=True)
    add("conj_physical", "elementwise", aliasing="maybe", inplace=True)
    add(_UNARY_PLAIN, "elementwise")
    add(_BINARY, "elementwise", inplace=True)
    add(_BINARY_PLAIN, "elementwise")
    add(_REDUCTION, "reduction")
    add(_REDUCTION_INPLACE, "reduction", inplace=True)
    add(_MATMUL, "matmul")
    add(_MATMUL_INPLACE, "matmul", inplace=True)
    add("einsum", "matmul", aliasing="maybe")
    add(_DECOMPOSITION, "decomposition")
    add("linalg.lstsq", "decomposition", data_dependent=True)
    add(_FOURIER, "sort")
    add(_VIEW, "view", aliasing="always")
    add(_VIEW_OR_COPY, "view", aliasing="maybe")
    add("getitem", "view", aliasing="maybe", data_dependent=True)
    add("tensor_split", "view", aliasing="always", data_dependent=True)
    add(_GATHER, "gather")
    add("cartesian_prod", "gather", aliasing="maybe")
    add(_GATHER_INPLACE, "gather", inplace=True)
    add(_DATA_DEPENDENT, "gather", data_dependent=True)
    add(_SORT, "sort")
    add(_CREATE, "create")
    add(_RANDOM, "create", random=True)
    add("dropout", "create", random=True, aliasing="maybe")
    return table


OPERATIONS: dict[str, Operation] = _build()


def look_up(name: str) -> Operation:
    """The table's entry; a name that ends in `_` is the in-place form, if torch has one.

    Raises:
        UnknownOperation: with the nearest names.
    """
    found = OPERATIONS.get(name)
    if found is None and name.endswith("_"):
        found = OPERATIONS.get(name[:-1])
        found = found if found is not None and found.inplace else None
    if found is None:
        near = difflib.get_close_matches(name, OPERATIONS, n=3)
        hint = f"; the nearest: {', '.join(near)}" if near else ""
        raise UnknownOperation(f"{name!r} is not a permitted operation{hint} (print gw.operations() for the table)")
    return found


def operations() -> list[Operation]:
    """The table of permitted operations, by name."""
    return [OPERATIONS[name] for name in sorted(OPERATIONS)]
