"""The calls of a graph that only lay inputs and outputs side by side, in rows. They stay FP32.

A row holds all inputs of a sample: pixels beside ages beside token ids. One range of INT8 codes for a whole row would
leave the small ones no steps. So each input gets its codes after it was taken out of the row, and each output is put
into the row in FP32.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from cpupack.graph.tags import LARGEST, ROWS_IN, ROWS_OUT

_MOVES: tuple[Any, ...] = (
    operator.getitem, torch.reshape, torch.flatten, torch.permute, torch.ops.aten.slice.Tensor, "reshape", "permute",
)  # fmt: skip
_CASTS: tuple[Any, ...] = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)
_JOINS: tuple[Any, ...] = (torch.cat, torch.reshape, torch.flatten, "reshape")


def mark_rows(
    graph: fx.GraphModule, *, takes_rows: bool, gives_rows: bool, largest: Sequence[tuple[int, float]] = ()
) -> None:
    """Note on a graph's input, in place, whether the graph takes and gives rows.

    ``largest`` has for each part of a row how many values it has, and the number that none of them is beyond.
    """
    source = _source(graph)
    if largest:
        source.meta[LARGEST] = tuple(largest)
    source.meta[ROWS_IN], source.meta[ROWS_OUT] = takes_rows, gives_rows


def laying_calls(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the calls that take inputs out of rows, put outputs into rows, and move what is read as integers."""
    source = _source(graph)
    found: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        # An id between two codes would become another id.
        if node.target in _MOVES and node.users and all(each in found or _is_cast(each) for each in node.users):
            found.add(node)
    if source.meta.get(ROWS_IN, False):
        for node in graph.graph.nodes:
            operands = [each for each in node.all_input_nodes if each.op != "get_attr"]
            if node.target in _MOVES and operands and all(each is source or each in found for each in operands):
                found.add(node)
    if source.meta.get(ROWS_OUT, False):
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        laid = {output}
        for node in reversed(graph.graph.nodes):
            if node.target in _JOINS and node.users and all(each in laid for each in node.users):
                laid.add(node)
        found |= laid - {output}
    return found


def _is_cast(node: fx.Node) -> bool:
    """Whether a call makes integers or truth values of its operand."""
    to = next((each for each in (*node.args[1:], *node.kwargs.values()) if isinstance(each, torch.dtype)), None)
    return node.target in _CASTS and to is not None and not to.is_floating_point


def _source(graph: fx.GraphModule) -> fx.Node:
    source: fx.Node = next(node for node in graph.graph.nodes if node.op == "placeholder")
    return source
