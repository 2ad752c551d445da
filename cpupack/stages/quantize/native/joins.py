"""Calls on several activations, or on one value at a time: sums, products, concatenations, activations."""

from __future__ import annotations

import math

import torch
from torch import fx

from cpupack.stages.quantize.native.builder import Builder, covering
from cpupack.stages.quantize.native.calls import (
    Calls,
    argument,
    is_concatenation,
    parts_of,
    shape_of,
)
from cpupack.stages.quantize.native.functions import Function, activation_of, composed, ends_with_relu, table_of
from cpupack.stages.quantize.native.program import Buffer, Layer, Op
from cpupack.stages.quantize.native.select import select_channels
from cpupack.stages.quantize.native.tell import tell
from cpupack.stages.quantize.native.values import (
    Value,
    channels_last,
    channels_of,
    image_layout,
    is_whole,
    order_of,
    rows_layout,
    value_of,
)


def add(b: Builder, node: fx.Node) -> None:
    """Lower the sum or difference of two activations, and a ReLU after it."""
    first, second, order = _operands(b, node)
    one, other = b.buffer(first), b.buffer(second)
    last = with_relu(b, node)
    output = b.add_buffer(one.layout, b.limits(last))
    result = b.buffer(output)
    sign = -1.0 if node.target is torch.sub else 1.0
    fields = {
        "scale": one.scale / result.scale, "scale2": sign * other.scale / result.scale,
        "input_zero_point": one.zero_point, "input2_zero_point": other.zero_point,
        "output_zero_point": result.zero_point, "low": result.zero_point if last is not node else 0,
    }  # fmt: skip
    b.append(Layer(Op.ADD, input=first, input2=second, output=output, fields=fields))
    tell_with_relu(b, node, last, Value(output, order), "add")


def multiply(b: Builder, node: fx.Node) -> None:
    """Lower a product of two images, or of one and a factor for each channel: squeeze-and-excitation."""
    gate = _gate(b, node)
    if gate is not None:
        numbers, order, op = [b.image(each, node) for each in (node.args[1 - gate], node.args[gate])], None, Op.SCALE
    else:
        *numbers, order = _operands(b, node)
        op = Op.MULTIPLY
    one, other = (b.buffer(each) for each in numbers)
    last = with_relu(b, node) if op is Op.MULTIPLY else node
    output = b.add_buffer(one.layout, b.limits(last))
    result = b.buffer(output)
    fields = {
        "scale": one.scale * other.scale / result.scale, "input_zero_point": one.zero_point,
        "input2_zero_point": other.zero_point, "output_zero_point": result.zero_point,
        "low": result.zero_point if last is not node else 0,
    }  # fmt: skip
    b.append(Layer(op, input=numbers[0], input2=numbers[1], output=output, fields=fields))
    tell_with_relu(b, node, last, Value(output, order), op.name.lower())


def _gate(b: Builder, node: fx.Node) -> int | None:
    """Return which operand of a product is one factor for each channel of the other, an image of the result's shape."""
    shape = shape_of(node)
    if len(shape) not in {4, 5}:
        return None
    for place in (1, 0):
        factor, other = node.args[place], node.args[1 - place]
        assert isinstance(factor, fx.Node)
        assert isinstance(other, fx.Node)
        if shape_of(factor) == (*shape[:2], *[1] * (len(shape) - 2)) and shape_of(other) == shape:
            value = b.value(other, node)
            if value.order is None or channels_of(value, b.buffer(value.buffer)) is not None:
                return place
    return None


def with_relu(b: Builder, node: fx.Node) -> fx.Node:
    """Return the ReLU that is the only reader of a call, because the kernel includes it. Otherwise return the call."""
    reader = b.calls.only_reader(node)
    if reader is None or not ends_with_relu(b.calls.graph, reader) or activation_of(b.calls.graph, reader) is None:
        return node
    b.absorbed.add(node)
    return reader


def tell_with_relu(b: Builder, node: fx.Node, last: fx.Node, value: Value, kernel: str) -> None:
    """Record the place of the values of a call, or of the ReLU after it."""
    b.values[last] = value
    if last is node:
        tell(b, node, last, f"cpupack::{kernel}")
    else:
        tell(b, node, last, f"cpupack::{kernel} + relu", kind=f"{b.calls.kind(node)}+{b.calls.kind(last)}")


def _operands(b: Builder, node: fx.Node) -> tuple[int, int, torch.Tensor | None]:
    """Return the buffers of two operands and the order that both have their values in.

    One that has another order, or is smaller than the result, is copied to where the other has its own.
    """
    shape = shape_of(node)
    values = [b.value(each, node) for each in node.args[:2]]
    buffers = [b.buffer(each.buffer) for each in values]
    orders = [
        order_of(value, buffer, shape_of(each)).broadcast_to(shape)  # type: ignore[arg-type]  # values are of calls
        for value, buffer, each in zip(values, buffers, node.args, strict=False)
    ]
    whole = [is_whole(order, buffer) for order, buffer in zip(orders, buffers, strict=True)]
    if all(whole) and torch.equal(*orders) and buffers[0].layout == buffers[1].layout:
        return values[0].buffer, values[1].buffer, kept_order(orders[0], buffers[0])
    numbers = [each.buffer for each in values]
    if any(whole):
        leader = whole.index(True)
        layout, order = buffers[leader].layout, orders[leader]
    else:
        leader, layout = -1, image_layout(shape[1:])
        order = torch.arange(math.prod(shape)).reshape(shape)
    for place in range(2):
        if place != leader:
            numbers[place] = b.add_alike(layout, buffers[place])
            b.move(values[place].buffer, numbers[place], orders[place][0].flatten(), order[0].flatten())
    return numbers[0], numbers[1], kept_order(order, b.buffer(numbers[0]))


def kept_order(order: torch.Tensor, buffer: Buffer) -> torch.Tensor | None:
    """Return an order as values have it: None where it is the buffer's own."""
    value = value_of(0, buffer, order)
    return order if value is None else value.order


def activate(b: Builder, node: fx.Node) -> None:
    """Lower functions of one value, one after the other, as a table; the values keep their order."""
    functions, last = functions_from(b.calls, node)
    operand = next(each for each in node.all_input_nodes if each.op != "get_attr")
    value = b.value(operand, node)
    if value.order is not None and not is_whole(value.order, b.buffer(value.buffer)):
        value = Value(b.image(operand, node), _natural_order(value))  # a part: the rest need not be computed
    source = b.buffer(value.buffer)
    output = b.add_buffer(source.layout, b.limits(last))
    table = table_of(composed(functions), source, b.buffer(output))
    b.append(Layer(Op.TABLE, input=value.buffer, output=output, constants={"table": table}))
    b.values[last] = Value(output, value.order)
    following = between(node, last)
    b.absorbed.update([node, *following][:-1])
    tell(b, node, last, "cpupack::table", kind="+".join(b.calls.kind(each) for each in (node, *following)))


def _natural_order(value: Value) -> torch.Tensor | None:
    """Return the order that a copied value has in its buffer: None, but for more dimensions than a buffer has."""
    assert value.order is not None
    shape = value.order.shape
    return kept_order(torch.arange(shape.numel()).reshape(shape), covering(image_layout(tuple(shape[1:])), (0.0, 1.0)))


def functions_from(calls: Calls, node: fx.Node) -> tuple[list[Function], fx.Node]:
    """Return the functions of one value from a call on, each the only reader of the one before, and the last call."""
    functions: list[Function] = []
    last = node
    reader: fx.Node | None = node
    while reader is not None:
        function = activation_of(calls.graph, reader)
        if function is None:
            break
        functions.append(function)
        last, reader = reader, calls.only_reader(reader)
    return functions, last


def between(node: fx.Node, last: fx.Node) -> list[fx.Node]:
    """Return the calls after ``node`` up to ``last``, each the only reader of the one before."""
    found: list[fx.Node] = []
    while (found or [node])[-1] is not last:
        found.append(next(iter((found or [node])[-1].users)))
    return found


def concatenate(b: Builder, node: fx.Node) -> None:
    """Lower a concatenation. Parts that are not already in their place are copied and rescaled."""
    if not is_concatenation(node):
        _concatenate_anywhere(b, node)
        return
    output = b.joined(node)
    result, offset, copied = b.buffer(output), 0, False
    for part in parts_of(node):
        if part not in b.in_place and (output, offset) not in b.copied:
            _copy_part(b, node, part, output, result, offset)
            b.copied.add((output, offset))
            copied = True
        offset += shape_of(part)[1]
    order = order_of(Value(output), result, (2, result.channels, result.positions))[:, : shape_of(node)[1]]
    value = value_of(output, result, order.reshape(shape_of(node)))
    assert value is not None
    b.values[node] = value
    tell(b, node, node, "cpupack::table" if copied else "in place")


def _concatenate_anywhere(b: Builder, node: fx.Node) -> None:
    """Lower a concatenation along any dimension of a sample."""
    shape, parts = shape_of(node), parts_of(node)
    axis = argument(node, 1, "dim", 0) % len(shape)
    if axis == 0:
        raise b.calls.refusal(node, "of batches")
    values = [b.value(part, node) for part in parts]
    video = len(shape) == 5 and any(b.buffer(value.buffer).frames > 1 for value in values)
    natural = video or len(shape) == 4 or (len(shape) == 3 and all(value.order is None for value in values))
    output = b.add_buffer((image_layout if natural else rows_layout)(shape[1:]), b.limits(node))
    result = b.buffer(output)
    order = order_of(Value(output), result, shape) if natural else channels_last(result, shape)
    begin = 0
    for part, value in zip(parts, values, strict=True):
        length = shape_of(part)[axis]
        elements = order_of(value, b.buffer(value.buffer), shape_of(part))[0]
        b.move(value.buffer, output, elements.flatten(), order[0].narrow(axis - 1, begin, length).flatten())
        begin += length
    b.values[node] = Value(output, kept_order(order, result))
    tell(b, node, node, "cpupack::move")


def _copy_part(b: Builder, node: fx.Node, part: fx.Node, output: int, result: Buffer, offset: int) -> None:
    value = b.value(part, node)
    source = b.buffer(value.buffer)
    if result.parts is not None:
        result.parts[offset] = source.scale, source.zero_point
        result = result.part(offset)
    channels = channels_of(value, source)
    if channels is None:
        elements = order_of(value, source, shape_of(part))[0].flatten()
        b.move(value.buffer, output, elements, torch.arange(len(elements)) + offset * result.positions, result)
        return
    if value.order is not None:
        b.append(select_channels(source, result, channels, value.buffer, output, offset))
        return
    table = table_of(lambda x: x, source, result)
    layer = Layer(Op.TABLE, input=value.buffer, output=output, constants={"table": table})
    layer.fields["channel_offset"] = offset
    b.append(layer)


def rearrange(b: Builder, node: fx.Node) -> None:
    """Note the order in which a view, transposition, split and the like has its operand's values: nothing moves."""
    operands = {}
    for each in node.all_input_nodes:
        found = b.values.get(each)
        if found is None and each in b.floats.values:
            found = b.value(each, node)
        if isinstance(found, Value):
            operands[each] = found
        elif found is not None:
            index = node.args[1]
            if not isinstance(index, int):
                raise b.calls.refusal(node, "of several results")
            b.values[node] = found[index]
            return
    if len(operands) != 1:
        raise b.calls.refusal(node, "with a constant operand")
    ((operand, value),) = operands.items()
    buffer = b.buffer(value.buffer)
    orders = b.calls.rearranged(node, {operand: order_of(value, buffer, shape_of(operand))})
    several = isinstance(orders, list | tuple)
    values = []
    for order in orders if several else [orders]:
        found = value_of(value.buffer, buffer, order) if isinstance(order, torch.Tensor) else None
        if found is None:
            raise b.calls.refusal(node, "across samples")
        values.append(found)
    b.values[node] = tuple(values) if several else values[0]


def scatter(b: Builder, node: fx.Node) -> None:
    """Lower a slice that is written in place: export gives the whole with its new part."""
    whole, part = node.args[:2]
    assert isinstance(whole, fx.Node)
    assert isinstance(part, fx.Node)
    shape = shape_of(node)
    axis = argument(node, 2, "dim", 0) % len(shape)
    if axis == 0:
        raise b.calls.refusal(node, "of samples")
    begin, end, _ = slice(argument(node, 3, "start", None), argument(node, 4, "end", None)).indices(shape[axis])
    step = argument(node, 5, "step", 1)
    if (begin, end, step) == (0, shape[axis], 1):
        b.values[node] = b.value(part, node)
        return
    output = b.add_buffer(image_layout(shape[1:]), b.limits(node))
    result = b.buffer(output)
    places = torch.arange(result.size).reshape(shape[1:])
    new = torch.zeros(shape[1:], dtype=torch.bool)
    new.movedim(axis - 1, 0)[begin:end:step] = True
    for operand, of_it in ((whole, ~new), (part, new)):
        value = b.value(operand, node)
        elements = order_of(value, b.buffer(value.buffer), shape_of(operand))[0]
        elements = elements[of_it] if operand is whole else elements.flatten()
        b.move(value.buffer, output, elements, places[of_it])
    b.values[node] = Value(output, kept_order(torch.arange(2 * result.size).reshape(shape), result))
    tell(b, node, node, "cpupack::move")


def expand(b: Builder, node: fx.Node) -> None:
    """Note that a call repeats its operand's values along dimensions of size one."""
    _repeat(b, node, node.args[0])


def overwrite(b: Builder, node: fx.Node) -> None:
    """Note that a call gives its second operand's values in the shape of the first: export's write in place."""
    _repeat(b, node, node.args[1])


def _repeat(b: Builder, node: fx.Node, operand: object) -> None:
    assert isinstance(operand, fx.Node)
    value = b.value(operand, node)
    buffer = b.buffer(value.buffer)
    repeated = value_of(value.buffer, buffer, order_of(value, buffer, shape_of(operand)).broadcast_to(shape_of(node)))
    if repeated is None:
        raise b.calls.refusal(node, "across samples")
    b.values[node] = repeated


def pad(b: Builder, node: fx.Node) -> None:
    """Lower ``F.pad`` with a constant: zeros around an image are the convolutions' that read it, others are written."""
    given = list(node.args[1])  # type: ignore[arg-type]  # numbers
    number = float(argument(node, 3, "value", None) or 0.0)
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    value = b.value(operand, node)
    axes = len(given) // 2
    plain = number == 0.0 and min(given) >= 0 and axes in {1, 2, 3} and len(shape_of(operand)) == 2 + axes
    if plain and all(b.calls.is_convolution(reader) for reader in node.users):
        left, right, top, bottom, front, back = (*given, *[0] * 6)[:6]
        b.values[node], b.borders[node] = value, ((front, back), (top, bottom), (left, right))
        return
    shape, source = shape_of(node), b.buffer(value.buffer)
    elements = order_of(value, source, shape_of(operand))
    padded = torch.nn.functional.pad(elements[0], given, value=-1)
    limits = b.limits(node)
    layout = image_layout(shape[1:])
    output = b.add_alike(layout, source) if number == 0.0 else b.add_buffer(layout, limits)
    result = b.buffer(output)
    places = torch.arange(result.size)
    b.move(value.buffer, output, padded.flatten(), places)
    b.program.layers[-1].fields["output_zero_point"] = min(
        max(round(number / result.scale) + result.zero_point, 0), 255
    )
    b.values[node] = Value(output, kept_order(torch.arange(2 * result.size).reshape(shape), result))
    tell(b, node, node, "cpupack::move")
