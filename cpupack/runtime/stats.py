"""Figures from raw times: percentiles, rates of windows, intervals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}

Floats = npt.NDArray[np.float64]

# Two-sided 95 % quantiles of Student's t by degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


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
        """Return the samples done in a span; a call that straddles an edge counts by its share inside.

        Counting whole calls instead would make the rate jump by one call, which at large batches is most of a
        window.
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


def window_rates(calls: Calls, begin_s: float, end_s: float, windows: int) -> list[float]:
    """Return samples a second in each of ``windows`` equal parts of the span."""
    edges = np.linspace(begin_s, end_s, windows + 1)
    return [
        calls.samples_between(left, right) / (right - left) if right > left else 0.0 for left, right in pairwise(edges)
    ]


def interval_95(values: list[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of 2 to 10 values, by Student's t."""
    if not 2 <= len(values) <= len(_T95) + 1:
        raise ValueError(f"an interval needs 2 to {len(_T95) + 1} values, got {len(values)}")
    half = _T95[len(values) - 2] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    mean = float(np.mean(values))
    return mean - half, mean + half
