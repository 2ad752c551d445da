"""Padding that becomes part of the layer that reads it.

A convolution takes zeros on both sides alike. More zeros at the end than at the start (TF's "SAME", even kernels with
``padding="same"``) are the same as a kernel with leading rows and columns of zeros and symmetric padding; more at the
start, as one with trailing ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.stages.capture.rewrites.tools import constant_of, is_a, module_of, own_copy, parameter, shape

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_NOT_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softmax)
_ZERO_TO_ZERO = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.Mish, nn.SELU, nn.CELU,
    nn.Softsign, nn.PReLU,
)  # fmt: skip


def swap_padding_and_activation(graph: fx.GraphModule) -> bool:
    """Move zero padding behind an activation that keeps zeros, where it can fold into the next layer."""
    changed = False
    for node in list(graph.graph.nodes):
        if not _is_zero_padding(node):
            continue
        source, reader = node.args[0], next(iter(node.users), None)
        if len(node.users) != 1 or reader is None or not is_a(graph, reader, *_ZERO_TO_ZERO):
            continue
        reader.args = (source,)
        reader.replace_all_uses_with(node, delete_user_cb=lambda each, pad=node: each is not pad)
        reader.meta["shape"] = shape(source)
        node.args = (reader, *node.args[1:])
        reader.append(node)
        changed = True
    return changed


def fold_padding(graph: fx.GraphModule) -> bool:
    """Fold ``F.pad`` into the convolutions and poolings that read it."""
    changed = False
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not F.pad:
            continue
        source, pads, mode, value = node.args
        if mode != "constant" or not isinstance(source, fx.Node) or not isinstance(pads, list | tuple):
            continue
        for reader in list(node.users):
            module = module_of(graph, reader)
            sides = _sides(pads, len(shape(node)))  # type: ignore[arg-type]  # numbers
            if module is None or sides is None:
                continue
            folded = _fold(graph, module, sides, source, value, reader)
            if folded is not None:
                for name, new in folded.items():
                    setattr(own_copy(graph, reader), name, new)
                reader.args = (source,)
                changed = True
        if not node.users:
            graph.graph.erase_node(node)
    return changed


def merge_paddings(graph: fx.GraphModule) -> bool:
    """Join two paddings in a row with the same number."""
    changed = False
    for node in list(graph.graph.nodes):
        if not _is_constant_padding(node):
            continue
        inner = node.args[0]
        if not _is_constant_padding(inner) or inner.args[3] != node.args[3] or len(inner.users) != 1:
            continue
        one, two = list(inner.args[1]), list(node.args[1])
        length = max(len(one), len(two))
        pads = [a + b for a, b in zip(one + [0] * (length - len(one)), two + [0] * (length - len(two)), strict=True)]
        if min(*one, *two) >= 0:
            node.args = (inner.args[0], pads, *node.args[2:])
            changed = True
    return changed


def _is_constant_padding(node: Any) -> bool:
    is_pad = isinstance(node, fx.Node) and node.op == "call_function" and node.target is F.pad
    return bool(is_pad and node.args[2] == "constant")


def _is_zero_padding(node: Any) -> bool:
    return _is_constant_padding(node) and node.args[3] == 0.0


@dataclass(frozen=True)
class _Side:
    """Padding before and after one dimension, and its size without."""

    before: int
    after: int


def _sides(pads: list[int], rank: int) -> list[_Side] | None:
    """Return the padding of each position dimension; None where channels are padded, or something is cut off."""
    pads = [*pads, *[0] * (2 * rank - len(pads))]
    if any(pads[2 * (rank - 2) :]) or min(pads) < 0:
        return None
    return [_Side(pads[2 * at], pads[2 * at + 1]) for at in range(rank - 3, -1, -1)]


def _fold(
    graph: fx.GraphModule, module: nn.Module, sides: list[_Side], source: fx.Node, value: Any, reader: fx.Node
) -> dict[str, Any] | None:
    """Return the attributes of the module that takes the padding in, None where it cannot."""
    if type(module) in _CONVS and value == 0.0:
        return _fold_into_convolution(module, sides, shape(source)[2:])
    if type(module) in _MAX_POOLS:
        nothing = value == -math.inf or value <= torch.finfo(torch.float32).min
        if nothing or (value == 0.0 and _not_negative(graph, source) and _touches_values(module, sides)):
            return _fold_into_max_pool(module, sides, shape(source)[2:], shape(reader)[2:])
    if type(module) in _AVERAGE_POOLS and value == 0.0:
        return _fold_into_average_pool(module, sides, shape(source)[2:])
    return None


def _fold_into_convolution(module: Any, sides: list[_Side], sizes: tuple[int, ...]) -> dict[str, Any] | None:
    weight, padding = module.weight.detach(), []
    grow = []  # (leading, trailing) zeros for each dimension
    for axis, side in enumerate(sides):
        own, stride, dilation = module.padding[axis], module.stride[axis], module.dilation[axis]
        before, after = side.before + own, side.after + own
        both = max(before, after)
        size, reach = sizes[axis], dilation * (module.kernel_size[axis] - 1) + 1
        if before == after:
            lead = trail = 0
        elif after > before:
            if (both - before) % dilation:
                return None
            lead, trail = (both - before) // dilation, 0
        else:
            # Values that no window reaches need no zeros.
            same = (size + 2 * both - reach) // stride == (size + before + after - reach) // stride
            if not same and (both - after) % dilation:
                return None
            lead, trail = 0, 0 if same else (both - after) // dilation
        grow.append((lead, trail))
        padding.append(both)
    if any(lead or trail for lead, trail in grow):
        weight = F.pad(weight, [each for lead, trail in reversed(grow) for each in (lead, trail)])
    return {
        "weight": parameter(weight), "padding": tuple(padding), "kernel_size": tuple(weight.shape[2:]),
        "_reversed_padding_repeated_twice": [each for side in reversed(padding) for each in (side, side)],
    }  # fmt: skip


def _fold_into_max_pool(
    module: Any, sides: list[_Side], sizes: tuple[int, ...], after: tuple[int, ...]
) -> dict[str, Any] | None:
    """Padding at the start is the pooling's; what more there is at the end, only ``ceil_mode`` reaches."""
    padding = tuple(side.before + own for side, own in zip(sides, module.padding, strict=True))
    if any(pad > kernel // 2 for pad, kernel in zip(padding, module.kernel_size, strict=True)):
        return None
    for ceil_mode in (False, True):
        settings = zip(sizes, padding, module.kernel_size, module.stride, module.dilation, strict=True)
        if tuple(_pooled(*each, ceil_mode=ceil_mode) for each in settings) == after:
            return {"padding": padding, "ceil_mode": ceil_mode}
    return None


def _pooled(size: int, padding: int, kernel: int, stride: int, dilation: int, *, ceil_mode: bool) -> int:
    """Return how many windows torch takes."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


def _touches_values(module: Any, sides: list[_Side]) -> bool:
    """Whether no window of a pooling lies in the padding alone."""
    return all(
        max(side.before, side.after) + own < kernel and step == 1
        for side, own, kernel, step in zip(sides, module.padding, module.kernel_size, module.dilation, strict=True)
    )


def _fold_into_average_pool(module: Any, sides: list[_Side], sizes: tuple[int, ...]) -> dict[str, Any] | None:
    own = any(module.padding)
    if len(sizes) == 3 and any(size < kernel for size, kernel in zip(sizes, module.kernel_size, strict=True)):
        return None  # of three dimensions, torch refuses windows larger than the part that is no padding
    if (own and not module.count_include_pad) or module.ceil_mode:
        return None
    padding = []
    for axis, side in enumerate(sides):
        both = side.before + module.padding[axis]
        if side.before != side.after or both > module.kernel_size[axis] // 2:
            return None
        padding.append(both)
    return {"padding": tuple(padding), "count_include_pad": True}


def _not_negative(graph: fx.GraphModule, node: Any) -> bool:
    """Whether a result is never below zero."""
    for _ in range(32):
        if not isinstance(node, fx.Node):
            return False
        if is_a(graph, node, *_NOT_NEGATIVE):
            return True
        module = module_of(graph, node)
        if isinstance(module, nn.Hardtanh) and module.min_val >= 0.0:
            return True
        passes = type(module) in (*_MAX_POOLS, *_AVERAGE_POOLS) or node.target in {torch.reshape, torch.permute}
        if not passes:
            if node.op == "call_function" and node.target in {torch.cat, torch.add}:
                parts = node.all_input_nodes
                constants = [constant_of(graph, each) for each in parts]
                return all(
                    bool((value >= 0).all()) if value is not None else _not_negative(graph, each)
                    for each, value in zip(parts, constants, strict=True)
                ) and not any(isinstance(each, int | float) for each in node.args)
            return False
        node = node.args[0]
    return False
