"""Weighted sums over windows: every kind of interpolation, and averages whose windows differ."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx

from cpupack.runtime.engine.resampling import NEGLIGIBLE
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, shape_of
from cpupack.stages.quantize.native.program import Flag, Layer, Op, Size
from cpupack.stages.quantize.native.tell import tell
from cpupack.stages.quantize.native.values import Value


def interpolate(b: Builder, node: fx.Node) -> None:
    """Lower ``F.interpolate``. The weights of each row and column are measured by running torch's own function."""
    shape, source = shape_of(node), shape_of(node.all_input_nodes[0])
    mode, corners = argument(node, 3, "mode", "nearest"), argument(node, 4, "align_corners", None)
    if argument(node, 6, "antialias", False):
        raise b.calls.refusal(node, "with antialias")
    lengths = zip(source[2:], shape[2:], strict=True)
    frames, rows, columns = [
        *[torch.ones(1, 1, dtype=torch.float64)] * (5 - len(shape)),
        *(interpolation_weights(*each, len(shape) - 2, mode, corners) for each in lengths),
    ]
    resample(b, node, frames, rows, columns, "resample")


def interpolation_weights(
    length: int, result: int, axes: int, mode: str, corners: bool | None, *, antialias: bool = False
) -> torch.Tensor:
    """Return ``(result, length)``: torch resizes a line as a column with a channel for each of its places."""
    lines = torch.eye(length, dtype=torch.float64)
    if antialias:  # with so many channels of one column torch 2.13 gives other values
        image = lines.reshape(1, 1, length, length)
        return F.interpolate(image, (result, length), mode=mode, align_corners=corners, antialias=True)[0, 0]
    others = [1] * (axes - 1)
    resized = F.interpolate(
        lines.reshape(1, length, length, *others), (result, *others), mode=mode, align_corners=corners
    )
    return resized.reshape(length, result).t()


def average_weights(length: int, result: int, kernel: int, stride: int, padding: int, *, include: bool) -> torch.Tensor:
    """Return ``(result, length)``: an average's weights along one dimension, as torch counts its windows."""
    weights = torch.zeros(result, length, dtype=torch.float64)
    for place in range(result):
        begin = place * stride - padding
        end = min(begin + kernel, length + padding)
        count = end - begin
        begin, end = max(begin, 0), min(end, length)
        weights[place, begin:end] = 1.0 / (count if include else end - begin)
    return weights


def adaptive_weights(length: int, result: int) -> torch.Tensor:
    """Return ``(result, length)``: the weights of an adaptive average along one dimension."""
    weights = torch.zeros(result, length, dtype=torch.float64)
    for place in range(result):
        begin, end = place * length // result, -(-(place + 1) * length // result)
        weights[place, begin:end] = 1.0 / (end - begin)
    return weights


def resample(
    b: Builder, node: fx.Node, frames: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, kernel: str
) -> None:
    """Append a layer whose results are weighted sums of the frames, rows and columns of each channel.

    The weights of each are ``(result, source)``, of which each row has its weights side by side. Those of the rows are
    times the ratio of the scales, which the layer has too: the runner makes the weights of other sizes. The sums are
    rounded to codes, unless only the caller or calls in FP32 read them.
    """
    number = b.image(node.all_input_nodes[0], node)
    source = b.buffer(number)
    layer = Layer(Op.RESAMPLE, input=number)
    _put_result(b, node, layer, Size(len(rows), len(columns), source.channels, len(frames)))
    windows, weights = [], list[float]()
    ratio = float(np.float32(source.scale / (1.0 if layer.flags & Flag.FLOAT_OUT else b.buffer(layer.output).scale)))
    for matrix, factor in ((rows, ratio), (columns, 1.0), (frames, 1.0)):
        for row in matrix:
            found = (row.abs() > NEGLIGIBLE).nonzero().flatten()
            begin, end = (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 1)
            windows.append((begin, end - begin, len(weights)))
            weights += (row[begin:end] * factor).tolist()
    layer.fields |= {"runs": len(weights), "scale": ratio, "input_zero_point": source.zero_point}
    layer.constants = {"weights": np.array(windows, np.int32), "scales": np.array(weights, np.float32)}
    b.append(layer)
    tell(b, node, node, f"cpupack::{kernel}")


def _put_result(b: Builder, node: fx.Node, layer: Layer, size: Size) -> None:
    """Have a layer's result go to the caller, to calls in FP32, or into a buffer of codes."""
    height, width, _, frames = size
    if b.goes_out(node) and len(shape_of(node)) == 4:
        layer.flags |= Flag.FLOAT_OUT
        layer.fields = {
            "kernel_d": frames, "kernel_h": height, "kernel_w": width, "channels_out": math.prod(size),
            "channel_offset": b.leave(node, math.prod(size), by_positions=True),
        }  # fmt: skip
        b.values[node] = Value(-1)
    elif b.read_as_floats(node):
        layer.flags |= Flag.FLOAT_OUT
        layer.output = b.leave_floats(node, size, None)
    else:
        layer.output = b.add_buffer(size, b.limits(node))
        layer.fields = {"output_zero_point": b.buffer(layer.output).zero_point}
        b.values[node] = Value(layer.output)
