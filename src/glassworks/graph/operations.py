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


@dataclass(frozen=True, slots=True)
class Operation:
    """What holds of one operation whatever its arguments.

    `aliasing`: the result is always a view of the first argument, never, or it depends. `random`: draws by
    (seed, node, row, step). `data_dependent`: the size of the result depends on values. `inplace`: torch has the
    in-place method, which works on a copy here. `cost`: the class by which it is priced.
    """

    name: str
    cost: Cost
    aliasing: Literal["never", "always", "maybe"] = "never"
    random: bool = False
    data_dependent: bool = False
    inplace: bool = False


_UNARY = """abs neg sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan asin acos
atan sinh cosh tanh asinh acosh atanh sigmoid logit erf erfc erfinv ceil floor round trunc frac relu logical_not
bitwise_not nan_to_num deg2rad rad2deg sinc lgamma digamma clamp clamp_min clamp_max sgn"""
_UNARY_PLAIN = """positive isnan isinf isfinite isposinf isneginf signbit gelu silu mish softplus softsign relu6
hardtanh hardsigmoid hardswish elu selu celu leaky_relu logsigmoid tanhshrink hardshrink softshrink threshold
softmin special.entr special.expit special.xlog1py special.ndtr"""
_BINARY = """add sub mul div floor_divide remainder fmod pow atan2 hypot eq ne lt le gt ge logical_and logical_or
logical_xor bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift copysign nextafter xlogy lerp
addcmul addcdiv heaviside float_power masked_fill"""
_BINARY_PLAIN = """maximum minimum fmax fmin logaddexp logaddexp2 where rsub rpow isclose dist rdiv rfloordiv rmod"""
_REDUCTION = """sum mean prod std var amax amin aminmax max min argmax argmin norm logsumexp all any median nanmean
nansum nanmedian quantile count_nonzero softmax log_softmax normalize var_mean std_mean mode kthvalue
cosine_similarity pairwise_distance layer_norm rms_norm group_norm cross_entropy nll_loss mse_loss l1_loss
smooth_l1_loss huber_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss
linalg.vector_norm linalg.norm cumsum cumprod cummax cummin logcumsumexp diff trapezoid equal allclose glu"""
_MATMUL = """matmul mm bmm mv dot inner outer einsum baddbmm addmm addmv addbmm linear tensordot kron cdist
linalg.vecdot linalg.cross linalg.multi_dot scaled_dot_product_attention conv1d conv2d bilinear"""
_DECOMPOSITION = """linalg.svd linalg.svdvals linalg.qr linalg.eigh linalg.eigvalsh linalg.inv linalg.pinv
linalg.solve linalg.det linalg.slogdet linalg.cholesky linalg.matrix_norm linalg.matrix_power
linalg.matrix_exp linalg.lstsq"""
_VIEW = """view squeeze unsqueeze transpose permute movedim expand expand_as broadcast_to narrow select diagonal
unbind split chunk tensor_split unflatten unfold t mT view_as detach"""
_VIEW_OR_COPY = """getitem reshape flatten ravel contiguous reshape_as to float half bfloat16 double int long bool
type_as atleast_1d atleast_2d atleast_3d"""
_GATHER = """index_select gather take_along_dim take embedding one_hot repeat repeat_interleave tile cat stack hstack
vstack dstack flip fliplr flipud roll rot90 diag diag_embed meshgrid pad clone tril triu searchsorted bucketize
block_diag cartesian_prod combinations select_scatter slice_scatter diagonal_scatter max_pool1d avg_pool1d
adaptive_avg_pool1d adaptive_max_pool1d unsafe_chunk trace"""
_GATHER_INPLACE = """setitem scatter scatter_add scatter_reduce index_add index_copy index_fill index_put
masked_scatter copy fill zero fill_diagonal"""
_DATA_DEPENDENT = "masked_select nonzero argwhere unique unique_consecutive bincount"
_SORT = "sort argsort topk histc msort"
_CREATE = "zeros_like ones_like full_like new_zeros new_ones new_full"
_RANDOM = "rand_like randn_like randint_like bernoulli multinomial normal dropout"


def _build() -> dict[str, Operation]:
    table: dict[str, Operation] = {}

    def add(names: str, cost: Cost, **flags: object) -> None:
        for name in names.split():
            if name in table:
                raise AssertionError(f"{name} stands in two classes")
            table[name] = Operation(name, cost, **flags)  # type: ignore[arg-type]

    add(_UNARY, "elementwise", inplace=True)
    add(_UNARY_PLAIN, "elementwise")
    add(_BINARY, "elementwise", inplace=True)
    add(_BINARY_PLAIN, "elementwise")
    add(_REDUCTION, "reduction")
    add(_MATMUL, "matmul")
    add(_DECOMPOSITION, "decomposition")
    add(_VIEW, "view", aliasing="always")
    add(_VIEW_OR_COPY, "view", aliasing="maybe")
    add(_GATHER, "gather")
    add(_GATHER_INPLACE, "gather", inplace=True)
    add(_DATA_DEPENDENT, "gather", data_dependent=True)
    add(_SORT, "sort")
    add(_CREATE, "create")
    add(_RANDOM, "create", random=True)
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
