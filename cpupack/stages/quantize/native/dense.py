"""Layers with weights: convolutions, linear layers and single BatchNorms, and the calls that their kernels include."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import LayerSaturation
from cpupack.graph.names import scoped_name
from cpupack.graph.pixel_model import fold_normalization
from cpupack.runtime.images.inputs import pixel_zero_point
from cpupack.stages.quantize.native.affine import is_sloped, slopes_of
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import Triple, is_plain, shape_of
from cpupack.stages.quantize.native.filters import ONE, Dense, by_blocks, lengths_of, matched, size_of, without_padding
from cpupack.stages.quantize.native.fit import Fit, bound_of, limit_conv, limit_depthwise
from cpupack.stages.quantize.native.functions import (
    Function,
    activation_of,
    composed,
    ends_with_relu,
    is_fused_relu,
    table_of,
)
from cpupack.stages.quantize.native.joins import between, functions_from
from cpupack.stages.quantize.native.pack import BLOCK, pad_channels
from cpupack.stages.quantize.native.program import NO_FLAGS, Buffer, Flag, Layer, Op, Size, window_fields
from cpupack.stages.quantize.native.tables import input_grid
from cpupack.stages.quantize.native.tell import tell
from cpupack.stages.quantize.native.transposed import is_transposed, upsampling
from cpupack.stages.quantize.native.values import Value, channels_last
from cpupack.stages.quantize.native.weights import dense_parts, depthwise_parts, finish_of, quantize_weights


@dataclass
class _Exit:
    """How a kernel turns its sums into the codes of ``output``: it includes the calls up to ``last``.

    ``floats`` is a buffer for float32 results instead. ``scale`` and ``zero_point`` are those of the codes before the
    table, ``added`` is the buffer that is added first. ``slopes`` are those of negative results, one for each channel.
    """

    last: fx.Node
    names: list[str]
    output: int = -1
    floats: int = -1
    first_channel: int = 0
    added: int = -1
    functions: list[Function] = field(default_factory=list)
    slopes: npt.NDArray[np.float64] | None = None
    scale: float = 1.0
    zero_point: float = 0.0
    flags: Flag = NO_FLAGS
    fields: dict[str, float] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)


def convolve(b: Builder, node: fx.Node) -> None:
    """Lower a layer with weights, and an addition and functions after it if no other call reads their inputs."""
    dense, source, positions = matched(b, node)
    buffer = b.buffer(source)
    places = None
    if is_transposed(b.calls, node):
        dense, size, places = upsampling(b.calls, node)
    else:
        size = dense.window(buffer)
    # Windows of one place need no stride, which might lead out of a small image.
    deep, down, right = (step if count > 1 else 1 for step, count in zip(dense.stride, size, strict=True))
    dense = dataclasses.replace(dense, stride=(deep, down, right))
    dense = without_padding(dense, lengths_of(buffer), size)
    order = None
    if positions and len(shape_of(node)) > 2:
        order = channels_last(Buffer(*size_of(size, len(dense.weight))[:3], 1.0, 0, frames=size[0]), shape_of(node))
    leave = _exit(b, node, dense, size, order, apart=places is not None)
    error = _emit(b, node, dense, source, leave, size)
    if places is not None:
        result = b.buffer(leave.output)
        order = torch.stack([places, places + result.size])
    if leave.floats < 0:
        b.values[leave.last] = Value(leave.output, order)
    kind = "+".join([b.calls.kind(node), *(b.calls.kind(each) for each in between(node, leave.last))])
    tell(b, node, leave.last, " + ".join(leave.names), kind=kind, weight_sqnr_db=error)


# ---- the calls after it ----


def _exit(b: Builder, node: fx.Node, dense: Dense, size: Triple, order: torch.Tensor | None, *, apart: bool) -> _Exit:
    """Return how a layer's results are written. With ``apart`` they get a separate buffer."""
    outputs = len(dense.weight)
    result_size = size_of(size, outputs)
    leave = _included(b, node, dense, result_size, order, apart=apart)
    module, graph = b.calls.module(node), b.calls.graph
    following = between(node, leave.last)
    b.absorbed.update([node, *following][:-1])
    if b.goes_out(leave.last) and not following and not is_fused_relu(module) and size == ONE and not apart:
        leave.flags |= Flag.FLOAT_OUT
        leave.first_channel = b.leave(node, outputs)
        return leave
    plain = not (following or is_fused_relu(module) or apart or _is_depthwise(dense))
    if plain and b.read_as_floats(node):
        leave.flags |= Flag.FLOAT_OUT
        leave.floats = b.leave_floats(node, result_size, order)
        return leave
    place = b.slice_for(leave.last) if order is None and not apart else None
    if place is None:
        leave.output = b.add_buffer(result_size, b.limits(leave.last))
    else:
        leave.output, leave.first_channel = place
    result = b.buffer(leave.output).part(leave.first_channel)
    leave.scale, leave.zero_point = result.scale, result.zero_point
    before, *functions = [node, *following][-1 - len(leave.functions) :]
    if not all(ends_with_relu(graph, each) for each in functions):
        _look_up(b, leave, composed(leave.functions), before, result)
    elif ends_with_relu(graph, leave.last):
        leave.fields["low"] = result.zero_point
    if leave.slopes is not None:
        _bend(leave, leave.slopes)
    if leave.added >= 0:
        leave.flags |= Flag.RESIDUAL
        leave.fields["scale2"] = b.buffer(leave.added).scale / leave.scale
    return leave


def _look_up(b: Builder, leave: _Exit, function: Function, before: fx.Node, result: Buffer) -> None:
    """Round the sums to the range of the activation's input, and apply the activation by a table."""
    inner = input_grid(function, b.statistics(before), b.limits(before), result)
    leave.constants["table"] = table_of(function, inner, result)
    leave.flags |= Flag.TABLE
    leave.scale, leave.zero_point = inner.scale, inner.zero_point


def _bend(leave: _Exit, slopes: npt.NDArray[np.float64]) -> None:
    """Multiply what is below zero by its channel's slope, before it is rounded."""
    leave.flags |= Flag.SLOPES
    leave.fields["output_zero_point"] = leave.zero_point
    # zero + (y - zero) * slope, where y is a code with its fraction
    terms = leave.zero_point * (1.0 - slopes)
    leave.constants["table"] = np.concatenate([pad_channels(each, BLOCK) for each in (slopes, terms)])


def _included(
    b: Builder,
    node: fx.Node,
    dense: Dense,
    size: Size,
    order: torch.Tensor | None,
    *,
    apart: bool,
) -> _Exit:
    """Return the last call that the kernel includes, and the buffer that it adds."""
    calls = b.calls
    names = ["conv"]
    if is_fused_relu(calls.module(node)):
        return _Exit(node, [*names, "relu"])
    leave = _Exit(node, names)
    reader = calls.only_reader(node)
    by_channel = order is None and not apart and not _is_depthwise(dense)
    if reader is not None and is_sloped(calls, reader) and by_channel:
        leave.slopes, leave.last = slopes_of(calls, reader), reader
        names.append("prelu")
        return leave
    if reader is not None and reader.target is torch.add and is_plain(reader) and not apart:
        others = [each for each in reader.args if each is not node]
        found = b.values.get(others[0]) if len(others) == 1 and isinstance(others[0], fx.Node) else None
        if isinstance(found, Value) and _alike(found.order, order) and others[0] not in b.in_place:
            buffer = b.buffer(found.buffer)
            if buffer.layout == size and shape_of(reader) == shape_of(node):
                leave.last, leave.added = reader, found.buffer
                names.append("add")
                reader = calls.only_reader(reader)
    if reader is not None and activation_of(calls.graph, reader) is not None:
        leave.functions, leave.last = functions_from(calls, reader)
        names += [calls.kind(each).lower().strip("_") for each in (reader, *between(reader, leave.last))]
    return leave


def _alike(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


# ---- the program's layers ----


def _is_depthwise(dense: Dense) -> bool:
    return dense.groups == len(dense.weight) > 1 and dense.weight.shape[1] == 1


def _emit(b: Builder, node: fx.Node, dense: Dense, source: int, leave: _Exit, size: Triple) -> float:
    """Append the layer, or two layers if the first one may read pixels or floats. Return the SQNR of its weights."""
    reads_input = _reads_input(b, node)
    flag = Flag.ONLY_FLOAT if reads_input else NO_FLAGS
    error = _append(b, node, dense, source, leave, size, flag)
    if reads_input and b.preprocess is not None and dense.groups == 1:
        image, channels = b.buffer(source), b.buffer(source).channels + 1
        b.program.input_channels_pixels = channels
        folded = dataclasses.replace(dense, weight=fold_normalization(dense.rows(), b.preprocess)[:, :, None])
        # Only with AMX. Without it, the zeros that fill the blocks cost more than loading many short rows.
        even = dense.stride == (1, 2, 2) and dense.dilation == ONE and not (image.height | image.width) % 2
        block = 2 if even and not b.fitting else 1
        if block == 2:
            folded = by_blocks(folded)
        pixels = Buffer(
            image.height // block, image.width // block, channels * block**2, 1.0, pixel_zero_point(b.preprocess)
        )
        number = b.program.add_buffer(pixels)
        fields: dict[str, float] = {"stride_h": block, "stride_w": block}
        b.append(Layer(Op.INPUT_PIXELS, Flag.ONLY_PIXELS, output=number, fields=fields))
        _append(b, node, folded, number, leave, size, Flag.ONLY_PIXELS)
    return error


def _reads_input(b: Builder, node: fx.Node) -> bool:
    """Whether a layer is the only reader of the whole input, or of the border around the input."""
    source = node.args[0]
    if source in b.borders and list(source.users) == [node]:  # type: ignore[union-attr]  # borders are of calls
        node, source = source, source.args[0]  # type: ignore[union-attr,assignment]
    return isinstance(source, fx.Node) and source in b.images and list(source.users) == [node]


def _append(b: Builder, node: fx.Node, dense: Dense, source: int, leave: _Exit, size: Triple, flag: Flag) -> float:
    read = b.bordered(source, dense.halo(b.buffer(source), size), b.buffer(source).zero_point)
    dilated = dense.dilation != ONE
    alike = leave.output >= 0 and b.buffer(read).channels == b.buffer(leave.output).channels
    depthwise = _is_depthwise(dense) and alike and Flag.RESIDUAL not in leave.flags
    winograd = b.fitting and leave.output >= 0 and winograd_pays(dense, b.buffer(read), b.buffer(leave.output))
    # The first and last layers of a network take little time, and their errors affect every result.
    ends = _reads_input(b, node) or leave.output < 0 > leave.floats
    weights, scales = _quantized(b, dense, depthwise=depthwise, winograd=winograd, most=2 if ends else 4)
    factors, shifts = finish_of(
        weights, scales, dense.bias.double().numpy(), b.buffer(read), (leave.scale, leave.zero_point)
    )
    if leave.added >= 0:
        other = b.buffer(leave.added)
        shifts = shifts - other.zero_point * other.scale / leave.scale
    if depthwise:
        op, fields, parts = depthwise_parts(
            weights, factors, shifts, stride=dense.stride[2], dilated=dilated, depth=dense.weight.shape[2]
        )
    else:
        op, fields, parts = dense_parts(weights, factors, shifts, groups=dense.groups, dilated=dilated)
    fields |= {
        "channels_out": len(weights), "channel_offset": leave.first_channel,
        **window_fields(dense.weight.shape[2:], dense.stride, dense.padding, dense.dilation), **leave.fields,
    }  # fmt: skip
    if b.fitting and not winograd:
        fit = Fit(int(fields["fit"]))
        bound, sums = bound_of(weights, dense.groups, fit, dilated=dilated, depthwise=depthwise)
        name = scoped_name(node) + (" (pixels)" if Flag.ONLY_PIXELS in flag else "")
        b.sums.append(LayerSaturation(name, 8, sums * len(weights), bound, 0, None, "safe for any input"))
    leave.names[0] = f"cpupack::{op.name.lower()}"
    flag |= Flag.WINOGRAD if winograd else NO_FLAGS
    output = leave.floats if leave.floats >= 0 else leave.output
    b.append(Layer(op, leave.flags | flag, read, leave.added, output, fields, parts | leave.constants))
    rounded = weights * scales.reshape(-1, 1, 1, 1)
    return sqnr_db(dense.rows().numpy(), rounded)


def winograd_pays(dense: Dense, source: Buffer, result: Buffer) -> bool:
    """Whether Winograd tiles (``kernels/avx2/conv_3x3_winograd.inc``) are possible and faster on AVX2.

    They need 16 products of 16 bits for four outputs. A direct convolution needs 36 products of 8 bits, but computes
    1.75 times as many in a cycle.
    """
    plain = (dense.stride, dense.dilation, dense.groups) == (ONE, ONE, 1) and dense.weight.shape[2:] == (1, 3, 3)
    if (
        not plain
        or max(dense.padding) > 1
        or max(dense.halo(source, lengths_of(result))) > 1
        or source.channels % 16
        or not 32 <= source.channels <= 1024
    ):
        return False
    outputs = result.height * result.width / (-(-result.height // 2) * -(-result.width // 2))
    return outputs > 16 * 1.75 / 9 and len(dense.weight) >= 16


def _quantized(
    b: Builder, dense: Dense, *, depthwise: bool, winograd: bool, most: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Return int8 weights and their scales. If the target's lowest CPU adds products in 16 bits, their sums fit.

    ``most`` is the largest number of products in one sum.
    """
    per_channel = b.recipe.weights == "per_channel"
    if not b.fitting or winograd:
        return quantize_weights(dense.rows(), per_channel=per_channel)
    if depthwise:
        return limit_depthwise(dense.rows(), per_channel=per_channel)
    return limit_conv(dense.rows(), dense.groups, dilated=dense.dilation != ONE, per_channel=per_channel, most=most)
