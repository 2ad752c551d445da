"""Calls that move the rows of a tensor (tokens) as wholes, for layers that take rows in any order.

A norm of each row may as well come after such calls as before. A list of rows costs the kernels nothing, where a roll
or a window's partition of rolled rows would be copied.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx

from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, shape_of
from cpupack.stages.quantize.native.row_codes import Listed, RowNorm
from cpupack.stages.quantize.native.walks import View

_PADDING = -1


def row_order(b: Builder, reader: fx.Node, source: fx.Node) -> torch.Tensor | None:
    """Return the numbers of the operand's rows in the order of a call's result, in its shape, -1 for rows of zeros.

    None where a call changes rows, the last dimension, or mixes samples.
    """
    if "shape" not in reader.meta or shape_of(reader)[-1:] != shape_of(source)[-1:] or len(shape_of(source)) < 3:
        return None
    operands = [each for each in reader.all_input_nodes if not b.calls.is_constant(each) and each.op != "get_attr"]
    shape = shape_of(source)
    if operands != [source]:
        return None
    if _pads_rows(b, reader):
        rows = torch.arange(math.prod(shape[1:-1])).reshape(1, *shape[1:-1], 1)
        given: Any = reader.args[1]
        return F.pad(rows, (0, 0, *given[2:]), value=_PADDING)[0, ..., 0]
    if not b.calls.rearranges(reader):
        return None
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    order = b.calls.rearranged(reader, {source: numbers})
    if not isinstance(order, torch.Tensor) or order.ndim < 2 or len(order) != 2 or not order.numel():
        return None
    length, size = shape[-1], math.prod(shape[1:])
    first = order[0, ..., :1]
    whole = torch.equal(order[0], first + torch.arange(length)) and not bool((first % length).any())
    return first[..., 0] // length if whole and torch.equal(order[1], order[0] + size) else None


def _pads_rows(b: Builder, reader: fx.Node) -> bool:
    """Whether a call adds rows of zeros to a sample, and nothing to a row."""
    if b.calls.target(reader) is not F.pad or argument(reader, 2, "mode", "constant") != "constant":
        return False
    given: Any = reader.args[1]
    inside = 2 * (len(shape_of(reader)) - 1)
    return not argument(reader, 3, "value", None) and min(given) >= 0 and not any(given[:2]) and not any(given[inside:])


def moved_rows(b: Builder, reader: fx.Node, source: fx.Node) -> torch.Tensor | None:
    """Return which row of the result each row of the operand becomes; None where a row becomes none, or several."""
    order = row_order(b, reader, source)
    if order is None or order.numel() != math.prod(shape_of(source)[1:-1]) or bool((order < 0).any()):
        return None
    flat = order.flatten()
    places = torch.full_like(flat, -1)
    places[flat] = torch.arange(len(flat))
    return None if bool((places < 0).any()) else places


def leads_to_rows(b: Builder, node: fx.Node) -> bool:
    """Whether a tensor is read, in the end, only as rows of codes: calls before that move whole rows alone."""

    def leads(user: fx.Node) -> bool:
        if user.op == "output" or not b.is_float(user):
            return False
        return b.is_by_rows(user) or (row_order(b, user, node) is not None and leads_to_rows(b, user))

    return bool(node.users) and all(leads(user) for user in node.users)


def move_rows(b: Builder, node: fx.Node, source: fx.Node, viewed: View | None) -> None:
    """Note the rows of a call's result: those of ``viewed`` where it is a view of the operand, else as a list.

    A norm that waits for the operand's codes waits for these.
    """
    operand: View | Listed
    norm: RowNorm | None
    operand, norm = b.waiting[source] if source in b.waiting else (b.floats.view(as_floats(b, source, node)), None)
    if viewed is not None:
        b.waiting[node] = viewed, norm
        return
    order = row_order(b, node, source)
    assert order is not None
    if isinstance(operand, View):
        places = torch.tensor(operand.first)
        for size, step in zip(operand.shape[:-1], operand.steps[:-1], strict=True):
            places = places[..., None] + torch.arange(size) * step
        assert operand.buffer is not None
        operand = Listed(operand.buffer, places, operand.shape[-1], operand.steps[-1])
    known = torch.cat([operand.places.flatten(), torch.tensor([_PADDING])])
    b.waiting[node] = Listed(operand.buffer, known[order], operand.length, operand.step), norm
