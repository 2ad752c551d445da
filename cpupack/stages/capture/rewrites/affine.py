"""Scales and shifts of channels, batch norms included, that become part of the layer beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.tags import WORD
from cpupack.stages.capture.rewrites.tools import (
    constant_of,
    is_a,
    module_of,
    new_module,
    only_reader,
    own_copy,
    parameter,
    replace,
    shape,
)

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CHANNEL_NORMS = (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_TAKES_AFTER = (*_CONVS, *_TRANSPOSED, nn.Linear, *_BATCH_NORMS, *_CHANNEL_NORMS, nn.LayerNorm)
_LARGEST = 1e6
"""Of the ratio between the scales of two channels: beyond it a fold would lose digits of FP32."""


@dataclass(frozen=True)
class Affine:
    """``x * scale + shift``, float64, each of one value or ``(channels,)``."""

    scale: torch.Tensor
    shift: torch.Tensor


def fold_into_layer_before(graph: fx.GraphModule) -> bool:
    """Fold a product or sum with a number or one constant for each channel into the layer that alone feeds it."""
    changed = False
    nodes: list[fx.Node] = list(graph.graph.nodes)
    for node in nodes:
        found = affine_of(graph, node)
        if found is None:
            continue
        read, affine, axis = found
        if only_reader(read) is not node:
            continue
        source, axis = _before_permutations(read, axis)
        if not is_a(graph, source, *_TAKES_AFTER):
            continue
        module = module_of(graph, source)
        channels = _output_channels(module)
        own_axis = -1 if isinstance(module, nn.Linear | nn.LayerNorm) else 1
        if axis is not None and axis % len(shape(source)) != own_axis % len(shape(source)):
            continue
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
            if affine.scale.numel() != 1 or affine.shift.numel() != 1:
                continue
            channels = None
        _apply_after(own_copy(graph, source), affine, channels)
        replace(node, read)
        changed = True
    return changed


def _before_permutations(node: fx.Node, axis: int | None) -> tuple[fx.Node, int | None]:
    """Return what permutations that nothing else reads start from, and where the axis is there."""
    while node.target is torch.permute and isinstance(node.args[0], fx.Node) and only_reader(node.args[0]) is node:
        order: Any = node.args[1]
        axis = None if axis is None else int(order[axis])
        node = node.args[0]
    return node, axis


def affine_of(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, Affine, int | None] | None:
    """Return (source, scale and shift, axis) of a sum or product with a constant; the axis is None for one value."""
    if node.op != "call_function" or node.target not in {torch.add, torch.mul}:
        return None
    source, operand = node.args
    if not isinstance(source, fx.Node) or source.op == "get_attr":
        return None
    value = constant_of(graph, operand)
    axis: int | None = None
    if value is None:
        if not isinstance(operand, int | float):
            return None
        values = torch.tensor([float(operand)], dtype=torch.float64)
    else:
        if not value.is_floating_point() or value.ndim > len(shape(source)) or shape(node) != shape(source):
            return None
        rank = len(shape(source))
        sizes = [1] * (rank - value.ndim) + list(value.shape)
        wide = [at for at, size in enumerate(sizes) if size != 1]
        if len(wide) > 1 or 0 in wide:
            return None
        axis = wide[0] if wide else None
        values = value.double().flatten()
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    affine = Affine(values, zero) if node.target is torch.mul else Affine(one, values)
    return source, affine, axis


def _output_channels(module: Any) -> int | None:
    for name in ("out_channels", "out_features", "num_features", "num_channels"):
        if hasattr(module, name):
            return int(getattr(module, name))
    return int(module.normalized_shape[0]) if isinstance(module, nn.LayerNorm) else None


def _apply_after(module: Any, affine: Affine, channels: int | None) -> None:
    """Change a layer's weights, in place, so that it gives ``scale * result + shift``."""
    scale, shift = affine.scale, affine.shift
    if channels is not None:
        scale, shift = scale.expand(channels), shift.expand(channels)
    weight = module.weight.detach().double()
    if isinstance(module, _TRANSPOSED):
        groups, inputs = module.groups, weight.shape[0]
        factors = scale.reshape(groups, -1).repeat_interleave(inputs // groups, dim=0)
        weight = weight * factors.reshape(inputs, weight.shape[1], *[1] * (weight.ndim - 2))
    else:
        weight = weight * (scale.reshape(-1, *[1] * (weight.ndim - 1)) if channels is not None else scale)
    bias = module.bias.detach().double() * scale if module.bias is not None else torch.zeros_like(shift)
    module.weight = parameter(weight)
    if module.bias is not None or bool((shift != 0).any()):
        module.bias = parameter((bias + shift).expand_as(bias) if bias.numel() >= shift.numel() else bias + shift)


def fold_into_layer_after(graph: fx.GraphModule) -> bool:
    """Fold a scale, shift or batch norm into the convolution or linear layer that alone reads it.

    A shift reaches no padding: a convolution that pads takes scales alone.
    """
    changed = False
    for node in reversed(list(graph.graph.nodes)):  # what the layer reads first, then what that reads
        found = affine_of(graph, node) or batch_norm_of(graph, node)
        reader = only_reader(node)
        if found is None or reader is None or not is_a(graph, reader, *_CONVS, nn.Linear):
            continue
        source, affine, axis = found
        if _feeds_from_layer(graph, source, node):
            continue  # the fuse stage folds it into the layer before
        layer: Any = module_of(graph, reader)
        own_axis = len(shape(node)) - 1 if isinstance(layer, nn.Linear) else 1
        if axis is not None and axis != own_axis:
            continue
        shifted = bool((affine.shift != 0).any())
        if shifted and any(getattr(layer, "padding", ())):
            continue
        apply_before(own_copy(graph, reader), affine)
        replace(node, source)
        changed = True
    return changed


def _feeds_from_layer(graph: fx.GraphModule, source: fx.Node, node: fx.Node) -> bool:
    return (
        is_a(graph, node, *_BATCH_NORMS)
        and is_a(graph, source, *_CONVS, *_TRANSPOSED, nn.Linear)
        and (only_reader(source) is node)
    )


def batch_norm_of(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, Affine, int | None] | None:
    """Return (source, scale and shift, 1) of a batch norm, None for any other call."""
    module = module_of(graph, node)
    if not isinstance(module, _BATCH_NORMS):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source, affine_of_norm(module), 1


def affine_of_norm(norm: Any) -> Affine:
    """Return the scale and shift of a batch norm, float64 ``(channels,)``."""
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return Affine(scale, norm.bias.detach().double() - norm.running_mean.double() * scale)


def apply_before(layer: Any, affine: Affine) -> None:
    """Change a layer's weights, in place, so that it reads ``x`` as it read ``scale * x + shift``."""
    weight = layer.weight.detach().double()
    groups = getattr(layer, "groups", 1)
    inputs = weight.shape[1] * groups
    rows = weight.shape[0] // groups

    def of_inputs(values: torch.Tensor) -> torch.Tensor:
        per_group = values.expand(inputs).reshape(groups, 1, weight.shape[1]).expand(groups, rows, weight.shape[1])
        return per_group.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))

    if bool((affine.shift != 0).any()):
        added = (weight * of_inputs(affine.shift)).flatten(1).sum(dim=1)
        layer.bias = parameter(added + (layer.bias.detach().double() if layer.bias is not None else 0.0))
    layer.weight = parameter(weight * of_inputs(affine.scale))


def name_batch_norms(graph: fx.GraphModule) -> bool:
    """Turn a scale and a shift of each channel that no layer takes into one batch norm."""
    changed = False
    for node in list(graph.graph.nodes):
        found = affine_of(graph, node)
        if found is None or len(shape(node)) not in {3, 4, 5}:
            continue
        source, affine, axis = found
        last = node
        reader = only_reader(node)
        following = affine_of(graph, reader) if reader is not None else None
        if following is not None and following[0] is node and following[2] in {None, 1}:
            assert reader is not None
            after = following[1]
            affine = Affine(affine.scale * after.scale, affine.shift * after.scale + after.shift)
            last, axis = reader, 1 if following[2] == 1 else axis
        if axis != 1:
            continue
        channels = shape(node)[1]
        norm = _BATCH_NORMS[len(shape(node)) - 3](channels, eps=0.0)
        norm.weight = parameter(affine.scale.expand(channels))
        norm.bias = parameter(affine.shift.expand(channels))
        new = new_module(graph, norm, source, last, str(last.meta.get(WORD, "batch_norm")), shape(last))
        replace(last, new)
        changed = True
    return changed


def merge_batch_norms(graph: fx.GraphModule) -> bool:
    """Join two batch norms in a row."""
    changed = False
    nodes: list[fx.Node] = list(graph.graph.nodes)
    for node in nodes:
        outer: Any = module_of(graph, node)
        inner_node = node.args[0] if node.args else None
        inner: Any = module_of(graph, inner_node)
        if not isinstance(outer, _BATCH_NORMS) or not isinstance(inner, _BATCH_NORMS):
            continue
        assert isinstance(inner_node, fx.Node)
        if only_reader(inner_node) is not node:
            continue
        first, second = affine_of_norm(inner), affine_of_norm(outer)
        norm: Any = own_copy(graph, node)
        norm.running_mean, norm.running_var = torch.zeros_like(outer.running_mean), torch.ones_like(outer.running_var)
        norm.eps = 0.0
        norm.weight = parameter(first.scale * second.scale)
        norm.bias = parameter(first.shift * second.scale + second.shift)
        node.args = inner_node.args
        changed = True
    return changed
