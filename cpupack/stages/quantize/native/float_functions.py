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
_TINY, _HUGE = 1e-30, 1e30
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
    _ATEN.exp2.default: _then((_TIMES, math.log(2)), (Function.EXPONENTIAL, 0.0)),
}
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
