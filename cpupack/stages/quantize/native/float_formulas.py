"""Functions in FP32 by a formula: arcs, hyperbolic functions, remainders, signs. The value is in register 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cpupack.stages.quantize.native.float_code import (
    ADD,
    HUGE,
    LEAST,
    MOST,
    TIMES,
    TINY,
    Code,
    copy_to,
    on,
    plus,
    then,
    times,
)
from cpupack.stages.quantize.native.walks import Function, Instruction

_LEAST_OF_ALL, _MOST_OF_ALL = 1e-37, 1e38


def log1p() -> Code:
    """Return log(1 + x): log(u) + (x - (u - 1)) / u with u = 1 + x, for u has lost the last digits of a small x.

    Of large values there is nothing to correct, and of an infinite one the difference would be no number.
    """
    return [
        copy_to(3), *on(3, then((ADD, 1.0))), Instruction(Function.COPY, 2, 3),
        *on(2, then((MOST, HUGE), (ADD, -1.0))), *then((MOST, HUGE)),
        Instruction(Function.SUBTRACT, 0, 0, 2), Instruction(Function.COPY, 2, 3), *on(2, then((LEAST, TINY))),
        Instruction(Function.DIVIDE, 0, 0, 2), *on(3, then((Function.LOGARITHM, 0.0))), plus(3),
    ]  # fmt: skip


def asinh() -> Code:
    """Return the difference of log(y + sqrt(y * y + 1)) of y = max(x, 0) and of y = max(-x, 0)."""

    def half(register: int, code: Code) -> Code:
        return [
            *on(register, [*code, *then((LEAST, 0.0))]), Instruction(Function.COPY, 3, register),
            Instruction(Function.MULTIPLY, register, register, register),
            *on(register, [*then((ADD, 1.0), (Function.ROOT, 0.0)), Instruction(Function.ADD, b=3)]),
            *on(register, then((Function.LOGARITHM, 0.0))),
        ]  # fmt: skip

    return [copy_to(2), *half(0, []), *half(2, then((TIMES, -1.0))), Instruction(Function.SUBTRACT, 0, 0, 2)]


_ARCTANGENT = (
    0.0028662257, -0.0161657367, 0.0429096138, -0.0752896400, 0.1065626393, -0.1420889944, 0.1999355085, -0.3333314528,
    1.0,
)  # fmt: skip
"""atan(y) / y as a polynomial of y * y, within 2e-8 for y from -1 to 1 (Abramowitz and Stegun, 4.4.49)."""


def arctangent() -> Code:
    """Return 2 * atan(y) with y = x / (1 + sqrt(1 + x * x)), which is between -1 and 1."""
    code = [
        *then((LEAST, -1e18), (MOST, 1e18)), copy_to(2), Instruction(Function.MULTIPLY, 2, 2, 2),
        *on(2, then((ADD, 1.0), (Function.ROOT, 0.0), (ADD, 1.0))), Instruction(Function.DIVIDE, 0, 0, 2),
        copy_to(2), Instruction(Function.MULTIPLY, 2, 2, 2),
        Instruction(Function.NUMBER, 3, 3, number=_ARCTANGENT[0]),
    ]  # fmt: skip
    for factor in _ARCTANGENT[1:]:
        code += [Instruction(Function.MULTIPLY, 3, 3, 2), *on(3, then((ADD, factor)))]
    return [*code, times(3), *then((TIMES, 2.0))]


def is_negative(register: int) -> Code:
    """Return 1 where a register's value is below zero or is the zero below, else 0."""
    return on(register, then((Function.DIVIDE_NUMBER, 1.0), (TIMES, -_MOST_OF_ALL), (LEAST, 0.0), (MOST, 1.0)))


def angle() -> Code:
    """Return the angle of (x, y), y in register 0 and x in register 1: 2 * atan(t) with t = |y| / (r + |x|) <= 1.

    That is the angle of (|x|, |y|). In the other quarters of the plane it is counted from pi, or has the other sign.
    """
    code = [
        Instruction(Function.ABSOLUTE, 2, 0), Instruction(Function.ABSOLUTE, 3, 1),
        Instruction(Function.MAXIMUM, 2, 2, 3), *on(2, then((LEAST, _LEAST_OF_ALL))),
        Instruction(Function.DIVIDE, 0, 0, 2), Instruction(Function.DIVIDE, 1, 1, 2),
        Instruction(Function.MULTIPLY, 2, 1, 1), Instruction(Function.MULTIPLY, 3, 0, 0),
        Instruction(Function.ADD, 2, 2, 3), *on(2, then((Function.ROOT, 0.0))),
        Instruction(Function.ABSOLUTE, 3, 1), Instruction(Function.ADD, 2, 2, 3), *on(2, then((LEAST, TINY))),
        Instruction(Function.ABSOLUTE, 3, 0), Instruction(Function.DIVIDE, 3, 3, 2),
        *is_negative(0), *is_negative(1),
        Instruction(Function.COPY, 2, 0), *on(2, then((TIMES, -2.0), (ADD, 1.0))),
        Instruction(Function.MULTIPLY, 0, 2, 1), *then((TIMES, math.pi)),
        *on(1, then((TIMES, -2.0), (ADD, 1.0))), Instruction(Function.MULTIPLY, 1, 1, 2),
        Instruction(Function.MULTIPLY, 1, 1, 3), Instruction(Function.MULTIPLY, 2, 3, 3),
        Instruction(Function.NUMBER, 3, 3, number=_ARCTANGENT[0]),
    ]  # fmt: skip
    for factor in _ARCTANGENT[1:]:
        code += [Instruction(Function.MULTIPLY, 3, 3, 2), *on(3, then((ADD, factor)))]
    return [*code, Instruction(Function.MULTIPLY, 1, 1, 3), *on(1, then((TIMES, 2.0))), plus(1)]


def length() -> Code:
    """Return sqrt(x * x + y * y), scaled so that no square is too large or too small for float32."""
    return [
        *then((Function.ABSOLUTE, 0.0)), *on(1, then((Function.ABSOLUTE, 0.0))),
        Instruction(Function.MAXIMUM, 2, 0, 1), Instruction(Function.MINIMUM, 3, 0, 1),
        Instruction(Function.COPY, 0, 2), *on(2, then((LEAST, TINY))), Instruction(Function.DIVIDE, 3, 3, 2),
        Instruction(Function.MULTIPLY, 3, 3, 3), *on(3, then((ADD, 1.0), (Function.ROOT, 0.0))), times(3),
    ]  # fmt: skip


def rest_of_two(whole: Function) -> Code:
    """Return what a division of register 0 by register 1 leaves."""
    return [
        Instruction(Function.DIVIDE, 2, 0, 1), *on(2, then((whole, 0.0))), Instruction(Function.MULTIPLY, 2, 2, 1),
        Instruction(Function.SUBTRACT, 0, 0, 2),
    ]  # fmt: skip


def power_of_two_values() -> Code:
    """Return register 0 to the power of register 1: exp(y * log(|x|)), negative for odd powers of what is negative.

    0 to the power 0 is 1, and a negative value has whole powers alone: the root of what y is beyond one is no number.
    """
    return [
        Instruction(Function.COPY, 3, 0), *on(3, then((TIMES, -_MOST_OF_ALL), (LEAST, 0.0), (MOST, 1.0))),
        *then((Function.ABSOLUTE, 0.0), (Function.LOGARITHM, 0.0), (LEAST, -HUGE), (MOST, HUGE)), times(1),
        *then((Function.EXPONENTIAL, 0.0)),
        Instruction(Function.COPY, 2, 1), *on(2, then((Function.FLOOR, 0.0))), Instruction(Function.SUBTRACT, 2, 1, 2),
        Instruction(Function.MULTIPLY, 2, 2, 3), *on(2, then((TIMES, -1.0), (Function.ROOT, 0.0))), plus(2),
        *on(1, then((TIMES, 0.5))), Instruction(Function.COPY, 2, 1), *on(2, then((Function.FLOOR, 0.0))),
        Instruction(Function.SUBTRACT, 1, 1, 2), Instruction(Function.MULTIPLY, 1, 1, 3),
        *on(1, then((TIMES, -4.0), (ADD, 1.0))), times(1),
    ]  # fmt: skip


def arcsine() -> Code:
    """Return atan(x / sqrt(1 - x * x)): no number beyond 1."""
    return [
        copy_to(2), Instruction(Function.MULTIPLY, 2, 2, 2),
        *on(2, then((Function.FROM_NUMBER, 1.0), (Function.ROOT, 0.0))), Instruction(Function.DIVIDE, 0, 0, 2),
        *arctangent(),
    ]  # fmt: skip


def area_cosine() -> Code:
    """Return log(x + sqrt(x * x - 1))."""
    return [
        copy_to(2), Instruction(Function.MULTIPLY, 2, 2, 2), *on(2, then((ADD, -1.0), (Function.ROOT, 0.0))), plus(2),
        *then((Function.LOGARITHM, 0.0)),
    ]  # fmt: skip


def odds() -> Code:
    """Return log(x / (1 - x))."""
    return [
        copy_to(2), *on(2, then((Function.FROM_NUMBER, 1.0))), Instruction(Function.DIVIDE, 0, 0, 2),
        *then((Function.LOGARITHM, 0.0)),
    ]  # fmt: skip


def area_tangent() -> Code:
    """Return log((1 + x) / (1 - x)) / 2."""
    return [
        copy_to(2), *on(2, then((Function.FROM_NUMBER, 1.0))), *then((ADD, 1.0)),
        Instruction(Function.DIVIDE, 0, 0, 2), *then((Function.LOGARITHM, 0.0), (TIMES, 0.5)),
    ]  # fmt: skip


def hyperbolic(last: Function) -> Code:
    """Return (exp(x) + exp(-x)) / 2, or the difference."""
    return [
        *then((Function.EXPONENTIAL, 0.0)), copy_to(2), *on(2, then((Function.DIVIDE_NUMBER, 1.0))),
        Instruction(last, 0, 0, 2), *then((TIMES, 0.5)),
    ]  # fmt: skip


def sinc() -> Code:
    """Return sin(y) / y with y = |pi * x|, which is 1 for a y that is as good as 0."""
    return [
        *then((TIMES, math.pi), (Function.ABSOLUTE, 0.0), (LEAST, TINY)), copy_to(2),
        *then((Function.SINE, 0.0)), Instruction(Function.DIVIDE, 0, 0, 2),
    ]  # fmt: skip


def sign() -> Code:
    return [
        Instruction(Function.NUMBER, 2, 2), Instruction(Function.LESS, 3, 2, 0), Instruction(Function.LESS, 0, 0, 2),
        Instruction(Function.SUBTRACT, 0, 3, 0),
    ]  # fmt: skip


def less(code: Sequence[Instruction]) -> Code:
    """Return x less a function of it."""
    return [copy_to(2), *on(2, code), Instruction(Function.SUBTRACT, 0, 0, 2)]


def rest(number: float, whole: Function) -> Code:
    """Return what a division by a number leaves: x - number * floor(x / number), or with the part before the point."""
    return less(then((Function.DIVIDE_BY_NUMBER, number), (whole, 0.0), (TIMES, number)))


def hard_shrink(number: float) -> Code:
    return [
        copy_to(2), *on(2, then((Function.ABSOLUTE, 0.0))), Instruction(Function.NUMBER, 3, 3, number=number),
        Instruction(Function.LESS, 2, 3, 2), times(2),
    ]  # fmt: skip


def threshold(least: float, otherwise: float) -> Code:
    """Return x where it is greater than a number, else another number."""
    return [
        Instruction(Function.NUMBER, 2, 2, number=least), Instruction(Function.LESS, 2, 2, 0),
        Instruction(Function.NUMBER, 3, 3, number=otherwise), Instruction(Function.SELECT, 3, 2, 0),
        Instruction(Function.COPY, 0, 3),
    ]  # fmt: skip
