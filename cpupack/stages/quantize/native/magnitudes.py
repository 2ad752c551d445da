"""How large the whole numbers of calls get: float32 has them exactly up to 2^24."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from cpupack.graph.tags import LARGEST
from cpupack.runtime.tensor_spec import LARGEST_EXACT
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.float_bounds import interval_of
from cpupack.stages.quantize.native.walks import Fixed

_ATEN = torch.ops.aten
BEYOND = "of whole numbers that may be beyond 2^24: a vocabulary of the [[input]] bounds them"
_SLACK = 1 << 16
"""An id plus a small number is exact for all ids but the last of 2^24, and no table has so many rows."""
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
MOVES: tuple[Any, ...] = ("expand", _ATEN.expand.default, _ATEN.expand_as.default)


def largest_of(b: Builder, value: Any) -> float:
    """Return a number that no value of an operand is beyond, with either sign."""
    if isinstance(value, bool | int | float):
        return abs(value)
    if not isinstance(value, fx.Node):
        return math.inf
    moves: list[fx.Node] = []
    while value not in b.magnitudes and (value.target in MOVES or b.calls.rearranges(value)):
        moves.append(value)
        value = value.all_input_nodes[0]
    if value not in b.magnitudes and LARGEST in value.meta:
        return _largest_of_input(b, value, moves)
    held = b.calls.constant(value)
    if held is None and isinstance(found := b.floats.values.get(value), Fixed):
        held = found.values
    if held is not None:
        return float(held.abs().max()) if held.numel() else 0.0
    if value.meta.get("dtype") is torch.bool:
        return 1.0
    if value not in b.magnitudes and value.meta.get("dtype") is torch.float32:
        ends = interval_of(b, value)
        # Steps of INT8 may go a little beyond the ends.
        return min(max(abs(each) for each in ends) * 1.01 + 1.0, float(LARGEST_EXACT))
    return b.magnitudes.get(value, float(LARGEST_EXACT))


def _largest_of_input(b: Builder, source: fx.Node, moves: list[fx.Node]) -> float:
    """Return what no value is beyond that is taken out of a row of inputs; ``moves`` are the calls, the last first."""
    found = torch.cat([torch.full((count,), largest) for count, largest in source.meta[LARGEST]]).expand(2, -1)
    for node in reversed(moves):
        found = b.calls.rearranged(node, {node.all_input_nodes[0]: found})
    return min(float(found.max()), float(LARGEST_EXACT)) if found.numel() else 0.0


def ends_of(b: Builder, value: Any) -> tuple[float, float]:
    """Return the least and the largest number that whole numbers may be."""
    largest = largest_of(b, value)
    dtype = value.meta.get("dtype") if isinstance(value, fx.Node) else None
    return (0.0 if dtype in (torch.uint8, torch.bool) else -largest), largest


def bounded(b: Builder, node: fx.Node, largest: float, told: fx.Node | None = None, *, least: float = 0.0) -> None:
    """Note how large the results of a call are; refuse it, or the call ``told``, where float32 may not have them.

    ``least`` is the least result where the operands are not negative. Numbers of few bits begin anew beyond their
    ends, which float32 does not.
    """
    dtype = node.meta.get("dtype")
    if dtype not in WHOLE:
        return
    if largest > LARGEST_EXACT + _SLACK:
        raise b.calls.refusal(told or node, BEYOND)
    if dtype is not torch.bool and (largest > torch.iinfo(dtype).max or (dtype is torch.uint8 and least < 0)):
        name = str(dtype).removeprefix("torch.")
        raise b.calls.refusal(told or node, f"whose results may be beyond those of {name}, which begin anew there")
    b.magnitudes[node] = largest
