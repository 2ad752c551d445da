"""Linear layers of rows with scales of their own, and the calls that their kernel includes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cpupack.accuracy import sqnr_db
from cpupack.graph.names import core
from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.filters import bias_of
from cpupack.stages.quantize.native.fit import limit_conv
from cpupack.stages.quantize.native.float_functions import BINARY, instructions_of, of_module
from cpupack.stages.quantize.native.row_codes import RowCodes, append_codes, append_linear, row_step
from cpupack.stages.quantize.native.walks import Instruction, View, dense_steps
from cpupack.stages.quantize.native.weights import quantize_weights


@dataclass
class _Included:
    """The calls after a linear layer that its kernel includes: they end with ``last``.

    ``factor`` is what they multiply the outputs with before anything else.
    """

    last: fx.Node
    names: list[str]
    nodes: list[fx.Node] = field(default_factory=list)
    factor: torch.Tensor | None = None
    code: list[Instruction] = field(default_factory=list)
    second: View | None = None


def linear_by_rows(b: Builder, node: fx.Node) -> None:
    """Lower a linear layer whose activations get a scale for each row, with what follows it."""
    module = b.calls.module(node)
    assert module is not None
    layer: Any = core(module)
    source = node.all_input_nodes[0]
    codes = codes_of(b, source, node)
    fused = list(module)[1:] if isinstance(module, nn.Sequential) else []
    code: list[Instruction] = []
    for each in fused:
        more = of_module(each)
        if more is None:
            raise b.calls.refusal(node, f"with {type(each).__name__}")
        code += more
    found = _included(b, node, code)
    weight, bias = layer.weight.detach(), bias_of(layer)
    if found.factor is not None:
        weight, bias = weight * found.factor[:, None], bias * found.factor
    filters = weight[:, :, None, None]
    per_channel = b.recipe.weights == "per_channel"
    rounded, scales = (
        limit_conv(filters, 1, dilated=False, per_channel=per_channel, most=2)
        if b.fitting
        else quantize_weights(filters, per_channel=per_channel)
    )
    view = append_linear(
        b.floats, codes, rounded[:, :, 0, 0], np.asarray(scales, np.float64).reshape(-1), bias.double().numpy(),
        instructions=found.code, second=found.second,
    )  # fmt: skip
    b.absorbed.update([node, *found.nodes][:-1])
    after = tuple(shape_of(found.last)[1:])
    b.floats.values[found.last] = View(view.buffer, after, dense_steps(after))
    error = sqnr_db(filters.numpy(), rounded * np.asarray(scales).reshape(-1, 1, 1, 1))
    kind = "+".join([b.calls.kind(node), *(b.calls.kind(each) for each in found.nodes if not b.calls.rearranges(each))])
    b.tell_rows(node, found.last, " + ".join(["cpupack::linear", *found.names]), kind=kind, weight_sqnr_db=error)


def codes_of(b: Builder, source: fx.Node, reader: fx.Node) -> RowCodes:
    """Return a tensor as rows of codes; they are made once for all that read them."""
    found = b.row_codes.get(source)
    if found is None:
        operand, norm = b.norms.get(source, (None, None))
        found = append_codes(b.floats, as_floats(b, source, reader) if operand is None else operand, norm)
        b.row_codes[source] = found
    return found


def _included(b: Builder, node: fx.Node, code: list[Instruction]) -> _Included:
    """Return the calls after a layer that its kernel includes. Each is the only reader of the one before."""
    found = _Included(node, [], code=list(code))
    shape = shape_of(node)
    while len(found.last.users) == 1:
        reader = next(iter(found.last.users))
        if reader.op == "output" or not b.is_float(reader) or b.is_by_rows(reader):
            break
        if _keeps_rows(b, reader, found.last):
            found.last, shape = reader, shape_of(reader)
            found.nodes.append(reader)
            continue
        if shape_of(reader) != shape:
            break
        factor = _factor(b, reader, found.last) if not found.code and found.second is None else None
        more = instructions_of(b.calls.graph, reader)
        if factor is not None:
            found.factor = factor if found.factor is None else found.factor * factor
        elif more is not None:
            found.code += more
        elif not _with_second(b, reader, found):
            break
        found.last = reader
        found.nodes.append(reader)
        found.names.append(b.calls.kind(reader).lower().strip("_").partition(".")[0])
    return found


def _keeps_rows(b: Builder, reader: fx.Node, source: fx.Node) -> bool:
    """Whether a call gives the values of a tensor in another shape, with the same rows in the same order."""
    if not b.calls.rearranges(reader) or "shape" not in reader.meta or shape_of(reader)[-1:] != shape_of(source)[-1:]:
        return False
    shape = shape_of(source)
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    order = b.calls.rearranged(reader, {source: numbers})
    return isinstance(order, torch.Tensor) and len(order) == 2 and torch.equal(order.flatten(), numbers.flatten())


def _factor(b: Builder, reader: fx.Node, source: fx.Node) -> torch.Tensor | None:
    """Return what a call multiplies each output of a layer with, None for another call."""
    if reader.target is not torch.mul or len(reader.args) != 2 or reader.kwargs:
        return None
    others = [each for each in reader.args if each is not source]
    constant = b.calls.constant(others[0]) if len(others) == 1 else None
    outputs = shape_of(source)[-1]
    if constant is None or constant.numel() not in {1, outputs}:
        return None
    if constant.numel() > 1 and constant.shape[-1] != outputs:
        return None
    return constant.detach().float().reshape(-1).expand(outputs)


def _with_second(b: Builder, reader: fx.Node, found: _Included) -> bool:
    """Include a function of the results and of a tensor that is there already."""
    if reader.target not in BINARY or len(reader.args) != 2 or reader.kwargs or found.second is not None:
        return False
    others = [each for each in reader.args if each is not found.last]
    other = others[0] if len(others) == 1 else None
    if not isinstance(other, fx.Node) or other.op == "get_attr" or "shape" not in other.meta:
        return False
    if shape_of(other) != shape_of(reader) or (other not in b.floats.values and other not in b.values):
        return False
    view = as_floats(b, other, reader)
    if not isinstance(view, View) or row_step(view) is None:
        return False
    function = BINARY[reader.target]
    first = reader.args[0] is found.last
    found.second = view
    found.code.append(Instruction(function, 0, 0, 1) if first else Instruction(function, 0, 1, 0))
    return True
