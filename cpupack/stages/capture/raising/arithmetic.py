"""Handlers of arithmetic: sums, differences, products and quotients in one form each, and functions of one value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.complexes import turned
from cpupack.stages.capture.raising.masks import hidden_as_finite
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.side_by_side import matrices


def _float_result(r: Raiser) -> None:
    if not r.is_float():
        raise NotRaised


def _plain(value: Any) -> Any:
    """Return a constant of one value as a number: ``x * self.gain`` is ``x * 0.3``."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.ndim == 0:
        return float(value)
    return value


def _constant(r: Raiser, value: Any, beside: Any = None) -> Any:
    """Return what is known, a tensor of integers or of another float type as float32: so the result is.

    What was expanded, as ``centers.expand(positions, -1, -1)`` is, has its own values alone where the computed operand
    ``beside`` it has all dimensions of the result.
    """
    found = r.constant(value)
    if isinstance(found, torch.Tensor) and isinstance(beside, fx.Node) and r.shape(beside) == r.shape():
        for axis, step in enumerate(found.stride()):
            found = found.narrow(axis, 0, 1) if step == 0 and found.shape[axis] > 1 else found
    return _plain(found.float() if isinstance(found, torch.Tensor) else found)


def _operand(r: Raiser, value: Any, name: str) -> Any:
    """Return a number as it is, a constant tensor as a ``get_attr``."""
    if not isinstance(value, torch.Tensor):
        return value
    return r.attribute(value, name)


def _name(r: Raiser, value: Any) -> str:
    return r._name_of(value) if isinstance(value, fx.Node) else ""


def _add(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return _sum(r, a["self"], a["other"], 1, a.get("alpha", 1))


def _subtract(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return _sum(r, a["self"], a["other"], 1, -a.get("alpha", 1))


def _subtract_from(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return _sum(r, a["other"], a["self"], 1, -a.get("alpha", 1))


def _sum(r: Raiser, left: Any, right: Any, plus: float, sign: float) -> fx.Node:
    """Return ``plus * left + sign * right``; one of the two may be a constant."""
    _float_result(r)
    if r.is_known(right):
        value = hidden_as_finite(r, _constant(r, right, left), sign)
        x = r.activation(left)
        return r.call(torch.add, x, _operand(r, value * sign if sign != 1 else value, _name(r, right)))
    y = r.activation(right)
    if r.is_known(left):
        value = hidden_as_finite(r, _constant(r, left, right), 1)
        if sign != 1:
            y = r.call(torch.mul, y, float(sign))
        return r.call(torch.add, y, _operand(r, value, _name(r, left)))
    x = r.activation(left)
    if sign not in {1, -1}:
        y, sign = r.call(torch.mul, y, float(sign)), 1
    return r.call(torch.add if sign == 1 else torch.sub, x, y)


def _multiply(r: Raiser, a: dict[str, Any]) -> fx.Node:
    left, right = a["self"], a["other"]
    if r.node.meta["val"].dtype == torch.complex64:
        return turned(r, left, right)
    _float_result(r)
    if r.is_known(left):
        left, right = right, left
    if not r.is_known(right):
        return r.call(torch.mul, r.activation(left), r.activation(right))
    return r.call(torch.mul, r.activation(left), _operand(r, _constant(r, right, left), _name(r, right)))


def _divide(r: Raiser, a: dict[str, Any]) -> fx.Node:
    _float_result(r)
    left, right = a["self"], a["other"]
    if a.get("rounding_mode") is not None:
        raise NotRaised
    if r.is_known(right):
        value = _constant(r, right, left)
        inverse = 1.0 / value if isinstance(value, torch.Tensor) or value else math.inf
        if not bool(torch.isfinite(torch.as_tensor(inverse)).all()):
            raise NotRaised
        return r.call(torch.mul, r.activation(left), _operand(r, inverse, _name(r, right)))
    y = r.activation(right)
    if r.is_known(left):
        value = _constant(r, left, right)
        inverse_of_y = r.call(torch.reciprocal, y)
        if not isinstance(value, torch.Tensor) and value == 1:
            return inverse_of_y
        return r.call(torch.mul, inverse_of_y, _operand(r, value, _name(r, left)))
    return r.call(torch.div, r.activation(left), y)


def _negate(r: Raiser, a: dict[str, Any]) -> fx.Node:
    _float_result(r)
    return r.call(torch.mul, r.activation(a["self"]), -1.0)


def _power(r: Raiser, a: dict[str, Any]) -> fx.Node:
    _float_result(r)
    if r.is_known(a["self"]):
        return _of_base(r, a)
    exponent = _constant(r, a["exponent"])
    if isinstance(exponent, torch.Tensor) and exponent.numel() == 1 and exponent.ndim <= len(r.shape()):
        exponent = float(exponent)  # a parameter of one value, as pooling by a generalized mean has
    if isinstance(exponent, torch.Tensor):
        raise NotRaised
    x = r.activation(a["self"])
    if exponent == 1:
        return x
    if exponent == 0.5:
        return r.call(torch.sqrt, x)
    if exponent == -0.5:
        return r.call(torch.rsqrt, x)
    if exponent == -1:
        return r.call(torch.reciprocal, x)
    return r.call(torch.pow, x, exponent)


def _of_base(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``3.0**x`` and ``base**x`` of constants above zero: the exponential of a product with their logarithms."""
    base = torch.as_tensor(r.constant(a["self"])).double()
    if not r.is_float(a["exponent"]) or not bool(((base > 0) & base.isfinite()).all()):
        raise NotRaised
    rate = _operand(r, _plain(base.log().float()), _name(r, a["self"]))
    return r.call(torch.exp, r.call(torch.mul, r.activation(a["exponent"]), rate))


def _square(r: Raiser, a: dict[str, Any]) -> fx.Node:
    _float_result(r)
    return r.call(torch.pow, r.activation(a["self"]), 2)


def _function(function: Callable[..., Any]) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        _float_result(r)
        return r.call(function, r.activation(a["self"]))

    return handler


def _products_and_sum(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``beta * self + alpha * (batch1 @ batch2)``."""
    product = matrices(r, a["batch1"], a["batch2"])
    if a["alpha"] != 1:
        product = r.call(torch.mul, product, float(a["alpha"]))
    if a["beta"] == 0:
        return product
    if a["beta"] != 1:
        raise NotRaised
    return r.call(torch.add, product, r.operand(a["self"]))


HANDLERS = {
    "add": _add,
    **dict.fromkeys(("sub", "subtract"), _subtract),
    "rsub": _subtract_from,
    **dict.fromkeys(("mul", "multiply"), _multiply),
    **dict.fromkeys(("div", "divide", "true_divide"), _divide),
    **dict.fromkeys(("neg", "negative"), _negate),
    "pow": _power,
    "square": _square,
    "baddbmm": _products_and_sum,
    **{
        name: _function(function)
        for name, function in (
            ("sqrt", torch.sqrt), ("rsqrt", torch.rsqrt), ("exp", torch.exp), ("log", torch.log), ("abs", torch.abs),
            ("reciprocal", torch.reciprocal),
        )
    },
}  # fmt: skip
