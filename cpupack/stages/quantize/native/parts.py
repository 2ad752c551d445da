"""How tensors come into a program and leave it, and how programs and FP32 calls are joined to one model."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.native_model import MixedModel, NativePart, Packing, Steps
from cpupack.stages.quantize.native.bridges import parts_of_row, values_of_input
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import Calls, depends_on_batch, is_batch_size, shape_of
from cpupack.stages.quantize.native.program import Flag, Layer, Op, Size
from cpupack.stages.quantize.native.split import Segment
from cpupack.stages.quantize.native.values import (
    Value,
    channels_last,
    image_layout,
    order_of,
    rows_layout,
    value_of,
)


def body_of(calls: Calls, segment: Segment) -> fx.GraphModule:
    """Return a segment as a graph of its own: its inputs are placeholders, its results a tuple. Names stay."""
    graph = fx.Graph()
    copies = {}
    for node in segment.inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in segment.nodes:
        _copy(graph, node, copies, calls)
    graph.output(tuple(copies[node] for node in segment.outputs))
    return fx.GraphModule(calls.graph, graph).eval()


def graph_of(calls: Calls, segment: Segment) -> fx.GraphModule:
    """Return a segment of one input and one result as a graph of its own."""
    graph = fx.Graph()
    (source,), (result,) = segment.inputs or _placeholder(calls), segment.outputs
    copies = {source: graph.placeholder(source.name)}
    for node in segment.nodes:
        _copy(graph, node, copies, calls, copies[source])
    graph.output(copies[result])
    return fx.GraphModule(calls.graph, graph).eval()


def _placeholder(calls: Calls) -> tuple[fx.Node, ...]:
    return tuple(node for node in calls.graph.graph.nodes if node.op == "placeholder")


def _copy(
    graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node], calls: Calls, batch: fx.Node | None = None
) -> None:
    """Copy a call and the constants that it reads into a graph; sizes become numbers, the batch's that of ``batch``."""

    def operand(each: fx.Node) -> Any:
        if each in copies:
            return copies[each]
        if each.op == "get_attr":
            copies[each] = graph.node_copy(each)
            return copies[each]
        if batch is not None and is_batch_size(each):
            return graph.call_method("size", (batch, 0))
        if batch is not None and depends_on_batch(each):
            return graph.node_copy(each, operand)
        size = each.meta["constant"]
        return tuple(size) if isinstance(size, torch.Size) else size

    copies[node] = graph.node_copy(node, operand)


def packings(nodes: tuple[fx.Node, ...], calls: Calls) -> tuple[Packing, ...]:
    """Return where each input of a segment is among the values that its program takes."""
    found = []
    first = 0
    for node in nodes:
        shape = tuple(shape_of(node)[1:])
        by_rows = any(isinstance(core(calls.module(user) or nn.Identity()), nn.Linear) for user in node.users)
        packing = Packing(first, shape, image=len(shape) == 3 and not by_rows)
        found.append(packing)
        first += packing.size
    return tuple(found)


def take_image(b: Builder, node: fx.Node) -> None:
    """Have a program read its whole float32 input, an image or a vector."""
    program = b.program
    b.images.add(node)
    if any(b.takes_floats(user) for user in node.users):
        shape = tuple(shape_of(node)[1:])
        if len(shape) == 1 and all(b.takes_floats(user) for user in node.users) and parts_of_row(b, node):
            return
        b.floats.values[node] = values_of_input(b, shape, 0, image=len(shape) == 3)
    if node.users and all(b.takes_floats(user) for user in node.users):
        return
    size = Size(program.input_height, program.input_width, program.input_channels_float)
    number = b.add_buffer(size, b.limits(node))
    buffer = b.buffer(number)
    fields = {"scale": 1.0 / buffer.scale, "output_zero_point": buffer.zero_point}
    b.append(Layer(Op.INPUT_FLOAT, Flag.ONLY_FLOAT, output=number, fields=fields))
    b.values[node] = Value(number)


def take(b: Builder, node: fx.Node, packing: Packing) -> None:
    """Have a program read one of its inputs, each value of which is somewhere among those of a sample."""
    if any(b.takes_floats(user) for user in node.users):
        b.floats.values[node] = values_of_input(b, packing.shape, packing.first, image=packing.image)
    if node.users and all(b.takes_floats(user) for user in node.users):
        return
    layout = image_layout(packing.shape) if packing.image else rows_layout(packing.shape)
    number = b.add_buffer(layout, b.limits(node))
    buffer = b.buffer(number)
    fields = {
        "scale": 1.0 / buffer.scale, "output_zero_point": buffer.zero_point, "channel_offset": packing.first,
    }  # fmt: skip
    b.append(Layer(Op.INPUT_FLOAT, Flag.ONLY_FLOAT, output=number, fields=fields))
    shape = (2, *packing.shape)
    order = torch.arange(2 * buffer.size).reshape(shape) if packing.image else channels_last(buffer, shape)
    value = value_of(number, buffer, order)
    assert value is not None
    b.values[node] = value


def stand_in(b: Builder, node: fx.Node) -> bool:
    """Give a call without a kernel a result, so that those after it can be looked at; False where it has several."""
    if "shape" not in node.meta or len(shape_of(node)) < 2 or shape_of(node)[0] != 2:
        return False
    b.floats.values[node] = b.floats.new(tuple(shape_of(node)[1:]))
    return True


def finish(b: Builder) -> tuple[Packing, ...]:
    """Have all results leave as float32 where their layers did not see to that; return where they are."""
    return tuple(_finish(b, node) for node in b.results)


def _finish(b: Builder, node: fx.Node) -> Packing:
    shape = shape_of(node)
    if node not in b.left and node in b.floats.values:
        b.floats.leave(b.floats.values[node], b.leave(node, math.prod(shape[1:])))
    if node in b.left:
        image = node in b.left_by_positions
        return Packing(b.left[node], tuple(shape[1:]), image=image, dtype=node.meta["dtype"])
    value = b.value(node, node)
    buffer, number = b.buffer(value.buffer), value.buffer
    order = order_of(value, buffer, shape)
    memory = channels_last(buffer, (2, buffer.size))
    image = value.order is None and len(shape) == 4 and buffer.size != buffer.channels
    if not image and not torch.equal(order.reshape(2, -1), memory):
        number = b.add_alike(rows_layout(shape[1:]), buffer)
        b.move(value.buffer, number, order[0].flatten(), channels_last(b.buffer(number), shape)[0].flatten())
        buffer = b.buffer(number)
    fields: dict[str, Any] = {
        "scale": buffer.scale, "input_zero_point": buffer.zero_point, "channels_out": buffer.size,
        "channel_offset": b.leave(node, buffer.size),
    }  # fmt: skip
    b.append(Layer(Op.OUTPUT, Flag.FLOAT_OUT, input=number, fields=fields))
    return Packing(b.left[node], tuple(shape[1:]), image=image)


def join(
    calls: Calls,
    segments: list[Segment],
    programs: list[NativePart],
    operators: dict[str, int],
    looks: tuple[Any, ...],
    *,
    steps: tuple[Steps, ...],
    pixel_input: bool,
) -> MixedModel:
    """Return the model that runs programs and the FP32 calls between them in turn."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in _placeholder(calls)}
    root, batch = calls.graph, next(iter(copies.values()))
    waiting = list(programs)
    for segment in segments:
        if not segment.native:
            for node in segment.nodes:
                _copy(graph, node, copies, calls, batch)
            continue
        part = waiting.pop(0)
        name = f"native_part_{len(programs) - len(waiting)}"
        root.add_submodule(name, part)
        called = graph.call_module(name, tuple(copies[node] for node in segment.inputs))
        for number, node in enumerate(segment.outputs):
            copies[node] = (
                called if len(segment.outputs) == 1 else graph.call_function(operator.getitem, (called, number))
            )
    result = next(node for node in calls.graph.graph.nodes if node.op == "output").args[0]
    graph.output(copies[result])
    return MixedModel(
        fx.GraphModule(root, graph).eval(), tuple(programs), operators, looks, steps=steps, pixel_input=pixel_input
    ).eval()
