"""The fused FP32 graph -> a program for the INT8 engine: call by call, in the order of the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.artifacts import CalibratedModel, LayerFact, LayerSaturation
from cpupack.errors import QuantizationError
from cpupack.graph.names import is_within, scoped_name
from cpupack.graph.native_model import NativeModel
from cpupack.recipe import Quantize
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.stages.quantize.native import joins, pooling
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import ADDS, CONCATENATIONS, MEANS, PRODUCTS, Calls, is_plain, shape_of
from cpupack.stages.quantize.native.dense import convolve, has_weights
from cpupack.stages.quantize.native.program import Flag, Layer, Op
from cpupack.stages.quantize.native.split import Split, split
from cpupack.stages.quantize.native.values import Value, channels_last, order_of

_LOWERED_BY: dict[Any, Callable[[Builder, fx.Node], None]] = {
    nn.MaxPool2d: pooling.max_pool,
    F.max_pool2d: pooling.max_pool,
    torch.max_pool2d: pooling.max_pool,
    nn.AvgPool2d: pooling.average_pool,
    F.avg_pool2d: pooling.average_pool,
    nn.AdaptiveAvgPool2d: pooling.adaptive_average_pool,
    F.adaptive_avg_pool2d: pooling.adaptive_average_pool,
    **dict.fromkeys(MEANS, pooling.mean),
    **dict.fromkeys(CONCATENATIONS, joins.concatenate),
}


def lower(
    calibrated: CalibratedModel,
    recipe: Quantize,
    input_shape: tuple[int, ...],
    preprocess: PreprocessSpec | None,
    *,
    fitting: bool = False,
) -> tuple[NativeModel, tuple[LayerFact, ...], tuple[LayerSaturation, ...]]:
    """Return a fused graph as the engine runs it, with the ranges that the observer chooses, and each layer's facts.

    With ``preprocess`` the model takes uint8 pixels too, where the input is read by one plain convolution alone. With
    ``fitting`` weights are the closest whose products fit into 16-bit sums, for CPUs that have no others; what those
    come to is told then.
    Raises QuantizationError naming the first layer that the engine has no kernel for.
    """
    if calibrated.fused.style != "fx" or not isinstance(calibrated.fused.module, fx.GraphModule):
        raise QuantizationError("the native engine takes statically quantized models that torch.fx can trace")
    calls = Calls(copy.deepcopy(calibrated.fused.module), input_shape)
    parts = split(calls, recipe.skip)
    source = shape_of(next(iter(parts.body.graph.nodes)))[1:]
    if len(source) not in {1, 3}:
        raise QuantizationError(
            f"the native engine takes images (channels, height, width) and vectors; the input is {tuple(source)}"
        )
    body_calls = Calls(parts.body, tuple(source))
    channels, height, width = source if len(source) == 3 else (*source, 1, 1)
    builder = Builder(
        body_calls,
        calibrated.stats,
        recipe,
        (channels, height, width),
        preprocess if parts.head is None else None,
        fitting=fitting,
    )
    for node in parts.body.graph.nodes:
        if node.op != "output" and node not in builder.values and node not in builder.absorbed:
            _lower_call(builder, node)
    by_position = _finish(builder)
    model = _model(builder, calls, parts, image=by_position)
    return model, _facts(builder, calls, parts, recipe.skip), tuple(builder.sums)


def _lower_call(b: Builder, node: fx.Node) -> None:
    calls, target = b.calls, b.calls.target(node)
    if node.op == "placeholder":
        _take_input(b, node)
    elif calls.is_constant(node) or node.op == "get_attr":
        return  # a size or a number: who reads it knows the value
    elif has_weights(calls, node):
        convolve(b, node)
    elif calls.is_activation(node):
        joins.activate(b, node)
    elif target in ADDS and is_plain(node):
        joins.add(b, node)
    elif target in PRODUCTS and is_plain(node):
        joins.multiply(b, node)
    elif calls.is_alias(node):
        b.values[node] = b.value(node.args[0], node)
    elif calls.rearranges(node):
        joins.rearrange(b, node)
    elif target in _LOWERED_BY:
        _LOWERED_BY[target](b, node)
    else:
        raise calls.refusal(node)


def _take_input(b: Builder, node: fx.Node) -> None:
    program = b.program
    number = b.add_buffer(program.input_height, program.input_width, program.input_channels_float, b.limits(node))
    buffer = b.buffer(number)
    fields = {"scale": 1.0 / buffer.scale, "output_zero_point": buffer.zero_point}
    b.append(Layer(Op.INPUT_FLOAT, Flag.ONLY_FLOAT, output=number, fields=fields))
    b.values[node] = Value(number)


def _finish(b: Builder) -> bool:
    """Have the result leave as float32 where its layer did not see to that; return whether as an image by positions."""
    if b.program.outputs:
        return False
    value = b.value(b.result, b.result)
    buffer, shape = b.buffer(value.buffer), shape_of(b.result)
    order = order_of(value, buffer, shape)
    by_position = channels_last(buffer, (2, buffer.size))
    image = value.order is None and len(shape) == 4
    if not image and not torch.equal(order.reshape(2, -1), by_position):
        raise b.calls.refusal(b.result, "as the result, whose values are not in the order of the memory")
    fields = {"scale": buffer.scale, "input_zero_point": buffer.zero_point, "channels_out": buffer.size}
    b.append(Layer(Op.OUTPUT, Flag.FLOAT_OUT, input=value.buffer, fields=fields))
    b.program.outputs = buffer.size
    return image


def _model(b: Builder, calls: Calls, parts: Split, *, image: bool) -> NativeModel:
    program = b.program
    return NativeModel(
        program.to_bytes(),
        shape_of(b.result)[1:],
        program.operators(),
        (*(None for _ in _told(calls, parts.head_calls)), *b.looks, *(None for _ in _told(calls, parts.tail_calls))),
        pixel_input=program.input_channels_pixels > 0,
        image=image,
        head=parts.head,
        tail=parts.tail,
    ).eval()


def _facts(b: Builder, calls: Calls, parts: Split, skip: list[str]) -> tuple[LayerFact, ...]:
    def fact(node: fx.Node) -> LayerFact:
        name = scoped_name(node)
        reason = "listed in skip" if is_within(name, skip) else "comes before or behind the INT8 part"
        return LayerFact(name, calls.kind(node), "fp32", "aten", reason=reason)

    return (*map(fact, _told(calls, parts.head_calls)), *b.facts, *map(fact, _told(calls, parts.tail_calls)))


def _told(calls: Calls, nodes: tuple[fx.Node, ...]) -> list[fx.Node]:
    """Return the calls that compute."""
    return [
        node
        for node in nodes
        if node.op.startswith("call")
        and not (calls.is_constant(node) or calls.rearranges(node) or calls.is_alias(node))
    ]
