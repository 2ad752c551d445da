"""Functions of one value, as tables of 256 codes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch._ops import OpOverload

from cpupack.graph.vocabulary import ACTIVATIONS, ARITHMETIC, POINTWISE
from cpupack.stages.quantize.native.program import Buffer

Function = Callable[[torch.Tensor], torch.Tensor]

_NOT_TAGGED = (torch.ops.aten.special_ndtr.default, torch.ops.aten.fake_quantize_per_tensor_affine.default)
"""Functions of one value that torch does not call so."""
_TOLERATED_STEPS = 0.25


def activation_of(graph: fx.GraphModule, node: fx.Node) -> Function | None:
    """Return the function of one value that a call is, arithmetic with a number included, or None."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            return None
        return module if type(module) in ACTIVATIONS else None
    sources = [each for each in node.all_input_nodes if each.op != "get_attr"]
    if len(sources) != 1:
        return None
    (source,) = sources
    arguments = node.args
    if node.op == "call_function" and node.target in ARITHMETIC:
        if node.kwargs or len(node.args) != 2:
            return None
        values = [constant_of(graph, each) for each in node.args if each is not source]
        if len(values) != 1 or values[0] is None or values[0].numel() != 1:
            return None
        number = float(values[0])
        arguments = tuple(each if each is source else number for each in node.args)
    elif len(node.all_input_nodes) != 1 or not _is_function(node, source):
        return None
    target: Any = node.target

    def function(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = target(*(x if each is source else each for each in arguments), **node.kwargs)
        return result

    return function


def _is_function(node: fx.Node, source: fx.Node) -> bool:
    """Whether a call makes one float32 value of each float32 value: the vocabulary's, or any that torch says so of."""
    if node.target in POINTWISE:
        return True
    floats = all(each.meta.get("dtype", torch.float32) == torch.float32 for each in (node, source))
    return floats and isinstance(node.target, OpOverload) and _is_pointwise(node.target)


@functools.cache
def _is_pointwise(target: OpOverload) -> bool:
    """Whether an operator computes each value of one tensor alone: any call of it is a table of codes."""
    tags = target.tags
    if torch.Tag.nondeterministic_seeded in tags or len(target._schema.returns) != 1:
        return False
    return torch.Tag.pointwise in tags or target in _NOT_TAGGED


def constant_of(graph: fx.GraphModule, operand: object) -> torch.Tensor | None:
    """Return a tensor that belongs to a graph, or a number as a tensor. None for computed values."""
    if isinstance(operand, int | float):
        return torch.tensor(float(operand))
    if not isinstance(operand, fx.Node) or operand.op != "get_attr":
        return None
    found: Any = graph
    for name in str(operand.target).split("."):
        found = getattr(found, name)
    return found.detach().float() if isinstance(found, torch.Tensor) else None


def composed(functions: list[Function]) -> Function:
    """Return the function that applies several in turn."""

    def function(x: torch.Tensor) -> torch.Tensor:
        for each in functions:
            x = each(x)
        return x

    return functions[0] if len(functions) == 1 else function


def ends_with_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a ReLU or ReLU6 is a call's last step (a ReLU6's range ends at 6 or below: its codes clamp above)."""
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, nn.ReLU | nn.ReLU6) or is_fused_relu(module)


def is_fused_relu(module: nn.Module | None) -> bool:
    """Whether a module is a layer and the ReLU or ReLU6 after it."""
    return isinstance(module, nn.Sequential) and isinstance(module[-1], nn.ReLU | nn.ReLU6)


def highest_result(graph: fx.GraphModule, node: fx.Node) -> float:
    """Return 6 for a call that ends with a ReLU6, else infinity."""
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    last = module[-1] if isinstance(module, nn.Sequential) else module
    return 6.0 if isinstance(last, nn.ReLU6) else math.inf


def table_of(function: Function, source: Buffer, result: Buffer) -> npt.NDArray[np.uint8]:
    """Return the result's code for each of the source's 256 codes."""
    values = (np.arange(256.0) - source.zero_point) * source.scale
    codes = np.rint(results_of(function, values) / result.scale) + result.zero_point
    table: npt.NDArray[np.uint8] = np.clip(codes, 0, 255).astype(np.uint8)
    return table


def results_of(function: Function, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return what a function makes of values, in float32; a finite number where it has none (a logarithm below 0)."""
    with torch.inference_mode():
        found: npt.NDArray[np.float64] = np.nan_to_num(function(torch.from_numpy(values).float()).double().numpy())
    return found


def useful_range(function: Function, limits: tuple[float, float], result: Buffer) -> tuple[float, float]:
    """Cut off the ends of a range where the function is flat, to get finer steps elsewhere.

    Beyond either end the function must not move by more than a quarter of the result's step (hardswish below -3, SiLU
    far below zero, sigmoids on both sides). Zero stays inside.
    """
    points = torch.linspace(limits[0], limits[1], 4097, dtype=torch.float64)
    with torch.inference_mode():
        outputs = np.nan_to_num(function(points.float()).double().numpy())
    tolerance = _TOLERATED_STEPS * result.scale
    rising = np.maximum.accumulate(outputs) - np.minimum.accumulate(outputs)
    falling = (np.maximum.accumulate(outputs[::-1]) - np.minimum.accumulate(outputs[::-1]))[::-1]
    start = int(np.searchsorted(rising > tolerance, True)) - 1
    end = len(points) - int(np.searchsorted(falling[::-1] > tolerance, True))
    low = float(points[max(start, 0)])
    high = float(points[min(end, len(points) - 1)])
    return min(low, 0.0), max(high, 0.0)
