"""Tails: estimates how far values will go on new data, beyond a few hundred calibration samples.

The deeper a layer, the fewer values it has for a sample, and the more its largest values depend on what the image
shows. The largest value on 2000 new images may be 1.5 times that on 500. Clipping it costs more than all the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpupack.statistics import ActivationStats

_SAMPLES_IN_TAIL = 0.2
_VALUES_IN_TAIL = 1000
_LEAST_SAMPLES_IN_TAIL = 2
"""The tail begins higher up where more values exceed the threshold, as long as so many samples still reach it.

A tail of 50,000 values, most of them far from the largest, says little about the largest: the shape that fits the whole
of it promised 2,000 values beyond the end of all that was seen.
"""
_LEAST_SHAPE, _GREATEST_SHAPE = 0.1, 0.25
"""Bounds of the shape. A few hundred samples hardly determine it, and cannot prove that a tail ends soon."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tail:
    """``count`` values beyond ``threshold``. Their excess is generalized Pareto with ``shape`` and ``scale``."""

    threshold: float
    count: float
    shape: float
    scale: float

    def squared_excess(self, end: float) -> float:
        """Return the expected sum of ``(value - end)^2`` over the values beyond ``end``, which is in the tail.

        The excess over a higher threshold is generalized Pareto again, with the same shape (Pickands 1975).
        """
        scale = self.scale + self.shape * (end - self.threshold)
        survival = (scale / self.scale) ** (-1.0 / self.shape)
        return float(self.count * survival * 2.0 * scale**2 / ((1.0 - self.shape) * (1.0 - 2.0 * self.shape)))


def upper_tail(stats: ActivationStats) -> Tail | None:
    """Fit the tail of the positive values. Return None without such values.

    Peaks over threshold (Balkema and de Haan 1974, Pickands 1975): for any distribution, the excess over a high
    threshold is nearly generalized Pareto. A fifth of the samples exceed the threshold, fewer where these have many
    values beyond it. Shape and scale are computed from the mean and variance of the excess (Hosking and Wallis 1987,
    method of moments).
    """
    edges, counts = stats.occupied()
    return _fit(
        (edges[:-1] + edges[1:]) / 2.0, counts, stats.batch_max if stats.sample_max is None else stats.sample_max
    )


def lower_tail(stats: ActivationStats) -> Tail | None:
    """Fit the tail of the negated negative values; see ``upper_tail``."""
    edges, counts = stats.occupied()
    ends = stats.batch_min if stats.sample_min is None else stats.sample_min
    return _fit(-(edges[:-1] + edges[1:]) / 2.0, counts, -ends)


def _fit(centers: Array, counts: Array, ends: npt.NDArray[np.float32]) -> Tail | None:
    threshold = _threshold(centers, counts, ends)
    beyond = centers > threshold
    count = float(counts[beyond].sum())
    if threshold <= 0.0 or count < 2.0:
        return None
    excess = centers[beyond] - threshold
    mean = float((counts[beyond] * excess).sum()) / count
    variance = float((counts[beyond] * (excess - mean) ** 2).sum()) / count
    if variance <= 0.0:
        return None
    shape = float(np.clip((1.0 - mean**2 / variance) / 2.0, _LEAST_SHAPE, _GREATEST_SHAPE))
    return Tail(threshold, count, shape, mean * (1.0 - shape))


def _threshold(centers: Array, counts: Array, ends: npt.NDArray[np.float32]) -> float:
    """Return where the tail begins. ``centers`` go up or down, ``ends`` are the largest values of the samples."""
    reached = float(np.quantile(ends, 1.0 - _SAMPLES_IN_TAIL))
    order = np.argsort(centers)[::-1]
    bins = int((np.cumsum(counts[order]) <= _VALUES_IN_TAIL).sum())
    if ends.size <= _LEAST_SAMPLES_IN_TAIL or not 0 < bins < centers.size:
        return reached
    by_values = float(centers[order][bins - 1 : bins + 1].mean())  # the edge between the two bins
    by_samples = float(np.sort(ends)[-_LEAST_SAMPLES_IN_TAIL - 1])
    return max(reached, min(by_values, by_samples))
