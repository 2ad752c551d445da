"""Lowers writes into a part of a float32 tensor: a copy of the whole, and over it the new part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, shape_of
from cpupack.stages.quantize.native.operands import operand_of
from cpupack.stages.quantize.native.walks import Fixed, View

_ATEN = torch.ops.aten


def _written(b: Builder, node: fx.Node, place: Callable[[View, int], View]) -> View:
    """Return the first operand with the second in the part of it that ``place`` finds, along the call's dimension."""
    axis = argument(node, 2, "dim", 0) % len(shape_of(node)) - 1
    if axis < 0:
        raise b.calls.refusal(node, "of samples")
    whole, part = (operand_of(b, each, node) for each in node.args[:2])
    shape = tuple(shape_of(node)[1:])
    out = b.floats.like(whole) if isinstance(whole, View) and whole.shape == shape else b.floats.new(shape)
    b.floats.map(out, whole)
    target = place(out, axis)
    if not isinstance(part, Fixed) and len(part.shape) != len(target.shape):
        raise b.calls.refusal(node, "of tensors with different numbers of dimensions")
    b.floats.map(target, part)
    return out


def _slice(b: Builder, node: fx.Node) -> View:
    def place(out: View, axis: int) -> View:
        given = slice(
            argument(node, 3, "start", None), argument(node, 4, "end", None), argument(node, 5, "step", 1)
        )  # fmt: skip
        begin, end, step = given.indices(out.shape[axis])
        shape = (*out.shape[:axis], len(range(begin, end, step)), *out.shape[axis + 1 :])
        steps = (*out.steps[:axis], out.steps[axis] * step, *out.steps[axis + 1 :])
        return View(out.buffer, shape, steps, out.first + begin * out.steps[axis])

    return _written(b, node, place)


def _select(b: Builder, node: fx.Node) -> View:
    def place(out: View, axis: int) -> View:
        index = argument(node, 3, "index", 0) % out.shape[axis]
        kept = [each for each in range(len(out.shape)) if each != axis]
        shape, steps = (tuple(own[each] for each in kept) for own in (out.shape, out.steps))
        return View(out.buffer, shape, steps, out.first + index * out.steps[axis])

    return _written(b, node, place)


def _copy(b: Builder, node: fx.Node) -> View:
    """Lower a whole tensor that is written over: the second operand in the shape of the first."""
    return b.floats.view(operand_of(b, node.args[1], node)).expanded(tuple(shape_of(node)[1:]))


UPDATES: dict[Any, tuple[Callable[[Builder, fx.Node], View], str]] = {
    _ATEN.slice_scatter.default: (_slice, "move"),
    _ATEN.select_scatter.default: (_select, "move"),
    _ATEN.copy.default: (_copy, ""),
}
"""By what is called: the function that appends the layers, and the name of their kernel."""
