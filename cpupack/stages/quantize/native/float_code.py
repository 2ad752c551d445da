"""Pieces that functions in FP32 are put together from: instructions of the engine on its registers."""

from __future__ import annotations

from collections.abc import Sequence

from cpupack.stages.quantize.native.walks import Function, Instruction

Code = list[Instruction]
TINY, HUGE = 1e-30, 1e30


def then(*codes: tuple[Function, float]) -> Code:
    """Return functions of register 0 and a number, one after the other."""
    return [Instruction(function, number=number) for function, number in codes]


def on(register: int, code: Sequence[Instruction]) -> Code:
    """Return functions of register 0 as those of another one."""
    return [Instruction(each.function, register, register, each.b, each.number) for each in code]


def copy_to(to: int) -> Instruction:
    return Instruction(Function.COPY, to, 0)


def times(register: int) -> Instruction:
    return Instruction(Function.MULTIPLY, 0, 0, register)


def plus(register: int) -> Instruction:
    return Instruction(Function.ADD, 0, 0, register)


ADD, TIMES, LEAST, MOST = (
    Function.ADD_NUMBER, Function.MULTIPLY_NUMBER, Function.AT_LEAST, Function.AT_MOST
)  # fmt: skip
