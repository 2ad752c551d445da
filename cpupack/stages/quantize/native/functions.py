"""Functions of one value, as tables of 256 codes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.ao.nn.intrinsic as nni
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.fused import ConvReLU6
from cpupack.stages.quantize.native.program import Buffer

Function = Callable[[torch.Tensor], torch.Tensor]

_MODULES = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU,
    nn.LeakyReLU, nn.Mish, nn.Softplus, nn.SELU, nn.CELU, nn.LogSigmoid, nn.Softsign,
)  # fmt: skip
_FUNCTIONS = (
    torch.relu, F.relu, F.relu_, F.relu6, F.hardswish, F.hardsigmoid, F.silu, torch.sigmoid, F.sigmoid, torch.tanh,
    F.tanh, F.gelu, F.elu, F.leaky_relu, F.mish, F.softplus, F.hardtanh, torch.clamp, F.selu, F.celu, torch.abs,
    torch.square, torch.exp, operator.neg,
)  # fmt: skip
_METHODS = ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "clamp", "clamp_", "abs", "square", "exp")
_ARITHMETIC = (
    operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub, operator.mul, operator.imul,
    torch.mul, operator.truediv, operator.itruediv, torch.div,
)  # fmt: skip
_RELUS = (torch.relu, F.relu, F.relu_, F.relu6, "relu", "relu_")
_WITH_RELU = (nni.ConvReLU2d, nni.LinearReLU, nni.BNReLU2d, ConvReLU6)
_TOLERATED_STEPS = 0.25


def activation_of(graph: fx.GraphModule, node: fx.Node) -> Function | None:
    """Return the function of one value that a call is, arithmetic with a number included, or None."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return module if type(module) in _MODULES else None
    if len(node.all_input_nodes) != 1:
        return None
    (source,) = node.all_input_nodes
    if node.op == "call_function" and node.target in _ARITHMETIC:
        values = [each for each in node.args if each is not source]
        if node.kwargs or len(node.args) != 2 or len(values) != 1 or not isinstance(values[0], int | float):
            return None
    elif not (node.op == "call_function" and node.target in _FUNCTIONS) and not (
        node.op == "call_method" and node.target in _METHODS
    ):
        return None
    target: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target

    def function(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()  # some work in place
        result: torch.Tensor = target(*(x if each is source else each for each in node.args), **node.kwargs)
        return result

    return function


def ends_with_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a ReLU or ReLU6 is a call's last step (a ReLU6's range ends at 6 or below: its codes clamp above)."""
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), (nn.ReLU, nn.ReLU6, *_WITH_RELU))
    return node.target in _RELUS


def is_fused_relu(module: nn.Module | None) -> bool:
    """Whether a module is a layer and the ReLU behind it."""
    return isinstance(module, _WITH_RELU)


def highest_result(graph: fx.GraphModule, node: fx.Node) -> float:
    """Return 6 for a call that ends with a ReLU6, else infinity."""
    if node.op == "call_module":
        six = isinstance(graph.get_submodule(str(node.target)), nn.ReLU6 | ConvReLU6)
    else:
        six = node.target is F.relu6
    return 6.0 if six else math.inf


def table_of(function: Function, source: Buffer, result: Buffer) -> npt.NDArray[np.uint8]:
    """Return the result's code for each of the source's 256 codes."""
    values = (torch.arange(256, dtype=torch.float64) - source.zero_point) * source.scale
    outputs = function(values.float()).double().numpy()
    codes = np.rint(outputs / result.scale) + result.zero_point
    table: npt.NDArray[np.uint8] = np.clip(codes, 0, 255).astype(np.uint8)
    return table


def useful_range(function: Function, limits: tuple[float, float], result: Buffer) -> tuple[float, float]:
    """Cut from a range what the function flattens: there finer steps elsewhere are worth more.

    Beyond either end the function must not move by more than a quarter of the result's step (hardswish below -3, SiLU
    far below zero, sigmoids on both sides). Zero stays inside.
    """
    points = torch.linspace(limits[0], limits[1], 4097, dtype=torch.float64)
    outputs = function(points.float()).double().numpy()
    tolerance = _TOLERATED_STEPS * result.scale
    rising = np.maximum.accumulate(outputs) - np.minimum.accumulate(outputs)
    falling = (np.maximum.accumulate(outputs[::-1]) - np.minimum.accumulate(outputs[::-1]))[::-1]
    start = int(np.searchsorted(rising > tolerance, True)) - 1
    end = len(points) - int(np.searchsorted(falling[::-1] > tolerance, True))
    low = float(points[max(start, 0)])
    high = float(points[min(end, len(points) - 1)])
    return min(low, 0.0), max(high, 0.0)
