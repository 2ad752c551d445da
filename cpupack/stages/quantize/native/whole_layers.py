"""Layers of instructions for calls on whole numbers and truth values: of one value, of two, with a number."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.floats import Operand
from cpupack.stages.quantize.native.functions import constant_of
from cpupack.stages.quantize.native.magnitudes import WHOLE
from cpupack.stages.quantize.native.operands import operand_of, views_of
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, View


def type_of(b: Builder, value: Any) -> torch.dtype | None:
    """Return the dtype of a call, a constant or a truth value; None for what has none."""
    if isinstance(value, bool):
        return torch.bool
    if not isinstance(value, fx.Node):
        return None
    return b.calls.attribute(value).dtype if value.op == "get_attr" else value.meta.get("dtype")


def number_of(b: Builder, value: Any) -> float | None:
    """Return a number, or a constant of one value, as float32 has it exactly; None for a tensor."""
    found = value if isinstance(value, bool | int | float) else None
    if found is None and isinstance(value, fx.Node):
        held = constant_of(b.calls.graph, value)
        if held is None and isinstance(fixed := b.floats.values.get(value), Fixed):
            held = fixed.values
        found = float(held.reshape(-1)[0]) if held is not None and is_one(held) else None
    return None if found is None else float(found)


def is_one(held: torch.Tensor) -> bool:
    """Return whether a constant has one value."""
    return held.numel() == 1


def of_two(b: Builder, node: fx.Node, code: list[Instruction]) -> View:
    """Append a layer for a call of two values, or of one and a number. Raises Refusal where float32 lacks it."""
    one, two = node.args[:2]
    number = number_of(b, two)
    if number is not None and isinstance(one, fx.Node):
        if float(torch.tensor(number, dtype=torch.float32)) != number and type_of(b, one) in WHOLE:
            raise b.calls.refusal(node, "with a number that float32 does not have")
        return mapped(b, node, operand_of(b, one, node), [Instruction(Function.NUMBER, 1, number=number), *code])
    return joined(b, node, operand_of(b, one, node), operand_of(b, two, node), code)


def mapped(b: Builder, node: fx.Node, operand: Operand, code: list[Instruction]) -> View:
    """Append a layer for a call of one value."""
    view = b.floats.view(operand)
    shape = tuple(shape_of(node)[1:])
    if any(step == 0 and size > 1 for size, step in zip(view.shape, view.steps, strict=True)):
        return once(b, view, code).expanded(shape)
    return b.floats.map(b.floats.like(view) if view.shape == shape else b.floats.new(shape), view, None, code)


def once(b: Builder, view: View, code: list[Instruction]) -> View:
    """Compute repeated values once."""
    sizes = tuple(1 if step == 0 else size for size, step in zip(view.shape, view.steps, strict=True))
    one = View(view.buffer, sizes, view.steps, view.first)
    return b.floats.map(b.floats.new(sizes), one, None, code)


def joined(b: Builder, node: fx.Node, one: Operand, two: Operand, code: list[Instruction]) -> View:
    """Append a layer for a call of two values."""
    shape = tuple(shape_of(node)[1:])
    views_of(b, node, one, two)
    return b.floats.map(b.floats.beside(shape, one, two), one, two, code)
