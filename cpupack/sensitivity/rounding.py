"""Simulates INT8 in FP32: rounds a tensor to 8 bits and back ("fake quantization")."""

from __future__ import annotations

import math

import torch

from cpupack.graph.weight_grid import round_to_grid

Range = tuple[float, float]


def round_activation(values: torch.Tensor, limits: Range, levels: int) -> torch.Tensor:
    """Return float32 ``values`` rounded to ``levels`` steps between ``limits`` (low <= 0 <= high), clipped outside.

    Affine per tensor, like torch's ``fake_quantize_per_tensor_affine``: zero is exactly one of the steps.
    """
    low, high = limits
    scale = (high - low) / (levels - 1)
    if scale < torch.finfo(torch.float32).tiny:
        return values.clone()  # the tensor was always zero in the calibration
    zero_point = min(max(round(-low / scale), 0), levels - 1)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, levels - 1)


def round_weight(weight: torch.Tensor, channel_axis: int | None) -> torch.Tensor:
    """Return float32 ``weight`` rounded to int8, symmetric, with one scale for each channel, or for all (axis None)."""
    return round_to_grid(weight, channel_axis)


class Noise:
    """Sums signal and noise over batches, so that an SQNR can be computed without keeping all values."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, reference: torch.Tensor, actual: torch.Tensor) -> None:
        """Add a batch: the FP32 values, and the rounded values in the same shape."""
        self._signal += float(reference.square().sum(dtype=torch.float64))
        self._noise += float((reference - actual).square().sum(dtype=torch.float64))

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise): infinite without noise, minus infinity without signal or with non-finite values."""
        if self._noise == 0.0:
            return math.inf
        if self._signal == 0.0 or not math.isfinite(self._noise):
            return -math.inf
        return 10.0 * math.log10(self._signal / self._noise)
