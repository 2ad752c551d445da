"""Bits of whole numbers by arithmetic: masks of neighbouring bits, shifts, and the complement.

The engine has float32 values alone. ``x & 7`` is what a division by 8 leaves, also of negative numbers, whose bits are
those of the two's complement; ``x >> 3`` is that quotient rounded down.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.float_code import Code, then
from cpupack.stages.quantize.native.float_formulas import rest
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction

MOST_SHIFT = 24
"""float32 has whole numbers up to 2^24."""
_DOWN = (Function.FLOOR, 0.0)


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
