"""Splits a converted graph after its first convolution, and adds a second first convolution that takes pixels."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import fx, nn
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

from cpupack.graph.pixel_model import PixelModel, PixelStem, fold_normalization
from cpupack.runtime.images.inputs import pixel_zero_point
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.targets import Target

Observer = MinMaxObserver | PerChannelMinMaxObserver

_FIRST = (nnq.Conv2d, nniq.ConvReLU2d)


def take_pixels(
    converted: fx.GraphModule, floats: fx.GraphModule, preprocess: PreprocessSpec, target: Target, observer: Observer
) -> PixelModel | None:
    """Return the model with a pixel input, or None if the only reader of its input is not an INT8 convolution.

    ``floats`` is the prepared graph: it has the first convolution's FP32 weights under the same name. ``observer``
    chooses the scales of weights. If 16-bit sums could saturate, there is no such model, because pixels use the full
    range.
    """
    found = _first_convolution(converted)
    if found is None or target.activation_bits != 8 or target.saturates:
        return None
    quantize, conv = found
    name = str(conv.target)
    quantized = converted.get_submodule(name)
    original = floats.get_submodule(name)
    weights = original[0] if isinstance(original, nni.ConvReLU2d) else original
    if not isinstance(weights, nn.Conv2d) or weights.groups != 1 or weights.padding_mode != "zeros":
        return None
    pixel_stem = PixelStem(_pixel_convolution(quantized, weights, preprocess, observer), pixel_zero_point(preprocess))
    return PixelModel(pixel_stem, _up_to(converted, conv), _after(converted, quantize, conv))


def _first_convolution(converted: fx.GraphModule) -> tuple[fx.Node, fx.Node] | None:
    """Return the quantization of the input, and the convolution that is its only reader."""
    inputs = [node for node in converted.graph.nodes if node.op == "placeholder"]
    readers = list(inputs[0].users)
    if len(inputs) != 1 or len(readers) != 1 or readers[0].target is not torch.quantize_per_tensor:
        return None
    convs = list(readers[0].users)
    if len(convs) != 1 or convs[0].op != "call_module":
        return None
    return (readers[0], convs[0]) if type(converted.get_submodule(str(convs[0].target))) in _FIRST else None


def _pixel_convolution(quantized: Any, weights: nn.Conv2d, preprocess: PreprocessSpec, observer: Observer) -> nn.Module:
    """Return an INT8 convolution of the same class and output as ``quantized`` with normalization in its weights."""
    conv = nn.Conv2d(
        weights.in_channels + 1,
        weights.out_channels,
        weights.kernel_size,  # type: ignore[arg-type]  # a pair, stored as a tuple of any length
        weights.stride,  # type: ignore[arg-type]  # as above
        weights.padding,  # type: ignore[arg-type]  # as above
        weights.dilation,  # type: ignore[arg-type]  # as above
    )
    bias = torch.zeros(weights.out_channels) if weights.bias is None else weights.bias
    conv.weight = nn.Parameter(fold_normalization(weights.weight.detach(), preprocess), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    module: nn.Module = type(quantized).get_qconv(conv, _SameOutput(quantized.scale, quantized.zero_point), observer)
    return module


class _SameOutput:
    """Replaces the observer of an output whose scale and zero point are already known."""

    dtype = torch.quint8

    def __init__(self, scale: float, zero_point: int) -> None:
        self._qparams = torch.tensor([scale]), torch.tensor([zero_point])

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._qparams


def _up_to(converted: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """Return the part of the graph that ends with ``last``."""
    part = copy.deepcopy(converted)
    nodes = list(part.graph.nodes)
    end = next(node for node in nodes if node.name == last.name)
    output = nodes[-1]
    output.args = (end,)
    part.graph.eliminate_dead_code()
    return _cleaned(part)


def _after(converted: fx.GraphModule, quantize: fx.Node, conv: fx.Node) -> fx.GraphModule:
    """Return the part of the graph after ``conv``, whose output becomes the input."""
    part = copy.deepcopy(converted)
    by_name = {node.name: node for node in part.graph.nodes}
    first = by_name[conv.name]
    placeholder = next(node for node in part.graph.nodes if node.op == "placeholder")
    with part.graph.inserting_before(placeholder):
        stem = part.graph.placeholder("stem")
    first.replace_all_uses_with(stem)
    for node in (first, by_name[quantize.name], placeholder):
        part.graph.erase_node(node)
    part.graph.eliminate_dead_code()
    return _cleaned(part)


def _cleaned(part: fx.GraphModule) -> fx.GraphModule:
    part.graph.lint()
    part.delete_all_unused_submodules()
    part.recompile()
    return part
