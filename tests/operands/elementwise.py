"""Arguments of operations that work element by element."""

import math
from collections.abc import Callable

import torch

from operands.draws import Call, Draw, call, in_place, of

# One operand, element by element.


of("""abs neg sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan asin acos atan sinh
cosh tanh asinh acosh atanh sigmoid logit erf erfc erfinv ceil floor trunc frac relu logical_not deg2rad rad2deg sinc
lgamma digamma i0 sgn isnan isinf isfinite isposinf isneginf isreal signbit angle silu mish softsign relu6 hardsigmoid
hardswish selu logsigmoid tanhshrink special.entr positive clone detach""")(lambda d: call(d.odd(*d.shape())))
of("special.ndtr special.ndtri special.log_ndtr special.erfcx special.i0e special.i1 special.i1e frexp")(
    lambda d: call(d.real(*d.shape()))
)
of("special.bessel_j0 special.bessel_j1")(lambda d: call(d.real(*d.shape())))
of("round")(lambda d: call(d.real(*d.shape()), decimals=d.n(0, 2)))
of("nan_to_num")(lambda d: call(d.odd(*d.shape()), d.pick(0.0, 1.5), **d.pick({}, {"posinf": 2.0}, {"neginf": -3.0})))
of("polygamma")(lambda d: call(d.between(0.5, 4, *d.shape()), d.n(0, 3)))
of("mvlgamma")(lambda d: call(d.between(3, 6, *d.shape()), d.n(1, 3)))
of("bitwise_not")(lambda d: call(d.pick(d.bools, lambda *s: d.ints(-9, 9, *s))(*d.shape())))


@of("clamp")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, **d.pick({"min": -1.0}, {"max": 0.5}, {"min": -0.5, "max": 1}, {"min": torch.zeros_like(value)}))


of("clamp_min clamp_max special.zeta rpow rdiv rmod rfloordiv rsub")(
    lambda d: call(d.between(1.5, 4, *d.shape()), d.pick(0.5, 2, 3.5))
)


@of("conj_physical real")
def _(d: Draw) -> Call:
    shape = d.shape()
    value = d.real(*shape)
    return call(d.pick(value, torch.complex(value, d.real(*shape))))


@of("imag")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(torch.complex(d.real(*shape), d.real(*shape)))


of("gelu")(lambda d: call(d.real(*d.shape()), approximate=d.pick("none", "tanh")))
of("softplus")(lambda d: call(d.real(*d.shape()), **d.pick({}, {"beta": 2.0, "threshold": 5.0})))
of("hardtanh")(lambda d: call(d.real(*d.shape()), **d.pick({}, {"min_val": -0.5, "max_val": 0.75})))
of("elu celu leaky_relu hardshrink softshrink")(lambda d: call(d.real(*d.shape()), d.pick(0.25, 0.5, 1.5)))
of("threshold")(lambda d: call(d.real(*d.shape()), 0.1, 20.0))


@of("softmax log_softmax softmin cumprod cumsum logcumsumexp cummax cummin")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, dim=d.dim(value.shape))


# Two operands, element by element.


def other(d: Draw, value: torch.Tensor, make: Callable[..., torch.Tensor]) -> torch.Tensor:
    """A second operand: of the same shape, or one that is broadcast."""
    shape = list(value.shape)
    if d.flag():
        shape = shape[d.n(0, len(shape)) :]
    return make(*[1 if d.flag() and d.flag() else size for size in shape])


@of("add sub")
def _(d: Draw) -> Call:
    value = d.odd(*d.shape())
    second = d.pick(lambda: other(d, value, lambda *s: d.real(*s, dtype=value.dtype)), lambda: 3, lambda: 0.5)()
    return call(value, second, **d.pick({}, {"alpha": 2}))


@in_place("add sub")
def _(d: Draw) -> Call:
    value = d.odd(*d.shape())
    return call(value, d.pick(other(d, value, lambda *s: d.real(*s, dtype=value.dtype)), 3, 0.5))


@of("logical_and logical_or logical_xor")
def _(d: Draw) -> Call:
    value = d.odd(*d.shape())
    return call(value, other(d, value, d.pick(d.real, d.bools)))


@of("mul eq ne lt le gt ge copysign fmod remainder")
def _(d: Draw) -> Call:
    value = d.odd(*d.shape())
    return call(value, d.pick(other(d, value, lambda *s: d.real(*s, dtype=value.dtype)), 3, 0.5))


@of("div floor_divide float_power")
def _(d: Draw) -> Call:
    value = d.between(0.5, 9, *d.shape())
    return call(value, d.pick(other(d, value, lambda *s: d.between(1, 3, *s)), 3, 0.5))


in_place("float_power")(lambda d: call(d.between(0.5, 9, *d.shape()).double(), d.pick(2, 0.5)))


@of("pow")
def _(d: Draw) -> Call:
    value = d.between(0.1, 3, *d.shape())
    return call(value, d.pick(other(d, value, d.real), 2, 3, 0.5, -1))


@of("atan2 hypot nextafter maximum minimum fmax fmin logaddexp logaddexp2 xlogy special.xlog1py")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, other(d, value, d.real))


@of("heaviside")
def _(d: Draw) -> Call:
    value = d.ints(-1, 2, *d.shape()).to(d.dtype)
    return call(value, other(d, value, d.real))


@of("bitwise_and bitwise_or bitwise_xor")
def _(d: Draw) -> Call:
    shape = d.shape()
    value = d.ints(-9, 9, *shape)
    return call(value, d.pick(other(d, value, lambda *s: d.ints(-9, 9, *s)), 5))


@of("gcd lcm")
def _(d: Draw) -> Call:
    value = d.ints(1, 30, *d.shape())
    return call(value, other(d, value, lambda *s: d.ints(1, 12, *s)))


@of("bitwise_left_shift bitwise_right_shift")
def _(d: Draw) -> Call:
    value = d.ints(0, 50, *d.shape())
    return call(value, d.pick(other(d, value, lambda *s: d.ints(0, 4, *s)), 2))


@of("ldexp")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, other(d, value, lambda *s: d.ints(-3, 4, *s)))


@of("igamma igammac")
def _(d: Draw) -> Call:
    value = d.between(0.5, 4, *d.shape())
    return call(value, other(d, value, lambda *s: d.between(0.1, 3, *s)))


@of("lerp")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, d.real(*value.shape), d.pick(0.3, d.between(0, 1, *value.shape)))


@of("addcmul addcdiv")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, d.real(*value.shape), d.between(1, 2, *value.shape), **d.pick({}, {"value": 0.5}))


@of("masked_fill")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, other(d, value, d.bools), d.pick(-2.5, -math.inf))


@of("where")
def _(d: Draw) -> Call:
    mask = d.bools(*d.shape())
    return call(mask, d.real(*mask.shape), d.pick(other(d, mask, d.real), 0.0))


@of("isclose")
def _(d: Draw) -> Call:
    value = d.real(*d.shape())
    return call(value, value + d.pick(0, 1e-9, 0.1), **d.pick({}, {"atol": 0.2}))


of("prelu")(lambda d: call(d.real(*d.shape(2, 3)), d.real(1)))


@of("complex polar")
def _(d: Draw) -> Call:
    shape = d.shape()
    return call(d.real(*shape).abs(), d.real(*shape))


of("isin")(lambda d: call(d.ints(0, 5, *d.shape()), d.ints(0, 5, 3)))
