"""Layers side by side, each with weights of its own: experts, a network for each feature, members of an ensemble.

``x (layers, samples, values) @ weights (layers, values, results)`` is one convolution with a group for each layer. Its
samples are in front, and its results are those of the product. Where all layers read the same, it is one linear layer.
So is ``x (samples, layers, rows, values) @ weights``, with the rows as positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import permuted, reshaped

_WITH_ROWS = 4
_FEWEST_VALUES = 8


def layers_side_by_side(r: Raiser, left: Any, right: Any) -> fx.Node:
    """Return the product of a tensor that has the samples second, or first of four, with constant weights.

    Raises NotRaised for others.
    """
    weight = r.tensor(right)
    if weight is not None and weight.ndim == _WITH_ROWS and weight.shape[0] == 1:
        weight = weight[0]
    if weight is None or weight.ndim != 3 or not r.is_float(left):
        raise NotRaised
    if len(r.shape(left)) == _WITH_ROWS:
        if r.dynamic(left) != (True, False, False, False):
            raise NotRaised
        return rows_side_by_side(r, r.activation(left), r.shape(left), weight, r.weight_name(right))
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


def rows_side_by_side(r: Raiser, x: fx.Node, shape: tuple[int, ...], weight: torch.Tensor, owner: str) -> fx.Node:
    """Return the product of ``x (samples, layers, rows, values)`` with constant ``weight (layers, values, results)``.

    With one layer in ``x`` all read the same. Raises NotRaised for other shapes, and for layers of a few values: codes
    would save nothing.
    """
    count, width, results = weight.shape
    samples, layers, rows, values = shape
    if values != width or layers not in {1, count} or width < _FEWEST_VALUES:
        raise NotRaised
    moves = (True, False, False, False)
    flat = weight.detach().float().transpose(1, 2).reshape(count * results, width).contiguous()
    if layers == 1:
        linear = nn.Linear(width, count * results, bias=False, device="meta")
        linear.weight = nn.Parameter(flat, requires_grad=False)
        x = reshaped(r, x, shape, (samples, rows, width), moves[:3])
        y = r.module(linear, x, word="matmul", owner=owner)
        y = reshaped(r, y, (samples, rows, count * results), (samples, rows, count, results), moves)
        return permuted(r, y, [0, 2, 1, 3])
    layer = nn.Conv1d(count * width, count * results, 1, groups=count, bias=False, device="meta")
    layer.weight = nn.Parameter(flat.unsqueeze(-1), requires_grad=False)
    turned = permuted(r, x, [0, 1, 3, 2])
    x = reshaped(r, turned, (samples, count, width, rows), (samples, count * width, rows), moves[:3])
    y = r.module(layer, x, word="matmul", owner=owner)
    y = reshaped(r, y, (samples, count * results, rows), (samples, count, results, rows), moves)
    return permuted(r, y, [0, 1, 3, 2])


def matrices(r: Raiser, left: Any, right: Any) -> fx.Node:
    """Return the product of matrices."""
    try:
        return layers_side_by_side(r, left, right)
    except NotRaised:
        return r.call(torch.matmul, r.operand(left), r.operand(right))
