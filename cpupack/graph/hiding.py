"""Calls that hide values behind numbers no activation has: masks of -inf, of the least float32 there is, or of -10000.

A softmax after them gives exact zeros for what is hidden. No range of INT8 codes has such numbers beside ordinary ones:
the hidden values would show. So the calls from the number on stay FP32 with the softmax that reads them, and
calibration counts only their ordinary values.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from cpupack.graph.vocabulary import SHAPES

BEYOND = 1e9
"""Numbers from here on hide, whatever their sign: no activation is as large."""
LOW = -9999.0
"""Numbers down from here hide, too: the first BERT's masks are ``-10000``. As large a number with the other sign may be
a factor of something else. In a tensor such numbers hide beside zeros alone."""
_LEFT = 0.9
"""What is left of ``LOW`` at least when a score is added to it."""
_ATEN = torch.ops.aten
_PASSED: tuple[Any, ...] = (
    *SHAPES, torch.add, torch.sub, torch.mul, torch.div, torch.cat, torch.clamp, operator.getitem, "expand",
    _ATEN.expand.default, _ATEN.expand_as.default, _ATEN.index.Tensor, _ATEN.to.dtype, _ATEN.to.device,
    _ATEN.masked_fill.Scalar, _ATEN.masked_fill.Tensor, _ATEN.where.self, _ATEN.where.ScalarOther,
    _ATEN.where.ScalarSelf, _ATEN.where.Scalar, _ATEN.maximum.default, _ATEN.minimum.default,
)  # fmt: skip


def hiding_calls(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the calls of float tensors that a hiding number goes into, those that pass it on, and what reads these."""
    passing: set[fx.Node] = set()
    readers: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if not node.op.startswith("call"):
            continue
        reads = any(each in passing for each in node.all_input_nodes)
        if node.target in _PASSED and (reads or _has_number(graph, node)):
            passing.add(node)
        elif reads:
            readers.add(node)
    return passing | readers


def _has_number(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.target in (torch.clamp, torch.div, *SHAPES, operator.getitem, "expand"):
        return any(_is_beyond(graph, each) for each in node.all_input_nodes)
    operands = [*node.args, *node.kwargs.values()]
    return any(_is_beyond(graph, each) for each in operands)


def _is_beyond(graph: fx.GraphModule, operand: object) -> bool:
    if isinstance(operand, bool):
        return False
    if isinstance(operand, int | float):
        return abs(operand) >= BEYOND or operand <= LOW
    if not isinstance(operand, fx.Node) or operand.op != "get_attr":
        return False
    held: Any = graph
    for name in str(operand.target).split("."):
        held = getattr(held, name)
    if not isinstance(held, torch.Tensor) or not held.is_floating_point() or not held.numel():
        return False
    # A mask has zeros for what it shows. Means of channels, which a model subtracts, may be as low (pascals).
    return bool((held.abs() >= BEYOND).any()) or bool((held <= LOW).any() and (held == 0).any())


def ordinary(values: torch.Tensor) -> torch.Tensor:
    """Return values with zeros for those that hide. NaN stays."""
    return torch.where((values.abs() >= BEYOND) | (values <= _LEFT * LOW), 0.0, values)
