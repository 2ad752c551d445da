"""Steep functions: those that make large errors of the small ones of INT8 codes, such as the logarithm of a count.

Counts go from 0 to 100,000 and most are below 100. The step of their codes is 400, which is a small error beside the
largest count and none that a sum would show. A logarithm, a root or an ``asinh`` brings them to one range, and then the
step is most of what there is. The values of calibration tell: they are rounded, and the function is applied to both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from cpupack.graph.needed import needed
from cpupack.graph.phases import calls_before
from cpupack.stages.quantize.native.calls import Calls, shape_of
from cpupack.stages.quantize.native.functions import Function, activation_of, composed, results_of
from cpupack.statistics import ActivationStats

_LEAST_DB = 30.0
"""SQNR of a function's results when only the model's input is rounded: codes before the function are good enough."""
_LEAST_AFTER_LAYERS_DB = 20.0
"""The same where layers come first. These have errors of their own, and would have to be in FP32 too."""
_LEAST_LOSS_DB = 6.0
"""What a function must lose over its operand's SQNR: else it is the range that is bad, and FP32 would change little."""
_MOST = 1e30
"""A logarithm of zero is as far as this: what is squared must be a number."""
_EXPONENTIALS = (torch.exp, *(getattr(torch.ops.aten, name).default for name in ("exp2", "expm1", "sinh", "cosh")))
"""What makes large errors of the large values is another matter, and most often a sum or a softmax follows."""
_MEANS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_MANY = 16
_FINE_BINS = 32
_POINTS = 32


def steep_functions(calls: Calls, stats: Mapping[str, ActivationStats]) -> set[fx.Node]:
    """Return the functions of one value that lose what their operand's codes have, and the calls from there to them.

    Where a layer gives the operand, it is among them: its codes would be as coarse. A mean of many of its results is
    not, such as the mean square that a norm of each channel divides by: what reads the layer is in FP32 then.
    """
    found: set[fx.Node] = set()
    for node in calls.graph.graph.nodes:
        root, functions, path = _chain(calls, node)
        if not functions:
            continue
        source = calls.observed(root, stats)
        held = stats.get(source.name)
        if held is None:
            continue
        values, counts = _values(held)
        step = (max(held.maximum, 0.0) - min(held.minimum, 0.0)) / 255
        before, after = _sqnr_db(values, counts, step, []), _sqnr_db(values, counts, step, functions)
        from_input = not any(each.op.startswith("call") and not _moves(calls, each) for each in needed(source))
        least = _LEAST_DB if from_input else _LEAST_AFTER_LAYERS_DB
        if after < least and before - after > _LEAST_LOSS_DB:
            found |= {node, *path}
            if not from_input:
                averaged = _is_mean_of_many(calls, source)
                path_back = calls_before(calls.graph, root, layers=0 if averaged else 1)
                found |= path_back
                if averaged:  # with no reader of codes, a layer leaves its sums as float32 values
                    layers = {each for call in path_back for each in call.all_input_nodes} - path_back
                    found |= {user for each in layers if each.op.startswith("call") for user in each.users}
    return found


def _chain(calls: Calls, node: fx.Node) -> tuple[fx.Node, list[Function], list[fx.Node]]:
    """Return what the functions of one value that end with a call begin from, these in order, and their calls."""
    functions: list[Function] = []
    path: list[fx.Node] = []
    while node.op.startswith("call"):
        function = activation_of(calls.graph, node)
        if function is None or node.target in _EXPONENTIALS:
            break
        functions.insert(0, function)
        path.append(node)
        (node,) = (each for each in node.all_input_nodes if each.op != "get_attr")
    return node, functions, path


def _is_mean_of_many(calls: Calls, node: fx.Node) -> bool:
    """Whether a call gives means of as many values that their errors are small beside one's."""
    if node.target is not torch.mean and not isinstance(calls.module(node), _MEANS):
        return False
    before = math.prod(shape_of(node.all_input_nodes[0])[1:])
    return before >= _MANY * math.prod(shape_of(node)[1:])


def _moves(calls: Calls, node: fx.Node) -> bool:
    return node.op == "get_attr" or calls.is_constant(node) or calls.rearranges(node)


def _values(stats: ActivationStats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return values of a histogram and their counts. The bins around zero, where functions are steep, have several."""
    edges, counts = stats.occupied()
    parts, weights = [], []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if not count:
            continue
        near = min(abs(low), abs(high)) < _FINE_BINS * stats.bin_width
        points = _POINTS if near else 1
        parts.append(low + (high - low) * (np.arange(points) + 0.5) / points)
        weights.append(np.full(points, count / points))
    if not parts:
        return np.zeros(1), np.ones(1)
    return np.concatenate(parts), np.concatenate(weights)


def _sqnr_db(
    values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], step: float, functions: list[Function]
) -> float:
    """Return the SQNR of functions of values that are rounded to codes. A mean is no signal."""
    if not step:
        return math.inf
    exact, rounded = values, np.rint(values / step) * step
    if functions:
        function = composed(functions)
        exact, rounded = (np.clip(results_of(function, each), -_MOST, _MOST) for each in (exact, rounded))
    total = counts.sum()
    mean = (exact * counts).sum() / total
    signal, noise = ((exact - mean) ** 2 * counts).sum(), ((exact - rounded) ** 2 * counts).sum()
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf
