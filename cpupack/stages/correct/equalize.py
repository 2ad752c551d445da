"""Cross-layer equalization: scales the channels between two layers so that the ranges of their weights are similar.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1. Let f be the
function between two layers (ReLU, pooling, or none), with f(s x) = s f(x) for s > 0. Then a channel may be divided by s
in the first layer and multiplied by s in the second. With s = sqrt(r1 / r2), where r1 and r2 are the largest weights of
the channel in the first and in the second layer, both layers get the same range in that channel.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from cpupack.graph.fused import ConvReLU6
from cpupack.stages.correct.layers import Layer

_HOMOGENEOUS = (
    nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
_ROUNDS = 20
_CONVERGED = 1e-3


def find_pairs(graph: fx.GraphModule, layers: dict[fx.Node, Layer]) -> list[tuple[Layer, Layer]]:
    """Return pairs of layers: only the second reads the first one's output, through functions with f(s x) = s f(x).

    ReLU6 is not such a function, because it clips at 6 for every scale. Its chains are left unchanged.
    """
    pairs = []
    for layer in layers.values():
        if isinstance(layer.module, ConvReLU6) or not _scalable(layer.weighted, inputs=False):
            continue
        node = layer.node
        while len(node.users) == 1:
            node = next(iter(node.users))
            if node in layers:
                second = layers[node]
                if _scalable(second.weighted, inputs=True) and _channels_match(layer, second):
                    pairs.append((layer, second))
                break
            if node.op != "call_module" or type(graph.get_submodule(str(node.target))) not in _HOMOGENEOUS:
                break
    return pairs


def equalize(pairs: list[tuple[Layer, Layer]]) -> float:
    """Scale the channels between each pair in place, until nothing changes. Return the largest total factor.

    Two pairs of consecutive layers share the middle layer, so the pairs are scaled in turn (section 4.1.2). Channels
    that are zero in either layer stay unchanged.
    """
    total = [torch.ones(first.weighted.weight.shape[0], dtype=torch.float64) for first, _ in pairs]
    for _ in range(_ROUNDS):
        farthest = 1.0
        for number, (first, second) in enumerate(pairs):
            factors = _factors(first, second)
            _divide_outputs(first, factors)
            _multiply_inputs(second, factors)
            total[number] *= factors
            farthest = max(farthest, float(torch.maximum(factors, 1.0 / factors).max()))
        if farthest < 1.0 + _CONVERGED:
            break
    return max((float(torch.maximum(each, 1.0 / each).max()) for each in total), default=1.0)


def _scalable(module: nn.Module, *, inputs: bool) -> bool:
    """Whether the weights of each channel are known. For a transposed convolution that is so only without groups."""
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return module.groups == 1
    return not inputs or getattr(module, "padding_mode", "zeros") in {"zeros", "reflect", "replicate", "circular"}


def _channels_match(first: Layer, second: Layer) -> bool:
    """Whether the second layer reads the first one's channels directly, not flattened with the spatial positions."""
    outputs = getattr(first.weighted, "out_channels", getattr(first.weighted, "out_features", None))
    inputs = getattr(second.weighted, "in_channels", getattr(second.weighted, "in_features", None))
    return outputs == inputs and first.has_spatial_axes == second.has_spatial_axes


def _factors(first: Layer, second: Layer) -> torch.Tensor:
    """Return s for each channel, float64."""
    r1 = _output_rows(first).abs().amax(dim=1)
    r2 = _input_rows(second).abs().amax(dim=1)
    usable = (r1 > 0.0) & (r2 > 0.0)
    return torch.where(usable, torch.sqrt(r1 / r2.clamp(min=torch.finfo(torch.float64).tiny)), torch.ones_like(r1))


def _output_rows(layer: Layer) -> torch.Tensor:
    """Return the weights of each output channel as a row, float64."""
    weight = layer.weighted.weight.detach().double()
    return (weight.transpose(0, 1) if _transposed(layer) else weight).flatten(1)


def _input_rows(layer: Layer) -> torch.Tensor:
    """Return the weights that read each input channel as a row, float64. Groups read only their own channels."""
    weight = layer.weighted.weight.detach().double()
    if _transposed(layer):
        return weight.flatten(1)
    groups = getattr(layer.weighted, "groups", 1)
    per_group = weight.reshape(groups, -1, weight.shape[1], *weight.shape[2:])
    return per_group.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def _divide_outputs(layer: Layer, factors: torch.Tensor) -> None:
    weight = layer.weighted.weight
    axis = 1 if _transposed(layer) else 0
    shape = [-1 if each == axis else 1 for each in range(weight.ndim)]
    weight.data = (weight.data.double() / factors.reshape(shape)).float()
    if layer.weighted.bias is not None:
        layer.weighted.bias.data = (layer.weighted.bias.data.double() / factors).float()


def _multiply_inputs(layer: Layer, factors: torch.Tensor) -> None:
    weight = layer.weighted.weight
    if _transposed(layer):
        scale = factors.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        groups = getattr(layer.weighted, "groups", 1)
        each_group = factors.reshape(groups, 1, weight.shape[1])
        scale = each_group.expand(groups, weight.shape[0] // groups, weight.shape[1]).reshape(weight.shape[:2])
        scale = scale.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    weight.data = (weight.data.double() * scale).float()


def _transposed(layer: Layer) -> bool:
    return isinstance(layer.weighted, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
