"""Between which numbers float values lie, as far as the calls that make them tell.

Places in a grid are computed so: ``(x.clamp(0, 0.999) * 16).long()`` is below 16, however large ``x`` is.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument

Interval = tuple[float, float]
ANY: Interval = (-math.inf, math.inf)
_RESULTS: dict[str, Interval] = {
    "sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0), "sign": (-1.0, 1.0), "softsign": (-1.0, 1.0),
}  # fmt: skip
_KEEP = frozenset({"expand", "amax", "amin", "mean", "reshape"})
_CUT = frozenset({"clamp", "hardtanh", "relu6", "relu"})
_ROUND = frozenset({"floor", "ceil", "trunc", "round", "fix"})
_AT_LEAST = frozenset({"ge", "gt"})
_ARITHMETIC = frozenset({"add", "sub", "div", "mul"})
_FURTHEST = 64
"""Calls before a value that are looked at, one after the other: beyond them it may be any number."""


def interval_of(
    b: Builder, value: Any, known: dict[fx.Node, Interval] | None = None, left: int = _FURTHEST
) -> Interval:
    """Return the least and the largest number that a value may be, as far as it is known.

    ``left`` says how many calls before it are looked at.
    """
    if isinstance(value, int | float):
        return float(value), float(value)
    if not isinstance(value, fx.Node) or not left:
        return ANY
    known = {} if known is None else known
    if value not in known:
        known[value] = _of_call(b, value, known, left - 1)
    return known[value]


def _of_call(b: Builder, node: fx.Node, known: dict[fx.Node, Interval], left: int) -> Interval:
    held = b.calls.constant(node)
    if held is not None:
        return (float(held.min()), float(held.max())) if held.numel() and not held.is_complex() else ANY
    if not node.op.startswith("call"):
        return ANY
    name = b.calls.kind(node).partition(".")[0].lower()
    if name in _RESULTS:
        return _RESULTS[name]
    if name in _KEEP or name in _ROUND or name in _CUT or b.calls.rearranges(node):
        low, high = interval_of(b, node.args[0], known, left)
        if name in _ROUND:
            return low - 1.0, high + 1.0
        if name in _CUT:
            least, most = _ends(b, node, name)
            return min(max(low, least), most), max(min(high, most), least)
        return (low, high) if name in _KEEP else (min(low, 0.0), max(high, 0.0))  # unfold fills with zeros
    if name != "where" and (name not in _ARITHMETIC or len(node.args) != 2 or node.kwargs):
        return ANY
    args = [interval_of(b, each, known, left) for each in node.args[:3]]
    return _of_choice(b, node, args) if name == "where" else _of_arithmetic(name, args)


def _ends(b: Builder, node: fx.Node, name: str) -> Interval:
    if name.startswith("relu"):
        return 0.0, 6.0 if name == "relu6" else math.inf
    if name == "hardtanh":
        module: Any = b.calls.module(node)
        return float(module.min_val), float(module.max_val)
    given = argument(node, 1, "min", None), argument(node, 2, "max", None)
    low, high = (each if isinstance(each, int | float) else None for each in given)
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _of_choice(b: Builder, node: fx.Node, args: list[Interval]) -> Interval:
    """``torch.where(x >= 1, other, x)``: what is left of ``x`` is below 1."""
    condition, (low, high) = node.args[0], args[2]
    if isinstance(condition, fx.Node) and condition.args and condition.args[0] is node.args[2]:
        end = condition.args[1] if len(condition.args) == 2 else None
        if b.calls.kind(condition).partition(".")[0] in _AT_LEAST and isinstance(end, int | float):
            high = min(high, float(end))
    return min(low, args[1][0]), max(high, args[1][1])


def _of_arithmetic(name: str, args: list[Interval]) -> Interval:
    (low, high), (least, most) = args
    if name == "add":
        return low + least, high + most
    if name == "sub":
        return low - most, high - least
    if name == "div":
        if least != most or least == 0.0:
            return ANY
        name, least = "mul", 1.0 / least
        most = least
    if name != "mul":
        return ANY
    ends = [0.0 if 0.0 in (one, other) else one * other for one in (low, high) for other in (least, most)]
    return min(ends), max(ends)
