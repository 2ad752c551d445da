"""Transposed convolutions as convolutions: one output channel for each position between two inputs.

With stride 2, an input pixel becomes two by two results, and each of them uses other taps of the filter. A convolution
of the input computes all four as channels, with zeros for the taps that a result does not use. The positions of the
values are recorded as an order. They are moved only if the next layer cannot read them in that order.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.vocabulary import TRANSPOSED_CONVOLUTIONS
from cpupack.stages.quantize.native.calls import Calls, Triple, lengths_of, shape_of, triple
from cpupack.stages.quantize.native.filters import Dense, as_video, bias_of

Taps = list[tuple[int, int, int]]


def is_transposed(calls: Calls, node: fx.Node) -> bool:
    """Whether a call is of a transposed convolution."""
    module = calls.module(node)
    return module is not None and isinstance(core(module), TRANSPOSED_CONVOLUTIONS)


def upsampling(calls: Calls, node: fx.Node) -> tuple[Dense, Triple, torch.Tensor]:
    """Return a transposed convolution as a convolution, the size of its result, and where in that each output is.

    The places are the numbers of elements, of the shape of one sample's output.
    """
    module = calls.module(node)
    assert module is not None
    layer = core(module)
    assert isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    axes = layer.weight.ndim - 2
    stride, gap = triple(layer.stride, axes, 1), triple(layer.dilation, axes, 1)
    padding = triple(layer.padding, axes, 0)
    shape = shape_of(node)
    result = lengths_of(shape)
    weight, groups = as_video(layer.weight.detach()), layer.groups
    taps = [_taps(*each) for each in zip(weight.shape[2:], stride, gap, padding, strict=True)]
    lowest = [min(0, *(each[2] for each in own)) for own in taps]
    reach = [max(0, *(each[2] for each in own)) - low + 1 for own, low in zip(taps, lowest, strict=True)]
    inputs, outputs = len(weight) // groups, weight.shape[1]
    found = torch.zeros(groups, *stride, outputs, inputs, *reach)
    by_group = weight.reshape(groups, inputs, outputs, *weight.shape[2:]).transpose(1, 2)
    for each in itertools.product(*taps):
        phases, of_filter, offsets = zip(*each, strict=True)
        places = [offset - low for offset, low in zip(offsets, lowest, strict=True)]
        found[(slice(None), *phases, ..., *places)] += by_group[(..., *of_filter)]
    bias = bias_of(layer).reshape(groups, 1, 1, 1, outputs).expand(groups, *stride, outputs).flatten()
    front, above, left = (-low for low in lowest)
    dense = Dense(found.reshape(-1, inputs, *reach), bias, padding=(front, above, left), groups=groups)
    frames, height, width = (-(-length // step) for length, step in zip(result, stride, strict=True))
    size = frames, height, width
    return dense, size, _places(groups, outputs, stride, size, result).reshape(shape[1:])


def _taps(taps: int, stride: int, gap: int, padding: int) -> Taps:
    """Return which place between two inputs sees which tap, of which input after its own: along one dimension."""
    return [
        (phase, tap, (phase + padding - gap * tap) // stride)
        for phase in range(stride)
        for tap in range(taps)
        if (phase + padding - gap * tap) % stride == 0
    ]


def _places(groups: int, outputs: int, stride: Triple, size: Triple, result: Triple) -> torch.Tensor:
    """Return the number of each output's element ``(groups * outputs, *result)``."""
    z, y, x = (torch.arange(length) for length in result)
    channels = torch.arange(groups * math.prod(stride) * outputs).reshape(groups, *stride, outputs)
    # groups, frames, rows, columns, outputs
    channel = channels[:, z % stride[0]][:, :, y % stride[1]][:, :, :, x % stride[2]]
    rows = (z // stride[0])[:, None] * size[1] + y // stride[1]
    position = rows[:, :, None] * size[2] + x // stride[2]
    return (channel * math.prod(size) + position[..., None]).permute(0, 4, 1, 2, 3).reshape(-1, *result)
