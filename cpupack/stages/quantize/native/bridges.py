"""Between the codes of a program and its float32 values: what one call leaves as the other kind is made on demand."""

from __future__ import annotations

import math
import operator

import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.floats import Operand
from cpupack.stages.quantize.native.functions import activation_of
from cpupack.stages.quantize.native.program import Size
from cpupack.stages.quantize.native.values import (
    MOST_FRAMES,
    Value,
    channels_last,
    image_layout,
    order_of,
    rows_layout,
    value_of,
)
from cpupack.stages.quantize.native.walks import View

_BY_IMAGE = (nn.Conv1d, nn.ConvTranspose1d, nn.MaxPool1d, nn.AvgPool1d, nn.BatchNorm1d)
_BY_VIDEO = (
    nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.BatchNorm3d
)  # fmt: skip


def as_floats(b: Builder, node: fx.Node, reader: fx.Node) -> Operand:
    """Return a call's result as float32 values in the shape of a sample. Codes are turned into values once."""
    found = b.floats.values.get(node)
    if found is None:
        value = b.value(node, reader)
        found = b.floats.values[node] = _of_codes(b, value, shape_of(node))
    return found


def _of_codes(b: Builder, value: Value, shape: tuple[int, ...]) -> View:
    buffer = b.buffer(value.buffer)
    whole, after = b.dequantized.get(value.buffer, (None, 0))
    # A concatenation grows in its buffer: what is written later is not among these values.
    if whole is None or any(layer.output == value.buffer for layer in b.program.layers[after:]):
        whole = b.floats.dequantize(value.buffer)
        b.dequantized[value.buffer] = whole, len(b.program.layers)
    order = order_of(value, buffer, shape)[0]
    found = whole.of_elements(order)
    if found is None:
        positions = buffer.positions
        found = b.floats.gather(whole, order % positions * buffer.channels + order // positions)
    return found


def as_codes(b: Builder, node: fx.Node) -> Value:
    """Return a call's float32 result as codes, in the range of its calibration."""
    view = b.floats.view(b.floats.values[node])
    shape, image = tuple(shape_of(node)[1:]), is_image(b, node)
    layout = image_layout(shape) if image else rows_layout(shape)
    number = b.add_buffer(layout, b.limits(node))
    buffer = b.buffer(number)
    b.floats.quantize(_in_layout(b, view, layout, image=image), number)
    order = torch.arange(2 * buffer.size).reshape(2, *shape) if image else channels_last(buffer, (2, *shape))
    value = value_of(number, buffer, order)
    assert value is not None
    return value


def is_image(b: Builder, node: fx.Node) -> bool:
    """Whether the kernels that read a call's codes take them as an image, or channels first: a sequence, a video."""
    shape, readers = shape_of(node)[1:], _readers(b, node)
    if any(each is nn.Linear for each in readers):
        return False
    if len(shape) == 4:
        return shape[1] <= MOST_FRAMES and any(each in _BY_VIDEO for each in readers)
    return len(shape) == 3 or (len(shape) == 2 and any(each in _BY_IMAGE for each in readers))


def _readers(b: Builder, node: fx.Node) -> list[type]:
    """Return what reads a call's result; in place of activations, what reads theirs."""
    found: list[type] = []
    for each in node.users:
        inner = activation_of(b.calls.graph, each) is not None
        found += _readers(b, each) if inner else [type(core(b.calls.module(each) or nn.Identity()))]
    return found


def image_view(b: Builder, view: View) -> View:
    """Return ``(channels, [[frames,] height,] width)`` as ``(height of all frames, width, channels)``."""
    if len(view.shape) == 4:
        channels, frames, height, width = view.shape
        if frames > 1 and view.steps[1] != height * view.steps[2]:
            view = b.floats.side_by_side(view.permuted((1, 2, 3, 0))).permuted((3, 0, 1, 2))
        return View(view.buffer, (frames * height, width, channels), (*view.steps[2:], view.steps[0]), view.first)
    lead = View(view.buffer, (1, *view.shape), (0, *view.steps), view.first) if len(view.shape) == 2 else view
    return lead.permuted((1, 2, 0)) if len(view.shape) == 3 else lead.permuted((0, 2, 1))


def _in_layout(b: Builder, view: View, layout: Size, *, image: bool) -> View:
    """Return a view as ``(height, width, channels)`` of a buffer."""
    if image:
        return image_view(b, view)
    height, width, channels, _ = layout
    if len(view.shape) == 3 and view.shape[:2] == (height, width):
        return view
    if len(view.shape) == 2:
        return View(view.buffer, (1, *view.shape), (0, *view.steps), view.first)
    if len(view.shape) == 1:
        return View(view.buffer, (1, 1, *view.shape), (0, 0, *view.steps), view.first)
    dense = b.floats.side_by_side(view)
    return View(dense.buffer, (height, width, channels), (width * channels, channels, 1), dense.first)


def values_of_input(b: Builder, shape: tuple[int, ...], first: int, *, image: bool) -> View:
    """Take float32 values of a sample from the caller: row by row, or an image by positions."""
    if not image:
        return b.floats.take(shape, first)
    channels, height, width = shape
    taken = b.floats.take((height, width * channels), first)
    assert taken.buffer is not None
    return View(taken.buffer, shape, (1, width * channels, channels))


def parts_of_row(b: Builder, node: fx.Node) -> bool:
    """Take each input out of the caller's row by itself. Returns False where a call reads the row in another way.

    So the memory of each input has the shape of that input, and what no call reads is not copied.
    """
    (count,) = shape_of(node)[1:]
    parts = {user: _part(user, count) for user in node.users}
    if not all(parts.values()):
        return False
    for user, (first, end) in ((user, part) for user, part in parts.items() if part is not None):
        shape = _next_shape(user, end - first)
        whole = b.floats.take(shape, first)
        b.floats.values[user] = View(whole.buffer, (end - first,), (1,))
    return bool(parts)


def _part(node: fx.Node, count: int) -> tuple[int, int] | None:
    """Return the first and the end of the values that a call takes out of a row; None for another call."""
    index = node.args[1] if node.target is operator.getitem else None
    if not isinstance(index, tuple) or len(index) != 2 or index[0] != slice(None) or not isinstance(index[1], slice):
        return None
    if not all(each is None or type(each) is int for each in (index[1].start, index[1].stop, index[1].step)):
        return None
    first, end, step = index[1].indices(count)
    return (first, end) if step == 1 and first < end else None


def _next_shape(node: fx.Node, count: int) -> tuple[int, ...]:
    """Return the shape that the only reader of a part of a row gives it: an image's rows, or positions."""
    shapes = {tuple(shape_of(user)[1:]) for user in node.users if "shape" in user.meta}
    shape = next(iter(shapes)) if len(shapes) == 1 else (count,)
    if math.prod(shape) != count:
        return (count,)
    return (shape[0], math.prod(shape[1:])) if len(shape) > 2 else shape
