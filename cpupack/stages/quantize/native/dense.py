"""Layers with weights: convolutions, linear layers and lone BatchNorms, with what their kernels do on the way out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import LayerSaturation
from cpupack.graph.names import core, scoped_name
from cpupack.graph.pixel_model import fold_normalization
from cpupack.runtime.images.inputs import pixel_zero_point
from cpupack.stages.quantize.native.builder import Builder, covering
from cpupack.stages.quantize.native.calls import ADDS, Calls, is_plain, pair, shape_of
from cpupack.stages.quantize.native.fit import Fit, bound_of, limit_conv, limit_depthwise
from cpupack.stages.quantize.native.functions import (
    Function,
    activation_of,
    ends_with_relu,
    is_fused_relu,
    table_of,
    useful_range,
)
from cpupack.stages.quantize.native.program import NO_FLAGS, Buffer, Flag, Layer, Op
from cpupack.stages.quantize.native.values import Value, channels_last, channels_of, last_channels_of
from cpupack.stages.quantize.native.weights import dense_parts, depthwise_parts, finish_of, quantize_weights

_ONE = (1, 1)


@dataclass(frozen=True)
class Dense:
    """A layer as a convolution: FP32 weights ``(out, in / groups, height, width)`` and bias ``(out,)``."""

    weight: torch.Tensor
    bias: torch.Tensor
    stride: tuple[int, int] = _ONE
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = _ONE
    groups: int = 1

    def window(self, source: Buffer) -> tuple[int, int]:
        """Return height and width of the result."""
        sizes = (
            (length + 2 * pad - gap * (size - 1) - 1) // step + 1
            for length, pad, gap, size, step in zip(
                (source.height, source.width),
                self.padding,
                self.dilation,
                self.weight.shape[2:],
                self.stride,
                strict=True,
            )
        )
        height, width = sizes
        return height, width


@dataclass
class _Exit:
    """What a kernel does with its sums: the calls up to ``last``, from FP32 to the codes of ``output``.

    ``scale`` and ``zero_point`` are those of the codes before the table, ``added`` is the buffer that is added first.
    """

    last: fx.Node
    names: list[str]
    output: int = -1
    first_channel: int = 0
    added: int = -1
    scale: float = 1.0
    zero_point: float = 0.0
    flags: Flag = NO_FLAGS
    fields: dict[str, float] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)


def has_weights(calls: Calls, node: fx.Node) -> bool:
    """Whether a call is of a layer that this module lowers."""
    module = calls.module(node)
    return module is not None and type(core(module)) in (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)


def convolve(b: Builder, node: fx.Node) -> None:
    """Lower a layer with weights, with an addition and an activation behind it where nothing else reads between."""
    value = b.value(node.args[0], node)
    dense, source, positions = _matched(b, node, value)
    buffer = b.buffer(source)
    height, width = dense.window(buffer)
    # Windows of one place need no stride, which might lead out of a small image.
    dense = dataclasses.replace(
        dense, stride=(dense.stride[0] if height > 1 else 1, dense.stride[1] if width > 1 else 1)
    )
    dense = _without_padding(dense, (buffer.height, buffer.width), (height, width))
    leave = _exit(b, node, dense, (height, width))
    error = _emit(b, node, dense, source, leave)
    order = None
    if positions and leave.output >= 0:
        order = channels_last(b.buffer(leave.output), shape_of(leave.last))
        order = order if order.ndim > 2 else None
    b.values[leave.last] = Value(leave.output, order)
    kind = "+".join([b.calls.kind(node), *(b.calls.kind(each) for each in _between(node, leave.last))])
    b.tell(node, leave.last, " + ".join(leave.names), kind=kind, weight_sqnr_db=error)


def _without_padding(dense: Dense, image: tuple[int, int], result: tuple[int, int]) -> Dense:
    """Return a layer without the outer rows and columns of its kernel that see padding alone, in images that small.

    A 3 x 3 convolution of an image of one pixel is one of 1 x 1, with a ninth of the products.
    """
    weight, padding = dense.weight, list(dense.padding)
    for axis in range(2):
        stride, gap, pad = dense.stride[axis], dense.dilation[axis], dense.padding[axis]
        seen = [
            tap
            for tap in range(weight.shape[2 + axis])
            if any(0 <= stride * place - pad + gap * tap < image[axis] for place in range(result[axis]))
        ]
        first, last = (seen[0], seen[-1]) if seen else (0, 0)
        if gap * first > pad:  # no image in sight of some outputs: left as it is
            continue
        weight = weight.narrow(2 + axis, first, last - first + 1)
        padding[axis] = pad - gap * first
    return dataclasses.replace(dense, weight=weight, padding=(padding[0], padding[1]))


def _between(node: fx.Node, last: fx.Node) -> list[fx.Node]:
    """Return the calls behind ``node`` up to ``last``, each the only reader of the one before."""
    found: list[fx.Node] = []
    while (found or [node])[-1] is not last:
        found.append(next(iter((found or [node])[-1].users)))
    return found


# ---- the layer ----


def _matched(b: Builder, node: fx.Node, value: Value) -> tuple[Dense, int, bool]:
    """Return a layer in terms of its source buffer, that buffer, and whether a Linear goes over its positions."""
    buffer = b.buffer(value.buffer)
    dense = _dense(b.calls, node)
    if not isinstance(core(b.calls.module(node) or nn.Identity()), nn.Linear):
        if value.order is None:
            return dense, value.buffer, False
        channels = channels_of(value, buffer)
        first = channels is not None and channels == list(range(len(channels)))
        if first and dense.groups > 1:
            return dense, value.buffer, False  # groups find their channels: they are counted from the first
        if channels is None or dense.groups > 1:
            return dense, b.image(node.args[0], node), False
        return dataclasses.replace(dense, weight=_spread(dense.weight, channels, buffer.channels)), value.buffer, False
    channels = last_channels_of(value, buffer)
    if channels is not None:
        weight = _spread(dense.weight, channels, buffer.channels)
        return dataclasses.replace(dense, weight=weight), value.buffer, True
    if value.order is None or value.order.ndim != 2:
        raise b.calls.refusal(node, "over a dimension that is not the channels")
    # One vector a sample: a convolution with a window of the whole image.
    whole = torch.zeros(len(dense.weight), buffer.size)
    whole[:, value.order[0]] = dense.weight.flatten(1)
    shaped = whole.reshape(-1, buffer.channels, buffer.height, buffer.width)
    return dataclasses.replace(dense, weight=shaped), value.buffer, False


def _dense(calls: Calls, node: fx.Node) -> Dense:
    module = calls.module(node)
    assert module is not None
    layer = core(module)
    if isinstance(layer, nn.Linear):
        return Dense(layer.weight.detach()[:, :, None, None], _bias(layer))
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
        if len(shape_of(node)) == 3 or layer.running_mean is None or layer.running_var is None:
            raise calls.refusal(node, "without running statistics, or over a sequence")
        scale = torch.rsqrt(layer.running_var + layer.eps)
        scale = scale * layer.weight.detach() if layer.weight is not None else scale
        shift = layer.bias.detach() if layer.bias is not None else 0.0
        return Dense(scale[:, None, None, None], shift - layer.running_mean * scale, groups=len(scale))
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros":
        raise calls.refusal(node, f'with padding_mode "{layer.padding_mode}"')
    return Dense(
        layer.weight.detach(), _bias(layer), pair(layer.stride), _padding(calls, node, layer), pair(layer.dilation),
        layer.groups,
    )  # fmt: skip


def _bias(layer: nn.Linear | nn.Conv2d) -> torch.Tensor:
    return layer.bias.detach() if layer.bias is not None else torch.zeros(len(layer.weight))


def _padding(calls: Calls, node: fx.Node, layer: nn.Conv2d) -> tuple[int, int]:
    if not isinstance(layer.padding, str):
        return pair(layer.padding)
    if layer.padding == "valid":
        return 0, 0
    total = [gap * (size - 1) for gap, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(each % 2 for each in total):
        raise calls.refusal(node, "with more padding on one side than on the other")
    return total[0] // 2, total[1] // 2


def _spread(weight: torch.Tensor, channels: list[int], total: int) -> torch.Tensor:
    """Return weights for all channels of a buffer, zero for those that the layer does not read."""
    if channels == list(range(total)):
        return weight
    spread = torch.zeros(len(weight), total, *weight.shape[2:])
    spread[:, channels] = weight
    return spread


# ---- what comes behind it ----


def _exit(b: Builder, node: fx.Node, dense: Dense, size: tuple[int, int]) -> _Exit:
    outputs = len(dense.weight)
    leave = _behind(b, node, (*size, outputs))
    module, graph = b.calls.module(node), b.calls.graph
    behind = _between(node, leave.last)
    b.absorbed.update([node, *behind][:-1])
    if leave.last is b.result and not behind and not is_fused_relu(module) and size == _ONE:
        leave.flags |= Flag.FLOAT_OUT
        b.program.outputs = outputs
        return leave
    function = activation_of(graph, leave.last) if behind else None
    relu = ends_with_relu(graph, leave.last)
    table = function if function is not None and not relu else None
    place = b.slice_for(leave.last)
    if place is None:
        leave.output = b.add_buffer(*size, outputs, b.limits(leave.last))
    else:
        leave.output, leave.first_channel = place
    result = b.buffer(leave.output)
    leave.scale, leave.zero_point = result.scale, result.zero_point
    if table is not None:
        _look_up(b, leave, table, behind[-2] if len(behind) > 1 else node)
    elif relu:
        leave.fields["low"] = result.zero_point
    if leave.added >= 0:
        leave.flags |= Flag.RESIDUAL
        leave.fields["scale2"] = b.buffer(leave.added).scale / leave.scale
    return leave


def _look_up(b: Builder, leave: _Exit, function: Function, before: fx.Node) -> None:
    """Have sums rounded to the range of what goes into the activation, and go through a table from there."""
    result = b.buffer(leave.output)
    inner = covering(1, 1, 1, useful_range(function, b.limits(before), result))
    leave.constants["table"] = table_of(function, inner, result)
    leave.flags |= Flag.TABLE
    leave.scale, leave.zero_point = inner.scale, inner.zero_point


def _behind(b: Builder, node: fx.Node, size: tuple[int, int, int]) -> _Exit:
    """Return the last call that the kernel also does, and what it adds on the way."""
    calls = b.calls
    names = ["conv"]
    if is_fused_relu(calls.module(node)):
        return _Exit(node, [*names, "relu"])
    leave = _Exit(node, names)
    reader = calls.only_reader(node)
    if reader is not None and reader.target in ADDS and is_plain(reader):
        others = [each for each in reader.args if each is not node]
        found = b.values.get(others[0]) if len(others) == 1 and isinstance(others[0], fx.Node) else None
        if isinstance(found, Value) and found.order is None and others[0] not in b.in_place:
            buffer = b.buffer(found.buffer)
            if (buffer.height, buffer.width, buffer.channels) == size and shape_of(reader) == shape_of(node):
                leave.last, leave.added = reader, found.buffer
                names.append("add")
                reader = calls.only_reader(reader)
    if reader is not None and activation_of(calls.graph, reader) is not None:
        leave.last = reader
        names.append(calls.kind(reader).lower().strip("_"))
    return leave


# ---- the program's layers ----


def _is_depthwise(dense: Dense) -> bool:
    return dense.groups == len(dense.weight) > 1 and dense.weight.shape[1] == 1


def _emit(b: Builder, node: fx.Node, dense: Dense, source: int, leave: _Exit) -> float:
    """Append the layer, twice where the first one may read pixels or floats; return its weights' SQNR."""
    reads_input = _reads_input(node)
    flag = Flag.ONLY_FLOAT if reads_input else NO_FLAGS
    error = _append(b, node, dense, source, leave, flag)
    if reads_input and b.preprocess is not None and dense.groups == 1:
        image, channels = b.buffer(source), b.buffer(source).channels + 1
        b.program.input_channels_pixels = channels
        folded = dataclasses.replace(dense, weight=fold_normalization(dense.weight, b.preprocess))
        # Not where the zeros that fill the blocks up would cost more than loading many short rows: without AMX.
        even = dense.stride == (2, 2) and dense.dilation == _ONE and not (image.height | image.width) % 2
        block = 2 if even and not b.fitting else 1
        if block == 2:
            folded = _by_blocks(folded)
        pixels = Buffer(
            image.height // block, image.width // block, channels * block**2, 1.0, pixel_zero_point(b.preprocess)
        )
        number = b.program.add_buffer(pixels)
        fields: dict[str, float] = {"stride_h": block, "stride_w": block}
        b.append(Layer(Op.INPUT_PIXELS, Flag.ONLY_PIXELS, output=number, fields=fields))
        _append(b, node, folded, number, leave, Flag.ONLY_PIXELS)
    return error


def _by_blocks(dense: Dense) -> Dense:
    """Return a convolution with stride 2 as one with stride 1 over an image whose 2 x 2 pixels are channels of one.

    The same products, with four times the channels: a few contiguous bytes in each of many rows are what tiles load
    slowly (7 x 7 of 4 channels: 7 runs of 28 bytes become 4 of 64).
    """
    outputs, channels, height, width = dense.weight.shape
    before = [-(-pad // 2) for pad in dense.padding]
    lead = [2 * blocks - pad for blocks, pad in zip(before, dense.padding, strict=True)]
    blocks = [-(-(first + size) // 2) for first, size in zip(lead, (height, width), strict=True)]
    whole = torch.zeros(outputs, channels, 2 * blocks[0], 2 * blocks[1])
    whole[:, :, lead[0] : lead[0] + height, lead[1] : lead[1] + width] = dense.weight
    split = whole.reshape(outputs, channels, blocks[0], 2, blocks[1], 2).permute(0, 3, 5, 1, 2, 4)
    weight = split.reshape(outputs, 4 * channels, blocks[0], blocks[1])
    return Dense(weight, dense.bias, padding=(before[0], before[1]))


def _reads_input(node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and source.op == "placeholder" and list(source.users) == [node]


def _append(b: Builder, node: fx.Node, dense: Dense, source: int, leave: _Exit, flag: Flag) -> float:
    read = b.bordered(source, dense.padding, b.buffer(source).zero_point)
    dilated = dense.dilation != _ONE
    alike = leave.output >= 0 and b.buffer(read).channels == b.buffer(leave.output).channels
    depthwise = _is_depthwise(dense) and alike and Flag.RESIDUAL not in leave.flags
    winograd = b.fitting and leave.output >= 0 and winograd_pays(dense, b.buffer(read), b.buffer(leave.output))
    # The ends of a network take little of its time, and their errors are in every result.
    ends = _reads_input(node) or leave.output < 0
    weights, scales = _quantized(b, dense, depthwise=depthwise, winograd=winograd, most=2 if ends else 4)
    factors, shifts = finish_of(
        weights, scales, dense.bias.double().numpy(), b.buffer(read), (leave.scale, leave.zero_point)
    )
    if leave.added >= 0:
        other = b.buffer(leave.added)
        shifts = shifts - other.zero_point * other.scale / leave.scale
    if depthwise:
        op, fields, parts = depthwise_parts(weights, factors, shifts, stride=dense.stride[1], dilated=dilated)
    else:
        op, fields, parts = dense_parts(weights, factors, shifts, groups=dense.groups, dilated=dilated)
    fields |= {
        "kernel_h": dense.weight.shape[2], "kernel_w": dense.weight.shape[3],
        "stride_h": dense.stride[0], "stride_w": dense.stride[1], "pad_h": dense.padding[0], "pad_w": dense.padding[1],
        "dilation_h": dense.dilation[0], "dilation_w": dense.dilation[1], "channels_out": len(weights),
        "channel_offset": leave.first_channel, **leave.fields,
    }  # fmt: skip
    if b.fitting and not winograd:
        fit = Fit(int(fields["fit"]))
        bound, sums = bound_of(weights, dense.groups, fit, dilated=dilated, depthwise=depthwise)
        name = scoped_name(node) + (" (pixels)" if Flag.ONLY_PIXELS in flag else "")
        b.sums.append(LayerSaturation(name, 8, sums * len(weights), bound, 0, None, "safe for any input"))
    leave.names[0] = f"cpupack::{op.name.lower()}"
    flag |= Flag.WINOGRAD if winograd else NO_FLAGS
    b.append(Layer(op, leave.flags | flag, read, leave.added, leave.output, fields, parts | leave.constants))
    rounded = weights * scales.reshape(-1, 1, 1, 1)
    return sqnr_db(dense.weight.numpy(), rounded)


def winograd_pays(dense: Dense, source: Buffer, result: Buffer) -> bool:
    """Whether AVX2 is faster with products of transformed tiles, where ``kernels/avx2/conv_3x3_winograd.inc`` can.

    They take 16 products of 16 bits for four outputs, a direct convolution 36 of 8 bits, 1.75 times as many a cycle.
    """
    plain = (dense.stride, dense.dilation, dense.groups) == (_ONE, _ONE, 1) and dense.weight.shape[2:] == (3, 3)
    if not plain or max(dense.padding) > 1 or source.channels % 16 or not 32 <= source.channels <= 1024:
        return False
    outputs = result.height * result.width / (-(-result.height // 2) * -(-result.width // 2))
    return outputs > 16 * 1.75 / 9 and len(dense.weight) >= 16


def _quantized(
    b: Builder, dense: Dense, *, depthwise: bool, winograd: bool, most: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Return int8 weights and their scales; such as fit where the least CPU of the target adds products in 16 bits.

    At ``most`` so many are added.
    """
    per_channel = b.recipe.weights == "per_channel"
    if not b.fitting or winograd:
        return quantize_weights(dense.weight, per_channel=per_channel)
    if depthwise:
        return limit_depthwise(dense.weight, per_channel=per_channel)
    return limit_conv(dense.weight, dense.groups, dilated=dense.dilation != _ONE, per_channel=per_channel, most=most)
