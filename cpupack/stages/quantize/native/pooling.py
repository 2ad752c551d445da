"""Pooling: the maximum or mean of windows, and reductions over whole dimensions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import Triple, argument, lengths_of, shape_of, triple
from cpupack.stages.quantize.native.filters import lengths_of as lengths_of_buffer
from cpupack.stages.quantize.native.filters import size_of
from cpupack.stages.quantize.native.program import NO_FLAGS, Flag, Layer, Op, Size, window_fields
from cpupack.stages.quantize.native.tell import tell
from cpupack.stages.quantize.native.values import LONGEST_SIDE, Value, order_of, value_of
from cpupack.stages.quantize.native.windows import adaptive_windows, average_windows, resample

_ONE, _NONE = (1, 1, 1), (0, 0, 0)


def max_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.MaxPool1d``, ``2d`` and ``3d``: codes keep their scale."""
    given = b.calls.settings(node, ("kernel_size", "stride", "padding", "dilation"))
    axes = len(shape_of(node)) - 2
    kernel, padding = triple(given[0], axes, 1), triple(given[2], axes, 0)
    stride = triple(given[1], axes, 1) if given[1] else kernel
    dilation = triple(given[3], axes, 1) if given[3] else _ONE
    _largest(b, node, kernel, stride, padding, dilation)


def _largest(b: Builder, node: fx.Node, kernel: Triple, stride: Triple, padding: Triple, dilation: Triple) -> None:
    number = b.image(node.args[0], node)
    source, sizes = b.buffer(number), lengths_of(shape_of(node))
    # With ceil_mode the last windows end beyond the padding.
    frames, rows, columns = (
        max(pad, (count - 1) * step - pad + (size - 1) * gap + 1 - length)
        for pad, count, step, size, gap, length in zip(
            padding, sizes, stride, kernel, dilation, lengths_of_buffer(source), strict=True
        )
    )
    if kernel[0] > 1 and math.prod(kernel[1:]) > 1:
        # The largest of a window is the largest of its rows and columns, and of those the largest of its frames.
        flat = (source.frames, *sizes[1:])
        wide = b.bordered(number, (0, rows, columns), 0)
        number = b.add_alike(size_of(flat, source.channels), source)
        fields = window_fields((1, *kernel[1:]), (1, *stride[1:]), (0, *padding[1:]), (1, *dilation[1:]))
        b.append(Layer(Op.MAX_POOL, input=wide, output=number, fields=fields))
        rows = columns = 0
        kernel, stride = (kernel[0], 1, 1), (stride[0], 1, 1)
        padding, dilation = (padding[0], 0, 0), (dilation[0], 1, 1)
    read = b.bordered(number, (frames, rows, columns), 0)
    output = b.add_alike(size_of(sizes, source.channels), source)
    b.append(Layer(Op.MAX_POOL, input=read, output=output, fields=window_fields(kernel, stride, padding, dilation)))
    b.values[node] = Value(output)
    tell(b, node, node, "cpupack::max_pool")


def average_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.AvgPool1d``, ``2d`` and ``3d``."""
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = b.calls.settings(node, names)
    axes = len(shape_of(node)) - 2
    kernel, padding = triple(given[0], axes, 1), triple(given[2], axes, 0)
    stride = triple(given[1], axes, 1) if given[1] else kernel
    include, divisor = given[4] is not False, given[5]
    lengths, sizes = lengths_of(shape_of(node.all_input_nodes[0])), lengths_of(shape_of(node))
    inside = all(
        (size - 1) * step - pad + reach <= length + pad
        for size, step, pad, reach, length in zip(sizes, stride, padding, kernel, lengths, strict=True)
    )
    if divisor is None and inside:
        _average(b, node, kernel, stride, padding, include=include)
        return
    # Windows that end beyond the padding count what they see of it.
    frames, rows, columns = (
        average_windows(length, size, reach, step, pad, include=include)
        for length, size, reach, step, pad in zip(lengths, sizes, kernel, stride, padding, strict=True)
    )
    if divisor is not None:
        frames, rows, columns = frames.counted(), rows.counted(divisor), columns.counted()
    resample(b, node, frames, rows, columns, "average_pool")


def adaptive_average_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.AdaptiveAvgPool1d``, ``2d`` and ``3d``."""
    lengths, sizes = lengths_of(shape_of(node.all_input_nodes[0])), lengths_of(shape_of(node))
    if lengths == sizes:
        b.values[node] = b.value(node.args[0], node)
    elif sizes == _ONE:
        _reduce(b, node, tuple(range(2, len(shape_of(node)))))
    elif all(length % size == 0 for length, size in zip(lengths, sizes, strict=True)):
        window = _ratio(lengths, sizes)
        _average(b, node, window, window, _NONE, include=True)
    else:
        frames, rows, columns = (adaptive_windows(*each) for each in zip(lengths, sizes, strict=True))
        resample(b, node, frames, rows, columns, "average_pool")


def adaptive_max_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.AdaptiveMaxPool1d``, ``2d`` and ``3d``."""
    lengths, sizes = lengths_of(shape_of(node.all_input_nodes[0])), lengths_of(shape_of(node))
    if not any(length % size for length, size in zip(lengths, sizes, strict=True)):
        window = _ratio(lengths, sizes)
        _largest(b, node, window, window, _NONE, _ONE)
        return
    # Windows of different sizes are copied side by side; short ones have their last frame, row or column again.
    number = b.image(node.args[0], node)
    source = b.buffer(number)
    frames, rows, columns = (_windows(*each) for each in zip(lengths, sizes, strict=True))
    spread = len(frames), len(rows), len(columns)
    kernel = _ratio(spread, sizes)
    elements = torch.arange(source.size).reshape(source.channels, *lengths)
    elements = elements[:, frames][:, :, rows][:, :, :, columns].flatten()
    copy = b.add_alike(size_of(spread, source.channels), source)
    b.move(number, copy, elements, torch.arange(len(elements)))
    output = b.add_alike(size_of(sizes, source.channels), source)
    b.append(Layer(Op.MAX_POOL, input=copy, output=output, fields=window_fields(kernel, kernel, _NONE, _ONE)))
    b.values[node] = Value(output)
    tell(b, node, node, "cpupack::max_pool")


def _ratio(lengths: Triple, sizes: Triple) -> Triple:
    frames, rows, columns = (length // size for length, size in zip(lengths, sizes, strict=True))
    return frames, rows, columns


def _windows(length: int, size: int) -> list[int]:
    """Return what each of ``size`` windows of an adaptive pooling sees, one after the other, all equally long."""
    ends = [(place * length // size, -(-(place + 1) * length // size)) for place in range(size)]
    longest = max(end - begin for begin, end in ends)
    return [min(begin + step, end - 1) for begin, end in ends for step in range(longest)]


def reduce(b: Builder, node: fx.Node) -> None:
    """Lower ``torch.mean``, ``torch.sum`` and ``torch.amax`` over dimensions of a sample."""
    operand = node.all_input_nodes[0]
    given = argument(node, 1, "dim", None)
    dimensions = len(shape_of(operand))
    axes = [given] if isinstance(given, int) else list(given) if isinstance(given, list | tuple) else []
    reduced = sorted(each % dimensions for each in axes if isinstance(each, int))
    if not reduced or 0 in reduced:
        raise b.calls.refusal(node, "over samples")
    _reduce(b, node, tuple(reduced))


def _reduce(b: Builder, node: fx.Node, reduced: tuple[int, ...]) -> None:
    """Append the mean, sum or maximum over dimensions; the caller's in FP32 where only it reads them."""
    operand, target = node.all_input_nodes[0], b.calls.target(node)
    shape = shape_of(operand)
    kept = [axis for axis in range(1, len(shape)) if axis not in reduced]
    value = b.value(operand, node)
    source = b.buffer(value.buffer)
    order = order_of(value, source, shape)
    count = math.prod(shape[axis] for axis in reduced)
    by_channel = order[0].permute(*(axis - 1 for axis in (*kept, *reduced))).reshape(-1, count)
    number = value.buffer
    if _reduce_video(b, node, value, kept):
        return
    own = torch.arange(source.size).reshape(source.channels, -1)
    if own.shape != by_channel.shape or not torch.equal(by_channel.sort(1).values, own):
        if len(kept) == 3 and shape[kept[2]] * count <= LONGEST_SIDE:
            _reduce_image(b, node, value.buffer, by_channel.reshape(*(shape[axis] for axis in kept), count))
            return
        height = next(each for each in range(1, count + 1) if count % each == 0 and count // each <= LONGEST_SIDE)
        number = b.add_alike(Size(height, count // height, len(by_channel)), source)
        b.move(value.buffer, number, by_channel.flatten(), torch.arange(by_channel.numel()))
        source = b.buffer(number)
    if target is torch.amax:
        output = b.add_alike(Size(1, 1, source.channels), source)
        window = lengths_of_buffer(source)
        b.append(Layer(Op.MAX_POOL, input=number, output=output, fields=window_fields(window, window, _NONE, _ONE)))
        _tell_reduced(b, node, output, "max_pool")
        return
    scale = source.scale
    fields: dict[str, float] = {"input_zero_point": source.zero_point, "channels_out": source.channels}
    if target is torch.sum:
        fields["scale2"] = float(np.float32(scale))  # no kernel reads it: with it the scale of any count is known
        scale = fields["scale2"] * count
    fields["scale"] = scale
    if b.goes_out(node):
        fields["channel_offset"] = b.leave(node, source.channels)
        b.append(Layer(Op.GLOBAL_AVERAGE, Flag.FLOAT_OUT, input=number, fields=fields))
        b.values[node] = Value(-1)
        tell(b, node, node, "cpupack::global_average")
        return
    if b.read_as_floats(node):
        number_out = b.leave_floats(node, Size(1, 1, source.channels), None)
        b.append(Layer(Op.GLOBAL_AVERAGE, Flag.FLOAT_OUT, input=number, output=number_out, fields=fields))
        tell(b, node, node, "cpupack::global_average")
        return
    output = b.add_buffer(Size(1, 1, source.channels), b.limits(node))
    result = b.buffer(output)
    fields |= {"scale": scale / result.scale, "output_zero_point": result.zero_point}
    b.append(Layer(Op.GLOBAL_AVERAGE, input=number, output=output, fields=fields))
    _tell_reduced(b, node, output, "global_average")


def _reduce_image(b: Builder, node: fx.Node, number: int, order: torch.Tensor) -> None:
    """Append a reduction to images: values that become one are side by side, and windows of a row go over them.

    ``order`` says which elements ``(channels, height, width, count)`` these are.
    """
    channels, height, width, count = order.shape
    source = b.buffer(number)
    copy = b.add_alike(Size(height, width * count, channels), source)
    b.move(number, copy, order.flatten(), torch.arange(order.numel()))
    _reduce_windows(b, node, copy, (1, 1, count))


def _reduce_video(b: Builder, node: fx.Node, value: Value, kept: list[int]) -> bool:
    """Append a reduction of a video's images to one each, or of its frames to one image, if it is one."""
    source = b.buffer(value.buffer)
    if source.frames == 1 or value.order is not None or kept not in ([1, 2], [1, 3, 4]):
        return False
    window = (1, source.height, source.width) if kept == [1, 2] else (source.frames, 1, 1)
    _reduce_windows(b, node, value.buffer, window)
    return True


def _reduce_windows(b: Builder, node: fx.Node, number: int, window: Triple) -> None:
    """Append a reduction of windows that lie side by side."""
    source, target, count = b.buffer(number), b.calls.target(node), math.prod(window)
    size = size_of(_ratio(lengths_of_buffer(source), window), source.channels)
    fields = window_fields(window, window, _NONE, _ONE)
    if target is torch.amax:
        output = b.add_alike(size, source)
        b.append(Layer(Op.MAX_POOL, input=number, output=output, fields=fields))
        _tell_reduced(b, node, output, "max_pool")
        return
    output = b.add_buffer(size, b.limits(node))
    result = b.buffer(output)
    fields |= {
        "scale": source.scale * (count if target is torch.sum else 1) / result.scale,
        "input_zero_point": source.zero_point, "output_zero_point": result.zero_point,
    }  # fmt: skip
    b.append(Layer(Op.AVERAGE_POOL, Flag.INCLUDE_PAD, number, output=output, fields=fields))
    _tell_reduced(b, node, output, "average_pool")


def _tell_reduced(b: Builder, node: fx.Node, output: int, kernel: str) -> None:
    buffer = b.buffer(output)
    value = value_of(output, buffer, torch.arange(2 * buffer.size).reshape(shape_of(node)))
    assert value is not None
    b.values[node] = value
    tell(b, node, node, f"cpupack::{kernel}")


def _average(b: Builder, node: fx.Node, kernel: Triple, stride: Triple, padding: Triple, *, include: bool) -> None:
    number = b.image(node.args[0], node)
    source = b.buffer(number)
    output = b.add_buffer(size_of(lengths_of(shape_of(node)), source.channels), b.limits(node))
    result = b.buffer(output)
    fields = window_fields(kernel, stride, padding, _ONE) | {
        "scale": source.scale / result.scale, "input_zero_point": source.zero_point,
        "output_zero_point": result.zero_point,
    }  # fmt: skip
    flags = Flag.INCLUDE_PAD if include else NO_FLAGS
    b.append(Layer(Op.AVERAGE_POOL, flags, number, output=output, fields=fields))
    b.values[node] = Value(output)
    tell(b, node, node, "cpupack::average_pool")
