"""Transposed convolutions as convolutions: one output channel for each position between two inputs.

With stride 2, an input pixel becomes two by two results, and each of them uses other taps of the filter. A convolution
of the input computes all four as channels, with zeros for the taps that a result does not use. The positions of the
values are recorded as an order. They are moved only if the next layer cannot read them in that order.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.stages.quantize.native.calls import Calls, shape_of
from cpupack.stages.quantize.native.filters import Dense, as_image, bias_of, in_image

Pair = tuple[int, int]


def is_transposed(calls: Calls, node: fx.Node) -> bool:
    """Whether a call is of a transposed convolution."""
    module = calls.module(node)
    return module is not None and isinstance(core(module), nn.ConvTranspose1d | nn.ConvTranspose2d)


def upsampling(calls: Calls, node: fx.Node) -> tuple[Dense, Pair, torch.Tensor]:
    """Return a transposed convolution as a convolution, the size of its result, and where in that each output is.

    The places are the numbers of elements, of the shape of one sample's output.
    """
    module = calls.module(node)
    assert module is not None
    layer = core(module)
    assert isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
    stride, gap = in_image(layer.stride, layer, 1), in_image(layer.dilation, layer, 1)
    padding = in_image(layer.padding, layer, 0)
    shape = shape_of(node)[1:]
    result = (1, shape[1]) if len(shape) == 2 else (shape[1], shape[2])
    weight, groups = as_image(layer.weight.detach()), layer.groups
    taps = weight.shape[2:]
    rows, columns = (_taps(*each) for each in zip(taps, stride, gap, padding, strict=True))
    lowest = min(0, *(each[2] for each in rows)), min(0, *(each[2] for each in columns))
    height = max(0, *(each[2] for each in rows)) - lowest[0] + 1
    width = max(0, *(each[2] for each in columns)) - lowest[1] + 1
    inputs, outputs = len(weight) // groups, weight.shape[1]
    found = torch.zeros(groups, *stride, outputs, inputs, height, width)
    by_group = weight.reshape(groups, inputs, outputs, *taps).transpose(1, 2)
    for phase_y, tap_y, offset_y in rows:
        for phase_x, tap_x, offset_x in columns:
            filters = found[:, phase_y, phase_x, :, :, offset_y - lowest[0], offset_x - lowest[1]]
            filters += by_group[..., tap_y, tap_x]
    bias = bias_of(layer).reshape(groups, 1, 1, outputs).expand(groups, *stride, outputs).flatten()
    dense = Dense(found.reshape(-1, inputs, height, width), bias, padding=(-lowest[0], -lowest[1]), groups=groups)
    size = -(-result[0] // stride[0]), -(-result[1] // stride[1])
    return dense, size, _places(groups, outputs, stride, size, result).reshape(shape)


def _taps(taps: int, stride: int, gap: int, padding: int) -> list[tuple[int, int, int]]:
    """Return which place between two inputs sees which tap, of which input after its own: along one dimension."""
    return [
        (phase, tap, (phase + padding - gap * tap) // stride)
        for phase in range(stride)
        for tap in range(taps)
        if (phase + padding - gap * tap) % stride == 0
    ]


def _places(groups: int, outputs: int, stride: Pair, size: Pair, result: Pair) -> torch.Tensor:
    """Return the number of each output's element ``(groups * outputs, *result)``."""
    channels = torch.arange(groups * stride[0] * stride[1] * outputs).reshape(groups, *stride, outputs)
    y, x = torch.arange(result[0]), torch.arange(result[1])
    channel = channels[:, y % stride[0]][:, :, x % stride[1]]  # groups, rows, columns, outputs
    position = (y // stride[0])[:, None] * size[1] + x // stride[1]
    return (channel * (size[0] * size[1]) + position[:, :, None]).permute(0, 3, 1, 2).reshape(-1, *result)
