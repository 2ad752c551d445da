"""Pooling: the maximum or mean of windows, and reductions over whole dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, pair, shape_of
from cpupack.stages.quantize.native.program import NO_FLAGS, Buffer, Flag, Layer, Op
from cpupack.stages.quantize.native.values import LONGEST_SIDE, Value, order_of, value_of
from cpupack.stages.quantize.native.windows import adaptive_weights, average_weights, resample

_ONE = (1, 1)


def max_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.MaxPool2d`` and ``nn.MaxPool1d``: codes keep their scale."""
    names = ("kernel_size", "stride", "padding", "dilation")
    given = b.calls.settings(node, names)
    kernel, stride, padding, dilation = (
        _of_image(each, node, one) for each, one in zip(given, (1, 1, 0, 1), strict=True)
    )
    stride, dilation = stride if given[1] else kernel, dilation if given[3] else _ONE
    _largest(b, node, kernel, stride, padding, dilation)


def _largest(
    b: Builder,
    node: fx.Node,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    number = b.image(node.args[0], node)
    source = b.buffer(number)
    height, width = _size(node)
    # With ceil_mode the last windows end beyond the padding.
    halo_y, halo_x = (
        max(pad, (count - 1) * step - pad + (size - 1) * gap + 1 - length)
        for pad, count, step, size, gap, length in zip(
            padding, (height, width), stride, kernel, dilation, (source.height, source.width), strict=True
        )
    )
    read = b.bordered(number, (halo_y, halo_x), 0)
    output = b.program.add_buffer(Buffer(height, width, source.channels, source.scale, source.zero_point))
    fields = _window(kernel, stride, padding, dilation)
    b.append(Layer(Op.MAX_POOL, input=read, output=output, fields=fields))
    b.values[node] = Value(output)
    b.tell(node, node, "cpupack::max_pool")


def average_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.AvgPool2d`` and ``nn.AvgPool1d``."""
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = b.calls.settings(node, names)
    kernel, padding = _of_image(given[0], node, 1), _of_image(given[2], node, 0)
    stride = _of_image(given[1], node, 1) if given[1] else kernel
    include, divisor = given[4] is not False, given[5]
    lengths, sizes = _size(node.all_input_nodes[0]), _size(node)
    inside = all(
        (size - 1) * step - pad + reach <= length + pad
        for size, step, pad, reach, length in zip(sizes, stride, padding, kernel, lengths, strict=True)
    )
    if divisor is None and inside:
        _average(b, node, kernel, stride, padding, include=include)
        return
    # Windows that end beyond the padding count what they see of it.
    rows, columns = (
        average_weights(length, size, reach, step, pad, include=include)
        for length, size, reach, step, pad in zip(lengths, sizes, kernel, stride, padding, strict=True)
    )
    if divisor is not None:
        rows, columns = (rows > 0).double() / divisor, (columns > 0).double()
    resample(b, node, rows, columns, "average_pool")


def adaptive_average_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.AdaptiveAvgPool2d`` and ``nn.AdaptiveAvgPool1d``."""
    lengths, sizes = _size(node.all_input_nodes[0]), _size(node)
    if lengths == sizes:
        b.values[node] = b.value(node.args[0], node)
    elif sizes == _ONE:
        _reduce(b, node, tuple(range(2, len(shape_of(node)))))
    elif all(length % size == 0 for length, size in zip(lengths, sizes, strict=True)):
        window = lengths[0] // sizes[0], lengths[1] // sizes[1]
        _average(b, node, window, window, (0, 0), include=True)
    else:
        rows, columns = (adaptive_weights(*each) for each in zip(lengths, sizes, strict=True))
        resample(b, node, rows, columns, "average_pool")


def adaptive_max_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.AdaptiveMaxPool2d`` and ``nn.AdaptiveMaxPool1d``."""
    lengths, sizes = _size(node.all_input_nodes[0]), _size(node)
    if not any(length % size for length, size in zip(lengths, sizes, strict=True)):
        window = lengths[0] // sizes[0], lengths[1] // sizes[1]
        _largest(b, node, window, window, (0, 0), _ONE)
        return
    # Windows of different sizes are copied side by side; short ones have their last row or column again.
    number = b.image(node.args[0], node)
    source = b.buffer(number)
    rows, columns = (_windows(*each) for each in zip(lengths, sizes, strict=True))
    kernel = len(rows) // sizes[0], len(columns) // sizes[1]
    elements = torch.arange(source.size).reshape(source.channels, *lengths)[:, rows][:, :, columns].flatten()
    copy = b.add_alike((len(rows), len(columns), source.channels), source)
    b.move(number, copy, elements, torch.arange(len(elements)))
    output = b.program.add_buffer(Buffer(*sizes, source.channels, source.scale, source.zero_point))
    b.append(Layer(Op.MAX_POOL, input=copy, output=output, fields=_window(kernel, kernel, (0, 0), _ONE)))
    b.values[node] = Value(output)
    b.tell(node, node, "cpupack::max_pool")


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
    own = torch.arange(source.size).reshape(source.channels, -1)
    if own.shape != by_channel.shape or not torch.equal(by_channel.sort(1).values, own):
        if len(kept) == 3 and shape[kept[2]] * count <= LONGEST_SIDE:
            _reduce_image(b, node, value.buffer, by_channel.reshape(*(shape[axis] for axis in kept), count))
            return
        height = next(each for each in range(1, count + 1) if count % each == 0 and count // each <= LONGEST_SIDE)
        number = b.add_alike((height, count // height, len(by_channel)), source)
        b.move(value.buffer, number, by_channel.flatten(), torch.arange(by_channel.numel()))
        source = b.buffer(number)
    if target is torch.amax:
        output = b.add_alike((1, 1, source.channels), source)
        window = source.height, source.width
        b.append(Layer(Op.MAX_POOL, input=number, output=output, fields=_window(window, window, (0, 0), _ONE)))
        _tell_reduced(b, node, output, "max_pool")
        return
    scale = source.scale * (count if target is torch.sum else 1)
    fields = {"scale": scale, "input_zero_point": source.zero_point, "channels_out": source.channels}
    if b.goes_out(node):
        fields["channel_offset"] = b.leave(node, source.channels)
        b.append(Layer(Op.GLOBAL_AVERAGE, Flag.FLOAT_OUT, input=number, fields=fields))
        b.values[node] = Value(-1)
        b.tell(node, node, "cpupack::global_average")
        return
    if b.read_as_floats(node):
        number_out = b.leave_floats(node, (1, 1, source.channels), None)
        b.append(Layer(Op.GLOBAL_AVERAGE, Flag.FLOAT_OUT, input=number, output=number_out, fields=fields))
        b.tell(node, node, "cpupack::global_average")
        return
    output = b.add_buffer(1, 1, source.channels, b.limits(node))
    result = b.buffer(output)
    fields |= {"scale": scale / result.scale, "output_zero_point": result.zero_point}
    b.append(Layer(Op.GLOBAL_AVERAGE, input=number, output=output, fields=fields))
    _tell_reduced(b, node, output, "global_average")


def _reduce_image(b: Builder, node: fx.Node, number: int, order: torch.Tensor) -> None:
    """Append a reduction to images: values that become one are side by side, and windows of a row go over them.

    ``order`` says which elements ``(channels, height, width, count)`` these are.
    """
    channels, height, width, count = order.shape
    source, target = b.buffer(number), b.calls.target(node)
    copy = b.add_alike((height, width * count, channels), source)
    b.move(number, copy, order.flatten(), torch.arange(order.numel()))
    fields = _window((1, count), (1, count), (0, 0), _ONE)
    if target is torch.amax:
        output = b.add_alike((height, width, channels), source)
        b.append(Layer(Op.MAX_POOL, input=copy, output=output, fields=fields))
        _tell_reduced(b, node, output, "max_pool")
        return
    output = b.add_buffer(height, width, channels, b.limits(node))
    result = b.buffer(output)
    fields |= {
        "scale": source.scale * (count if target is torch.sum else 1) / result.scale,
        "input_zero_point": source.zero_point, "output_zero_point": result.zero_point,
    }  # fmt: skip
    b.append(Layer(Op.AVERAGE_POOL, Flag.INCLUDE_PAD, copy, output=output, fields=fields))
    _tell_reduced(b, node, output, "average_pool")


def _tell_reduced(b: Builder, node: fx.Node, output: int, kernel: str) -> None:
    buffer = b.buffer(output)
    value = value_of(output, buffer, torch.arange(2 * buffer.size).reshape(shape_of(node)))
    assert value is not None
    b.values[node] = value
    b.tell(node, node, f"cpupack::{kernel}")


def _average(
    b: Builder,
    node: fx.Node,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    include: bool,
) -> None:
    number = b.image(node.args[0], node)
    source = b.buffer(number)
    height, width = _size(node)
    output = b.add_buffer(height, width, source.channels, b.limits(node))
    result = b.buffer(output)
    fields = _window(kernel, stride, padding, _ONE) | {
        "scale": source.scale / result.scale, "input_zero_point": source.zero_point,
        "output_zero_point": result.zero_point,
    }  # fmt: skip
    flags = Flag.INCLUDE_PAD if include else NO_FLAGS
    b.append(Layer(Op.AVERAGE_POOL, flags, number, output=output, fields=fields))
    b.values[node] = Value(output)
    b.tell(node, node, "cpupack::average_pool")


def _size(node: fx.Node) -> tuple[int, int]:
    """Return height and width of an image; of a sequence the height is 1."""
    shape = shape_of(node)
    return (1, shape[2]) if len(shape) == 3 else (shape[2], shape[3])


def _of_image(setting: Any, node: fx.Node, other: int) -> tuple[int, int]:
    """Return a setting for height and width; of a sequence the height's is ``other``."""
    return (other, pair(setting)[1]) if len(shape_of(node)) == 3 else pair(setting)


def _window(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> dict[str, float]:
    return {
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1],
        "pad_h": padding[0], "pad_w": padding[1], "dilation_h": dilation[0], "dilation_w": dilation[1],
    }  # fmt: skip
