"""Lowers calls in FP32 that give values in another order: as views of what is there, or by a copy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx

from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, shape_of
from cpupack.stages.quantize.native.floats import Operand
from cpupack.stages.quantize.native.row_moves import leads_to_rows, move_rows, row_order
from cpupack.stages.quantize.native.walks import View, dense_steps, regular_steps


def rearrange(b: Builder, node: fx.Node) -> None:
    """Note a view of the operand's values; where there is none, copy them."""
    operands = [each for each in node.all_input_nodes if not b.calls.is_constant(each) and each.op != "get_attr"]
    if len(operands) != 1:
        raise b.calls.refusal(node, "with a constant operand")
    several = b.float_tuples.get(operands[0])
    if several is not None:
        index = node.args[1]
        if not isinstance(index, int):
            raise b.calls.refusal(node, "of several results")
        b.floats.values[node] = several[index]
        return
    operand = as_floats(b, operands[0], node)
    found = _viewed(b, node, operands[0], operand) or _in_another_order(b, node, operands[0], operand)
    if found is None and row_order(b, node, operands[0]) is not None and leads_to_rows(b, node):
        move_rows(b, node, operands[0], None)
        return
    if found is None and _viewed(b, node, operands[0], _as_if_copied(operand)) is not None:
        found = _viewed(b, node, operands[0], b.floats.side_by_side(operand))
    if found is None:
        found = _gathered(b, node, operands[0], operand)
    if isinstance(found, tuple):
        b.float_tuples[node] = found
    else:
        b.floats.values[node] = found


def move_waiting_rows(b: Builder, node: fx.Node) -> None:
    """Note how a call moves rows that become codes where they are read, with the norm that comes first."""
    source = node.all_input_nodes[0]
    operand, _ = b.waiting[source]
    found = None
    if isinstance(operand, View) and b.calls.rearranges(node):
        found = _viewed(b, node, source, operand) or _in_another_order(b, node, source, operand)
    move_rows(b, node, source, found if isinstance(found, View) else None)


def _viewed(b: Builder, node: fx.Node, source: fx.Node, operand: Operand) -> View | tuple[View, ...] | None:
    """Run a call on a tensor that has the operand's steps. None where the result is a copy."""
    if not isinstance(operand, View) or b.calls.target(node) in (F.interpolate, F.pad):
        return None
    if min(operand.steps, default=0) < 0:
        return None  # torch has no tensor with such steps
    size = max(
        operand.first + sum((n - 1) * abs(step) for n, step in zip(operand.shape, operand.steps, strict=True)) + 1, 1
    )
    memory = torch.empty(2 * size, dtype=torch.int8)
    tensor = memory.as_strided((2, *operand.shape), (size, *operand.steps), operand.first)
    result = b.calls.rearranged(node, {source: tensor})
    views = []
    for each in result if isinstance(result, list | tuple) else [result]:
        if each.untyped_storage().data_ptr() != memory.untyped_storage().data_ptr():
            return None
        if each.ndim == 0 or len(each) != 2 or each.stride(0) != size:
            return None
        views.append(View(operand.buffer, tuple(each.shape[1:]), tuple(each.stride()[1:]), each.storage_offset()))
    return tuple(views) if isinstance(result, list | tuple) else views[0]


def _as_if_copied(operand: Operand) -> View:
    """Return a view with an operand's values side by side, of a buffer that is not there yet."""
    shape = operand.shape if isinstance(operand, View) else tuple(operand.values.shape)
    return View(-1, shape, dense_steps(shape))


def _in_another_order(b: Builder, node: fx.Node, source: fx.Node, operand: Operand) -> View | None:
    """Return what a call copies as a view all the same: where each value of its result comes from has steps."""
    if not isinstance(operand, View) or min(operand.steps, default=0) < 0:
        return None
    places = operand.memory_places()
    sample = int(places.max()) + 1
    order = b.calls.rearranged(node, {source: torch.stack([places, places + sample])})
    if not isinstance(order, torch.Tensor) or len(order) != 2 or not torch.equal(order[1], order[0] + sample):
        return None
    found = regular_steps(order[0]) if order[0].numel() and order.ndim > 1 else None
    if found is None or min(found[1], default=0) < 0 or found[0] < 0:
        return None
    return View(operand.buffer, tuple(order.shape[1:]), found[1], found[0])


def _gathered(b: Builder, node: fx.Node, source: fx.Node, operand: Operand) -> View:
    """Copy values that a call gives in an order without steps: flips, rolls, shuffles, nearest neighbours."""
    shape = shape_of(source)
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    order = b.calls.rearranged(node, {source: numbers})
    size = math.prod(shape[1:])
    if not isinstance(order, torch.Tensor) or len(order) != 2 or not torch.equal(order[1], order[0] + size):
        raise b.calls.refusal(node, "across samples")
    return b.floats.gather(operand, order[0])


def pad(b: Builder, node: fx.Node) -> View:
    """Lower padding with a number. Raises Refusal for padding of samples."""
    given, number = list(node.args[1]), float(argument(node, 3, "value", None) or 0.0)  # type: ignore[arg-type]
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = shape_of(source)[1:]
    places = F.pad(torch.arange(math.prod(shape)).reshape(shape), given, value=-1)
    if tuple(places.shape) != shape_of(node)[1:]:
        raise b.calls.refusal(node, "of samples")
    return b.floats.gather(as_floats(b, source, node), places, fill=number)
