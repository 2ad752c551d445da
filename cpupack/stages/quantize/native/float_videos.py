"""Convolutions over three dimensions in FP32: frames lie one below the other, as one tall image.

Rows between two frames keep windows of one from reading the other. The frames that a window reads are channels of one
frame of that image.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import fx, nn

from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of, triple
from cpupack.stages.quantize.native.filters import bias_of, floats_of
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, View, Windows

_Triple = tuple[int, int, int]


def convolution(b: Builder, node: fx.Node, layer: nn.Conv3d) -> View:
    """Lower ``nn.Conv3d``."""
    settings = [triple(each, 3, 1) for each in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    kernel, stride, padding, dilation = settings
    weight, groups = layer.weight.detach(), layer.groups
    frames, rows = shape_of(node)[2], _rows(shape_of(node)[3], kernel[1], stride[1], dilation[1])
    view = _frames(b, node)
    rows = -(-max(rows, padding[1] + view.shape[2]) // stride[1]) * stride[1]
    tall = b.floats.new((frames, rows, view.shape[3], groups, kernel[0], view.shape[0] // groups))
    b.floats.map(tall, Fixed(torch.zeros(())))
    inner = _cut(tall, 1, padding[1], view.shape[2])
    source = _split(view.permuted((1, 2, 3, 0)), 3, groups)  # (frames, height, width, groups, channels of a group)
    for tap in range(kernel[0]):
        read, written = _met(view.shape[1], frames, stride[0], tap * dilation[0] - padding[0])
        if written:
            b.floats.map(_picked(_at(inner, 4, tap), 0, written), _picked(source, 0, read))
    outputs = len(weight)
    # (groups, height, width, taps in time, inputs of a group, outputs of a group)
    split = weight.reshape(groups, outputs // groups, -1, *kernel).permute(0, 4, 5, 3, 2, 1)
    fields = _fields(kernel, stride, (0, 0, padding[2]), dilation) | {"runs": groups}
    image = _image(tall)
    found = b.floats.windows(
        image, (outputs, image.shape[1] // stride[1], shape_of(node)[4]), Windows.DENSE, fields,
        {"scales": floats_of(split), "biases": floats_of(bias_of(layer))},
    )  # fmt: skip
    return _video(found, frames, shape_of(node)[3])


def transposed(b: Builder, node: fx.Node, layer: nn.ConvTranspose3d) -> View:
    """Lower ``nn.ConvTranspose3d``: what a tap gives is added to the frames that it reaches."""
    settings = [triple(each, 3, 1) for each in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    kernel, stride, padding, dilation = settings
    weight, groups = layer.weight.detach(), layer.groups
    view, (outputs, frames, height, width) = _frames(b, node), shape_of(node)[1:]
    inputs, count = view.shape[0], view.shape[1]
    reached = max((view.shape[2] - 1) * stride[1] + (kernel[1] - 1) * dilation[1] + 1, padding[1] + height)
    rows = -(-reached // stride[1])
    tall = b.floats.new((count, rows, view.shape[3], inputs))
    b.floats.map(tall, Fixed(torch.zeros(())))
    b.floats.map(_cut(tall, 1, 0, view.shape[2]), view.permuted((1, 2, 3, 0)))
    of_group = weight.reshape(groups, inputs // groups, outputs // groups, *kernel).permute(0, 4, 5, 1, 3, 2)
    wide = kernel[0] * outputs
    fields = _fields(kernel, stride, (0, 0, padding[2]), dilation) | {"runs": groups}
    found = b.floats.windows(
        _image(tall), (wide, count * rows * stride[1], width), Windows.TRANSPOSED, fields,
        {"scales": floats_of(of_group), "biases": np.zeros(wide, np.float32)},
    )  # fmt: skip
    # (frames, height, width, groups, taps, outputs of a group)
    taps = _split(_cut(_video(found, count, height).permuted((1, 2, 3, 0)), 1, padding[1], height), 3, groups)
    taps = _split(taps, 4, kernel[0])
    out = b.floats.new((frames, height, width, outputs))
    b.floats.map(out, Fixed(bias_of(layer).detach().float()))
    sums = _split(out, 3, groups)
    for tap in range(kernel[0]):
        written, read = _met(frames, count, stride[0], tap * dilation[0] - padding[0])
        if written:
            some = _picked(sums, 0, written)
            b.floats.map(some, some, _picked(_at(taps, 4, tap), 0, read), [Instruction(Function.ADD)])
    return out.permuted((3, 0, 1, 2))


def _frames(b: Builder, node: fx.Node) -> View:
    """Return the operand as ``(channels, frames, height, width)``."""
    view = b.floats.view(as_floats(b, node.all_input_nodes[0], node))
    if len(view.shape) != 4:
        raise b.calls.refusal(node, "of so many dimensions")
    return view


def _rows(results: int, kernel: int, stride: int, dilation: int) -> int:
    """Return how many rows the windows of a frame read."""
    return (results - 1) * stride + (kernel - 1) * dilation + 1


def _met(count: int, results: int, stride: int, first: int) -> tuple[range, range]:
    """Return the frames ``result * stride + first`` that there are, and their results."""
    found = [each for each in range(results) if 0 <= each * stride + first < count]
    if not found:
        return range(0), range(0)
    begin, end = found[0], found[-1] + 1
    return range(begin * stride + first, (end - 1) * stride + first + 1, stride), range(begin, end)


def _fields(kernel: _Triple, stride: _Triple, pad: _Triple, dilation: _Triple) -> dict[str, float]:
    given = {"kernel": kernel, "stride": stride, "pad": pad, "dilation": dilation}
    return {f"{name}_{of}": float(each[at]) for name, each in given.items() for at, of in ((1, "h"), (2, "w"))}


def _image(tall: View) -> View:
    """Return ``(frames, rows, width, ...)`` as an image ``(channels, frames * rows, width)``."""
    frames, rows, width, *channels = tall.shape
    count = math.prod(channels)
    return View(tall.buffer, (count, frames * rows, width), (1, width * count, count), tall.first)


def _video(found: View, frames: int, height: int) -> View:
    """Return the result of a tall image as ``(channels, frames, height, width)``."""
    channels, rows, width = found.shape
    steps = (found.steps[0], rows // frames * found.steps[1], *found.steps[1:])
    return View(found.buffer, (channels, frames, height, width), steps, found.first)


def _cut(view: View, axis: int, first: int, count: int) -> View:
    return _picked(view, axis, range(first, first + count))


def _picked(view: View, axis: int, places: range) -> View:
    """Return some places of a dimension."""
    shape, steps = list(view.shape), list(view.steps)
    shape[axis], steps[axis] = len(places), steps[axis] * places.step
    return View(view.buffer, tuple(shape), tuple(steps), view.first + places.start * view.steps[axis])


def _at(view: View, axis: int, place: int) -> View:
    """Return one place of a dimension, without the dimension."""
    one = _picked(view, axis, range(place, place + 1))
    return View(one.buffer, _without(one.shape, axis), _without(one.steps, axis), one.first)


def _split(view: View, axis: int, parts: int) -> View:
    """Return a dimension as two, of which the first has so many parts."""
    size = view.shape[axis] // parts
    shape = (*view.shape[:axis], parts, size, *view.shape[axis + 1 :])
    steps = (*view.steps[:axis], view.steps[axis] * size, *view.steps[axis:])
    return View(view.buffer, shape, steps, view.first)


def _without(values: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return values[:axis] + values[axis + 1 :]
