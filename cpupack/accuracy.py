"""Functions on arrays: how close INT8 outputs are to FP32 outputs, how often each is right, and how certain that is.

Intervals are two-sided 95 % confidence intervals over the choice of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.runtime.accuracy import agreement, parts, sqnr_db

__all__ = [
    "agreement",
    "bootstrap_interval",
    "cosine",
    "dot",
    "has_classes",
    "hits",
    "likenesses",
    "median_interval",
    "paired_interval",
    "samples_needed",
    "sqnr_db",
    "sqnr_interval_db",
    "top_k",
    "wilson_interval",
]

FloatArray = npt.NDArray[np.float32]
Interval = tuple[float, float]
"""Lower and upper end of an interval."""

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
_BISECTIONS = 100
_MOST_SAMPLES = 10**9
_RESAMPLES = 1000
_MOST_UNDEFINED = 0.5
"""The share of draws without a measure up to which an interval says something."""
_FEWEST_ROUNDS = 6


def cosine(reference: FloatArray, actual: FloatArray) -> float:
    """Return the cosine of the angle between the two outputs, all samples as one vector."""
    both = left = right = 0.0
    for some in parts(reference):
        a, b = reference[some].astype(np.float64).ravel(), actual[some].astype(np.float64).ravel()
        both, left, right = both + dot(a, b), left + dot(a, a), right + dot(b, b)
    norm = math.sqrt(left * right)
    return both / norm if norm > 0.0 else float(np.array_equal(reference, actual))


def dot(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return the inner product of two vectors, the same for any number of threads.

    BLAS (``one @ other``) splits long vectors among its threads, and a locked wheel holds every bit of the result.
    """
    return float((one * other).sum())


def likenesses(some: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosine of each unit row with each other one, without the digits that depend on the number of threads.

    So equal rows are equally near, whoever adds up.
    """
    return np.round(some @ others.T, 9)


def has_classes(output_shape: Sequence[int]) -> bool:
    """Whether outputs of this shape (without the batch) choose one of several classes: ``(classes,)``."""
    return len(output_shape) == 1 and output_shape[0] > 1


def hits(outputs: FloatArray, labels: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.bool_]:
    """Return for each sample ``(n, classes)`` whether its label ``(n,)`` is among the ``k`` largest outputs."""
    chosen = np.argpartition(-outputs, min(k, outputs.shape[1]) - 1, axis=1)[:, :k]
    found: npt.NDArray[np.bool_] = (chosen == labels[:, None]).any(axis=1)
    return found


def top_k(outputs: FloatArray, labels: npt.NDArray[np.int64], k: int) -> float:
    """Return the share of samples ``(n, classes)`` whose label ``(n,)`` is among the ``k`` largest outputs."""
    return float(np.mean(hits(outputs, labels, k)))


def wilson_interval(successes: float, count: float) -> Interval:
    """Return the score interval of a proportion: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212."""
    share, weight = successes / count, _Z**2 / count
    center = (share + weight / 2.0) / (1.0 + weight)
    half = math.sqrt(share * (1.0 - share) * weight + weight**2 / 4.0) / (1.0 + weight)
    # The ends are set exactly: after rounding, a proportion of 0 or 1 would lie a little outside its own interval.
    return (0.0 if successes == 0 else center - half), (1.0 if successes == count else center + half)


def paired_interval(lost: float, won: float, count: float) -> Interval:
    """Return the score interval of ``(lost - won) / count``, the drop between two models on the same samples.

    Only the first model is right on ``lost`` samples, only the second on ``won`` samples. The interval holds each
    difference d that the score test does not reject, with the nuisance proportion at its maximum likelihood under d
    (Tango 1998, Statistics in Medicine 17, 891-908). It keeps its level for few samples and for equal models.
    """
    drop = (lost - won) / count

    def rejected_by(d: float) -> float:
        linear = -lost - won + (2.0 * count - lost + won) * d
        root = math.sqrt(max(linear**2 + 8.0 * count * won * d * (1.0 - d), 0.0))
        only_second = (root - linear) / (4.0 * count)
        variance = count * (2.0 * only_second + d * (1.0 - d))
        return (lost - won - count * d) ** 2 - _Z**2 * variance

    return _crossing(rejected_by, drop, -1.0), _crossing(rejected_by, drop, 1.0)


def _crossing(rejected_by: Callable[[float], float], inside: float, outside: float) -> float:
    """Return where a function turns positive between ``inside`` and ``outside``, by bisection."""
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2.0
        if rejected_by(middle) > 0.0:
            outside = middle
        else:
            inside = middle
    return (inside + outside) / 2.0


def sqnr_interval_db(reference: npt.NDArray[Any], actual: npt.NDArray[Any]) -> Interval | None:
    """Return the interval of ``sqnr_db`` over samples (axis 0); None for fewer than two samples or a zero signal.

    Noise divided by signal is a ratio of two means over samples. Its variance is that of the ratio estimator (Cochran,
    Sampling Techniques, 3rd edition, 6.4), converted to decibels by the delta method.
    """
    count = len(reference)
    signal, noise = np.empty(count), np.empty(count)
    for some in parts(reference):
        exact = reference[some].astype(np.float64)
        exact = exact.reshape(len(exact), -1)
        signal[some] = np.square(exact).sum(axis=1)
        noise[some] = np.square(exact - actual[some].reshape(exact.shape)).sum(axis=1)
    if noise.sum() == 0.0:
        return math.inf, math.inf
    if count < 2 or not (0.0 < signal.sum() < math.inf and noise.sum() < math.inf):
        return None
    ratio = noise.sum() / signal.sum()
    residual = noise - ratio * signal
    deviation = math.sqrt(float(np.square(residual).sum()) / (count * (count - 1.0))) / float(signal.mean())
    half = _Z * 10.0 / math.log(10.0) * deviation / float(ratio)
    measured = -10.0 * math.log10(ratio)
    return measured - half, measured + half


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return least and largest of independent measurements as the interval of their median, None for fewer than six.

    The true median lies outside with probability 2 / 2^n for any distribution (the sign test): 3 % for six.
    """
    return (min(values), max(values)) if len(values) >= _FEWEST_ROUNDS else None


def bootstrap_interval(measure: Callable[[npt.NDArray[np.int64]], float], count: int) -> Interval:
    """Return the percentile bootstrap of a number measured on rows ``(count,)`` of samples, drawn with a fixed seed.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, 13.3. Draws whose measure is NaN are left out. Raises
    ValueError where more than half of them are.
    """
    random = np.random.default_rng(0)
    drawn = np.array([measure(random.integers(0, count, count)) for _ in range(_RESAMPLES)])
    if np.isnan(drawn).mean() > _MOST_UNDEFINED:
        raise ValueError(f"it cannot be measured on most draws of {count} samples")
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def samples_needed(shown_with: Callable[[int], bool], count: int) -> int | None:
    """Return the least number above ``count`` for which ``shown_with`` holds, None if no number up to 10^9 does."""
    below, above = count, count * 2
    while not shown_with(above):
        below, above = above, above * 2
        if above > _MOST_SAMPLES:
            return None
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if shown_with(middle) else (middle, above)
    return above
