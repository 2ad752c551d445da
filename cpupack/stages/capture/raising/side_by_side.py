"""Layers side by side, each with weights of its own: experts, a network for each feature, members of an ensemble.

``x (layers, samples, values) @ weights (layers, values, results)`` is one convolution with a group for each layer. Its
samples are in front, and its results are those of the product. Where all layers read the same, it is one linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import permuted, reshaped


def layers_side_by_side(r: Raiser, left: Any, right: Any) -> fx.Node:
    """Return the product of a tensor that has the samples second with constant weights; else raise NotRaised."""
    weight = r.tensor(right)
    if weight is None or weight.ndim != 3 or not r.is_float(left):
        raise NotRaised
    count, width, results = weight.shape
    *layers, samples, values = r.shape(left)
    one = layers in ([], [1])
    if values != width or not (one or layers == [count]) or r.dynamic(left) != (*[False] * len(layers), True, False):
        raise NotRaised
    flat = weight.detach().float().transpose(1, 2).reshape(count * results, width).contiguous()
    x = r.activation(left)
    sizes: tuple[int, ...] = (samples, count * results)
    if one:
        x = reshaped(r, x, r.shape(left), (samples, width), (True, False))
        layer: nn.Module = nn.Linear(width, count * results, bias=False, device="meta")
    else:
        turned, sizes = permuted(r, x, [1, 0, 2]), (*sizes, 1)
        x = reshaped(r, turned, (samples, count, width), (samples, count * width, 1), (True, False, False))
        layer = nn.Conv1d(count * width, count * results, 1, groups=count, bias=False, device="meta")
        flat = flat.unsqueeze(-1)
    layer.weight = nn.Parameter(flat, requires_grad=False)
    product = r.module(layer, x, word="matmul", owner=r.weight_name(right))
    return permuted(r, reshaped(r, product, sizes, (samples, count, results), (True, False, False)), [1, 0, 2])


def matrices(r: Raiser, left: Any, right: Any) -> fx.Node:
    """Return the product of matrices."""
    try:
        return layers_side_by_side(r, left, right)
    except NotRaised:
        return r.call(torch.matmul, r.operand(left), r.operand(right))
