"""Functions of one value, in numpy: the polynomials of kernels/operators/float_functions.inc, rounded alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cpupack.stages.quantize.native.walks import Function, Instruction

Array = np.ndarray[Any, Any]
_ONE = np.float32(1.0)


def f4(value: Any) -> Array:
    return np.asarray(value, np.float32)


def fma(a: Any, b: Any, c: Any) -> Array:
    """Return a * b + c of float32 values, rounded once.

    The product is exact in float64. The sum is rounded to odd there, which keeps what the second rounding needs.
    """
    product, term = f4(a).astype(np.float64) * f4(b).astype(np.float64), f4(c).astype(np.float64)
    total = product + term
    other = total - product
    error = (product - (total - other)) + (term - other)
    even = (np.asarray(total).view(np.int64) & 1) == 0
    odd = np.where((error != 0) & even & np.isfinite(total), np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def chain(x: Array, *coefficients: float) -> Array:
    """Return a polynomial, the highest coefficient first."""
    y = np.full_like(x, np.float32(coefficients[0]))
    for each in coefficients[1:]:
        y = fma(y, x, np.full_like(x, np.float32(each)))
    return y


def exp(x: Array) -> Array:
    x = np.minimum(np.maximum(x, np.float32(-104.0)), np.float32(89.0))
    n = np.rint(x * np.float32(1.44269504088896341))
    r = fma(-n, np.float32(0.693359375), x)
    r = fma(-n, np.float32(-2.12194440e-4), r)
    y = chain(r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
    y = fma(y, r * r, r) + _ONE
    whole = np.nan_to_num(n).astype(np.int32)
    half = whole >> 1
    y = y * ((half + 127) << 23).astype(np.int32).view(np.float32)
    return y * ((whole - half + 127) << 23).astype(np.int32).view(np.float32)


def log(x: Array) -> Array:
    tiny = x < np.float32(1.17549435e-38)
    scaled = np.where(tiny, x * np.float32(8388608.0), x)
    bits = scaled.view(np.int32)
    e = ((bits >> 23) - 126).astype(np.float32) - np.where(tiny, np.float32(23.0), np.float32(0.0))
    m = ((bits & 0x007FFFFF) | 0x3F000000).astype(np.int32).view(np.float32)
    low = m < np.float32(0.707106781186547524)
    e = e - low.astype(np.float32)
    m = (m + np.where(low, m, np.float32(0.0))) - _ONE
    z = m * m
    y = chain(
        m, 7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )  # fmt: skip
    y = (y * m) * z
    y = fma(e, np.full_like(e, -2.12194440e-4), y)
    y = fma(np.full_like(z, -0.5), z, y)
    y = fma(e, np.full_like(e, 0.693359375), m + y)
    y = np.where(x < np.inf, y, x)
    y = np.where(x == 0, np.float32(-np.inf), y)
    return np.where(x < 0, np.float32(np.nan), y)


def tanh(x: Array) -> Array:
    a, z = np.abs(x), x * x
    p = chain(z, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    small = fma(p * z, a, a)
    large = _ONE - np.float32(2.0) / (exp(a + a) + _ONE)
    return np.copysign(np.where(a < np.float32(0.625), small, large), x)


def erf(x: Array) -> Array:
    a, z = np.abs(x), x * x
    small = chain(z, 4.71123680472e-3, -2.67554651946e-2, 1.12828277051e-1, -3.76126110554e-1, 1.12837922573) * a
    t = _ONE / fma(a, np.full_like(a, 0.4), np.full_like(a, 1.0))
    q = chain(
        t, 6.615211085e-2, -3.626755015e-1, 6.327831107e-1, -3.295964904e-1, 3.872166061e-1, 1.454477830e-1,
        2.356810561e-1, 2.249834804e-1,
    )  # fmt: skip
    power = exp(fma(-a, a, np.zeros_like(a)))
    large = fma(-(q * t), power, np.full_like(a, 1.0))
    return np.copysign(np.where(a < np.float32(0.5), small, large), x)


def sigmoid(x: Array) -> Array:
    return _ONE / (_ONE + exp(np.float32(0.0) - x))


def _half_and_half(x: Array, inside: Array, low: float, p: Array, q: Array, at: Array) -> Array:
    half = x * np.float32(0.5)
    return np.where(at < np.float32(low), np.float32(0.0), fma(half, (inside * p) / q, half))


def gelu(x: Array) -> Array:
    inside = np.where(x > np.float32(-5.3), x, np.where(np.isnan(x), x, np.float32(-5.3)))
    inside = np.where(inside > np.float32(5.3), np.float32(5.3), inside)
    z = inside * inside
    p = chain(z, 4.81006417e-08, 1.2757926e-05, 0.00032065736, 0.00925591495, 0.0658705384, 0.797884524)
    q = chain(z, 1.23716177e-06, 7.13501431e-05, 0.00183653901, 0.0281385183, 0.249222711, 1.0)
    return _half_and_half(x, inside, -5.3, p, q, x)


def gelu_tanh(x: Array) -> Array:
    u = x * fma(x * x, np.full_like(x, 0.0356774081), np.full_like(x, 0.797884561))
    inside = np.where(u > np.float32(-8.0), u, np.where(np.isnan(u), u, np.float32(-8.0)))
    inside = np.where(inside > np.float32(8.0), np.float32(8.0), inside)
    z = inside * inside
    p = chain(z, -1.43762008e-11, 3.33465735e-08, 2.91122324e-05, 0.0039220429, 0.137225449, 1.0)
    q = chain(z, 1.36585822e-06, 0.000403404032, 0.0274416432, 0.470558763, 1.0)
    return _half_and_half(x, inside, -8.0, p, q, u)


def _near_half(x: Array, bound: float, *coefficients: float) -> Array:
    low, high = np.float32(-bound), np.float32(bound)
    inside = np.where(x > low, x, np.where(np.isnan(x), x, low))
    inside = np.where(inside > high, high, inside)
    h = fma(inside, chain(inside * inside, *coefficients), np.full_like(x, 0.5))
    h = np.where(h < 0, np.float32(0.0), np.where(h > _ONE, _ONE, h))
    return x * h


def near_gelu(x: Array) -> Array:
    return _near_half(
        x, 3.95, 2.4468413e-08, -1.682761e-06, 4.9582665e-05, -0.00082932494, 0.008844242, -0.06472553, 0.3979886
    )  # fmt: skip


def near_gelu_tanh(x: Array) -> Array:
    return _near_half(
        x, 3.88, 2.8647158e-08, -1.894829e-06, 5.3767355e-05, -0.00086920295, 0.009025181, -0.065027304, 0.39800572
    )  # fmt: skip


def sine(x: Array, quarters: int) -> Array:
    n = np.rint(x * np.float32(0.636619772367581343))
    r = fma(-n, np.full_like(x, 1.57079637050628662), x)
    r = fma(-n, np.full_like(x, -4.37113882867379e-8), r)
    r = fma(-n, np.full_like(x, -1.71512449e-15), r)
    z = r * r
    s = chain(z, -1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
    s = fma(s * z, r, r)
    c = chain(z, 2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2, -0.5, 1.0)
    near = np.abs(x) < np.float32(1.6e6)
    turned = np.where(near, n, 0).astype(np.int64) + quarters
    y = np.where(turned & 1, c, s) * np.where(turned & 2, np.float32(-1.0), _ONE)
    return np.where(near, y, np.float32(np.nan))


FUNCTIONS: dict[Function, Callable[[Array, Array, Any], Array]] = {
    Function.COPY: lambda a, _b, _n: a,
    Function.ADD: lambda a, b, _: a + b,
    Function.SUBTRACT: lambda a, b, _: a - b,
    Function.MULTIPLY: lambda a, b, _: a * b,
    Function.DIVIDE: lambda a, b, _: a / b,
    Function.MAXIMUM: lambda a, b, _: np.where(a > b, a, b),
    Function.MINIMUM: lambda a, b, _: np.where(a < b, a, b),
    Function.ADD_NUMBER: lambda a, _, n: a + n,
    Function.MULTIPLY_NUMBER: lambda a, _, n: a * n,
    Function.FROM_NUMBER: lambda a, _, n: n - a,
    Function.DIVIDE_NUMBER: lambda a, _, n: n / a,
    Function.AT_LEAST: lambda a, _, n: np.where(n > a, n, a),
    Function.AT_MOST: lambda a, _, n: np.where(n < a, n, a),
    Function.ABSOLUTE: lambda a, _b, _n: np.abs(a),
    Function.ROOT: lambda a, _b, _n: np.sqrt(a),
    Function.EXPONENTIAL: lambda a, _b, _n: exp(a),
    Function.LOGARITHM: lambda a, _b, _n: log(a),
    Function.TANH: lambda a, _b, _n: tanh(a),
    Function.ERF: lambda a, _b, _n: erf(a),
    Function.SIGMOID: lambda a, _b, _n: sigmoid(a),
    Function.FLOOR: lambda a, _b, _n: np.floor(a),
    Function.CEILING: lambda a, _b, _n: np.ceil(a),
    Function.TRUNCATE: lambda a, _b, _n: np.trunc(a),
    Function.ROUND: lambda a, _b, _n: np.rint(a),
    Function.LESS: lambda a, b, _: (a < b).astype(np.float32),
    Function.EQUAL: lambda a, b, _: (a == b).astype(np.float32),
    Function.DIVIDE_BY_NUMBER: lambda a, _, n: a / n,
    Function.NUMBER: lambda a, _, n: np.full_like(a, n),
    Function.GELU: lambda a, _b, _n: gelu(a),
    Function.GELU_TANH: lambda a, _b, _n: gelu_tanh(a),
    Function.GELU_NEAR: lambda a, _b, _n: near_gelu(a),
    Function.GELU_TANH_NEAR: lambda a, _b, _n: near_gelu_tanh(a),
    Function.SINE: lambda a, _b, _n: sine(a, 0),
    Function.COSINE: lambda a, _b, _n: sine(a, 1),
}
"""All but ``SELECT``."""


def run(code: Sequence[Instruction], one: Array, two: Array | None = None) -> Array:
    """Return what instructions make of one or two operands."""
    zero = np.zeros_like(one)
    registers = [one, zero if two is None else two, zero, zero]
    with np.errstate(all="ignore"):
        for each in code:
            if each.function is Function.SELECT:  # the only one that reads the register it writes
                registers[each.to] = np.where(registers[each.a] != 0, registers[each.b], registers[each.to])
                continue
            registers[each.to] = f4(
                FUNCTIONS[each.function](registers[each.a], registers[each.b], np.float32(each.number))
            )
    return registers[0]
