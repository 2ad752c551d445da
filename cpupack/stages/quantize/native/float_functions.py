"""Functions of one value in FP32, as instructions of the engine (``Op.FLOAT_MAP``)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.vocabulary import ARITHMETIC
from cpupack.stages.quantize.native.functions import constant_of
from cpupack.stages.quantize.native.walks import Function, Instruction

Code = list[Instruction]
_SAME_SOFTPLUS = 16.0
_TINY, _HUGE, _LEAST_OF_ALL, _MOST_OF_ALL = 1e-30, 1e30, 1e-37, 1e38
_ATEN = torch.ops.aten


def _then(*codes: tuple[Function, float]) -> Code:
    """Return functions of register 0 and a number, one after the other."""
    return [Instruction(function, number=number) for function, number in codes]


def _on(register: int, code: Sequence[Instruction]) -> Code:
    """Return functions of register 0 as those of another one."""
    return [Instruction(each.function, register, register, each.b, each.number) for each in code]


def _copy(to: int) -> Instruction:
    return Instruction(Function.COPY, to, 0)


def _times(register: int) -> Instruction:
    return Instruction(Function.MULTIPLY, 0, 0, register)


def _plus(register: int) -> Instruction:
    return Instruction(Function.ADD, 0, 0, register)


_ADD, _TIMES, _LEAST, _MOST = (
    Function.ADD_NUMBER, Function.MULTIPLY_NUMBER, Function.AT_LEAST, Function.AT_MOST
)  # fmt: skip
_RELU6 = _then((_ADD, 3.0), (_LEAST, 0.0), (_MOST, 6.0))
# log(1 + exp(-|x|)), in register 2 of x in register 0
_SOFT = [
    _copy(2),
    *_on(
        2,
        _then(
            (Function.ABSOLUTE, 0.0),
            (_TIMES, -1.0),
            (Function.EXPONENTIAL, 0.0),
            (_ADD, 1.0),
            (Function.LOGARITHM, 0.0),
        ),
    ),
]


def _negative_part(code: Sequence[Instruction]) -> Code:
    """Return max(x, 0) plus a function of min(x, 0)."""
    return [_copy(2), *_on(2, [*_then((_MOST, 0.0)), *code]), *_then((_LEAST, 0.0)), _plus(2)]


def _exponential(alpha: float, inner: float = 1.0, outer: float = 1.0) -> Code:
    """Return outer * (max(x, 0) + alpha * (exp(min(x / inner, 0)) - 1))."""
    low = _then((_TIMES, 1.0 / inner), (Function.EXPONENTIAL, 0.0), (_ADD, -1.0), (_TIMES, alpha))
    return [*_negative_part(low), *(_then((_TIMES, outer)) if outer != 1.0 else [])]


def _gelu(module: nn.GELU) -> Code:
    return _then((Function.GELU_TANH if module.approximate == "tanh" else Function.GELU, 0.0))


def _softplus(module: nn.Softplus) -> Code:
    """Return log(1 + exp(beta x)) / beta. Above its threshold torch gives x: from ``_SAME_SOFTPLUS`` on, the same."""
    return [
        *_then((_TIMES, module.beta)), *_SOFT, *_then((_LEAST, 0.0)), _plus(2), *_then((_TIMES, 1.0 / module.beta))
    ]  # fmt: skip


def _log1p() -> Code:
    """Return log(1 + x): log(u) + (x - (u - 1)) / u with u = 1 + x, for u has lost the last digits of a small x.

    Of large values there is nothing to correct, and of an infinite one the difference would be no number.
    """
    return [
        _copy(3), *_on(3, _then((_ADD, 1.0))), Instruction(Function.COPY, 2, 3),
        *_on(2, _then((_MOST, _HUGE), (_ADD, -1.0))), *_then((_MOST, _HUGE)),
        Instruction(Function.SUBTRACT, 0, 0, 2), Instruction(Function.COPY, 2, 3), *_on(2, _then((_LEAST, _TINY))),
        Instruction(Function.DIVIDE, 0, 0, 2), *_on(3, _then((Function.LOGARITHM, 0.0))), _plus(3),
    ]  # fmt: skip


def _asinh() -> Code:
    """Return the difference of log(y + sqrt(y * y + 1)) of y = max(x, 0) and of y = max(-x, 0)."""

    def half(register: int, code: Code) -> Code:
        return [
            *_on(register, [*code, *_then((_LEAST, 0.0))]), Instruction(Function.COPY, 3, register),
            Instruction(Function.MULTIPLY, register, register, register),
            *_on(register, [*_then((_ADD, 1.0), (Function.ROOT, 0.0)), Instruction(Function.ADD, b=3)]),
            *_on(register, _then((Function.LOGARITHM, 0.0))),
        ]  # fmt: skip

    return [_copy(2), *half(0, []), *half(2, _then((_TIMES, -1.0))), Instruction(Function.SUBTRACT, 0, 0, 2)]


_ARCTANGENT = (
    0.0028662257, -0.0161657367, 0.0429096138, -0.0752896400, 0.1065626393, -0.1420889944, 0.1999355085, -0.3333314528,
    1.0,
)  # fmt: skip
"""atan(y) / y as a polynomial of y * y, within 2e-8 for y from -1 to 1 (Abramowitz and Stegun, 4.4.49)."""


def _arctangent() -> Code:
    """Return 2 * atan(y) with y = x / (1 + sqrt(1 + x * x)), which is between -1 and 1."""
    code = [
        *_then((_LEAST, -1e18), (_MOST, 1e18)), _copy(2), Instruction(Function.MULTIPLY, 2, 2, 2),
        *_on(2, _then((_ADD, 1.0), (Function.ROOT, 0.0), (_ADD, 1.0))), Instruction(Function.DIVIDE, 0, 0, 2),
        _copy(2), Instruction(Function.MULTIPLY, 2, 2, 2),
        Instruction(Function.NUMBER, 3, 3, number=_ARCTANGENT[0]),
    ]  # fmt: skip
    for factor in _ARCTANGENT[1:]:
        code += [Instruction(Function.MULTIPLY, 3, 3, 2), *_on(3, _then((_ADD, factor)))]
    return [*code, _times(3), *_then((_TIMES, 2.0))]


def _is_negative(register: int) -> Code:
    """Return 1 where a register's value is below zero or is the zero below, else 0."""
    return _on(register, _then((Function.DIVIDE_NUMBER, 1.0), (_TIMES, -_MOST_OF_ALL), (_LEAST, 0.0), (_MOST, 1.0)))


def _angle() -> Code:
    """Return the angle of (x, y), y in register 0 and x in register 1: 2 * atan(t) with t = |y| / (r + |x|) <= 1.

    That is the angle of (|x|, |y|). In the other quarters of the plane it is counted from pi, or has the other sign.
    """
    code = [
        Instruction(Function.ABSOLUTE, 2, 0), Instruction(Function.ABSOLUTE, 3, 1),
        Instruction(Function.MAXIMUM, 2, 2, 3), *_on(2, _then((_LEAST, _LEAST_OF_ALL))),
        Instruction(Function.DIVIDE, 0, 0, 2), Instruction(Function.DIVIDE, 1, 1, 2),
        Instruction(Function.MULTIPLY, 2, 1, 1), Instruction(Function.MULTIPLY, 3, 0, 0),
        Instruction(Function.ADD, 2, 2, 3), *_on(2, _then((Function.ROOT, 0.0))),
        Instruction(Function.ABSOLUTE, 3, 1), Instruction(Function.ADD, 2, 2, 3), *_on(2, _then((_LEAST, _TINY))),
        Instruction(Function.ABSOLUTE, 3, 0), Instruction(Function.DIVIDE, 3, 3, 2),
        *_is_negative(0), *_is_negative(1),
        Instruction(Function.COPY, 2, 0), *_on(2, _then((_TIMES, -2.0), (_ADD, 1.0))),
        Instruction(Function.MULTIPLY, 0, 2, 1), *_then((_TIMES, math.pi)),
        *_on(1, _then((_TIMES, -2.0), (_ADD, 1.0))), Instruction(Function.MULTIPLY, 1, 1, 2),
        Instruction(Function.MULTIPLY, 1, 1, 3), Instruction(Function.MULTIPLY, 2, 3, 3),
        Instruction(Function.NUMBER, 3, 3, number=_ARCTANGENT[0]),
    ]  # fmt: skip
    for factor in _ARCTANGENT[1:]:
        code += [Instruction(Function.MULTIPLY, 3, 3, 2), *_on(3, _then((_ADD, factor)))]
    return [*code, Instruction(Function.MULTIPLY, 1, 1, 3), *_on(1, _then((_TIMES, 2.0))), _plus(1)]


def _length() -> Code:
    """Return sqrt(x * x + y * y), scaled so that no square is too large or too small for float32."""
    return [
        *_then((Function.ABSOLUTE, 0.0)), *_on(1, _then((Function.ABSOLUTE, 0.0))),
        Instruction(Function.MAXIMUM, 2, 0, 1), Instruction(Function.MINIMUM, 3, 0, 1),
        Instruction(Function.COPY, 0, 2), *_on(2, _then((_LEAST, _TINY))), Instruction(Function.DIVIDE, 3, 3, 2),
        Instruction(Function.MULTIPLY, 3, 3, 3), *_on(3, _then((_ADD, 1.0), (Function.ROOT, 0.0))), _times(3),
    ]  # fmt: skip


def _rest_of_two(whole: Function) -> Code:
    """Return what a division of register 0 by register 1 leaves."""
    return [
        Instruction(Function.DIVIDE, 2, 0, 1), *_on(2, _then((whole, 0.0))), Instruction(Function.MULTIPLY, 2, 2, 1),
        Instruction(Function.SUBTRACT, 0, 0, 2),
    ]  # fmt: skip


def _arcsine() -> Code:
    """Return atan(x / sqrt(1 - x * x)): no number beyond 1."""
    return [
        _copy(2), Instruction(Function.MULTIPLY, 2, 2, 2),
        *_on(2, _then((Function.FROM_NUMBER, 1.0), (Function.ROOT, 0.0))), Instruction(Function.DIVIDE, 0, 0, 2),
        *_arctangent(),
    ]  # fmt: skip


def _area_cosine() -> Code:
    """Return log(x + sqrt(x * x - 1))."""
    return [
        _copy(2), Instruction(Function.MULTIPLY, 2, 2, 2), *_on(2, _then((_ADD, -1.0), (Function.ROOT, 0.0))), _plus(2),
        *_then((Function.LOGARITHM, 0.0)),
    ]  # fmt: skip


def _odds() -> Code:
    """Return log(x / (1 - x))."""
    return [
        _copy(2), *_on(2, _then((Function.FROM_NUMBER, 1.0))), Instruction(Function.DIVIDE, 0, 0, 2),
        *_then((Function.LOGARITHM, 0.0)),
    ]  # fmt: skip


def _area_tangent() -> Code:
    """Return log((1 + x) / (1 - x)) / 2."""
    return [
        _copy(2), *_on(2, _then((Function.FROM_NUMBER, 1.0))), *_then((_ADD, 1.0)),
        Instruction(Function.DIVIDE, 0, 0, 2), *_then((Function.LOGARITHM, 0.0), (_TIMES, 0.5)),
    ]  # fmt: skip


def _hyperbolic(last: Function) -> Code:
    """Return (exp(x) + exp(-x)) / 2, or the difference."""
    return [
        *_then((Function.EXPONENTIAL, 0.0)), _copy(2), *_on(2, _then((Function.DIVIDE_NUMBER, 1.0))),
        Instruction(last, 0, 0, 2), *_then((_TIMES, 0.5)),
    ]  # fmt: skip


def _sinc() -> Code:
    """Return sin(y) / y with y = |pi * x|, which is 1 for a y that is as good as 0."""
    return [
        *_then((_TIMES, math.pi), (Function.ABSOLUTE, 0.0), (_LEAST, _TINY)), _copy(2),
        *_then((Function.SINE, 0.0)), Instruction(Function.DIVIDE, 0, 0, 2),
    ]  # fmt: skip


def _sign() -> Code:
    return [
        Instruction(Function.NUMBER, 2, 2), Instruction(Function.LESS, 3, 2, 0), Instruction(Function.LESS, 0, 0, 2),
        Instruction(Function.SUBTRACT, 0, 3, 0),
    ]  # fmt: skip


def _less(code: Sequence[Instruction]) -> Code:
    """Return x less a function of it."""
    return [_copy(2), *_on(2, code), Instruction(Function.SUBTRACT, 0, 0, 2)]


def _rest(number: float, whole: Function) -> Code:
    """Return what a division by a number leaves: x - number * floor(x / number), or with the part before the point."""
    return _less(_then((Function.DIVIDE_BY_NUMBER, number), (whole, 0.0), (_TIMES, number)))


def _hard_shrink(number: float) -> Code:
    return [
        _copy(2), *_on(2, _then((Function.ABSOLUTE, 0.0))), Instruction(Function.NUMBER, 3, 3, number=number),
        Instruction(Function.LESS, 2, 3, 2), _times(2),
    ]  # fmt: skip


def _threshold(least: float, otherwise: float) -> Code:
    """Return x where it is greater than a number, else another number."""
    return [
        Instruction(Function.NUMBER, 2, 2, number=least), Instruction(Function.LESS, 2, 2, 0),
        Instruction(Function.NUMBER, 3, 3, number=otherwise), Instruction(Function.SELECT, 3, 2, 0),
        Instruction(Function.COPY, 0, 3),
    ]  # fmt: skip


def _prelu(module: nn.PReLU) -> Code:
    return _negative_part(_then((_TIMES, float(module.weight.detach()))))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
_MODULES: dict[type[nn.Module], Callable[[Any], Code]] = {
    nn.ReLU: lambda _: _then((_LEAST, 0.0)),
    nn.ReLU6: lambda _: _then((_LEAST, 0.0), (_MOST, 6.0)),
    nn.Hardtanh: lambda m: _then((_LEAST, m.min_val), (_MOST, m.max_val)),
    nn.Hardsigmoid: lambda _: [*_RELU6, *_then((_TIMES, 1 / 6))],
    nn.Hardswish: lambda _: [_copy(2), *_on(2, [*_RELU6, *_then((_TIMES, 1 / 6))]), _times(2)],
    nn.SiLU: lambda _: [_copy(2), *_on(2, _then((Function.SIGMOID, 0.0))), _times(2)],
    nn.Sigmoid: lambda _: _then((Function.SIGMOID, 0.0)),
    nn.Tanh: lambda _: _then((Function.TANH, 0.0)),
    nn.GELU: _gelu,
    nn.ELU: lambda m: _exponential(m.alpha),
    nn.CELU: lambda m: _exponential(m.alpha, inner=m.alpha),
    nn.SELU: lambda _: _exponential(_SELU_ALPHA, outer=_SELU_SCALE),
    nn.LeakyReLU: lambda m: _negative_part(_then((_TIMES, m.negative_slope))),
    nn.Mish: lambda _: [
        _copy(3),
        *_SOFT,
        *_then((_LEAST, 0.0)),
        _plus(2),
        *_then((Function.TANH, 0.0)),
        _times(3),
    ],
    nn.Softplus: _softplus,
    nn.LogSigmoid: lambda _: [*_SOFT, *_then((_MOST, 0.0)), Instruction(Function.SUBTRACT, 0, 0, 2)],
    nn.Softsign: lambda _: [
        _copy(2),
        *_on(2, _then((Function.ABSOLUTE, 0.0), (_ADD, 1.0))),
        Instruction(Function.DIVIDE, 0, 0, 2),
    ],
    nn.PReLU: _prelu,
}
_PLAIN: dict[Any, Code] = {
    torch.sqrt: _then((Function.ROOT, 0.0)),
    torch.rsqrt: _then((Function.ROOT, 0.0), (Function.DIVIDE_NUMBER, 1.0)),
    torch.exp: _then((Function.EXPONENTIAL, 0.0)),
    torch.log: _then((Function.LOGARITHM, 0.0)),
    torch.abs: _then((Function.ABSOLUTE, 0.0)),
    torch.reciprocal: _then((Function.DIVIDE_NUMBER, 1.0)),
    _ATEN.erf.default: _then((Function.ERF, 0.0)),
    _ATEN.floor.default: _then((Function.FLOOR, 0.0)),
    _ATEN.ceil.default: _then((Function.CEILING, 0.0)),
    _ATEN.trunc.default: _then((Function.TRUNCATE, 0.0)),
    _ATEN.round.default: _then((Function.ROUND, 0.0)),
    _ATEN.neg.default: _then((_TIMES, -1.0)),
    _ATEN.square.default: [_times(0)],
    _ATEN.log2.default: _then((Function.LOGARITHM, 0.0), (_TIMES, 1 / math.log(2))),
    _ATEN.log1p.default: _log1p(),
    _ATEN.asinh.default: _asinh(),
    _ATEN.expm1.default: _then((Function.EXPONENTIAL, 0.0), (_ADD, -1.0)),
    _ATEN.sin.default: _then((Function.SINE, 0.0)),
    _ATEN.cos.default: _then((Function.COSINE, 0.0)),
    _ATEN.tan.default: [
        _copy(2),
        *_on(2, _then((Function.COSINE, 0.0))),
        *_then((Function.SINE, 0.0)),
        Instruction(Function.DIVIDE, 0, 0, 2),
    ],
    _ATEN.atan.default: _arctangent(),
    _ATEN.asin.default: _arcsine(),
    _ATEN.acos.default: [*_arcsine(), *_then((Function.FROM_NUMBER, math.pi / 2))],
    _ATEN.sinh.default: _hyperbolic(Function.SUBTRACT),
    _ATEN.cosh.default: _hyperbolic(Function.ADD),
    _ATEN.acosh.default: _area_cosine(),
    _ATEN.atanh.default: _area_tangent(),
    _ATEN.sinc.default: _sinc(),
    _ATEN.sign.default: _sign(),
    _ATEN.sgn.default: _sign(),
    _ATEN.frac.default: _less(_then((Function.TRUNCATE, 0.0))),
    _ATEN.erfc.default: _then((Function.ERF, 0.0), (Function.FROM_NUMBER, 1.0)),
    _ATEN.special_ndtr.default: _then((_TIMES, math.sqrt(0.5)), (Function.ERF, 0.0), (_ADD, 1.0), (_TIMES, 0.5)),
    _ATEN.logit.default: _odds(),
    _ATEN.exp2.default: _then((_TIMES, math.log(2)), (Function.EXPONENTIAL, 0.0)),
}
_BY_NUMBERS: dict[Any, Callable[..., Code]] = {
    _ATEN.hardshrink.default: lambda number=0.5: _hard_shrink(number),
    _ATEN.softshrink.default: lambda number=0.5: _less(_then((_LEAST, -number), (_MOST, number))),
    _ATEN.threshold.default: _threshold,
    _ATEN.fmod.Scalar: lambda number: _rest(number, Function.TRUNCATE),
    _ATEN.remainder.Scalar: lambda number: _rest(number, Function.FLOOR),
    _ATEN.logit.default: lambda least: [*_then((_LEAST, least), (_MOST, 1.0 - least)), *_odds()],
}
"""Functions of one value and of numbers, which come after it."""
_WITH_NUMBER = {
    torch.add: (Function.ADD_NUMBER, Function.ADD_NUMBER),
    torch.sub: (Function.ADD_NUMBER, Function.FROM_NUMBER),
    torch.mul: (Function.MULTIPLY_NUMBER, Function.MULTIPLY_NUMBER),
    torch.div: (Function.DIVIDE_BY_NUMBER, Function.DIVIDE_NUMBER),
}
"""The function where the number is the second operand, and where it is the first."""
BINARY: dict[Any, Function] = {
    torch.add: Function.ADD, torch.sub: Function.SUBTRACT, torch.mul: Function.MULTIPLY, torch.div: Function.DIVIDE,
    _ATEN.maximum.default: Function.MAXIMUM, _ATEN.minimum.default: Function.MINIMUM,
    operator.add: Function.ADD, operator.mul: Function.MULTIPLY,
}  # fmt: skip

OF_TWO: dict[Any, Code] = {
    **{target: [Instruction(function)] for target, function in BINARY.items()},
    _ATEN.atan2.default: _angle(),
    _ATEN.hypot.default: _length(),
    _ATEN.fmod.Tensor: _rest_of_two(Function.TRUNCATE),
    _ATEN.remainder.Tensor: _rest_of_two(Function.FLOOR),
}
"""Functions of two values, in registers 0 and 1."""


def of_module(module: nn.Module) -> Code | None:
    """Return the instructions of an activation, None for another module or one with several slopes."""
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return None
    if isinstance(module, nn.Softplus) and module.threshold < _SAME_SOFTPLUS:
        return None
    make = _MODULES.get(type(module))
    return make(module) if make is not None else None


def power(exponent: float) -> Code:
    """Return x to a power: squares and products for whole numbers, roots, and else exp(exponent * log(x)).

    A logarithm has no answer for values below zero, and whole powers of these have one.
    """
    if exponent == 0.0:
        return _then((Function.NUMBER, 1.0))
    if exponent in {0.5, -0.5}:
        return [*_PLAIN[torch.sqrt], *(_PLAIN[torch.reciprocal] if exponent < 0 else [])]
    if exponent == int(exponent):
        code = [_copy(2)]
        for bit in f"{abs(int(exponent)):b}"[1:]:
            code += [Instruction(Function.MULTIPLY, 0, 0, 0), *([_times(2)] if bit == "1" else [])]
        return [*code, *(_PLAIN[torch.reciprocal] if exponent < 0 else [])]
    return _then((Function.LOGARITHM, 0.0), (_TIMES, exponent), (Function.EXPONENTIAL, 0.0))


def instructions_of(graph: fx.GraphModule, node: fx.Node) -> Code | None:
    """Return the instructions of a call that is a function of one value; None for other calls."""
    if node.op == "call_module":
        return of_module(graph.get_submodule(str(node.target)))
    sources = [each for each in node.all_input_nodes if each.op != "get_attr"]
    if len(sources) != 1 or node.op != "call_function":
        return None
    target: Any = node.target
    if target in ARITHMETIC and len(node.args) == 2 and not node.kwargs:
        numbers = [constant_of(graph, each) for each in node.args if each is not sources[0]]
        if len(numbers) != 1 or numbers[0] is None or numbers[0].numel() != 1:
            return None
        number, second = float(numbers[0]), node.args[0] is sources[0]
        function = _WITH_NUMBER[target][0 if second else 1]
        return _then((function, -number if target is torch.sub and second else number))
    if target in _PLAIN and len(node.args) == 1 and not node.kwargs:
        return _PLAIN[target]
    numbers_after = [float(each) for each in node.args[1:] if isinstance(each, int | float)]
    if target in _BY_NUMBERS and not node.kwargs and len(numbers_after) == len(node.args) - 1:
        return _BY_NUMBERS[target](*numbers_after)
    if target is torch.pow and isinstance(node.args[-1], int | float) and len(node.args) == 2:
        return power(float(node.args[-1])) if math.isfinite(node.args[-1]) else None
    if target is torch.clamp:
        bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | dict(node.kwargs)
        return [
            Instruction(function, number=float(bounds[name]))  # type: ignore[arg-type]  # a number or None
            for name, function in (("min", _LEAST), ("max", _MOST))
            if bounds.get(name) is not None
        ]
    return None
