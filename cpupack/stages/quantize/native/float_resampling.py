"""Lowers interpolation and averages over windows in FP32: products with matrices of weights, dimension by dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, lengths_of, shape_of, triple
from cpupack.stages.quantize.native.walks import Fixed, View
from cpupack.stages.quantize.native.windows import Windows, adaptive_windows, average_windows, interpolation_windows

_TOGETHER = 64
"""Results along a dimension that are computed from the part of their operand which they read."""
_ANTIALIASED = {
    torch.ops.aten._upsample_bilinear2d_aa.vec: "bilinear",
    torch.ops.aten._upsample_bicubic2d_aa.vec: "bicubic",
}


def interpolate(b: Builder, node: fx.Node) -> View:
    """Lower every mode of ``F.interpolate`` but nearest neighbours, which are copies."""
    target = b.calls.target(node)
    if target in _ANTIALIASED:
        mode, corners, antialias = _ANTIALIASED[target], argument(node, 2, "align_corners", None), True
    else:
        mode, corners = argument(node, 3, "mode", "nearest"), argument(node, 4, "align_corners", None)
        antialias = bool(argument(node, 6, "antialias", False))
    shape, source = shape_of(node), shape_of(node.all_input_nodes[0])
    lengths = zip(source[2:], shape[2:], strict=True)
    weights = [
        interpolation_windows(*each, len(shape) - 2, mode, corners, antialias=antialias) for each in lengths
    ]  # fmt: skip
    return _weighted(b, node, weights)


def average(b: Builder, node: fx.Node) -> View:
    """Lower ``nn.AvgPool2d`` and ``3d`` of any windows."""
    module: Any = b.calls.module(node)
    shape, source = shape_of(node), shape_of(node.all_input_nodes[0])
    axes = len(shape) - 2
    kernel, stride = triple(module.kernel_size, axes, 1), triple(module.stride or module.kernel_size, axes, 1)
    padding, divisor = triple(module.padding, axes, 0), getattr(module, "divisor_override", None)
    settings = zip(lengths_of(source), lengths_of(shape), kernel, stride, padding, strict=True)
    weights = [average_windows(*each, include=module.count_include_pad) for each in settings]
    if divisor:
        weights = [*(each.counted() for each in weights[:-1]), weights[-1].counted(divisor)]
    return _weighted(b, node, weights[3 - axes :])


def adaptive_average(b: Builder, node: fx.Node) -> View:
    """Lower ``nn.AdaptiveAvgPool1d``, ``2d`` and ``3d`` to several positions."""
    shape, source = shape_of(node), shape_of(node.all_input_nodes[0])
    return _weighted(b, node, [adaptive_windows(*each) for each in zip(source[2:], shape[2:], strict=True)])


def _weighted(b: Builder, node: fx.Node, weights: Sequence[Windows]) -> View:
    """Append a product for each dimension after the channels that changes: those that shrink come first."""
    found = b.floats.view(as_floats(b, node.all_input_nodes[0], node))
    for axis in sorted(range(len(weights)), key=lambda axis: len(weights[axis].begins) / weights[axis].length):
        if weights[axis].changes:
            found = _along(b, found, axis + 1, weights[axis])
    return found


def _along(b: Builder, view: View, axis: int, weights: Windows) -> View:
    """Append the products of one dimension with its weights."""
    order = [*(each for each in range(len(view.shape)) if each != axis), axis]
    turned = view.permuted(order)
    results = len(weights.begins)
    out = b.floats.new((*turned.shape[:-1], results))
    for begin in range(0, results, _TOGETHER):
        first, some = weights.matrix(begin, min(begin + _TOGETHER, results))
        b.floats.multiply(
            View(
                turned.buffer, (*turned.shape[:-1], some.shape[1]), turned.steps,
                turned.first + first * turned.steps[-1],
            ),
            Fixed(some.t().contiguous()),
            out=View(out.buffer, (*out.shape[:-1], len(some)), out.steps, out.first + begin),
        )  # fmt: skip
    return out.permuted([order.index(each) for each in range(len(order))])


RESAMPLING: dict[Any, tuple[Callable[[Builder, fx.Node], View], str]] = {
    F.interpolate: (interpolate, "resample"),
    **dict.fromkeys(_ANTIALIASED, (interpolate, "resample")),
    nn.AvgPool3d: (average, "average_pool"),
}
"""By what is called: the function that appends the layers, and the name of their kernel."""
