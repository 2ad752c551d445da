"""What the engine's layers in FP32 compute, in numpy: the same float32 operations, rounded as the kernels round.

Sums over a row have 32 sums side by side, and those are added in halves. Products of matrices are chains of fused
multiply-adds.
"""

from __future__ import annotations

import math

import numpy as np

from cpupack.stages.quantize.native.walks import Norm, Reduction, Windows
from helpers.float_values import Array, chain, exp, f4, fma, log

LANES = 32
_ONE = np.float32(1.0)


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
    if kind is Norm.RUNNING_PRODUCT:
        return f4(np.cumprod(x, -1, dtype=np.float64))
    if kind in (Norm.RUNNING_MAXIMUM, Norm.RUNNING_MINIMUM):  # both keep what is no number
        return (np.maximum if kind is Norm.RUNNING_MAXIMUM else np.minimum).accumulate(x, -1)
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
