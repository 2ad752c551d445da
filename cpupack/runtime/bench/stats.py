"""Computes figures from raw times: percentiles, histograms, rates of windows, intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..accuracy import Interval
from .results import Histogram

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}
CURVE = (0, 1, 5, 10, 25, 50, 75, 80, 85, 90, 92.5, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 100)
"""The percentiles of the curve, denser towards the tail as in HdrHistogram's plots."""
INTERVAL_STATISTICS = ("mean", "p50", "p90", "p95", "p99")

BETWEEN_RUNS = 0.03
"""Relative standard deviation between runs that no single run can see, such as the effect of where memory lies.

Measured with benchmarks/repeatability.py; docs/explanation/bench-figures.md has the numbers.
"""

Floats = npt.NDArray[np.float64]

# Two-sided 95 % quantiles of Student's t by degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip
_NORMAL95 = 1.960
_BLOCKS, _LEAST_IN_BLOCK = 30, 4
_RESAMPLES = 300
_BINS = 48


@dataclass(frozen=True)
class Calls:
    """Every call of a measurement, in order of completion: start and end in seconds, and its instance."""

    start_s: Floats
    end_s: Floats
    instance: npt.NDArray[np.int64]
    batch_size: int

    def __len__(self) -> int:
        return len(self.start_s)

    @property
    def latency_ms(self) -> Floats:
        return (self.end_s - self.start_s) * 1000.0

    def samples_between(self, begin_s: float, end_s: float) -> float:
        """Return the samples done in a span; a call across an edge counts by its share inside.

        If whole calls counted, the rate would jump by one call, which is most of a window when batches are large.
        """
        inside = np.clip(np.minimum(self.end_s, end_s) - np.maximum(self.start_s, begin_s), 0.0, None)
        took = np.maximum(self.end_s - self.start_s, np.finfo(np.float64).tiny)
        return float(np.sum(inside / took) * self.batch_size)


def latency_summary(latency_ms: Floats) -> dict[str, float]:
    """Return mean, p50, p90, p95, p99, p99_9, min, max in ms, by ``numpy.percentile`` of raw values."""
    values = np.percentile(latency_ms, list(PERCENTILES.values()))
    summary = {"mean": float(np.mean(latency_ms))}
    summary |= {name: float(value) for name, value in zip(PERCENTILES, values, strict=True)}
    return summary | {"min": float(np.min(latency_ms)), "max": float(np.max(latency_ms))}


def percentile_curve(latency_ms: Floats) -> tuple[tuple[float, float], ...]:
    """Return (percentile, ms) pairs of the raw values, from the smallest to the largest."""
    return tuple((float(p), float(ms)) for p, ms in zip(CURVE, np.percentile(latency_ms, CURVE), strict=True))


def latency_histogram(latency_ms: Floats) -> Histogram:
    """Return a histogram whose edges have equal ratios, so that it shows the body and the tail alike.

    The first edge is the smallest value and the last edge the largest. Equal values share one bin, a thousandth wide.
    """
    low, high = max(float(np.min(latency_ms)), 1e-6), float(np.max(latency_ms))
    edges = np.geomspace(low, high, _BINS + 1) if high > low * 1.001 else np.array([low, low * 1.001])
    edges[0], edges[-1] = min(edges[0], float(np.min(latency_ms))), max(edges[-1], high)  # geomspace rounds
    counts, _ = np.histogram(latency_ms, edges)
    return Histogram(tuple(float(edge) for edge in edges), tuple(int(count) for count in counts))


def window_rates(calls: Calls, begin_s: float, end_s: float, windows: int) -> list[float]:
    """Return samples a second in each of ``windows`` equal parts of the span."""
    edges = np.linspace(begin_s, end_s, windows + 1)
    return [
        calls.samples_between(left, right) / (right - left) if right > left else 0.0 for left, right in pairwise(edges)
    ]


def window_values(values: Floats, name: str, windows: int) -> list[float]:
    """Return the mean, or the percentile ``name``, of each of ``windows`` parts with equally many values."""
    parts = [part for part in np.array_split(values, windows) if len(part)]
    if name == "mean":
        return [float(np.mean(part)) for part in parts]
    return [float(np.percentile(part, PERCENTILES[name])) for part in parts]


def interval_95(values: Sequence[float]) -> Interval:
    """Return the 95 % confidence interval of the mean of 2 to 30 rates, by Student's t. None is below 0."""
    mean = float(np.mean(values))
    half = _t95(len(values)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return max(mean - half, 0.0), mean + half


def repeat_interval_95(figure: float, windows: Sequence[float]) -> Interval:
    """Return where a second run's ``figure`` falls 19 times in 20, on the same host in the same state.

    This is a prediction interval, not a confidence interval: the second run varies as the first one did. Its half width
    is t * s * sqrt(2 / n) for n ``windows`` of standard deviation s (Hahn and Meeker, Statistical Intervals, 4.7), and
    ``BETWEEN_RUNS`` is added in quadrature. The lower end is never below 0.
    """
    if len(windows) < 2:
        return 0.0, math.inf
    within = _t95(len(windows)) * float(np.std(windows, ddof=1)) * (2.0 / len(windows)) ** 0.5
    between = _NORMAL95 * 2.0**0.5 * BETWEEN_RUNS * figure
    half = math.hypot(within, between)
    return max(figure - half, 0.0), figure + half


def bootstrap_95(values: Floats, names: Sequence[str] = INTERVAL_STATISTICS) -> dict[str, Interval]:
    """Return the 95 % confidence interval of each statistic of a series in time order, "mean" or a percentile.

    Neighbouring latencies depend on each other, above all in a queue, so whole blocks are drawn (block bootstrap
    without overlap, Kuensch 1989). There are at most 30 blocks, and each is much longer than the dependence. The spread
    is widened by Student's t for that number of blocks. The draws have a fixed seed, so results repeat.
    """
    blocks = min(_BLOCKS, len(values) // _LEAST_IN_BLOCK)
    if blocks < 2:
        return {name: (float(np.min(values)), float(np.max(values))) for name in names}
    sums = np.array([np.sum(part) for part in np.array_split(values, blocks)])
    sizes = np.array([len(part) for part in np.array_split(values, blocks)])
    order = np.argsort(values, kind="stable")
    ordered, block_of = values[order], np.repeat(np.arange(blocks), sizes)[order]
    shares = np.array([PERCENTILES[name] / 100.0 for name in names if name != "mean"])
    draws = np.random.default_rng(0).multinomial(blocks, np.full(blocks, 1.0 / blocks), _RESAMPLES)
    found = np.empty((_RESAMPLES, len(names)))
    columns = [column for column, name in enumerate(names) if name != "mean"]
    for row, weights in enumerate(draws):
        if "mean" in names:
            found[row, list(names).index("mean")] = float(weights @ sums) / float(weights @ sizes)
        # The values are sorted once; the weights, in that order, give the percentile of the drawn blocks.
        running = np.cumsum(weights[block_of])
        found[row, columns] = ordered[np.searchsorted(running, shares * running[-1])]
    figures = latency_summary(values)
    wider = _t95(blocks) / _NORMAL95 * (blocks / (blocks - 1)) ** 0.5
    low, high = np.percentile(found, (2.5, 97.5), axis=0)
    return {
        name: (
            figures[name] - wider * max(figures[name] - low[i], 0),
            figures[name] + wider * max(high[i] - figures[name], 0),
        )
        for i, name in enumerate(names)
    }


def _t95(values: int) -> float:
    if not 2 <= values <= len(_T95) + 1:
        raise ValueError(f"an interval needs 2 to {len(_T95) + 1} values, got {values}")
    return _T95[values - 2]
