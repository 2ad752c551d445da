"""Chooses the range that INT8 covers from an activation's statistics: one function for each observer.

Everything here is numpy on one histogram. Nothing depends on an engine. Each function returns ``(low, high)`` with
``low <= 0 <= high``, because zero (padding, ReLU) must be exactly representable.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from cpupack.stages.quantize.tails import lower_tail, upper_tail
from cpupack.statistics import ActivationStats

_AVERAGING_CONSTANT = 0.01
_CANDIDATES = 100
_FARTHEST = 2.0
"""The largest range that ``tail_mse`` may choose, as a multiple of the seen values."""
_COARSE, _FINE = 0.05, 0.01

Array = npt.NDArray[np.float64]


def choose_range(stats: ActivationStats, observer: str, levels: int, percentile: float = 99.99) -> tuple[float, float]:
    """Return the range to quantize to ``levels`` steps (256 for 8 bits, 128 for 7).

    Only the ``percentile`` observer uses ``percentile`` (50 to 100]. The range does not exceed the seen values, except
    with ``tail_mse``, which allows for values that calibration has not seen. The range is kept with the statistics.
    """
    key = observer, levels, percentile
    if key not in stats.chosen:
        stats.chosen[key] = _choose(stats, observer, levels, percentile)
    return stats.chosen[key]


def _choose(stats: ActivationStats, observer: str, levels: int, percentile: float) -> tuple[float, float]:
    if observer == "tail_mse":
        return least_mse_with_tails(stats, levels)
    match observer:
        case "minmax":
            low, high = stats.minimum, stats.maximum
        case "moving_average":
            low, high = moving_average(stats)
        case "histogram":
            low, high = least_l2_error(stats, levels)
        case "percentile":
            low, high = keep_percentile(stats, percentile)
        case "mse":
            low, high = least_mse(stats, levels)
        case "entropy":
            low, high = least_kl_divergence(stats, levels)
        case _:
            raise ValueError(f"unknown observer {observer!r}")
    return min(max(low, stats.minimum), 0.0), max(min(high, stats.maximum), 0.0)


def choose_ranges(
    stats: Mapping[str, ActivationStats], observer: str, levels: int, percentile: float = 99.99
) -> dict[str, tuple[float, float]]:
    """Return the range of every activation, by its name in ``CalibratedModel.stats``; see ``choose_range``."""
    return {name: choose_range(each, observer, levels, percentile) for name, each in stats.items()}


def moving_average(stats: ActivationStats) -> tuple[float, float]:
    """Average the batches' extremes exponentially, constant 0.01 (torch's MovingAverageMinMaxObserver)."""
    low, high = float(stats.batch_min[0]), float(stats.batch_max[0])
    for batch_low, batch_high in zip(stats.batch_min[1:], stats.batch_max[1:], strict=True):
        low += _AVERAGING_CONSTANT * (float(batch_low) - low)
        high += _AVERAGING_CONSTANT * (float(batch_high) - high)
    return low, high


def keep_percentile(stats: ActivationStats, percentile: float) -> tuple[float, float]:
    """Keep ``percentile`` percent of the values, and cut off half of the others at each end.

    A one-sided tensor (after a ReLU) is cut only at its far end, by the whole share.
    """
    edges, counts = stats.occupied()
    outside = 1.0 - percentile / 100.0
    cumulative = np.cumsum(counts) / counts.sum()
    share = outside if stats.minimum >= 0.0 or stats.maximum <= 0.0 else outside / 2.0
    low = stats.minimum if stats.minimum >= 0.0 else edges[int(np.searchsorted(cumulative, share, side="right"))]
    high = (
        stats.maximum
        if stats.maximum <= 0.0
        else edges[min(int(np.searchsorted(cumulative, 1.0 - share, side="left")) + 1, counts.size)]
    )
    return float(low), float(high)


def least_mse(stats: ActivationStats, levels: int) -> tuple[float, float]:
    """Return the range with the least expected squared error of rounding and clipping together.

    Searched as in "Loss Aware Post-training Quantization" and OMSE (Choukroun et al. 2019): the range shrinks towards
    zero in 1 % steps, first both ends together, then each end alone around the best.
    """
    low, high = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    edges, counts = stats.occupied()
    centers = np.clip((edges[:-1] + edges[1:]) / 2.0, stats.minimum, stats.maximum)
    shares = [number / _CANDIDATES for number in range(1, _CANDIDATES + 1)]

    def error(low: float, high: float) -> float:
        return quantization_mse(centers, counts, low, high, levels)

    best = min(shares, key=lambda share: error(low * share, high * share))
    best_low, best_high = low * best, high * best
    if low < 0.0:
        best_low = min((low * share for share in shares), key=lambda end: error(end, best_high))
    if high > 0.0:
        best_high = min((high * share for share in shares), key=lambda end: error(best_low, end))
    return best_low, best_high


def least_mse_with_tails(stats: ActivationStats, levels: int) -> tuple[float, float]:
    """Return the range with the least expected squared error on data that calibration has not seen.

    Like ``least_mse``, but beyond the threshold of each tail a fitted distribution replaces the few values seen there.
    So the range may end beyond them. Each end is searched in steps of 5 %, then of 1 % around the best.
    """
    low, high = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    edges, counts = stats.occupied()
    centers = np.clip((edges[:-1] + edges[1:]) / 2.0, stats.minimum, stats.maximum)
    below, above = lower_tail(stats), upper_tail(stats)
    total = float(counts.sum())

    def error(low: float, high: float) -> float:
        seen, tails = counts, 0.0
        if above is not None and high > above.threshold:
            seen = np.where(centers > above.threshold, 0.0, seen)
            tails += above.squared_excess(high)
        if below is not None and -low > below.threshold:
            seen = np.where(-centers > below.threshold, 0.0, seen)
            tails += below.squared_excess(-low)
        return (quantization_mse(centers, seen, low, high, levels) * float(seen.sum()) + tails) / total

    farthest = 1.0 if above is None and below is None else _FARTHEST
    both = _least(lambda share: error(low * share, high * share), farthest)
    best_low, best_high = low * both, high * both
    if low < 0.0 < high:
        best_low = low * _least(lambda share: error(low * share, best_high), 1.0 if below is None else _FARTHEST)
        best_high = high * _least(lambda share: error(best_low, high * share), 1.0 if above is None else _FARTHEST)
    return best_low, best_high


def _least(error: Callable[[float], float], farthest: float) -> float:
    """Return the multiple of the seen range with the least error, up to ``farthest``."""
    coarse = min(np.linspace(farthest, _COARSE, round(farthest / _COARSE)), key=error)
    fine = np.minimum(coarse + np.arange(_FINE - _COARSE, _COARSE, _FINE), farthest)
    return float(min(fine, key=error))


def quantization_mse(values: Array, weights: Array, low: float, high: float, levels: int) -> float:
    """Return the weighted mean squared error of affine quantization to ``[low, high]`` in ``levels`` steps."""
    scale = max(high - low, float(np.finfo(np.float32).tiny)) / (levels - 1)
    zero_point = np.clip(np.round(-low / scale), 0, levels - 1)
    steps = np.clip(np.round(values / scale) + zero_point, 0, levels - 1)
    error = (steps - zero_point) * scale - values
    return float((weights * error**2).sum() / max(weights.sum(), 1.0))


def least_l2_error(stats: ActivationStats, levels: int) -> tuple[float, float]:
    """Narrow the range quantile by quantile while the L2 error falls: torch's HistogramObserver on exact bins.

    torch/ao/quantization/observer.py, ``HistogramObserver._non_linear_param_search``: each step drops 1e-5 of the
    values at the end where that skips more bins. The search stops when the error grows.
    """
    edges, counts = stats.occupied()
    total = float(counts.sum())
    cumulative = np.cumsum(counts).tolist()
    alpha, beta, step = 0.0, 1.0, 1e-5
    first, last = 0, counts.size - 1
    least = np.inf
    while alpha < beta:
        next_alpha, next_beta = alpha + step, beta - step
        left = min(bisect_left(cumulative, next_alpha * total, first), last)
        right = max(bisect_right(cumulative, next_beta * total, 0, last + 1) - 1, first)
        next_first, next_last = first, last
        if left - first > last - right:
            next_first, alpha = left, next_alpha
        else:
            next_last, beta = right, next_beta
        if (next_first, next_last) == (first, last):
            continue
        error = _l2_error(counts, next_first, next_last, levels)
        if error > least:
            break
        least, first, last = error, next_first, next_last
    return float(edges[first]), float(edges[last + 1])


def _l2_error(counts: Array, first: int, last: int, levels: int) -> float:
    """Return the L2 error, in bin widths, of quantizing the histogram to bins ``first..last``.

    Same integral as torch's ``_compute_quantization_error``: values are spread evenly over their bin, each goes to the
    centre of its destination step, and steps outside go to the nearest one inside.
    """
    step = (last - first + 1) / levels
    begin = np.arange(counts.size) - first
    end = begin + 1.0
    begin_step = np.clip(np.floor(begin / step), 0, levels - 1)
    end_step = np.clip(np.floor(end / step), 0, levels - 1)
    begin_center = (begin_step + 0.5) * step
    end_center = (end_step + 0.5) * step
    half_cubed = (step / 2.0) ** 3
    error = (
        (half_cubed - (begin - begin_center) ** 3)
        + (end_step - begin_step - 1.0) * 2.0 * half_cubed
        + ((end - end_center) ** 3 + half_cubed)
    ) / 3.0
    return float((counts * error).sum())


def least_kl_divergence(stats: ActivationStats, levels: int) -> tuple[float, float]:
    """Return the range whose quantized distribution diverges least from the original (Kullback-Leibler).

    Migacz, "8-bit Inference with TensorRT" (GTC 2017): for each candidate threshold the reference P is the histogram
    with the outliers added to its last bin, Q is the same bins merged to ``levels`` steps and spread back over the
    non-empty ones; the threshold with the least KL(P || Q) wins. The threshold is one of magnitude: it cuts an end only
    if that end reaches beyond it. The bin at zero counts like its neighbour (as in NVIDIA's
    pytorch-quantization): a ReLU piles half of all values there, zero is exact under every threshold, and spreading
    that pile over a step would make every wide threshold look bad.
    """
    edges, counts = stats.occupied()
    low, high = min(stats.minimum, 0.0), max(stats.maximum, 0.0)
    if counts.size <= levels:
        return low, high
    farthest = max(-low, high)
    best, least = farthest, np.inf
    zero = round(-edges[0] / stats.bin_width)
    if 0 <= zero < counts.size - 1:
        counts[zero] = counts[zero + 1]
    for threshold in np.linspace(levels / counts.size, 1.0, 2 * _CANDIDATES) * farthest:
        first = max(int(np.floor(zero - threshold / stats.bin_width)), 0)
        last = min(int(np.ceil(zero + threshold / stats.bin_width)), counts.size)
        if last - first < levels:
            continue
        divergence = kl_divergence(counts, first, last, levels)
        if divergence < least:
            least, best = divergence, float(threshold)
    return max(low, -best), min(high, best)


def kl_divergence(counts: Array, first: int, last: int, levels: int) -> float:
    """Return KL(P || Q) of keeping bins ``first`` to ``last`` (exclusive) and merging them to ``levels`` steps."""
    inside = counts[first:last]
    reference = inside.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    step = np.minimum(np.arange(inside.size) * levels // inside.size, levels - 1)
    occupied = inside > 0
    per_step = np.bincount(step, weights=inside, minlength=levels)
    occupied_per_step = np.bincount(step, weights=occupied, minlength=levels)
    spread = per_step / np.maximum(occupied_per_step, 1.0)
    quantized = np.where(occupied, spread[step], 0.0)
    reference /= reference.sum()
    if quantized.sum() == 0.0:
        return np.inf
    quantized /= quantized.sum()
    # Outliers may fall into a bin that was empty. A small floor makes the divergence large but finite.
    positive = reference > 0
    floor = 1e-12
    ratio = reference[positive] / np.maximum(quantized[positive], floor)
    return float((reference[positive] * np.log(ratio)).sum())
