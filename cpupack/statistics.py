"""The statistics that calibration keeps of each activation: a histogram, and the extremes of batches and samples.

Ranges are chosen from these later (``stages/quantize/ranges.py``), so one pass over the data serves every engine and
every observer.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

HALF_BINS = 4096
"""Bins on each side of zero. The range is the next power of two, so at least half the bins of one side are in use."""

_LARGEST = 2.0**126
_LEAST_EXPONENT = -112  # bins of 2**-124, whose reciprocal float32 can still hold; smaller values count as zero
_CHUNK = 2**17  # values that are counted at once: with their bins they fit into the cache of one core


@dataclass(frozen=True)
class ActivationStats:
    """One tensor's values over the whole calibration set.

    ``batch_min`` and ``batch_max`` are float32, one per batch, in order. ``counts`` is int64 ``(2 * HALF_BINS,)``: bin
    i holds the values in ``[(i - HALF_BINS) * bin_width, (i + 1 - HALF_BINS) * bin_width)``; zero is always an edge.
    ``bin_width`` is a power of two.
    ``channel_min`` and ``channel_max`` are float32 ``(channels,)`` of a layer with weights, None for anything else.
    ``sample_min`` and ``sample_max`` are float32, one per sample (per slice of the first dimension), in order.
    ``chosen`` keeps the ranges that were chosen from these statistics, by observer and number of steps.
    ``infinite`` says that some values are not here, because they were not finite (or beyond 8e37).
    """

    batch_min: npt.NDArray[np.float32]
    batch_max: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    bin_width: float
    channel_min: npt.NDArray[np.float32] | None = None
    channel_max: npt.NDArray[np.float32] | None = None
    sample_min: npt.NDArray[np.float32] | None = None
    sample_max: npt.NDArray[np.float32] | None = None
    chosen: dict[tuple[str, int, float], tuple[float, float]] = field(default_factory=dict, compare=False, repr=False)
    infinite: bool = False

    @property
    def minimum(self) -> float:
        return float(self.batch_min.min())

    @property
    def maximum(self) -> float:
        return float(self.batch_max.max())

    def occupied(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the edges ``(n + 1,)`` and the counts ``(n,)`` from the first to the last bin that holds a value."""
        used = np.flatnonzero(self.counts)
        first, last = (int(used[0]), int(used[-1])) if used.size else (HALF_BINS, HALF_BINS)
        edges = (np.arange(first, last + 2, dtype=np.float64) - HALF_BINS) * self.bin_width
        return edges, self.counts[first : last + 1].astype(np.float64)


def countable(values: torch.Tensor) -> torch.Tensor:
    """Return values with zeros for those that statistics cannot count: NaN, infinity and anything beyond 8e37."""
    return torch.where(values.abs() < _LARGEST, values, 0.0)


class StatsCollector:
    """Accumulates ``ActivationStats`` part by part. Several threads may add parts at once.

    The width of a bin is the least power of two with which all values fit. Dividing by it is exact, and widening merges
    pairs of bins. So every value is counted exactly, and the result does not depend on the order of the parts, on their
    sizes or on the number of threads.
    """

    def __init__(self, channel_axis: int | None = None) -> None:
        """``channel_axis`` is the dimension of the channels. None collects no extremes of channels."""
        self._channel_axis = channel_axis
        self._channels: _Extremes | None = None
        # Lists, because a small tensor that stays keeps the memory around it from being used again for large ones.
        self._samples: dict[tuple[int, int, int], tuple[list[float], list[float]]] = {}
        self._calls: Counter[tuple[int, int]] = Counter()
        self._counts = np.zeros(2 * HALF_BINS, dtype=np.int64)
        self._exponent = _LEAST_EXPONENT  # all values are within plus or minus 2 ** exponent
        self._lock = threading.Lock()

    def add(self, values: torch.Tensor, batch: int | None = None, part: int = 0) -> bool:
        """Add a float tensor of any shape; return whether its values can be counted (if not, it is not added).

        ``part`` is its number in the batch of this number; without a number it is a batch of its own, after the others.
        NaN, infinity and anything beyond 8e37 cannot be counted: no INT8 range covers them and ordinary values.
        """
        values = values.detach().to(torch.float32)
        channels, samples = _extremes(values, self._channel_axis)
        low, high = float(samples[0].min()), float(samples[1].max())
        largest = max(-low, high)
        if not (math.isfinite(low) and math.isfinite(high) and largest < _LARGEST):
            return False
        exponent = max(math.frexp(largest)[1], _LEAST_EXPONENT) if largest else _LEAST_EXPONENT
        with self._lock:
            exponent = max(exponent, self._exponent)  # saves merging bins later
        counts = _count(_flat(values), exponent)
        with self._lock:
            batch = len(self._calls) if batch is None else batch
            self._samples[batch, self._calls[batch, part], part] = samples[0].tolist(), samples[1].tolist()
            self._calls[batch, part] += 1
            if channels is not None:
                self._add_channels(channels)
            if exponent > self._exponent:
                self._counts[:] = _widened(self._counts, exponent - self._exponent)
            self._counts += _widened(counts, self._exponent - exponent)
            self._exponent = max(exponent, self._exponent)
        return True

    def _add_channels(self, extremes: _Extremes) -> None:
        if self._channels is None:
            self._channels = extremes
        else:
            torch.minimum(self._channels[0], extremes[0], out=self._channels[0])
            torch.maximum(self._channels[1], extremes[1], out=self._channels[1])

    def finish(self) -> ActivationStats:
        """Return the statistics of all values that were added."""
        batches: dict[tuple[int, int], tuple[float, float]] = {}
        for (batch, call, _), (low, high) in sorted(self._samples.items(), key=lambda item: item[0]):
            known = batches.get((batch, call), (math.inf, -math.inf))
            batches[batch, call] = min(known[0], *low), max(known[1], *high)
        samples = [self._samples[key] for key in sorted(self._samples)]
        channel_min, channel_max = (None, None) if self._channels is None else (each.numpy() for each in self._channels)
        return ActivationStats(
            np.asarray([low for low, _ in batches.values()], dtype=np.float32),
            np.asarray([high for _, high in batches.values()], dtype=np.float32),
            self._counts.copy(),
            2.0**self._exponent / HALF_BINS if any(low or high for low, high in batches.values()) else 1.0 / HALF_BINS,
            channel_min,
            channel_max,
            np.asarray([value for low, _ in samples for value in low], dtype=np.float32),
            np.asarray([value for _, high in samples for value in high], dtype=np.float32),
        )


_Extremes = tuple[torch.Tensor, torch.Tensor]


def _extremes(values: torch.Tensor, channel_axis: int | None) -> tuple[_Extremes | None, _Extremes]:
    """Return minima and maxima of each channel (None without an axis) and of each slice of the first dimension.

    torch.aminmax along a dimension would be ten times slower than amin and amax.
    """
    if channel_axis is not None and values.ndim > 1 and channel_axis % values.ndim:
        others = [axis for axis in range(1, values.ndim) if axis != channel_axis % values.ndim]
        low, high = (values.amin(dim=others), values.amax(dim=others)) if others else (values, values)
        return (low.amin(dim=0), high.amax(dim=0)), (low.amin(dim=1), high.amax(dim=1))
    rows = _flat(values).view(len(values) if values.ndim else 1, -1)
    samples = rows.amin(dim=1), rows.amax(dim=1)
    return (None if channel_axis is None else samples), samples


def _count(values: torch.Tensor, exponent: int) -> npt.NDArray[np.int64]:
    """Return how many of the float32 ``values``, all within plus or minus ``2 ** exponent``, are in each bin."""
    total = torch.zeros(2 * HALF_BINS, dtype=torch.int64)
    for chunk in values.split(_CHUNK):
        # Every step is exact: a power of two, then whole numbers below 2**24.
        bins = torch.mul(chunk, 2.0**-exponent * HALF_BINS).floor_().add_(HALF_BINS)
        total += torch.bincount(bins.to(torch.int32), minlength=2 * HALF_BINS)
    return total.numpy()


def _widened(counts: npt.NDArray[np.int64], doublings: int) -> npt.NDArray[np.int64]:
    """Double the bin width that often. Pairs of bins, counted outwards from zero, become one, so zero stays an edge."""
    for _ in range(min(doublings, HALF_BINS.bit_length())):
        merged = np.zeros_like(counts)
        half = HALF_BINS // 2
        merged[half:HALF_BINS] = counts[:HALF_BINS].reshape(half, 2).sum(axis=1)
        merged[HALF_BINS : HALF_BINS + half] = counts[HALF_BINS:].reshape(half, 2).sum(axis=1)
        counts = merged
    return counts


def _flat(values: torch.Tensor) -> torch.Tensor:
    """Return all values as float32 in one dimension, in memory order.

    Copying a channels_last tensor to contiguous order takes longer than counting it, and torch.aminmax is far slower on
    its strides.
    """
    values = values.detach().to(torch.float32)
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(-1)
