"""Reductions and norms in FP32: which layers of the engine a call becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, shape_of
from cpupack.stages.quantize.native.channel_norms import groups_of, scaled_by_channels
from cpupack.stages.quantize.native.float_resampling import adaptive_average
from cpupack.stages.quantize.native.row_codes import RowNorm
from cpupack.stages.quantize.native.row_moves import leads_to_rows
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, Norm, Reduction, View

_ATEN = torch.ops.aten


def _axes(b: Builder, node: fx.Node, given: Any) -> tuple[int, ...]:
    """Return the reduced dimensions of a sample, in order."""
    count = len(shape_of(node.all_input_nodes[0]))
    axes = [given] if isinstance(given, int) else list(given) if isinstance(given, list | tuple) else []
    found = sorted({each % count for each in axes})
    if not found or 0 in found:
        raise b.calls.refusal(node, "over samples")
    return tuple(each - 1 for each in found)


def _shaped(node: fx.Node, view: View) -> View:
    """Return a reduction's result in the shape of the call: with dimensions of size one where they are kept."""
    shape, steps = tuple(shape_of(node)[1:]), list(view.steps)
    if shape == view.shape:
        return view
    found, rest = [], list(zip(view.shape, steps, strict=True))
    for size in shape:
        if rest and rest[0][0] == size:
            found.append(rest.pop(0)[1])
        else:
            assert size == 1
            found.append(0)
    assert all(size == 1 for size, _ in rest)
    return View(view.buffer, shape, tuple(found), view.first)


def reduced(b: Builder, node: fx.Node, given: Any, kind: Reduction, *, mean: bool = False) -> View:
    """Append a reduction over the dimensions ``given`` and return it in the shape of the call. Raises Refusal."""
    axes = _axes(b, node, given)
    operand = as_floats(b, node.all_input_nodes[0], node)
    shape = shape_of(node.all_input_nodes[0])[1:]
    scale = 1.0 / math.prod(shape[axis] for axis in axes) if mean else 1.0
    return _shaped(node, b.floats.reduce(operand, axes, kind, scale=scale))


def _reduction(kind: Reduction, *, mean: bool = False) -> Callable[[Builder, fx.Node], View]:
    def reduce(b: Builder, node: fx.Node) -> View:
        return reduced(b, node, argument(node, 1, "dim", None), kind, mean=mean)

    return reduce


def _norm(b: Builder, node: fx.Node) -> View:
    order = float(argument(node, 1, "ord", 2))
    kinds = {
        1.0: Reduction.ABSOLUTES, 2.0: Reduction.SQUARES, math.inf: Reduction.MAXIMUM, -math.inf: Reduction.MINIMUM,
    }  # fmt: skip
    if order not in kinds:
        raise b.calls.refusal(node, f"of order {order:g}")
    given = argument(node, 2, "dim", None)
    if math.isinf(order):
        view = b.floats.view(as_floats(b, node.all_input_nodes[0], node))
        absolute = b.floats.map(b.floats.like(view), view, None, [Instruction(Function.ABSOLUTE)])
        return _shaped(node, b.floats.reduce(absolute, _axes(b, node, given), kinds[order]))
    found = reduced(b, node, given, kinds[order])
    return found if order == 1.0 else b.floats.map(b.floats.like(found), found, None, [Instruction(Function.ROOT)])


def _softmax(b: Builder, node: fx.Node) -> View:
    module = b.calls.module(node)
    assert isinstance(module, nn.Softmax | nn.LogSoftmax)
    kind = Norm.SOFTMAX if isinstance(module, nn.Softmax) else Norm.LOG_SOFTMAX
    axes = _axes(b, node, module.dim)
    return b.floats.normalize(as_floats(b, node.all_input_nodes[0], node), axes, kind)


def _layer_norm(b: Builder, node: fx.Node) -> View:
    module = b.calls.module(node)
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    rank = len(shape_of(node)) - 1
    axes = tuple(range(rank - len(module.normalized_shape), rank))
    if axes[0] < 0:
        raise b.calls.refusal(node, "over samples")
    kind = Norm.LAYER if isinstance(module, nn.LayerNorm) else Norm.ROOT_MEAN_SQUARE
    eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
    weight, bias = (
        None if each is None else Fixed(each.detach()) for each in (module.weight, getattr(module, "bias", None))
    )
    operand = as_floats(b, node.all_input_nodes[0], node)
    if len(axes) == 1 and leads_to_rows(b, node):
        # Where its values become codes it is computed, and needs no memory of its own.
        view = b.floats.view(operand)
        b.waiting[node] = view, RowNorm(kind, eps, weight, bias)
        return view
    return b.floats.normalize(operand, axes, kind, epsilon=eps, weight=weight, bias=bias)


def _group_norm(b: Builder, node: fx.Node) -> View:
    module: Any = b.calls.module(node)
    if (scaled := scaled_by_channels(b, node)) is not None:
        return scaled.values(b)
    view = b.floats.view(as_floats(b, node.all_input_nodes[0], node))
    channels, rest = view.shape[0], len(view.shape) - 1
    groups = groups_of(module, channels)
    last = view.permuted((*range(1, rest + 1), 0)).of_last(groups, channels // groups)
    split = last.permuted((rest, rest + 1, *range(rest)))
    shape = (groups, channels // groups, *[1] * rest)
    weight, bias = (
        None if each is None else Fixed(each.detach().reshape(shape)) for each in (module.weight, module.bias)
    )
    found = b.floats.normalize(
        split, tuple(range(1, rest + 2)), Norm.LAYER, epsilon=module.eps, weight=weight, bias=bias
    )
    # The result lies in memory as the operand does, so its channels have one step.
    step = found.steps[1] if channels > groups else found.steps[0]
    return View(found.buffer, view.shape, (step, *found.steps[2:]), found.first)


def _sum_pooling(b: Builder, node: fx.Node) -> View:
    """Lower adaptive pooling: means to any positions, the largest to one."""
    target, shape = b.calls.target(node), shape_of(node.all_input_nodes[0])
    if shape_of(node) == shape:
        return b.floats.view(as_floats(b, node.all_input_nodes[0], node))
    largest = target in (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
    if any(size != 1 for size in shape_of(node)[2:]):
        if largest:
            raise b.calls.refusal(node, "to several positions")
        return adaptive_average(b, node)
    axes = tuple(range(2, len(shape)))
    return reduced(b, node, axes, Reduction.MAXIMUM if largest else Reduction.SUM, mean=not largest)


REDUCTIONS: dict[Any, tuple[Callable[[Builder, fx.Node], View], str]] = {
    nn.Softmax: (_softmax, "softmax"),
    nn.LogSoftmax: (_softmax, "log_softmax"),
    nn.LayerNorm: (_layer_norm, "layer_norm"),
    nn.RMSNorm: (_layer_norm, "rms_norm"),
    nn.GroupNorm: (_group_norm, "group_norm"),
    nn.InstanceNorm1d: (_group_norm, "instance_norm"),
    nn.InstanceNorm2d: (_group_norm, "instance_norm"),
    nn.InstanceNorm3d: (_group_norm, "instance_norm"),
    torch.mean: (_reduction(Reduction.SUM, mean=True), "reduce"),
    torch.sum: (_reduction(Reduction.SUM), "reduce"),
    torch.amax: (_reduction(Reduction.MAXIMUM), "reduce"),
    torch.amin: (_reduction(Reduction.MINIMUM), "reduce"),
    _ATEN.linalg_vector_norm.default: (_norm, "reduce"),
    _ATEN.argmax.default: (_reduction(Reduction.PLACE_OF_MAXIMUM), "reduce"),
    _ATEN.argmin.default: (_reduction(Reduction.PLACE_OF_MINIMUM), "reduce"),
    nn.AdaptiveAvgPool1d: (_sum_pooling, "reduce"),
    nn.AdaptiveAvgPool2d: (_sum_pooling, "reduce"),
    nn.AdaptiveAvgPool3d: (_sum_pooling, "reduce"),
    nn.AdaptiveMaxPool1d: (_sum_pooling, "reduce"),
    nn.AdaptiveMaxPool2d: (_sum_pooling, "reduce"),
}
"""By what is called: the function that appends the layers, and the name of their kernel."""
