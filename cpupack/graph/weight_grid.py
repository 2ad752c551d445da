"""The grid that INT8 weights lie on, the same for every engine: -127..127 times a scale.

Symmetric and without -128, so that the largest weight is exact and qnnpack's kernels take it. Corrections that move
weights to other points of the grid keep the largest one, so the scale found again from them is the same.
"""

from __future__ import annotations

import torch

LARGEST_CODE = 127


def weight_scales(weight: torch.Tensor, channel_axis: int | None) -> torch.Tensor:
    """Return float32 scales that broadcast over ``weight``: one for each index of ``channel_axis``, or one (None)."""
    if channel_axis is None:
        largest = weight.abs().amax().reshape([1] * weight.ndim)
    else:
        others = [axis for axis in range(weight.ndim) if axis != channel_axis]
        largest = weight.abs().amax(dim=others, keepdim=True)
    return scale_of(largest)


def scale_of(largest: torch.Tensor) -> torch.Tensor:
    """Return the float32 scales whose code 127 is ``largest``, down to the smallest normal float; 1 for all zeros."""
    least = torch.finfo(torch.float32).tiny
    scales = largest.float() / LARGEST_CODE
    return torch.where(scales <= least, torch.where(largest == 0, 1.0, least), scales)


def round_to_grid(weight: torch.Tensor, channel_axis: int | None) -> torch.Tensor:
    """Return ``weight`` as INT8 has it, in float32: the nearest points of its grid."""
    scales = weight_scales(weight, channel_axis)
    return torch.clamp(torch.round(weight / scales), -LARGEST_CODE, LARGEST_CODE) * scales
