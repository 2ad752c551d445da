"""Calls on several activations, or on one value at a time: sums, gates, concatenations, activations."""

from __future__ import annotations

import torch
from torch import fx

from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import is_concatenation, parts_of, shape_of
from cpupack.stages.quantize.native.functions import activation_of, ends_with_relu, table_of
from cpupack.stages.quantize.native.program import Buffer, Layer, Op
from cpupack.stages.quantize.native.select import select_channels
from cpupack.stages.quantize.native.values import Value, channels_of, order_of, value_of


def add(b: Builder, node: fx.Node) -> None:
    """Lower the sum of two activations of one shape, with a ReLU behind it."""
    first, second, order = _operands(b, node)
    one, other = b.buffer(first), b.buffer(second)
    if _size(one) != _size(other):
        raise b.calls.refusal(node, "of different shapes")
    reader = b.calls.only_reader(node)
    relu = reader is not None and ends_with_relu(b.calls.graph, reader) and activation_of(b.calls.graph, reader)
    last = reader if reader is not None and relu else node
    if last is not node:
        b.absorbed.add(node)
    output = b.add_buffer(*_size(one), b.limits(last))
    result = b.buffer(output)
    fields = {
        "scale": one.scale / result.scale, "scale2": other.scale / result.scale, "input_zero_point": one.zero_point,
        "input2_zero_point": other.zero_point, "output_zero_point": result.zero_point,
        "low": result.zero_point if last is not node else 0,
    }  # fmt: skip
    b.append(Layer(Op.ADD, input=first, input2=second, output=output, fields=fields))
    b.values[last] = Value(output, order)
    if last is node:
        b.tell(node, last, "cpupack::add")
    else:
        b.tell(node, last, "cpupack::add + relu", kind=f"{b.calls.kind(node)}+{b.calls.kind(last)}")


def _operands(b: Builder, node: fx.Node) -> tuple[int, int, torch.Tensor | None]:
    """Return the buffers of a sum and the order that both have their values in, copied where they differ."""
    one, other = (b.value(each, node) for each in node.args)
    same = one.order is not None and other.order is not None and torch.equal(one.order, other.order)
    if same and _size(b.buffer(one.buffer)) == _size(b.buffer(other.buffer)):
        return one.buffer, other.buffer, one.order
    first, second = (b.image(each, node) for each in node.args)
    return first, second, None


def multiply(b: Builder, node: fx.Node) -> None:
    """Lower an image times one factor for each sample and channel: squeeze-and-excitation."""
    numbers = [b.image(each, node) for each in node.args]
    sizes = [(b.buffer(each).height, b.buffer(each).width) for each in numbers]
    if (1, 1) not in sizes:
        raise b.calls.refusal(node, "of two images")
    gate = numbers.pop(sizes.index((1, 1)))
    x, factor = b.buffer(numbers[0]), b.buffer(gate)
    if x.channels != factor.channels:
        raise b.calls.refusal(node, "of different numbers of channels")
    output = b.add_buffer(*_size(x), b.limits(node))
    result = b.buffer(output)
    fields = {
        "scale": x.scale * factor.scale / result.scale, "input_zero_point": x.zero_point,
        "input2_zero_point": factor.zero_point, "output_zero_point": result.zero_point,
    }  # fmt: skip
    b.append(Layer(Op.SCALE, input=numbers[0], input2=gate, output=output, fields=fields))
    b.values[node] = Value(output)
    b.tell(node, node, "cpupack::scale")


def activate(b: Builder, node: fx.Node) -> None:
    """Lower a function of one value as a table; the values keep their order."""
    function = activation_of(b.calls.graph, node)
    assert function is not None
    operand = node.all_input_nodes[0]
    value = b.value(operand, node)
    if value.order is not None and value.order[0].numel() != b.buffer(value.buffer).size:
        value = Value(b.image(operand, node))  # a part: the rest need not be computed
    source = b.buffer(value.buffer)
    output = b.add_buffer(*_size(source), b.limits(node))
    table = table_of(function, source, b.buffer(output))
    b.append(Layer(Op.TABLE, input=value.buffer, output=output, constants={"table": table}))
    b.values[node] = Value(output, value.order)
    b.tell(node, node, "cpupack::table")


def concatenate(b: Builder, node: fx.Node) -> None:
    """Lower a concatenation of channels: parts that are not in their place already are copied, rescaled."""
    if not is_concatenation(node):
        raise b.calls.refusal(node, "along anything but channels")
    output = b.joined(node)
    result, offset, copied = b.buffer(output), 0, False
    for part in parts_of(node):
        if part not in b.in_place and (output, offset) not in b.copied:
            _copy_part(b, node, part, output, result, offset)
            b.copied.add((output, offset))
            copied = True
        offset += shape_of(part)[1]
    order = order_of(Value(output), result, (2, *_channels_first(result)))[:, : shape_of(node)[1]]
    value = value_of(output, result, order.reshape(shape_of(node)))
    assert value is not None
    b.values[node] = value
    b.tell(node, node, "cpupack::table" if copied else "in place")


def _channels_first(buffer: Buffer) -> tuple[int, int, int]:
    return buffer.channels, buffer.height, buffer.width


def _copy_part(b: Builder, node: fx.Node, part: fx.Node, output: int, result: Buffer, offset: int) -> None:
    value = b.value(part, node)
    source = b.buffer(value.buffer)
    channels = channels_of(value, source)
    if channels is None:
        raise b.calls.refusal(node, "of values in this order")
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


def _size(buffer: Buffer) -> tuple[int, int, int]:
    return buffer.height, buffer.width, buffer.channels
