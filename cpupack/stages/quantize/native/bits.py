"""Bits of whole numbers by arithmetic: masks of neighbouring bits, shifts, and any two numbers bit by bit.

The engine has float32 values alone. ``x & 7`` is what a division by 8 leaves, also of negative numbers, whose bits are
those of the two's complement; ``x >> 3`` is that quotient rounded down. ``x ^ y`` is computed of the bits one by one,
which lie along a dimension of their own for it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.float_code import Code, then
from cpupack.stages.quantize.native.float_formulas import rest
from cpupack.stages.quantize.native.magnitudes import BEYOND, bounded, largest_of
from cpupack.stages.quantize.native.operands import operand_of, views_of
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, Reduction, View

MOST_SHIFT = 24
"""float32 has whole numbers up to 2^24."""
_DOWN = (Function.FLOOR, 0.0)
_OF_BITS: dict[str, Code] = {
    "and": [Instruction(Function.MULTIPLY)],
    "or": [Instruction(Function.MAXIMUM)],
    "xor": [Instruction(Function.EQUAL), Instruction(Function.FROM_NUMBER, number=1.0)],
}


def kept_by(mask: torch.Tensor) -> Code | None:
    """Return what ``x & mask`` does to register 0, None for a mask whose bits are not side by side.

    ``mask`` has one value; or several that are powers of two, which are then in register 1.
    """
    values = [int(each) for each in mask.reshape(-1)]
    if len(set(values)) > 1:
        if any(each <= 0 or each & (each - 1) for each in values) or max(values).bit_length() > MOST_SHIFT:
            return None
        quotient = [Instruction(Function.DIVIDE, 0, 0, 1), *then(_DOWN)]
        return [*quotient, *rest(2.0, Function.FLOOR), Instruction(Function.MULTIPLY, 0, 0, 1)]
    bits = values[0]
    low = bits & -bits
    if bits <= 0 or (bits + low) & bits or bits.bit_length() > MOST_SHIFT:
        return None
    code: Code = rest(float(bits + low), Function.FLOOR)
    if low > 1:
        code = [*code, *then((Function.DIVIDE_BY_NUMBER, float(low)), _DOWN, (Function.MULTIPLY_NUMBER, float(low)))]
    return code


def shifts_of(b: Builder, node: fx.Node) -> torch.Tensor:
    """Return by how many bits a call shifts, one number or a constant tensor. Raises Refusal for anything else."""
    by: Any = node.args[1]
    held = torch.tensor(by) if isinstance(by, int) else b.calls.constant(by)
    if held is None and isinstance(fixed := b.floats.values.get(by), Fixed):
        held = fixed.values
    if held is None or not held.numel() or bool((held != held.trunc()).any()):
        raise b.calls.refusal(node, "by computed numbers of bits")
    if int(held.min()) < 0 or int(held.max()) > MOST_SHIFT:
        raise b.calls.refusal(node, f"by other numbers of bits than 0 to {MOST_SHIFT}")
    return held


def shifted(*, left: bool) -> Code:
    """Return what a shift does to register 0, with the power of two in register 1."""
    if left:
        return [Instruction(Function.MULTIPLY)]
    return [Instruction(Function.DIVIDE, 0, 0, 1), *then(_DOWN)]


def bit_by_bit(b: Builder, node: fx.Node, kind: str) -> View:
    """Append what ``and``, ``or`` and ``xor`` make of two whole numbers. Raises Refusal for numbers without bounds.

    The first dimension of what is between has the bits, the sign last: it counts -2^n, as in the two's complement.
    """
    largest = max(largest_of(b, each) for each in node.args[:2])
    if math.isinf(largest) or largest > 2**MOST_SHIFT:
        raise b.calls.refusal(node, BEYOND)
    operands = [Fixed(torch.tensor(each)) if isinstance(each, int) else operand_of(b, each, node) for each in node.args]
    masks = [each.values for each in operands if isinstance(each, Fixed) and float(each.values.min()) >= 0]
    sign = node.meta["dtype"] is not torch.uint8
    if kind == "and" and masks:  # keeps no bit that the mask has not
        largest, sign = float(masks[0].max()), False
    count = min(int(largest).bit_length(), MOST_SHIFT)  # an id of 2^24 itself, for which no table has a row, has 25
    bounded(b, node, float(2**count if sign else 2**count - 1))
    shape = tuple(shape_of(node)[1:])
    powers = (2.0 ** torch.arange(count + sign)).reshape(-1, *[1] * len(shape))
    views_of(b, node, *(each for each in operands if isinstance(each, View)))
    own = [_bits_of(b, each, powers) for each in operands]
    bits = b.floats.map(b.floats.new((len(powers), *shape)), own[0], own[1], _OF_BITS[kind])
    if sign:
        powers = torch.cat([powers[:-1], -powers[-1:]])
    return b.floats.reduce(
        b.floats.map(b.floats.like(bits), bits, Fixed(powers), [Instruction(Function.MULTIPLY)]), (0,), Reduction.SUM
    )


def _bits_of(b: Builder, operand: Fixed | View, powers: torch.Tensor) -> Fixed | View:
    """Return 0 or 1 for each bit of whole numbers, ``(bits, ...)``."""
    rank = powers.ndim - 1
    if isinstance(operand, Fixed):
        return Fixed(torch.div(operand.values.double(), powers, rounding_mode="floor").remainder(2.0).float())
    shape = (len(powers), *[1] * (rank - len(operand.shape)), *operand.shape)
    code = [Instruction(Function.DIVIDE), *then(_DOWN), *rest(2.0, Function.FLOOR)]
    return b.floats.map(b.floats.new(shape), operand, Fixed(powers), code)
