"""Lowers choices by truth values: ``where``, ``masked_fill``, and values that a mask hides."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.floats import Operand
from cpupack.stages.quantize.native.magnitudes import bounded, largest_of
from cpupack.stages.quantize.native.operands import operand_of
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, View
from cpupack.stages.quantize.native.whole_layers import joined, mapped, number_of, once, type_of


def hidden_by(b: Builder, mask: Operand, number: float = -math.inf, *, where: bool = False) -> Operand:
    """Return what is added to scores for a mask of truth values: ``number`` where the mask is ``where``, else 0."""
    if isinstance(mask, Fixed):
        return Fixed(torch.zeros(mask.values.shape).masked_fill((mask.values != 0) == where, number))
    code = [
        Instruction(Function.NUMBER, 2, number=0.0 if where else number),
        Instruction(Function.NUMBER, 3, number=number if where else 0.0),
        Instruction(Function.SELECT, 2, 0, 3), Instruction(Function.COPY, 0, 2),
    ]  # fmt: skip
    return once(b, mask, code).expanded(mask.shape)


def choose_where(b: Builder, node: fx.Node) -> View:
    """Lower ``where``. Raises Refusal for whole numbers that are not known to be small."""
    condition, chosen, other = node.args
    return _choice(b, node, condition, chosen, other)


def choose_filled(b: Builder, node: fx.Node) -> View:
    """Lower ``masked_fill``, as ``choose_where`` does."""
    source, mask, value = node.args
    return _choice(b, node, mask, value, source)


def _choice(b: Builder, node: fx.Node, condition: Any, chosen: Any, other: Any) -> View:
    """Return ``chosen`` where the condition is true, else ``other``: each a tensor or a number."""
    if type_of(b, condition) is not torch.bool:
        raise b.calls.refusal(node, "by values that are no truth values")
    bounded(b, node, max(largest_of(b, chosen), largest_of(b, other)))
    given = operand_of(b, condition, node)
    numbers = [number_of(b, each) for each in (chosen, other)]
    tensors = [None if n is not None else operand_of(b, e, node) for n, e in zip(numbers, (chosen, other), strict=True)]
    if numbers[0] is not None and numbers[1] is not None:
        code = [
            Instruction(Function.NUMBER, 2, number=numbers[0]), Instruction(Function.NUMBER, 3, number=numbers[1]),
            Instruction(Function.SELECT, 3, 0, 2), Instruction(Function.COPY, 0, 3),
        ]  # fmt: skip
        return mapped(b, node, given, code)
    parts = []
    if tensors[1] is not None:  # where it is true: the number, or zero
        code = [Instruction(Function.NUMBER, 2, number=numbers[0] or 0.0), Instruction(Function.SELECT, 0, 1, 2)]
        parts.append(joined(b, node, tensors[1], given, code))
    if tensors[0] is not None:
        code = [
            Instruction(Function.NUMBER, 2, number=numbers[1] or 0.0), Instruction(Function.SELECT, 2, 1, 0),
            Instruction(Function.COPY, 0, 2),
        ]  # fmt: skip
        parts.append(joined(b, node, tensors[0], given, code))
    if len(parts) == 1:
        return parts[0]
    return joined(b, node, parts[0], parts[1], [Instruction(Function.ADD)])
