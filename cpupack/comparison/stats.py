"""Ratios of paired rounds. The machine's speed drifts, so engines are compared within each round, not by averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000
_LOW, _HIGH = 2.5, 97.5


@dataclass(frozen=True)
class Ratio:
    """The median of per-round ratios, its 95 % bootstrap interval, and the ratios. Above 1 means cpupack is better."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return the ratio of two engines measured in the same rounds, in the same order.

    The interval is the percentile bootstrap of the median (Efron and Tibshirani 1993, 13.3): rounds are resampled with
    a fixed seed. Raises ValueError for different lengths, for no rounds, and for values that are not positive.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError(f"{len(numerators)} and {len(denominators)} rounds cannot be paired")
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not (above.min() > 0.0 and below.min() > 0.0):
        raise ValueError("a round without a positive value has no ratio")
    ratios = above / below
    drawn = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    medians = np.median(ratios[drawn], axis=1)
    low, high = np.percentile(medians, [_LOW, _HIGH])
    return Ratio(float(np.median(ratios)), float(low), float(high), tuple(map(float, ratios)))
