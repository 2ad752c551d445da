"""Bias correction: the mean error that rounding causes in a channel is subtracted from its bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, in the
empirical form (appendix D): the mean error is measured on data after all earlier layers are corrected.
"""

from __future__ import annotations

import torch
from torch import nn

from cpupack.stages.correct.layers import Layer, Weighted


def mean_error(expected: torch.Tensor, actual: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Return the mean of ``actual - expected`` for each output channel, float32 ``(channels,)``."""
    axis = 1 if layer.has_spatial_axes else actual.ndim - 1
    others = [each for each in range(actual.ndim) if each != axis]
    error = (actual - expected).double()
    return (error.mean(dim=others) if others else error).float()


def add_to_bias(module: Weighted, shift: torch.Tensor) -> None:
    """Add float32 ``(channels,)`` to a module's bias in place. A module without a bias gets one."""
    if module.bias is None:
        module.bias = nn.Parameter(shift, requires_grad=False)
    else:
        module.bias.data = module.bias.data + shift
