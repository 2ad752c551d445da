"""Parallel convolutions of one input that are summed (RepVGG, MobileOne) become one convolution."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.fused import fold_batch_norm
from cpupack.stages.capture.rewrites.affine import affine_of_norm
from cpupack.stages.capture.rewrites.tools import is_a, module_of, new_module, only_reader, parameter, replace, shape

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def merge_parallel_branches(graph: fx.GraphModule) -> bool:
    """Turn a sum of convolutions of one input, each maybe with its batch norm, and of the input itself with its batch
    norm, into one convolution."""
    changed = False
    for node in reversed(list(graph.graph.nodes)):
        if node.target is not torch.add or not node.users:
            continue
        summands = _summands(node)
        if len(summands) < 2:
            continue
        branches = [_branch(graph, each) for each in summands]
        sources = {source for source, _, _ in branches}
        if len(sources) != 1:
            continue
        merged = _merged([(conv, norm) for _, conv, norm in branches], shape(summands[0]))
        if merged is None:
            continue
        like = max(summands, key=lambda each: _kernel(graph, each))
        new = new_module(graph, merged, sources.pop(), node, "conv", shape(node))
        new.meta["nn_module_stack"] = _absorbed(_stack_of(graph, like, node), graph, summands)
        replace(node, new)
        changed = True
    return changed


def _summands(node: fx.Node) -> list[fx.Node]:
    """Return what a tree of sums adds; a sum that something else reads too is a summand itself."""
    found: list[fx.Node] = []
    for each in node.args:
        if not isinstance(each, fx.Node):
            return []
        if each.target is torch.add and only_reader(each) is node and all(isinstance(x, fx.Node) for x in each.args):
            found += _summands(each)
        else:
            found.append(each)
    return found


def _branch(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, nn.Module | None, nn.Module | None]:
    """Return (input, convolution, batch norm) of a summand; an identity has neither."""
    norm = None
    top = node
    if is_a(graph, node, *_BATCH_NORMS) and len(node.users) == 1:
        norm = module_of(graph, node)
        node = node.args[0]  # type: ignore[assignment]  # a node
    if is_a(graph, node, *_CONVS) and len(node.users) == 1:
        return node.args[0], module_of(graph, node), norm  # type: ignore[return-value]  # a node
    if norm is not None:
        return node, None, norm
    return top, None, None


def _merged(branches: list[tuple[Any, Any]], result: tuple[int, ...]) -> nn.Module | None:
    convs = [conv for conv, _ in branches if conv is not None]
    if (
        not convs
        or all(conv is None for conv, norm in branches)
        or (len(convs) == 1 and all(norm is None for conv, norm in branches if conv is None))
    ):
        return None  # a residual sum
    largest = max(convs, key=lambda conv: conv.kernel_size)
    if any(size % 2 == 0 for size in largest.kernel_size) or any(step != 1 for step in largest.dilation):
        return None
    weight, bias = torch.zeros_like(largest.weight.detach(), dtype=torch.float64), None
    bias = torch.zeros(largest.out_channels, dtype=torch.float64)
    for conv, norm in branches:
        if conv is None and not _is_identity(largest, result):
            return None
        part = _identity(largest) if conv is None else conv
        same = part.stride == largest.stride and part.groups == largest.groups and part.dilation == largest.dilation
        if not same or any(size % 2 == 0 for size in part.kernel_size):
            return None
        margins = [(big - small) // 2 for big, small in zip(largest.kernel_size, part.kernel_size, strict=True)]
        pads = zip(largest.padding, part.padding, margins, strict=True)
        if any(margin < 0 or big - small != margin for big, small, margin in pads):
            return None
        if norm is not None:
            part = _normed(part, norm)
        weight += F.pad(part.weight.detach().double(), [side for each in reversed(margins) for side in (each, each)])
        if part.bias is not None:
            bias += part.bias.detach().double()
    merged = copy.deepcopy(largest)
    merged.weight, merged.bias = parameter(weight), parameter(bias)
    return merged  # type: ignore[no-any-return]  # a module


def _normed(conv: Any, norm: Any) -> Any:
    assert isinstance(affine_of_norm(norm).scale, torch.Tensor)
    return fold_batch_norm(conv, norm)


def _is_identity(conv: Any, result: tuple[int, ...]) -> bool:
    return conv.in_channels == conv.out_channels and all(step == 1 for step in conv.stride) and bool(result)


def _identity(like: Any) -> Any:
    """Return the convolution of one position that gives its input."""
    conv = type(like)(like.in_channels, like.out_channels, 1, groups=like.groups, bias=False)
    weight = torch.zeros_like(conv.weight)
    for channel in range(like.out_channels):
        weight[channel, channel % weight.shape[1]] = 1.0
    conv.weight = parameter(weight)
    return conv.eval()


def _kernel(graph: fx.GraphModule, node: fx.Node) -> int:
    conv: Any = _branch(graph, node)[1]
    return sum(conv.kernel_size) if conv is not None else 0


def _absorbed(stack: dict[str, Any], graph: fx.GraphModule, summands: list[fx.Node]) -> dict[str, Any]:
    """Return a place among the user's modules with those that were merged: ``skip`` may name any of them."""
    others: dict[str, Any] = {}
    for each in summands:
        for node in (each, each.args[0] if is_a(graph, each, *_BATCH_NORMS) else each):
            if isinstance(node, fx.Node) and is_a(graph, node, *_CONVS, *_BATCH_NORMS):
                key, place = list(node.meta.get("nn_module_stack", {"": ("", "")}).items())[-1]
                others[f"{key} merged"] = place
    *outer, innermost = stack.items() if stack else [("", ("", ""))]
    return dict([*outer, *others.items(), innermost])


def _stack_of(graph: fx.GraphModule, like: fx.Node, node: fx.Node) -> dict[str, Any]:
    """Return the place of the largest convolution among the user's modules, else the sum's."""
    found = like.args[0] if is_a(graph, like, *_BATCH_NORMS) else like
    conv = found if is_a(graph, found, *_CONVS) else node
    assert isinstance(conv, fx.Node)
    return dict(conv.meta.get("nn_module_stack", {}))
