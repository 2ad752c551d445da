"""Means over all positions, in whatever way they are written, become adaptive pooling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.capture.rewrites.tools import is_a, new_call, new_module, replace, shape

_TOLERANCE = 1e-6


def pool_all_positions(graph: fx.GraphModule) -> bool:
    """Turn a mean over all positions into adaptive pooling: one dimension after the other, of permuted channels, by an
    average pooling as large as its input, or as a sum that is divided."""
    changed = False
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and _pools_everything(graph, node):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            replace(node, _pooled(graph, source, node))
            changed = True
        elif is_a(graph, node, nn.AdaptiveAvgPool1d):
            changed |= _pool_before_reshape(graph, node)
        elif node.target in {torch.mean, torch.mul} and node.op == "call_function":
            changed |= _pool_mean(graph, node)
    return changed


def _pooled(graph: fx.GraphModule, source: fx.Node, like: fx.Node) -> fx.Node:
    """Add the pooling of all positions of ``source``."""
    rank = len(shape(source))
    kinds = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    sizes = (1,) * (rank - 2)
    result = (*shape(source)[:2], *sizes)
    return new_module(graph, kinds[rank - 3](sizes), source, like, f"adaptive_avg_pool{rank - 2}d", result)


def _pool_before_reshape(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Pool an image whose positions were put in a row, or of which one dimension is averaged already."""
    inner = node.args[0]
    if not isinstance(inner, fx.Node) or inner.op != "call_function" or shape(node)[2:] != (1,):
        return False
    source = inner.args[0]
    if not isinstance(source, fx.Node) or len(shape(source)) not in {4, 5}:
        return False
    rank = len(shape(source))
    if inner.target is torch.reshape:
        if shape(inner)[:2] != shape(source)[:2]:
            return False
    elif inner.target is not torch.mean or inner.args[1:] != (tuple(range(3, rank)), False):
        return False
    replace(node, new_call(graph, torch.reshape, (_pooled(graph, source, node), (-1, shape(node)[1], 1)), node))
    return True


def _pools_everything(graph: fx.GraphModule, node: fx.Node) -> bool:
    module = graph.get_submodule(str(node.target))
    if type(module) not in {nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d}:
        return False
    whole = tuple(shape(node.args[0])[2:]) == tuple(module.kernel_size)  # type: ignore[arg-type]  # a tuple, once raised
    padded = any(module.padding) or getattr(module, "divisor_override", None)  # type: ignore[arg-type]  # as above
    return whole and not padded and math.prod(shape(node)[2:]) == 1


def _pool_mean(graph: fx.GraphModule, node: fx.Node) -> bool:
    found = _mean_of(node)
    if found is None:
        return False
    source, dims, keep = found
    while source.op == "call_function":
        inner = _mean_of(source)
        if inner is not None and len(source.users) == 1 and not (keep ^ inner[2]):
            source, (dims, keep) = inner[0], (_joined(dims, inner[1], len(shape(inner[0])), kept=inner[2]), keep)
        elif source.target is torch.permute and not keep:
            order: Any = source.args[1]
            before: Any = source.args[0]
            dims, source = tuple(sorted(order[each] for each in dims)), before
            left = [each for each in order if each not in dims]
            if left != sorted(left):
                return False
        else:
            break
    rank = len(shape(source))
    if rank not in {3, 4, 5} or tuple(dims) != tuple(range(2, rank)):
        return False
    pooled = _pooled(graph, source, node)
    replace(node, pooled if keep else new_call(graph, torch.flatten, (pooled, 1), node))
    return True


def _mean_of(node: fx.Node) -> tuple[fx.Node, tuple[int, ...], bool] | None:
    """Return (source, dimensions, keepdim) of a mean, also of a sum that is divided by the number of its values."""
    factor = 1.0
    if node.target is torch.mul and isinstance(node.args[0], fx.Node) and isinstance(node.args[1], int | float):
        factor = float(node.args[1])
        node = node.args[0]
        if node.target is not torch.sum or len(node.users) != 1:
            return None
    elif node.target is not torch.mean:
        return None
    source, dims, keep = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(dims, tuple)
    rank = len(shape(source))
    axes = tuple(sorted(each % rank for each in dims if isinstance(each, int)))
    if node.target is torch.sum:
        count = math.prod(shape(source)[each] for each in axes)
        if abs(factor * count - 1.0) > _TOLERANCE:
            return None
    return source, axes, bool(keep)


def _joined(outer: tuple[int, ...], inner: tuple[int, ...], rank: int, *, kept: bool) -> tuple[int, ...]:
    """Return the dimensions of the innermost source that two means in a row go over."""
    left = list(range(rank)) if kept else [each for each in range(rank) if each not in inner]
    return tuple(sorted({*inner, *(left[each] for each in outer)}))
