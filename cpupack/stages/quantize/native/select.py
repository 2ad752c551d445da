"""Copies of channels in another order, as convolutions: a matrix product with ones moves bytes as fast as any copy."""

from __future__ import annotations

import numpy as np

from cpupack.stages.quantize.native.program import Buffer, Layer
from cpupack.stages.quantize.native.weights import dense_parts, finish_of

_ONE = 127


def select_channels(
    source: Buffer, result: Buffer, channels: list[int], source_number: int, result_number: int, first: int = 0
) -> Layer:
    """Return the layer that puts ``channels`` of a buffer into another from its channel ``first`` on, rescaled."""
    weights = np.zeros((len(channels), source.channels, 1, 1), np.int8)
    weights[np.arange(len(channels)), channels] = _ONE
    ones = np.full(len(channels), 1.0 / _ONE)
    scales, biases = finish_of(weights, ones, np.zeros(len(channels)), source, (result.scale, result.zero_point))
    op, fields, parts = dense_parts(weights, scales, biases, groups=1, dilated=False)
    fields |= {"channels_out": len(channels), "channel_offset": first}
    return Layer(op, input=source_number, output=result_number, fields=fields, constants=parts)
