"""Finds attention that a model writes out: a product, sums with masks, a softmax, and a product with the values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from cpupack.graph.hiding import BEYOND
from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.functions import constant_of
from cpupack.stages.quantize.native.heads import Heads, append_heads, one_layer
from cpupack.stages.quantize.native.tell import tell_float
from cpupack.stages.quantize.native.walks import Fixed, View
from cpupack.stages.quantize.native.whole_choices import hidden_by

_SCALING = {torch.mul: 1.0, torch.div: -1.0}


@dataclass
class _Scores:
    """The calls from the scores on: ``last`` so far, the number that scores were multiplied with, what was added.

    ``fixed`` has the constants of a sample in the order of the scores, flat.
    """

    last: fx.Node
    nodes: list[fx.Node] = field(default_factory=list)
    scale: float = 1.0
    fixed: torch.Tensor | None = None
    views: list[View] = field(default_factory=list)


def written_out(b: Builder, node: fx.Node) -> bool:
    """Lower attention that begins with the product ``node`` as one layer. Returns whether there is any."""
    found = _scores(b, node)
    if found is None or found.last.target is not torch.matmul:
        return False
    end, values_node = found.last, found.last.args[1]
    queries, keys, values = (b.floats.view(as_floats(b, each, end)) for each in (*node.args[:2], values_node))  # type: ignore[arg-type]
    turned = keys.permuted((*range(len(keys.shape) - 2), len(keys.shape) - 1, len(keys.shape) - 2))
    rank = len(queries.shape)
    if not rank == len(turned.shape) == len(values.shape) or rank < 2:
        return False
    outer = tuple(shape_of(node)[1:-2])
    if any(tuple(each.shape[:-2]) != outer for each in (queries, turned, values)):
        return False
    if not one_layer(b.choices, queries.shape, turned.shape[-2], values.shape[-1]):
        return False
    masks: list[Fixed | View] = list(found.views)
    if found.fixed is not None:
        masks.append(Fixed(_thin(found.fixed.reshape(shape_of(node)[1:]))))
    calls = [node, *found.nodes]
    words = all(each.name in b.attends_by_words for each in calls)
    b.floats.values[end] = append_heads(
        b.floats, Heads(queries, turned, values, found.scale, tuple(masks), unseen_is_nan=True, words=words)
    )
    b.absorbed.update(calls[:-1])
    tell_float(b, end, "cpupack::attention of 16 bits" if words else "cpupack::attention")
    return True


def _scores(b: Builder, node: fx.Node) -> _Scores | None:
    """Return the calls after the product ``node`` up to that with the values; None where they are something else."""
    found, softened = _Scores(node), False
    operands = node.all_input_nodes
    if len(operands) != 2 or any(each.op == "get_attr" or len(shape_of(each)) < 3 for each in operands):
        return None
    while len(found.last.users) == 1:
        reader = next(iter(found.last.users))
        if reader.op == "output" or not b.is_float(reader) or "shape" not in reader.meta:
            return None
        module = b.calls.module(reader)
        if softened and reader.target is torch.matmul:
            values = reader.args[1]
            right = reader.args[0] is found.last and isinstance(values, fx.Node) and _is_there(b, values)
            if not right or shape_of(found.last) != shape_of(node):
                return None
            found.last = reader
            found.nodes.append(reader)
            return found
        if isinstance(module, nn.Softmax) and not softened:
            rank = len(shape_of(reader))
            if module.dim not in (-1, rank - 1) or shape_of(found.last)[-1] != shape_of(node)[-1]:
                return None
            softened = True
        elif not _keeps_order(b, reader, found.last) and (softened or not _changes(b, reader, found)):
            return None
        found.last = reader
        found.nodes.append(reader)
    return None


def _is_there(b: Builder, node: fx.Node) -> bool:
    return node.op != "get_attr" and (node in b.floats.values or node in b.values)


def _keeps_order(b: Builder, reader: fx.Node, source: fx.Node) -> bool:
    """Whether a call only gives the values another shape."""
    if not b.calls.rearranges(reader):
        return False
    shape = shape_of(source)
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    order = b.calls.rearranged(reader, {source: numbers})
    return isinstance(order, torch.Tensor) and torch.equal(order.flatten(), numbers.flatten())


def _changes(b: Builder, reader: fx.Node, found: _Scores) -> bool:
    """Note a product with a number, or a sum with a mask; False for another call."""
    if shape_of(reader) == shape_of(found.last) and _hides(b, reader, found):
        return True
    if len(reader.args) != 2 or reader.kwargs or shape_of(reader) != shape_of(found.last):
        return False
    others = [each for each in reader.args if each is not found.last]
    if len(others) != 1:
        return False
    constant = constant_of(b.calls.graph, others[0])
    if reader.target in _SCALING:
        if constant is None or constant.numel() != 1 or found.views or reader.args[0] is not found.last:
            return False
        factor = float(constant) ** _SCALING[reader.target]
        found.scale *= factor
        found.fixed = None if found.fixed is None else found.fixed * factor
        return True
    if reader.target is not torch.add:
        return False
    other = others[0]
    held = b.floats.values.get(other) if isinstance(other, fx.Node) else None
    if constant is None and isinstance(held, Fixed):
        constant = held.values[None]
    if constant is not None:
        return _with_constant(constant.float(), shape_of(reader), found)
    same = shape_of(reader)[-2:] == shape_of(found.last)[-2:] and not any(b.calls.rearranges(e) for e in found.nodes)
    if not isinstance(other, fx.Node) or not same or not _is_there(b, other):
        return False
    if len(shape_of(other)) != len(shape_of(reader)):
        return False
    found.views.append(b.floats.view(as_floats(b, other, reader)))
    return True


def _hides(b: Builder, reader: fx.Node, found: _Scores) -> bool:
    """Note a choice between the scores and a number that hides them, as a mask that is added.

    Beside such a number a score is less than float32 tells apart, so the sum is the number.
    """
    if len(reader.args) != 3 or reader.kwargs or any(b.calls.rearranges(each) for each in found.nodes):
        return False
    if reader.target in _FILLS:
        source, mask, number = reader.args
    elif reader.target in _CHOICES:
        mask, source, number = reader.args
    else:
        return False
    held = constant_of(b.calls.graph, number)
    if source is not found.last or held is None or held.numel() != 1 or not float(held) <= -BEYOND:
        return False
    if not isinstance(mask, fx.Node) or mask.meta.get("dtype") is not torch.bool or not _is_there(b, mask):
        return False
    if len(shape_of(mask)) != len(shape_of(reader)):
        return False
    seen = b.floats.view(as_floats(b, mask, reader))
    found.views.append(b.floats.view(hidden_by(b, seen, float(held), where=reader.target in _FILLS)))
    return True


_FILLS = (torch.ops.aten.masked_fill.Scalar, torch.ops.aten.masked_fill.Tensor)
_CHOICES = (torch.ops.aten.where.ScalarOther, torch.ops.aten.where.self)


def _with_constant(constant: torch.Tensor, shape: tuple[int, ...], found: _Scores) -> bool:
    lead = constant.ndim - len(shape) + 1
    if lead > 0:
        if constant.shape[:lead].numel() != 1:
            return False
        constant = constant.reshape(constant.shape[lead:])
    flat = constant.expand(shape[1:]).reshape(-1)
    found.fixed = flat if found.fixed is None else found.fixed + flat
    return True


def _thin(values: torch.Tensor) -> torch.Tensor:
    """Return values with one place for each dimension along which all are equal."""
    for axis in range(values.ndim):
        first = values.narrow(axis, 0, 1)
        if values.shape[axis] > 1 and torch.equal(first.expand_as(values), values):
            values = first
    return values.contiguous()
