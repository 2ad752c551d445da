"""Lowers look-ups of rows of a table by numbers: embeddings, tables of positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cpupack.accuracy import sqnr_db
from cpupack.graph.names import is_named
from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.tell import tell_rows
from cpupack.stages.quantize.native.walks import Function, Instruction, View

_ATEN = torch.ops.aten
_SMALL = 1 << 16
"""Values of a table that stays float32: 256 KB."""
_LEAST_DB = 30.0
"""SQNR of a table that becomes INT8; below, its codes of 8 bits would be heard in all that follows."""


def embed(b: Builder, node: fx.Node) -> str:
    """Lower an embedding. A large table is INT8 with a scale for each row, unless ``skip`` names it."""
    module: Any = b.calls.module(node)
    if module.max_norm is not None or module.sparse:
        raise b.calls.refusal(node, "with max_norm" if module.max_norm is not None else "of a sparse table")
    ids = as_floats(b, node.all_input_nodes[0], node)
    table = np.ascontiguousarray(module.weight.detach().float().numpy())
    if table.size > _SMALL and not is_named(node, b.recipe.skip):
        scales = np.maximum(np.abs(table).max(axis=1), np.float32(1e-30)).astype(np.float32) / np.float32(127)
        codes = np.rint(table / scales[:, None]).astype(np.int8)
        error = sqnr_db(table, codes * scales[:, None])
        if error >= _LEAST_DB:
            b.floats.values[node] = b.floats.look_up(ids, codes, scales)
            tell_rows(b, node, node, "cpupack::lookup", kind=b.calls.kind(node), weight_sqnr_db=error)
            return ""
    b.floats.values[node] = b.floats.look_up(ids, table, None)
    return "lookup"


def _index(b: Builder, node: fx.Node) -> str:
    """Lower rows of a constant tensor, by numbers that count from the end where they are negative."""
    table, indices = node.args[:2]
    held = b.calls.constant(table)
    numbers: Any = indices
    if held is None or len(numbers) != 1 or not held.is_floating_point() or not isinstance(numbers[0], fx.Node):
        raise b.calls.refusal(node, "of computed tensors")
    if numbers[0].meta.get("dtype") not in (torch.int64, torch.int32):
        raise b.calls.refusal(node, "by truth values")
    ids = b.floats.view(as_floats(b, numbers[0], node))
    code = [
        Instruction(Function.NUMBER, 1), Instruction(Function.LESS, 2, 0, 1),
        Instruction(Function.ADD_NUMBER, 1, 0, number=float(len(held))), Instruction(Function.SELECT, 0, 2, 1),
    ]  # fmt: skip
    rows = held.reshape(len(held), -1).float().contiguous().numpy()
    found = b.floats.look_up(b.floats.map(b.floats.like(ids), ids, None, code), rows, None)
    b.floats.values[node] = View(found.buffer, tuple(shape_of(node)[1:]), _steps(found, held), found.first)
    return "lookup"


def _steps(found: View, held: torch.Tensor) -> tuple[int, ...]:
    return (*found.steps[:-1], *torch.empty(held.shape[1:], device="meta").stride())


def is_look_up(b: Builder, node: fx.Node) -> bool:
    """Whether a call picks rows of a constant by computed numbers, rather than moving computed values."""
    if node.target is not _ATEN.index.Tensor:
        return False
    return b.calls.constant(node.args[0]) is not None


def is_embedding(b: Builder, node: fx.Node) -> bool:
    """Whether a call is of an embedding."""
    return b.calls.target(node) is nn.Embedding


LOOK_UPS: dict[Any, Callable[[Builder, fx.Node], str]] = {_ATEN.index.Tensor: _index}
