"""Tells what computes a call, with which scale, and where its values can be seen: a fact for the report of layers."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import fx

from cpupack.artifacts import LayerFact
from cpupack.graph.names import scoped_name
from cpupack.graph.native_model import Look
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.program import Buffer
from cpupack.stages.quantize.native.recurrence import Words
from cpupack.stages.quantize.native.values import Value, channels_of
from cpupack.stages.quantize.native.walks import View


def tell(
    b: Builder, node: fx.Node, result: fx.Node, kernel: str, *, kind: str = "", weight_sqnr_db: float | None = None
) -> None:
    """Record the fact about ``node`` and the calls up to ``result``, whose values the last layer writes."""
    value = b.values[result]
    assert isinstance(value, Value)
    buffer = _grid_of(b, result, value)
    fact = LayerFact(
        name=scoped_name(node),
        kind=kind or b.calls.kind(node),
        precision="int8",
        kernel=kernel,
        scale=buffer.scale if buffer else None,
        zero_point=buffer.zero_point if buffer else None,
        weight_sqnr_db=weight_sqnr_db,
    )
    b.ledger.record(_compared(b, node, fact), _look(b, result, value))


def _grid_of(b: Builder, node: fx.Node, value: Value) -> Buffer | None:
    """Return the buffer of a call's codes with their scale. None where there are no codes, or several scales."""
    if value.buffer < 0:
        return None
    buffer = b.buffer(value.buffer)
    if node in b.in_place:
        return buffer.part(_first_channel(b, value))
    return buffer if buffer.parts is None else None


def _first_channel(b: Builder, value: Value) -> int:
    """Return the first channel of what the last layer left in a buffer."""
    last = next(each for each in reversed(b.program.layers) if each.output == value.buffer)
    return int(last.fields.get("channel_offset", 0))


def tell_float(b: Builder, node: fx.Node, kernel: str) -> None:
    """Record the fact about a call in FP32, which has no codes."""
    reason = b.reasons[node.name]
    b.ledger.record(LayerFact(scoped_name(node), b.calls.kind(node), "fp32", kernel, reason=reason), None)


_OF_WORDS = {
    Words.NONE: "",
    Words.INPUTS: " with inputs of 16 bits",
    Words.HIDDEN: " with hidden values of 16 bits",
    Words.ALL: " of 16 bits",
}


def tell_recurrent(b: Builder, node: fx.Node, kind: str, weight_sqnr_db: float, words: Words) -> None:
    """Record the fact about a recurrent layer, whose codes have a scale of their own in each step."""
    kernel = f"cpupack::recurrent{_OF_WORDS[words]}"
    b.ledger.record(LayerFact(scoped_name(node), kind, "int8", kernel, weight_sqnr_db=weight_sqnr_db), None)


def tell_rows(
    b: Builder, node: fx.Node, result: fx.Node, kernel: str, *, kind: str, weight_sqnr_db: float | None
) -> None:
    """Record the fact about a layer in INT8 whose activations have a scale for each row."""
    fact = LayerFact(scoped_name(node), kind, "int8", kernel, weight_sqnr_db=weight_sqnr_db)
    b.ledger.record(_compared(b, node, fact), _look_at_floats(b, result))


def _compared(b: Builder, node: fx.Node, fact: LayerFact) -> LayerFact:
    """Return the fact with what the two forms of a linear layer lose."""
    forms = b.forms.get(node.name)
    return fact if forms is None else replace(fact, rows_sqnr_db=forms.rows_db, range_sqnr_db=forms.range_db)


def _look(b: Builder, node: fx.Node, value: Value) -> Look | None:
    if value.buffer < 0 and node not in b.left:
        return _look_at_floats(b, node)
    if node in b.left_by_positions:
        depth, height, width = shape_of(node)[1:]
        return Look(node.name, first=b.left[node], sizes=(depth, height, width), steps=(1, width * depth, depth))
    if value.buffer < 0:
        return Look(node.name, first=b.left[node], channels=(0, math.prod(shape_of(node)[1:])))
    layers, buffer = b.program.layers, _grid_of(b, node, value)
    if buffer is None:
        return None
    last = max(number for number, each in enumerate(layers) if each.output == value.buffer)
    if node in b.in_place:
        first = _first_channel(b, value)
        channels = list(range(first, first + shape_of(node)[1]))
    else:
        channels = channels_of(value, buffer) or []
    if not channels or channels != list(range(channels[0], channels[-1] + 1)):
        return None  # not side by side
    return Look(
        node.name,
        layer=last,
        shape=(buffer.frames * buffer.height, buffer.width, buffer.channels),
        channels=(channels[0], channels[-1] + 1),
        scale=buffer.scale,
        zero_point=buffer.zero_point,
    )


def _look_at_floats(b: Builder, node: fx.Node) -> Look | None:
    view = b.floats.values.get(node)
    if not isinstance(view, View) or view.buffer is None or len(view.shape) not in {1, 3}:
        return None  # of sequences, the model may have the batch elsewhere
    layers, buffer = b.program.layers, b.buffer(view.buffer)
    return Look(
        node.name,
        layer=max(number for number, each in enumerate(layers) if each.output == view.buffer),
        first=view.first,
        shape=(buffer.frames * buffer.height, buffer.width, buffer.channels),
        sizes=view.shape,
        steps=view.steps,
    )
