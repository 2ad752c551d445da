"""INT8 weights of convolutions and linear layers, and the numbers that turn their sums into codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpupack.graph.weight_grid import LARGEST_CODE, weight_scales
from cpupack.stages.quantize.native.fit import fit_of, fit_of_depthwise
from cpupack.stages.quantize.native.pack import BLOCK, interleave_channels, pack_conv, pack_depthwise, pad_channels
from cpupack.stages.quantize.native.program import Buffer, Op

Doubles = npt.NDArray[np.float64]
Parts = dict[str, npt.NDArray[Any]]


def quantize_weights(weight: torch.Tensor, *, per_channel: bool = True) -> tuple[npt.NDArray[np.int8], Doubles]:
    """Return int8 weights and float64 scales ``(out,)``: symmetric, one scale for each output channel or for all."""
    scales = weight_scales(weight, 0 if per_channel else None)
    codes = torch.round(weight / scales).clamp(-LARGEST_CODE, LARGEST_CODE)
    return codes.to(torch.int8).numpy(), scales.double().flatten().expand(len(weight)).numpy()


def finish_of(
    weights: npt.NDArray[np.int8],
    weight_scales: Doubles,
    bias: Doubles,
    source: Buffer,
    out: tuple[float, float],
) -> tuple[Doubles, Doubles]:
    """Return factor and shift that take each channel's sums to codes of scale and zero point ``out``.

    The sum is over codes, whose zero point therefore counts with every weight.
    """
    sums = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.int64)
    scale, zero_point = source.grid(len(weights))  # of several scales, a layer reads each channel alone
    scales = scale * weight_scales / out[0]
    return scales, bias / out[0] - zero_point * sums * scales + out[1]


def dense_parts(
    weights: npt.NDArray[np.int8], scales: Doubles, biases: Doubles, *, groups: int, dilated: bool
) -> tuple[Op, dict[str, float], Parts]:
    """Return the operation, fields and constants of a layer made as a matrix product."""
    conv = pack_conv(weights, groups, dilated=dilated)
    parts: Parts = {
        "weights": conv.weights,
        "scales": pad_channels(scales, BLOCK),
        "biases": pad_channels(biases, BLOCK),
    }
    return Op.CONV, conv.fields() | {"fit": fit_of(weights, groups, dilated=dilated)}, parts


def depthwise_parts(
    weights: npt.NDArray[np.int8], scales: Doubles, biases: Doubles, *, stride: int, dilated: bool, depth: int
) -> tuple[Op, dict[str, float], Parts]:
    """Return the operation, fields and constants of a layer with one filter a channel, of ``depth`` times its rows."""
    packed, several = pack_depthwise(weights[:, 0], stride, dilated=dilated, depth=depth)
    parts: Parts = {"weights": packed, "scales": interleave_channels(scales), "biases": interleave_channels(biases)}
    fit = fit_of_depthwise(weights[:, 0], stride, dilated=dilated, depth=depth)
    return Op.DEPTHWISE, {"runs": several, "fit": fit}, parts
