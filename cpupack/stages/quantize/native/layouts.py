"""Constants as activations: tables that the graph lays out for each sample, for a concatenation or a sum to read."""

from __future__ import annotations

import torch
from torch import fx

from cpupack.stages.quantize.native.affine import set_constants
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import Calls, shape_of
from cpupack.stages.quantize.native.joins import kept_order
from cpupack.stages.quantize.native.moves import FILL
from cpupack.stages.quantize.native.program import Layer, Op
from cpupack.stages.quantize.native.tell import tell
from cpupack.stages.quantize.native.values import Value, image_layout


def is_laid_out(calls: Calls, node: fx.Node) -> bool:
    """Whether a call lays a constant out for the batch: coordinates of pixels, zeros to write in, a class token."""
    if node.op != "call_method" or node.target != "expand":
        return False
    table = calls.constant(node.args[0])
    return table is not None and table.ndim == len(shape_of(node)) > 1 and len(table) == 1


def lay_out(b: Builder, node: fx.Node) -> None:
    """Lower a constant that is laid out: zeros of which a layer makes the constant, in float32 and rounded once."""
    written = [each.buffer for each in b.values.values() if isinstance(each, Value) and each.buffer >= 0]
    if not is_laid_out(b.calls, node) or not written:
        raise b.calls.refusal(node)
    table = b.calls.constant(node.args[0])
    assert table is not None
    shape = shape_of(node)
    layout = image_layout(shape[1:])
    zeros = b.add_buffer(layout, (0.0, 1.0))
    size = b.buffer(zeros).size
    b.move(written[-1], zeros, torch.full((size,), FILL), torch.arange(size))
    values = table[0].expand(shape[1:])
    output = b.add_buffer(layout, b.choices.span(float(values.min()), float(values.max())))
    one, result = b.buffer(zeros), b.buffer(output)
    layer = Layer(Op.AFFINE, input=zeros, output=output)
    layer.fields = {"input_zero_point": one.zero_point, "output_zero_point": result.zero_point}
    places = values.double().reshape(layout.channels, -1, layout.width).permute(1, 2, 0)
    set_constants(layer, [torch.zeros_like(places), places], one, result)
    b.append(layer)
    b.values[node] = Value(output, kept_order(torch.arange(2 * size).reshape(shape), result))
    tell(b, node, node, "cpupack::affine")
