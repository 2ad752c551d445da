"""Runs a graph once, in FP32 and as INT8 would compute it, and corrects each layer on the way.

A layer is corrected after all layers before it, so its inputs have the errors that they will have in INT8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.trace import last_readers
from cpupack.graph.weight_grid import round_to_grid
from cpupack.progress import Progress
from cpupack.stages.correct.bias import add_to_bias, mean_error
from cpupack.stages.correct.layers import Layer
from cpupack.stages.correct.rounding import can_reconstruct, reconstruct

Range = tuple[float, float]

_ADDS = ("add", "iadd", "add_")
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")


@dataclass(frozen=True)
class Wanted:
    """The corrections to make at each layer."""

    rounding: bool
    bias: bool


def correct_layers(
    graph: fx.GraphModule,
    layers: Mapping[fx.Node, Layer],
    ranges: Mapping[str, Range],
    levels: int,
    batch: torch.Tensor,
    wanted: Wanted,
    progress: Progress,
) -> None:
    """Correct the weights and biases of ``layers`` in place, in the order of execution.

    ``batch`` is one float32 input batch; ``ranges`` are those of the activations, by node, in ``levels`` steps.
    """
    exact = fx.Interpreter(graph, garbage_collect_values=False)
    rounded = fx.Interpreter(graph, garbage_collect_values=False)
    exact.args_iter, rounded.args_iter = iter([batch]), iter([batch.clone()])
    done_after = last_readers(graph)
    corrected = 0
    for node in graph.graph.nodes:
        if node.op == "output":
            break
        if node in layers:
            inputs = exact.env[node.args[0]], rounded.env[node.args[0]]
            exact.env[node], rounded.env[node] = _correct(layers[node], *inputs, wanted)
            corrected += 1
            progress.step(corrected, len(layers), "layers corrected")
        else:
            exact.env[node], rounded.env[node] = exact.run_node(node), rounded.run_node(node)
        if node.name in ranges and not _runs_on(graph, node):
            rounded.env[node] = round_activation(rounded.env[node], ranges[node.name], levels)
        for done in done_after.get(node, ()):
            exact.env.pop(done, None)
            rounded.env.pop(done, None)


def _correct(
    layer: Layer, exact: torch.Tensor, rounded: torch.Tensor, wanted: Wanted
) -> tuple[torch.Tensor, torch.Tensor]:
    """Correct one layer. Return its outputs for the FP32 and for the INT8 input."""
    module = layer.weighted
    expected = module(exact)
    if wanted.rounding and can_reconstruct(module):
        module.weight.data = reconstruct(module, rounded, layer.channel_axis, centred=wanted.bias)
    weight = round_to_grid(module.weight.detach(), layer.channel_axis)
    actual = torch.func.functional_call(module, {"weight": weight}, (rounded,))
    if wanted.bias:
        error = mean_error(expected, actual, layer)
        add_to_bias(module, -error)
        axis = 1 if layer.has_spatial_axes else actual.ndim - 1
        actual = actual - error.reshape([-1 if each == axis else 1 for each in range(actual.ndim)])
    for after in layer.after:
        expected, actual = after(expected), after(actual)
    return expected, actual


def round_activation(values: Any, limits: Range, levels: int) -> Any:
    """Return float32 values rounded to ``levels`` steps between ``limits``; zero is one of them."""
    low, high = limits
    scale = (high - low) / (levels - 1)
    if not isinstance(values, torch.Tensor) or scale < torch.finfo(torch.float32).tiny:
        return values
    zero_point = min(max(round(-low / scale), 0), levels - 1)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, levels - 1)


def _runs_on(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a result is not rounded because the same operator computes its only reader: a ReLU or an addition."""
    if len(node.users) != 1:
        return False
    reader = next(iter(node.users))
    if reader.op == "output":
        return True
    if reader.op == "call_module":
        return type(graph.get_submodule(str(reader.target))) is nn.ReLU
    return reader.target in _RELUS or getattr(reader.target, "__name__", reader.target) in _ADDS
