"""Pooling: the largest or the mean of windows, and the mean of whole images."""

from __future__ import annotations

from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import pair, shape_of
from cpupack.stages.quantize.native.program import NO_FLAGS, Buffer, Flag, Layer, Op
from cpupack.stages.quantize.native.values import Value

_ONE = (1, 1)


def max_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.MaxPool2d`` and its function: codes keep their scale."""
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (pair(each) for each in b.calls.settings(node, names))
    stride, dilation = stride if stride != (0, 0) else kernel, dilation if dilation != (0, 0) else _ONE
    number = b.image(node.args[0], node)
    source = b.buffer(number)
    height, width = shape_of(node)[2:]
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
    """Lower ``nn.AvgPool2d`` and its function."""
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    kernel, stride, padding, ceil, include, divisor = b.calls.settings(node, names)
    if divisor is not None or (ceil and include is not False and pair(padding) != (0, 0)):
        raise b.calls.refusal(node, "with its own divisor or padding beyond the image")
    include_pad = include is not False and not ceil
    _average(b, node, pair(kernel), pair(stride or kernel), pair(padding), include=include_pad)


def adaptive_average_pool(b: Builder, node: fx.Node) -> None:
    """Lower ``nn.AdaptiveAvgPool2d`` and its function where the windows are all of one size."""
    number = b.image(node.args[0], node)
    source = b.buffer(number)
    height, width = shape_of(node)[2:]
    if (height, width) == (source.height, source.width):
        b.values[node] = Value(number)
    elif (height, width) == _ONE:
        global_average(b, node)
    elif source.height % height == 0 and source.width % width == 0:
        window = source.height // height, source.width // width
        _average(b, node, window, window, (0, 0), include=True)
    else:
        raise b.calls.refusal(node, f"from {source.height} x {source.width} to {height} x {width}")


def mean(b: Builder, node: fx.Node) -> None:
    """Lower a mean over height and width."""
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axes = [each % 4 for each in given if isinstance(each, int)] if isinstance(given, list | tuple) else []
    operand = node.args[0]
    image = isinstance(operand, fx.Node) and len(operand.meta.get("shape", ())) == 4
    if not image or sorted(axes) != [2, 3]:
        raise b.calls.refusal(node, "over anything but height and width")
    global_average(b, node)


def global_average(b: Builder, node: fx.Node) -> None:
    """Lower the mean of each channel; the model's result where nothing comes behind it, then in FP32."""
    number = b.image(node.args[0], node)
    source = b.buffer(number)
    fields = {"scale": source.scale, "input_zero_point": source.zero_point, "channels_out": source.channels}
    if node is b.result:
        b.program.outputs = source.channels
        b.append(Layer(Op.GLOBAL_AVERAGE, Flag.FLOAT_OUT, input=number, fields=fields))
        b.values[node] = Value(-1)
    else:
        output = b.add_buffer(1, 1, source.channels, b.limits(node))
        result = b.buffer(output)
        fields |= {"scale": source.scale / result.scale, "output_zero_point": result.zero_point}
        b.append(Layer(Op.GLOBAL_AVERAGE, input=number, output=output, fields=fields))
        b.values[node] = Value(output)
    b.tell(node, node, "cpupack::global_average")


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
    height, width = shape_of(node)[2:]
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


def _window(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> dict[str, float]:
    return {
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1],
        "pad_h": padding[0], "pad_w": padding[1], "dilation_h": dilation[0], "dilation_w": dilation[1],
    }  # fmt: skip
