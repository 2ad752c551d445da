"""The statistics that calibration keeps of each activation: a histogram, and the extremes of batches and samples.

Ranges are chosen from these later (``stages/quantize/ranges.py``), so one pass over the data serves every engine and
every observer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

HALF_BINS = 4096
"""Bins on each side of zero. The range doubles when a value is outside, so at least half of the bins are in use."""

_EXACT_FLOAT32_COUNT = 2**24  # torch.histc counts in the tensor's dtype, and float32 cannot count further than this
_LARGEST = 2.0**126  # torch.histc takes the span of its range in float32, and the range is at most twice the values'


@dataclass(frozen=True)
class ActivationStats:
    """One tensor's values over the whole calibration set.

    ``batch_min`` and ``batch_max`` are float32, one per batch, in order. ``counts`` is int64 ``(2 * HALF_BINS,)``: bin
    i holds the values in ``[(i - HALF_BINS) * bin_width, (i + 1 - HALF_BINS) * bin_width)``; zero is always an edge.
    ``channel_min`` and ``channel_max`` are float32 ``(channels,)`` of a layer with weights, None for anything else.
    ``sample_min`` and ``sample_max`` are float32, one per sample (per slice of the first dimension), in order.
    """

    batch_min: npt.NDArray[np.float32]
    batch_max: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    bin_width: float
    channel_min: npt.NDArray[np.float32] | None = None
    channel_max: npt.NDArray[np.float32] | None = None
    sample_min: npt.NDArray[np.float32] | None = None
    sample_max: npt.NDArray[np.float32] | None = None

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


class StatsCollector:
    """Accumulates ``ActivationStats`` batch by batch.

    Bins start at zero and have a power-of-two multiple of the first batch's width, so that widening the range merges
    pairs of bins exactly; nothing is ever interpolated (torch's HistogramObserver does interpolate).
    """

    def __init__(self, channel_axis: int | None = None) -> None:
        """``channel_axis`` is the dimension of the channels. None collects no extremes of channels."""
        self._channel_axis = channel_axis
        self._channels: tuple[torch.Tensor, torch.Tensor] | None = None
        self._batch_min: list[float] = []
        self._batch_max: list[float] = []
        self._samples: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._counts = np.zeros(2 * HALF_BINS, dtype=np.int64)
        self._width = 0.0
        self._zeros_before_width = 0

    def add(self, values: torch.Tensor) -> bool:
        """Add a float tensor of any shape; return whether its values can be counted (if not, it is not added).

        NaN, infinity and anything beyond 8e37 cannot be counted: no INT8 range covers them and ordinary values.
        """
        channels = None if self._channel_axis is None else _channel_extremes(values, self._channel_axis)
        count = len(values) if values.ndim else 1
        values = _flat(values)
        rows = values.view(count, -1)
        samples = rows.amin(dim=1), rows.amax(dim=1)
        low, high = float(samples[0].amin()), float(samples[1].amax())
        largest = max(-low, high)
        if not (math.isfinite(low) and math.isfinite(high) and largest < _LARGEST):
            return False
        if channels is not None and self._channels is not None:
            channels = torch.minimum(self._channels[0], channels[0]), torch.maximum(self._channels[1], channels[1])
        self._channels = channels
        self._batch_min.append(low)
        self._batch_max.append(high)
        self._samples.append(samples)
        if largest == 0.0:
            self._zeros_before_width += values.numel()
            return True
        if self._width == 0.0:
            self._width = largest / HALF_BINS
        while largest > self._width * HALF_BINS:
            self._widen()
        limit = self._width * HALF_BINS
        for chunk in values.split(_EXACT_FLOAT32_COUNT):
            counted = torch.histc(chunk, bins=2 * HALF_BINS, min=-limit, max=limit)
            self._counts += counted.to(torch.int64).numpy()
        return True

    def finish(self) -> ActivationStats:
        """Return the statistics of all values that were added."""
        counts = self._counts.copy()
        counts[HALF_BINS] += self._zeros_before_width
        channel_min, channel_max = (None, None) if self._channels is None else (each.numpy() for each in self._channels)
        return ActivationStats(
            np.asarray(self._batch_min, dtype=np.float32),
            np.asarray(self._batch_max, dtype=np.float32),
            counts,
            self._width or 1.0 / HALF_BINS,
            channel_min,
            channel_max,
            np.concatenate([each.numpy() for each, _ in self._samples]),
            np.concatenate([each.numpy() for _, each in self._samples]),
        )

    def _widen(self) -> None:
        """Double the bin width. Pairs of bins, counted outwards from zero, become one, so zero stays an edge."""
        negative, positive = self._counts[:HALF_BINS], self._counts[HALF_BINS:]
        merged = np.zeros_like(self._counts)
        half = HALF_BINS // 2
        merged[half:HALF_BINS] = negative.reshape(half, 2).sum(axis=1)
        merged[HALF_BINS : HALF_BINS + half] = positive.reshape(half, 2).sum(axis=1)
        self._counts = merged
        self._width *= 2.0


def _channel_extremes(values: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 ``(channels,)`` minima and maxima. torch.aminmax along a dimension would be ten times slower."""
    values = values.detach().to(torch.float32)
    others = [dimension for dimension in range(values.ndim) if dimension != axis % values.ndim]
    return values.amin(dim=others), values.amax(dim=others)


def _flat(values: torch.Tensor) -> torch.Tensor:
    """Return all values as float32 in one dimension, in memory order.

    Copying a channels_last tensor to contiguous order takes longer than counting it, and torch.aminmax is far slower on
    its strides.
    """
    values = values.detach().to(torch.float32)
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(-1)
