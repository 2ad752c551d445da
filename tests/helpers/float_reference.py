"""What the engine's layers in FP32 compute, in numpy: the same float32 operations, rounded as the kernels round.

Functions of one value are the polynomials of kernels/operators/float_functions.inc. Sums over a row have 32 sums side
by side, and those are added in halves. Products of matrices are chains of fused multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cpupack.stages.quantize.native.walks import Function, Instruction, Norm, Reduction, Windows

Array = np.ndarray[Any, Any]
LANES = 32
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


# ---- rows: the last dimension ----


def _lanes(x: Array, rest: float) -> Array:
    """Return rows ``(..., values)`` as ``(..., steps, LANES)``."""
    missing = -x.shape[-1] % LANES
    full = np.concatenate([x, np.full((*x.shape[:-1], missing), rest, np.float32)], -1)
    return full.reshape(*x.shape[:-1], -1, LANES)


def _halves(sums: Array) -> Array:
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def row_sum(x: Array, kind: Reduction = Reduction.SUM) -> Array:
    """Return the sums of rows in the kernels' order."""
    lanes = _lanes(x, 0.0)
    sums = np.zeros((*x.shape[:-1], LANES), np.float32)
    for i in range(lanes.shape[-2]):
        each = lanes[..., i, :]
        sums = _add(sums, each, kind)
    return _halves(sums)


def _add(sums: Array, each: Array, kind: Reduction) -> Array:
    if kind is Reduction.SQUARES:
        return fma(each, each, sums)
    return sums + (np.abs(each) if kind is Reduction.ABSOLUTES else each)


def reduce(x: Array, kind: Reduction, scale: float) -> Array:
    """Return the reduction of rows."""
    found = {
        Reduction.MAXIMUM: lambda: x.max(-1),
        Reduction.MINIMUM: lambda: x.min(-1),
        Reduction.PLACE_OF_MAXIMUM: lambda: x.argmax(-1).astype(np.float32),
        Reduction.PLACE_OF_MINIMUM: lambda: x.argmin(-1).astype(np.float32),
    }.get(kind, lambda: row_sum(x, kind))()
    return np.float32(scale) * found


def reduce_across(x: Array, kind: Reduction, scale: float) -> Array:
    """Return the reduction of rows that lie side by side: one after the other, sums from sums of 256."""
    if kind in (Reduction.MAXIMUM, Reduction.MINIMUM):
        return reduce(x, kind, scale)
    total = part = np.zeros(x.shape[:-1], np.float32)
    for i in range(x.shape[-1]):
        part = _add(part, x[..., i], kind)
        if i % 256 == 255:
            total, part = total + part, np.zeros_like(part)
    return (total + part) * np.float32(scale)


def normalize(
    x: Array, kind: Norm, epsilon: float = 0.0, weight: Array | None = None, bias: Array | None = None
) -> Array:
    """Return norms of rows; ``weight`` and ``bias`` are of the rows' shape."""
    if kind in (Norm.SOFTMAX, Norm.LOG_SOFTMAX):
        shifted = x - x.max(-1, keepdims=True)
        powers = exp(shifted)
        sums = row_sum(powers)[..., None]
        return powers / sums if kind is Norm.SOFTMAX else shifted - log(sums)
    if kind is Norm.RUNNING_SUM:
        return f4(np.cumsum(x, -1, dtype=np.float64))
    length = np.float32(x.shape[-1])
    mean = row_sum(x)[..., None] / length if kind is Norm.LAYER else np.zeros((*x.shape[:-1], 1), np.float32)
    centred = x - mean
    variance = row_sum(centred, Reduction.SQUARES)[..., None] / length
    found = centred * (_ONE / np.sqrt(variance + np.float32(epsilon)))
    if weight is None or bias is None:
        return f4(found)
    return fma(found, np.broadcast_to(weight, x.shape), np.broadcast_to(bias, x.shape))


def row_codes(x: Array) -> tuple[Array, Array, Array]:
    """Return rows as codes (as int64), and each row's scale and zero point."""
    largest, lowest = np.maximum(x, 0).max(-1, keepdims=True), np.minimum(x, 0).min(-1, keepdims=True)
    scale = (np.nan_to_num(largest, nan=0.0, posinf=np.inf) - lowest) / np.float32(255.0)
    inverse = np.where(scale >= np.float32(1e-30), _ONE / scale, np.float32(0.0)).astype(np.float32)
    zero = np.rint(np.minimum(-lowest * inverse, np.float32(255.0))).astype(np.float32)
    codes = np.clip(np.rint(fma(x, np.broadcast_to(inverse, x.shape), np.broadcast_to(zero, x.shape))), 0, 255)
    return codes.astype(np.int64), f4(scale), zero.astype(np.int64)


def linear(x: Array, weights: Array, scales: Array, bias: Array) -> Array:
    """Return a linear layer of int8 ``weights (out, in)`` whose rows get scales of their own."""
    codes, scale, zero = row_codes(x)
    sums = (codes - zero) @ weights.astype(np.int64).T
    finite = np.isfinite(x).all(-1, keepdims=True)
    found = fma(
        f4(sums), np.where(finite, scale, np.float32(np.nan)) * f4(scales), np.broadcast_to(f4(bias), sums.shape)
    )
    return f4(found)


# ---- products ----


def matmul(a: Array, b: Array, scale: float = 1.0, bias: Array | None = None) -> Array:
    """Return products of matrices ``(..., rows, length)`` and ``(..., length, columns)``."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    sums = np.zeros((*lead, a.shape[-2], b.shape[-1]), np.float32)
    for k in range(a.shape[-1]):
        sums = fma(
            np.broadcast_to(a[..., :, k : k + 1], sums.shape), np.broadcast_to(b[..., k : k + 1, :], sums.shape), sums
        )
    return fma(sums, np.float32(scale), np.broadcast_to(f4(0.0 if bias is None else bias), sums.shape))


def exp_below_zero(x: Array) -> Array:
    """Return exp(x) for x up to 0, with 0 below -87."""
    inside = np.maximum(x, np.float32(-87.0))
    n = np.rint(inside * np.float32(1.44269504088896341))
    r = fma(-n, np.float32(0.693359375), inside)
    r = fma(-n, np.float32(-2.12194440e-4), r)
    y = chain(r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
    y = fma(y, r * r, r) + _ONE
    y = y * ((np.nan_to_num(n).astype(np.int32) + 127) << 23).astype(np.int32).view(np.float32)
    return np.where(x < np.float32(-87.0), np.float32(0.0), y)


def attention(
    queries: Array, keys: Array, values: Array, scale: float, mask: Array | None = None, *, causal: bool = False,
    unseen: float = 0.0,
) -> Array:  # fmt: skip
    """Return softmax(queries x keys * scale + mask) x values in the kernel's order."""
    scores = f4(_sums(queries, keys.swapaxes(-1, -2)) * np.float32(scale))
    powers, factors = _softened(scores, mask, causal, unseen)
    return f4(_sums(powers, values) * factors)


def _softened(scores: Array, mask: Array | None, causal: bool, unseen: float) -> tuple[Array, Array]:
    """Return the powers of scores, and what each row of them is multiplied with when they are added up."""
    if mask is not None:
        scores = scores + f4(mask)
    seen = np.tril(np.ones(scores.shape[-2:], bool)) if causal else np.ones(scores.shape[-2:], bool)
    hidden = np.where(seen, scores, np.float32(-np.inf))
    largest = np.nan_to_num(hidden, nan=-np.inf, posinf=np.inf, neginf=-np.inf).max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shifted = hidden - np.where(largest > -np.inf, largest, np.float32(0.0))
    powers = np.where(seen, exp_below_zero(shifted), np.float32(0.0))
    sums = row_sum(powers)[..., None]
    factors = np.where(sums > 0, _ONE / np.where(sums > 0, sums, _ONE), np.float32(unseen))
    factors = np.where(np.isnan(shifted).any(-1, keepdims=True), np.float32(np.nan), factors)
    return powers, factors


def coded_attention(
    queries: Array, keys: Array, values: Array, scale: float, mask: Array | None = None, *, causal: bool = False,
    unseen: float = 0.0,
) -> Array:  # fmt: skip
    """Return the same by products of 16-bit codes, in the kernel's order: sums are exact integers."""
    length, columns = queries.shape[-1], keys.shape[-2]
    most = min(32767, int(math.sqrt((2**31 - 1) / length)))
    (q, q_scale), (k, k_scale), (v, v_scale) = (words(x, m) for x, m in ((queries, most), (keys, most), (values, 2047)))
    factors = (np.float32(scale) * q_scale)[..., None] * k_scale[..., None, :]
    scores = f4(q @ k.swapaxes(-1, -2)) * factors
    powers, row_factors = _softened(scores, mask, causal, unseen)
    scaled = powers * v_scale[..., None, :]
    largest = np.nan_to_num(scaled, nan=0.0).max(-1, keepdims=True, initial=np.float32(0.0))
    sums = row_sum(scaled)[..., None]
    nothing = largest < np.float32(1e-30)
    by_one, by_all = f4(32767.0) / largest, (f4(1e6) - f4(columns)) / sums
    by = np.where(nothing, np.float32(0.0), np.where(by_all < by_one, by_all, by_one))
    codes = np.rint(np.nan_to_num(scaled * by, nan=0.0)).astype(np.int64)
    assert np.abs(codes).max() <= 32767
    results = codes @ v
    assert np.abs(results).max() < 2**31
    row_factors = row_factors * (np.where(nothing, np.float32(0.0), _ONE / by) + sums * np.float32(0.0))
    return f4(results) * row_factors


def words(x: Array, most: int) -> tuple[Array, Array]:
    """Return each row as codes up to ``most``, and its scale, which is no number where a value is not finite."""
    x = f4(x)
    other = (x * np.float32(0.0)).sum(-1)
    largest = np.abs(np.where(np.isnan(x), np.float32(0.0), x)).max(-1)
    nothing = largest < np.float32(1e-30)
    factor = np.where(nothing, np.float32(0.0), np.float32(most) / largest)
    scale = np.where(nothing, other, largest / np.float32(most) + other)
    codes = np.nan_to_num(np.rint(x * factor[..., None]), nan=0.0, posinf=0.0, neginf=0.0)
    return codes.astype(np.int64), scale


def _sums(a: Array, b: Array) -> Array:
    sums = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
    for k in range(a.shape[-1]):
        sums = fma(
            np.broadcast_to(a[..., :, k : k + 1], sums.shape), np.broadcast_to(b[..., k : k + 1, :], sums.shape), sums
        )
    return sums


def patches(x: Array, size: tuple[int, int], fields: dict[str, float], fill: float) -> tuple[Array, Array]:
    """Return what each result's window sees, ``(n, height, width, taps, channels)``, and which taps are inside."""
    n, _, _, channels = x.shape
    taps = [(ky, kx) for ky in range(int(fields["kernel_h"])) for kx in range(int(fields["kernel_w"]))]
    found = np.full((n, *size, len(taps), channels), fill, np.float32)
    inside = np.zeros((*size, len(taps)), bool)
    for y in range(size[0]):
        for x0 in range(size[1]):
            for number, (ky, kx) in enumerate(taps):
                row, column = (_source(place, tap, fields, of) for place, tap, of in ((y, ky, "h"), (x0, kx, "w")))
                if row is not None and column is not None and 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                    found[:, y, x0, number] = x[:, row, column]
                    inside[y, x0, number] = True
    return found, inside


def _source(place: int, tap: int, fields: dict[str, float], of: str) -> int | None:
    stride, pad, gap = (int(fields[f"{name}_{of}"]) for name in ("stride", "pad", "dilation"))
    if not fields.get("transposed"):
        return place * stride + tap * gap - pad
    at = place + pad - tap * gap
    return at // stride if at >= 0 and at % stride == 0 else None


def windows(
    x: Array, size: tuple[int, int, int], kind: Windows, fields: dict[str, float], weights: Array, biases: Array
) -> Array:
    """Return a convolution or pool of ``(n, height, width, channels)``; weights as the kernels have them."""
    fields = {**fields, "transposed": float(kind is Windows.TRANSPOSED)}
    seen, inside = patches(x, size[1:], fields, -np.inf if kind is Windows.MAXIMUM else 0.0)
    taps = seen.shape[3]
    if kind is Windows.MAXIMUM:
        return f4(seen.max(3))
    if kind in (Windows.DEPTHWISE, Windows.AVERAGE):
        sums = np.zeros(seen.shape[:3] + seen.shape[4:], np.float32)
        for tap in range(taps):
            each = seen[:, :, :, tap]
            use = inside[None, :, :, tap, None]
            more = (
                fma(each, np.broadcast_to(weights.reshape(taps, -1)[tap], each.shape), sums)
                if weights.size
                else (sums + each)
            )
            sums = np.where(use, more, sums)
        if kind is Windows.DEPTHWISE:
            return sums + biases
        scale = np.float32(fields.get("scale", 0.0))
        return f4(sums * scale if scale else sums / inside.sum(2)[None, :, :, None].astype(np.float32))
    groups = int(fields["runs"])
    inputs, outputs = x.shape[3] // groups, size[0] // groups
    found = []
    for group in range(groups):
        own = seen[..., group * inputs : (group + 1) * inputs].reshape(len(x), size[1] * size[2], taps * inputs)
        each = weights.reshape(groups, taps * inputs, outputs)[group]
        found.append(matmul(own, each[None], bias=biases[group * outputs : (group + 1) * outputs]))
    return np.concatenate(found, -1).reshape(len(x), size[1], size[2], size[0])
