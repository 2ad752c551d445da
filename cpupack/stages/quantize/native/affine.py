"""Sums and products with constants of the graph. They are computed in float32, so no constant is rounded to 8 bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from cpupack.graph.vocabulary import ARITHMETIC
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import Calls, shape_of
from cpupack.stages.quantize.native.joins import between, kept_order, tell_with_relu, with_relu
from cpupack.stages.quantize.native.program import Buffer, Layer, Op
from cpupack.stages.quantize.native.tell import tell
from cpupack.stages.quantize.native.values import Value, is_whole, order_of


def is_affine(calls: Calls, node: fx.Node) -> bool:
    """Whether a call is a sum, difference, product or quotient of one activation and one constant."""
    if node.op != "call_function" or node.target not in ARITHMETIC or node.kwargs or len(node.args) != 2:
        return False
    constants = [calls.constant(each) is not None for each in node.args]
    return sum(constants) == 1 and not (node.target is torch.div and constants[0])


def is_sloped(calls: Calls, node: fx.Node) -> bool:
    """Whether a call is a PReLU with a separate slope for each channel."""
    module = calls.module(node)
    return isinstance(module, nn.PReLU) and module.num_parameters > 1


def slopes_of(calls: Calls, node: fx.Node) -> npt.NDArray[np.float64]:
    """Return the slopes ``(channels,)`` of such a PReLU."""
    module = calls.module(node)
    assert isinstance(module, nn.PReLU)
    slopes: npt.NDArray[np.float64] = module.weight.detach().double().numpy()
    return slopes


def scale_and_shift(b: Builder, node: fx.Node) -> None:
    """Lower consecutive calls of arithmetic with constants, and a ReLU after them."""
    factor, shift = torch.ones(()), torch.zeros(())
    last, reader = node, node
    operand = next(each for each in node.args if b.calls.constant(each) is None)
    source: object = operand
    shape = shape_of(node)
    while True:
        factor, shift = _then(b.calls, reader, source, factor, shift)
        last = reader
        following = b.calls.only_reader(last)
        if following is None or not is_affine(b.calls, following) or shape_of(following) != shape:
            break
        source, reader = last, following
    b.absorbed.update([node, *between(node, last)][:-1])
    end = with_relu(b, last)
    number, order = _placed(b, operand, node, shape)
    one = b.buffer(number)
    output = b.add_buffer(one.layout, b.limits(end))
    result = b.buffer(output)
    layer = Layer(Op.AFFINE, input=number, output=output)
    layer.fields = {
        "input_zero_point": one.zero_point, "output_zero_point": result.zero_point,
        "low": result.zero_point if end is not last else 0,
    }  # fmt: skip
    everywhere = order_of(Value(number, order), one, shape)[0]
    set_constants(layer, [_in_place(each, everywhere, one) for each in (factor, shift)], one, result)
    b.append(layer)
    tell_with_relu(b, last, end, Value(output, order), "affine")


def slope(b: Builder, node: fx.Node) -> None:
    """Lower a PReLU whose slopes differ from channel to channel."""
    module = b.calls.module(node)
    assert isinstance(module, nn.PReLU)
    shape = shape_of(node)
    number, order = _placed(b, node.args[0], node, shape)
    one = b.buffer(number)
    output = b.add_buffer(one.layout, b.limits(node))
    result = b.buffer(output)
    layer = Layer(Op.AFFINE, input=number, output=output)
    layer.fields = {"input_zero_point": one.zero_point, "output_zero_point": result.zero_point}
    slopes = module.weight.detach().reshape(-1, *[1] * (len(shape) - 2))
    everywhere = order_of(Value(number, order), one, shape)[0]
    constants = [_in_place(each, everywhere, one) for each in (torch.ones(()), torch.zeros(()), slopes)]
    set_constants(layer, constants, one, result)
    b.append(layer)
    b.values[node] = Value(output, order)
    tell(b, node, node, "cpupack::affine")


def _then(
    calls: Calls, node: fx.Node, source: object, factor: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factor and shift of ``node``, combined with those of its input."""
    first = node.args[0] is source
    constant = calls.constant(node.args[1] if first else node.args[0])
    assert constant is not None
    constant = constant.double()
    if node.target is torch.add:
        return factor, shift + constant
    if node.target is torch.sub:
        return (factor, shift - constant) if first else (-factor, constant - shift)
    if node.target is torch.div:
        return factor / constant, shift / constant
    return factor * constant, shift * constant


def _placed(b: Builder, operand: object, node: fx.Node, shape: tuple[int, ...]) -> tuple[int, torch.Tensor | None]:
    """Return a buffer with each value of an operand once, and their order. A part, or repeated values, are copied."""
    assert isinstance(operand, fx.Node)
    value = b.value(operand, node)
    if shape_of(operand) != shape:
        raise b.calls.refusal(node, "with a constant larger than the activation")
    if value.order is None or is_whole(value.order, b.buffer(value.buffer)):
        return value.buffer, value.order
    number = b.image(operand, node)
    natural = torch.arange(2 * b.buffer(number).size).reshape(shape)
    return number, kept_order(natural, b.buffer(number))


def _in_place(constant: torch.Tensor, order: torch.Tensor, buffer: Buffer) -> torch.Tensor:
    """Return a constant as ``(rows, width, channels)`` of a buffer, as ``(channels,)`` if all positions are equal."""
    if constant.ndim > order.ndim:
        constant = constant.reshape(constant.shape[constant.ndim - order.ndim :])  # a batch of one
    everywhere = torch.empty(buffer.size, dtype=torch.float64)
    everywhere[order.flatten()] = constant.double().broadcast_to(order.shape).flatten()
    by_channel = everywhere.reshape(buffer.channels, -1)
    if bool((by_channel == by_channel[:, :1]).all()):
        return by_channel[:, 0]
    return by_channel.reshape(buffer.channels, -1, buffer.width).permute(1, 2, 0)


def set_constants(layer: Layer, constants: list[torch.Tensor], source: Buffer, result: Buffer) -> None:
    """Give a layer factor, shift and maybe the factor of negative values, in codes."""
    places = any(each.ndim == 3 for each in constants)
    if places:
        full = (source.frames * source.height, source.width, source.channels)
        constants = [each.expand(full) for each in constants]
    factor, shift, *negative = (each.numpy() for each in constants)
    ratio = source.scale / result.scale
    layer.fields |= {"runs": 2 if negative else 1, "chunks": int(places)}
    layer.constants["scales"] = (factor * ratio).astype(np.float32)
    layer.constants["biases"] = (shift / result.scale + result.zero_point).astype(np.float32)
    if negative:
        layer.constants["weights"] = (negative[0] * ratio).astype(np.float32)
