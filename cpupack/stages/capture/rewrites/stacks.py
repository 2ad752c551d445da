"""Tensors that are stacked, weighed and summed: branches of a selective kernel, levels of a pyramid, experts."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.rewrites.tools import constant_of, new_call, new_constant, replace, shape

_MOST = 16
"""Tensors of a stack. The sum of more is left as it is."""


def add_without_stacks(graph: fx.GraphModule) -> bool:
    """Turn a sum over stacked tensors into sums of these, each times its own weight if the stack has weights.

    A stack is laid out with the tensors side by side, and its product with the weights as well: each value moves three
    times before it is added.
    """
    changed = False
    for node in list(graph.graph.nodes):
        if node.target is not torch.sum or len(node.args) != 3 or node.args[2] is not False or not node.users:
            continue
        source, given = node.args[0], node.args[1]
        dims: Any = [given] if isinstance(given, int) else given
        if len(dims) != 1 or not isinstance(source, fx.Node) or len(shape(source)) < 3:
            continue
        dim = dims[0] % len(shape(source))
        parts = _parts(graph, source, dim, node)
        if parts is not None:
            replace(node, reduce(lambda one, two: new_call(graph, torch.add, (one, two), node), parts))
            changed = True
    return changed


def _parts(graph: fx.GraphModule, source: fx.Node, dim: int, node: fx.Node) -> list[fx.Node] | None:
    """Return the tensors that are summed, of the shape of ``node``; None where ``source`` is no stack."""
    stacked = _stacked(source, dim)
    if stacked is not None:
        return stacked if all(shape(each) == shape(node) for each in stacked) else None
    if source.target is not torch.mul or len(source.args) != 2:
        return None
    for one, other in (source.args, reversed(source.args)):
        tensors = _stacked(one, dim) if len(shape(one)) == len(shape(source)) else None
        if tensors is None or any(shape(each) != shape(node) for each in tensors):
            continue
        weights = _weights(graph, other, dim, len(tensors), len(shape(source)), node)
        if weights is not None:
            pairs = zip(tensors, weights, strict=True)
            return [new_call(graph, torch.mul, pair, node) for pair in pairs]
    return None


def _stacked(node: Any, dim: int) -> list[fx.Node] | None:
    """Return what a call stacks along a dimension, not the batch; None for another call."""
    if not isinstance(node, fx.Node) or node.target is not torch.cat or len(node.args) != 2 or dim == 0:
        return None
    given: Any = node.args[0]
    along: Any = node.args[1]
    if along % len(shape(node)) != dim or not 2 <= len(given) <= _MOST:
        return None
    found = []
    for each in given:
        inner = each.args[0] if isinstance(each, fx.Node) and each.target is torch.reshape else None
        if not isinstance(inner, fx.Node) or shape(each)[dim] != 1 or each.args[1][0] != -1:
            return None
        if shape(inner) != (*shape(each)[:dim], *shape(each)[dim + 1 :]):
            return None
        found.append(inner)
    return found


def _weights(graph: fx.GraphModule, node: Any, dim: int, count: int, rank: int, like: fx.Node) -> list[Any] | None:
    """Return the weight of each tensor of a stack, without the dimension along which they are stacked."""
    if not isinstance(node, fx.Node) or len(shape(node)) > rank:
        return None
    if len(shape(node)) == rank and (stacked := _stacked(node, dim)) is not None:
        return stacked if len(stacked) == count else None
    if (value := constant_of(graph, node)) is not None:
        whole = value.reshape(*[1] * (rank - value.ndim), *value.shape)
        whole = whole.expand(*whole.shape[:dim], count, *whole.shape[dim + 1 :])
        return [new_constant(graph, whole.select(dim, each), node, like) for each in range(count)]
    size = shape(node)
    if len(size) != rank or size[dim] not in (1, count) or size[0] != shape(like)[0]:
        return None
    found = []
    rest = (*size[1:dim], *size[dim + 1 :])
    for each in range(count):
        part = node
        if size[dim] != 1:
            index = (*[slice(None)] * dim, slice(each, each + 1))
            part = new_call(graph, operator.getitem, (node, index), like, "select", (*size[:dim], 1, *size[dim + 1 :]))
        found.append(new_call(graph, torch.reshape, (part, (-1, *rest)), like, "", (size[0], *rest)))
    return found
