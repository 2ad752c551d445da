"""Functions of one value in FP32, as instructions of the engine (``Op.FLOAT_MAP``)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.vocabulary import ARITHMETIC
from cpupack.stages.quantize.native.float_code import ADD, LEAST, MOST, TIMES, Code, copy_to, on, plus, then, times
from cpupack.stages.quantize.native.float_formulas import (
    angle,
    arcsine,
    arctangent,
    area_cosine,
    area_tangent,
    asinh,
    hard_shrink,
    hyperbolic,
    length,
    less,
    log1p,
    odds,
    power_of_two_values,
    rest,
    rest_of_two,
    sign,
    sinc,
    threshold,
)
from cpupack.stages.quantize.native.functions import constant_of
from cpupack.stages.quantize.native.walks import Function, Instruction

_SAME_SOFTPLUS = 16.0
_ATEN = torch.ops.aten
_RELU6 = then((ADD, 3.0), (LEAST, 0.0), (MOST, 6.0))
# log(1 + exp(-|x|)), in register 2 of x in register 0
_SOFT = [
    copy_to(2),
    *on(
        2,
        then(
            (Function.ABSOLUTE, 0.0),
            (TIMES, -1.0),
            (Function.EXPONENTIAL, 0.0),
            (ADD, 1.0),
            (Function.LOGARITHM, 0.0),
        ),
    ),
]


def _negative_part(code: Sequence[Instruction]) -> Code:
    """Return max(x, 0) plus a function of min(x, 0)."""
    return [copy_to(2), *on(2, [*then((MOST, 0.0)), *code]), *then((LEAST, 0.0)), plus(2)]


def _exponential(alpha: float, inner: float = 1.0, outer: float = 1.0) -> Code:
    """Return outer * (max(x, 0) + alpha * (exp(min(x / inner, 0)) - 1))."""
    low = then((TIMES, 1.0 / inner), (Function.EXPONENTIAL, 0.0), (ADD, -1.0), (TIMES, alpha))
    return [*_negative_part(low), *(then((TIMES, outer)) if outer != 1.0 else [])]


def _gelu(module: nn.GELU) -> Code:
    return then((Function.GELU_TANH if module.approximate == "tanh" else Function.GELU, 0.0))


def _softplus(module: nn.Softplus) -> Code:
    """Return log(1 + exp(beta x)) / beta. Above its threshold torch gives x: from ``_SAME_SOFTPLUS`` on, the same."""
    return [
        *then((TIMES, module.beta)), *_SOFT, *then((LEAST, 0.0)), plus(2), *then((TIMES, 1.0 / module.beta))
    ]  # fmt: skip


def _prelu(module: nn.PReLU) -> Code:
    return _negative_part(then((TIMES, float(module.weight.detach()))))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
_MODULES: dict[type[nn.Module], Callable[[Any], Code]] = {
    nn.ReLU: lambda _: then((LEAST, 0.0)),
    nn.ReLU6: lambda _: then((LEAST, 0.0), (MOST, 6.0)),
    nn.Hardtanh: lambda m: then((LEAST, m.min_val), (MOST, m.max_val)),
    nn.Hardsigmoid: lambda _: [*_RELU6, *then((TIMES, 1 / 6))],
    nn.Hardswish: lambda _: [copy_to(2), *on(2, [*_RELU6, *then((TIMES, 1 / 6))]), times(2)],
    nn.SiLU: lambda _: [copy_to(2), *on(2, then((Function.SIGMOID, 0.0))), times(2)],
    nn.Sigmoid: lambda _: then((Function.SIGMOID, 0.0)),
    nn.Tanh: lambda _: then((Function.TANH, 0.0)),
    nn.GELU: _gelu,
    nn.ELU: lambda m: _exponential(m.alpha),
    nn.CELU: lambda m: _exponential(m.alpha, inner=m.alpha),
    nn.SELU: lambda _: _exponential(_SELU_ALPHA, outer=_SELU_SCALE),
    nn.LeakyReLU: lambda m: _negative_part(then((TIMES, m.negative_slope))),
    nn.Mish: lambda _: [
        copy_to(3),
        *_SOFT,
        *then((LEAST, 0.0)),
        plus(2),
        *then((Function.TANH, 0.0)),
        times(3),
    ],
    nn.Softplus: _softplus,
    nn.LogSigmoid: lambda _: [*_SOFT, *then((MOST, 0.0)), Instruction(Function.SUBTRACT, 0, 0, 2)],
    nn.Softsign: lambda _: [
        copy_to(2),
        *on(2, then((Function.ABSOLUTE, 0.0), (ADD, 1.0))),
        Instruction(Function.DIVIDE, 0, 0, 2),
    ],
    nn.PReLU: _prelu,
}
_PLAIN: dict[Any, Code] = {
    torch.sqrt: then((Function.ROOT, 0.0)),
    torch.rsqrt: then((Function.ROOT, 0.0), (Function.DIVIDE_NUMBER, 1.0)),
    torch.exp: then((Function.EXPONENTIAL, 0.0)),
    torch.log: then((Function.LOGARITHM, 0.0)),
    torch.abs: then((Function.ABSOLUTE, 0.0)),
    torch.reciprocal: then((Function.DIVIDE_NUMBER, 1.0)),
    _ATEN.erf.default: then((Function.ERF, 0.0)),
    _ATEN.floor.default: then((Function.FLOOR, 0.0)),
    _ATEN.ceil.default: then((Function.CEILING, 0.0)),
    _ATEN.trunc.default: then((Function.TRUNCATE, 0.0)),
    _ATEN.round.default: then((Function.ROUND, 0.0)),
    _ATEN.neg.default: then((TIMES, -1.0)),
    _ATEN.square.default: [times(0)],
    _ATEN.log2.default: then((Function.LOGARITHM, 0.0), (TIMES, 1 / math.log(2))),
    _ATEN.log1p.default: log1p(),
    _ATEN.asinh.default: asinh(),
    _ATEN.expm1.default: then((Function.EXPONENTIAL, 0.0), (ADD, -1.0)),
    _ATEN.sin.default: then((Function.SINE, 0.0)),
    _ATEN.cos.default: then((Function.COSINE, 0.0)),
    _ATEN.tan.default: [
        copy_to(2),
        *on(2, then((Function.COSINE, 0.0))),
        *then((Function.SINE, 0.0)),
        Instruction(Function.DIVIDE, 0, 0, 2),
    ],
    _ATEN.atan.default: arctangent(),
    _ATEN.asin.default: arcsine(),
    _ATEN.acos.default: [*arcsine(), *then((Function.FROM_NUMBER, math.pi / 2))],
    _ATEN.sinh.default: hyperbolic(Function.SUBTRACT),
    _ATEN.cosh.default: hyperbolic(Function.ADD),
    _ATEN.acosh.default: area_cosine(),
    _ATEN.atanh.default: area_tangent(),
    _ATEN.sinc.default: sinc(),
    _ATEN.sign.default: sign(),
    _ATEN.sgn.default: sign(),
    _ATEN.frac.default: less(then((Function.TRUNCATE, 0.0))),
    _ATEN.erfc.default: then((Function.ERF, 0.0), (Function.FROM_NUMBER, 1.0)),
    _ATEN.special_ndtr.default: then((TIMES, math.sqrt(0.5)), (Function.ERF, 0.0), (ADD, 1.0), (TIMES, 0.5)),
    _ATEN.logit.default: odds(),
    _ATEN.exp2.default: then((TIMES, math.log(2)), (Function.EXPONENTIAL, 0.0)),
}
_BY_NUMBERS: dict[Any, Callable[..., Code]] = {
    _ATEN.hardshrink.default: lambda number=0.5: hard_shrink(number),
    _ATEN.softshrink.default: lambda number=0.5: less(then((LEAST, -number), (MOST, number))),
    _ATEN.threshold.default: threshold,
    _ATEN.fmod.Scalar: lambda number: rest(number, Function.TRUNCATE),
    _ATEN.remainder.Scalar: lambda number: rest(number, Function.FLOOR),
    _ATEN.logit.default: lambda least: [*then((LEAST, least), (MOST, 1.0 - least)), *odds()],
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
    _ATEN.atan2.default: angle(),
    _ATEN.hypot.default: length(),
    _ATEN.fmod.Tensor: rest_of_two(Function.TRUNCATE),
    _ATEN.remainder.Tensor: rest_of_two(Function.FLOOR),
    _ATEN.pow.Tensor_Tensor: power_of_two_values(),
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
        return then((Function.NUMBER, 1.0))
    if exponent in {0.5, -0.5}:
        return [*_PLAIN[torch.sqrt], *(_PLAIN[torch.reciprocal] if exponent < 0 else [])]
    if exponent == int(exponent):
        code = [copy_to(2)]
        for bit in f"{abs(int(exponent)):b}"[1:]:
            code += [Instruction(Function.MULTIPLY, 0, 0, 0), *([times(2)] if bit == "1" else [])]
        return [*code, *(_PLAIN[torch.reciprocal] if exponent < 0 else [])]
    return then((Function.LOGARITHM, 0.0), (TIMES, exponent), (Function.EXPONENTIAL, 0.0))


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
        return then((function, -number if target is torch.sub and second else number))
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
            for name, function in (("min", LEAST), ("max", MOST))
            if bounds.get(name) is not None
        ]
    return None
