"""Linear layers of rows with scales of their own, and the calls that their kernel includes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
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
from cpupack.stages.quantize.native.row_moves import moved_rows
from cpupack.stages.quantize.native.tell import tell_rows
from cpupack.stages.quantize.native.walks import Function, Instruction, View, dense_steps
from cpupack.stages.quantize.native.weights import quantize_weights


@dataclass
class _Included:
    """The calls after a linear layer that its kernel includes: they end with ``last``.

    ``factor`` is what they multiply the outputs with before anything else. ``places`` is the row of results that each
    row becomes, where calls change their order.
    """

    last: fx.Node
    names: list[str]
    nodes: list[fx.Node] = field(default_factory=list)
    factor: torch.Tensor | None = None
    code: list[Instruction] = field(default_factory=list)
    second: View | None = None
    places: torch.Tensor | None = None


@dataclass(frozen=True)
class _Rounded:
    """A linear layer in INT8: int8 ``weights (out, in)``, float64 ``scales (out,)`` and ``bias (out,)``."""

    weights: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    sqnr_db: float


def linear_by_rows(b: Builder, node: fx.Node) -> None:
    """Lower a linear layer whose activations get a scale for each row, with what follows it.

    Layers that read the same rows (queries, keys and values) become one, if nothing but scales follows them: their
    results lie side by side, where attention reads them without copies.
    """
    source = node.all_input_nodes[0]
    codes = codes_of(b, source, node)
    whole = {node: _included(b, node, _fused_code(b, node))}
    if _is_alone(whole[node]):
        later = {each: _included(b, each, _fused_code(b, each)) for each in source.users if _is_sibling(b, each, node)}
        whole |= {each: found for each, found in later.items() if _is_alone(found)}
    layers = [_rounded(b, each, found) for each, found in whole.items()]
    view = append_linear(
        b.floats, codes, np.concatenate([each.weights for each in layers]),
        np.concatenate([each.scales for each in layers]), np.concatenate([each.bias for each in layers]),
        instructions=whole[node].code, second=whole[node].second, places=whole[node].places,
    )  # fmt: skip
    first = 0
    for (each, found), layer in zip(whole.items(), layers, strict=True):
        b.absorbed.update([each, *found.nodes][:-1])
        outputs = len(layer.weights)
        own = View(view.buffer, (*view.shape[:-1], outputs), view.steps, view.first + first)
        first += outputs
        b.floats.values[found.last] = _in_shape(own, tuple(shape_of(found.last)[1:]))
        names = [b.calls.kind(one) for one in found.nodes if not b.calls.rearranges(one)]
        kernel = " + ".join(["cpupack::linear", *found.names]) + (", joined" if len(whole) > 1 else "")
        kernel += ", smoothed" if b.divided.get(source) is not None else ""
        tell_rows(
            b, each, found.last, kernel, kind="+".join([b.calls.kind(each), *names]), weight_sqnr_db=layer.sqnr_db
        )


def _fused_code(b: Builder, node: fx.Node) -> list[Instruction]:
    """Return the functions that were fused into a linear layer."""
    code: list[Instruction] = []
    for each in _fused(b, node):
        more = of_module(each)
        if more is None:
            raise b.calls.refusal(node, f"with {type(each).__name__}")
        code += more
    return code


def _is_alone(found: _Included) -> bool:
    return not found.code and found.second is None and found.places is None


def _is_sibling(b: Builder, node: fx.Node, first: fx.Node) -> bool:
    """Whether a call is another linear layer of the same rows, which has not been lowered."""
    return (
        node is not first
        and node.op == "call_module"
        and b.is_by_rows(node)
        and not (node in b.absorbed or node in b.floats.values)
        and all(of_module(each) is not None for each in _fused(b, node))
    )


def _fused(b: Builder, node: fx.Node) -> list[nn.Module]:
    module = b.calls.module(node)
    return list(module)[1:] if isinstance(module, nn.Sequential) else []


def _rounded(b: Builder, node: fx.Node, found: _Included) -> _Rounded:
    module = b.calls.module(node)
    assert module is not None
    layer: Any = core(module)
    weight, bias = layer.weight.detach(), bias_of(layer)
    divisors = b.divided.get(node.all_input_nodes[0])
    if divisors is not None:
        weight = weight * divisors
    if found.factor is not None:
        weight, bias = weight * found.factor[:, None], bias * found.factor
    filters = weight[:, :, None, None]
    per_channel = b.recipe.weights == "per_channel"
    rounded, scales = (
        limit_conv(filters, 1, dilated=False, per_channel=per_channel, most=2)
        if b.fitting
        else quantize_weights(filters, per_channel=per_channel)
    )
    every = np.broadcast_to(np.asarray(scales, np.float64).reshape(-1), len(rounded))
    error = sqnr_db(filters.numpy(), rounded * every.reshape(-1, 1, 1, 1))
    return _Rounded(rounded[:, :, 0, 0], every, bias.double().numpy(), error)


def _in_shape(view: View, shape: tuple[int, ...]) -> View:
    """Return rows ``(*lead, outputs)`` in another shape with the same rows."""
    row = view.steps[-2] if len(view.shape) > 1 else 0
    lead = tuple(row * step for step in dense_steps(shape[:-1]))
    return View(view.buffer, shape, (*lead, 1), view.first)


def codes_of(b: Builder, source: fx.Node, reader: fx.Node) -> RowCodes:
    """Return a tensor as rows of codes; they are made once for all that read them."""
    found = b.row_codes.get(source)
    if found is None:
        operand, norm = b.waiting.get(source, (None, None))
        divisors = b.divided[source] = b.divisors.get(reader.name)
        factors = None if divisors is None else 1.0 / divisors
        found = append_codes(b.floats, as_floats(b, source, reader) if operand is None else operand, norm, factors)
        b.row_codes[source] = found
    return found


def _included(b: Builder, node: fx.Node, code: list[Instruction]) -> _Included:
    """Return the calls after a layer that its kernel includes. Each is the only reader of the one before."""
    found = _Included(node, [], code=list(code))
    shape = shape_of(node)
    while len(found.last.users) == 1:
        reader = next(iter(found.last.users))
        if reader.op == "output" or not b.is_float(reader) or b.is_by_rows(reader) or "shape" not in reader.meta:
            break  # a call of several results (a split) has no one shape
        places = moved_rows(b, reader, found.last)
        if places is not None:
            if not torch.equal(places, torch.arange(len(places))):
                if found.second is not None:
                    break  # whose rows are in the order of before
                found.places = places if found.places is None else places[found.places]
            found.last, shape = reader, shape_of(reader)
            found.nodes.append(reader)
            continue
        if "shape" not in reader.meta or shape_of(reader) != shape:
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
    found.code = [replace(each, function=_NEAR.get(each.function, each.function)) for each in found.code]
    return found


_NEAR = {Function.GELU: Function.GELU_NEAR, Function.GELU_TANH: Function.GELU_TANH_NEAR}
"""What products of 8-bit codes have instead: their own errors are a hundred times as large."""


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
