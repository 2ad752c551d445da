"""Translates the fused FP32 graph into programs for the INT8 engine, call by call, in the order of the graph."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.artifacts import CalibratedModel, LayerFact, LayerSaturation
from cpupack.graph.names import scoped_name
from cpupack.graph.native_model import MixedModel, NativeModel, NativePart, Packing, Steps
from cpupack.recipe import Quantize
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.stages.quantize.native import affine, joins, layouts, parts, pooling, windows
from cpupack.stages.quantize.native.bridges import as_codes
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import Calls, Refusal, is_plain, shape_of
from cpupack.stages.quantize.native.dense import convolve
from cpupack.stages.quantize.native.filters import has_weights
from cpupack.stages.quantize.native.float_calls import lower_float
from cpupack.stages.quantize.native.measured import divisors_of
from cpupack.stages.quantize.native.plan import Plan, plan_of
from cpupack.stages.quantize.native.recurrent import is_recurrent, part_of, recur
from cpupack.stages.quantize.native.split import Segment, split
from cpupack.stages.quantize.native.walks import Grid
from cpupack.stages.quantize.reasons import SKIPPED

_LOWERED_BY: dict[Any, Callable[[Builder, fx.Node], None]] = {
    nn.MaxPool1d: pooling.max_pool,
    nn.MaxPool2d: pooling.max_pool,
    nn.MaxPool3d: pooling.max_pool,
    nn.AvgPool1d: pooling.average_pool,
    nn.AvgPool2d: pooling.average_pool,
    nn.AvgPool3d: pooling.average_pool,
    nn.AdaptiveAvgPool1d: pooling.adaptive_average_pool,
    nn.AdaptiveAvgPool2d: pooling.adaptive_average_pool,
    nn.AdaptiveAvgPool3d: pooling.adaptive_average_pool,
    nn.AdaptiveMaxPool1d: pooling.adaptive_max_pool,
    nn.AdaptiveMaxPool2d: pooling.adaptive_max_pool,
    nn.AdaptiveMaxPool3d: pooling.adaptive_max_pool,
    torch.mean: pooling.reduce,
    torch.sum: pooling.reduce,
    torch.amax: pooling.reduce,
    torch.cat: joins.concatenate,
    F.pad: joins.pad,
    torch.ops.aten.slice_scatter.default: joins.scatter,
    torch.ops.aten.expand.default: joins.expand,
    torch.ops.aten.copy.default: joins.overwrite,
    torch.ops.aten.expand_as.default: joins.expand,
    F.interpolate: windows.interpolate,
    "expand": layouts.lay_out,
}


@dataclass
class _Lowered:
    """A segment's program while it is made, with the way its tensors come and go."""

    builder: Builder
    inputs: tuple[Packing, ...] | None
    outputs: tuple[Packing, ...]
    refused: dict[fx.Node, str]


def lower(
    calibrated: CalibratedModel,
    recipe: Quantize,
    input_shape: tuple[int, ...],
    preprocess: PreprocessSpec | None,
    *,
    fitting: bool = False,
    words: bool = True,
) -> tuple[NativeModel | MixedModel, tuple[LayerFact, ...], tuple[LayerSaturation, ...]]:
    """Return a fused graph as the engine runs it, with the ranges that the observer chooses, and each layer's facts.

    With ``preprocess`` the model also takes uint8 pixels, if the only reader of the input is a plain convolution. With
    ``fitting``, weights are the closest ones whose products fit into 16-bit sums, for CPUs that only have such sums;
    the facts then include these sums. With ``words``, attention multiplies codes of 16 bits. Layers that ``skip``
    names, or for which the engine has no kernel, stay FP32, with the reason. Raises QuantizationError when no layer is
    left for the engine, or when a layer has no calibration data.
    """
    plan = plan_of(calibrated, recipe, input_shape)
    calls, kept, beyond, by_rows = plan.calls, plan.kept, plan.beyond, plan.by_rows
    while True:
        segments, reasons = split(calls, kept, beyond, by_rows)
        natively = [each for each in segments if each.native]
        alone = _is_alone(segments)
        lowered = []
        refused: dict[fx.Node, str] = {}
        for segment in natively:
            found = _lower_segment(
                plan, segment, calibrated, recipe, preprocess, fitting=fitting, words=words, alone=alone,
                reasons=reasons,
            )  # fmt: skip
            lowered.append(found)
            refused |= found.refused
        if not refused:
            break
        beyond |= {node for node in refused if node in reasons}
        kept |= {node: why for node, why in refused.items() if node not in reasons or node in kept}
    facts, looks, steps = _facts(calls, segments, lowered, reasons)
    sums = tuple(each for part in lowered for each in part.builder.sums)
    if alone:
        return _one(calls, segments, lowered[0], looks, steps), facts, sums
    pixels = any(each.builder.program.input_channels_pixels for each in lowered)
    programs = [_part(each) for each in lowered]
    model = parts.join(calls, segments, programs, _operators(lowered), looks, steps=steps, pixel_input=pixels)
    return model, facts, sums


def _is_alone(segments: list[Segment]) -> bool:
    """Whether there is one program, with nothing but calls in FP32 before it and after it: no tensor passes it by."""
    place = next(number for number, each in enumerate(segments) if each.native)
    native, others = segments[place], [each for each in segments if not each.native]
    return (
        len(segments) - len(others) == 1
        and max(place, len(segments) - 1 - place) <= 1
        and len(native.inputs) == len(native.outputs) == 1
        and (place == len(segments) - 1 or segments[-1].inputs == native.outputs)
        and native.outputs[0].meta["dtype"] == torch.float32
    )


def _lower_segment(
    plan: Plan,
    segment: Segment,
    calibrated: CalibratedModel,
    recipe: Quantize,
    preprocess: PreprocessSpec | None,
    *,
    fitting: bool,
    words: bool,
    alone: bool,
    reasons: Mapping[fx.Node, str],
) -> _Lowered:
    """Lower one segment. Calls without a kernel are recorded and replaced by inputs, so that one pass finds all."""
    calls = plan.calls
    body = parts.body_of(calls, segment)
    shapes = [tuple(shape_of(node)[1:]) for node in segment.inputs]
    from_caller = all(node.op == "placeholder" for node in segment.inputs) and len(shapes) == 1
    source = shapes[0] if (alone or from_caller) and len(shapes[0]) in {1, 3} else None
    inputs = None if source is not None else parts.packings(segment.inputs, calls)
    size = source or (sum(each.size for each in inputs or ()),)
    whole = list(segment.inputs[0].users) if from_caller else []
    pixels = preprocess if source is not None and from_caller and set(whole) <= set(segment.nodes) else None
    builder = Builder(
        Calls(body, *shapes, apart={node.name for node in reasons}),
        calibrated.stats,
        recipe,
        (size[0], *(size[1:] if len(size) == 3 else (1, 1))),
        pixels,
        fitting=fitting,
        reasons={node.name: reason for node, reason in reasons.items()},
        by_rows={node.name for node in plan.by_rows},
        recurrent_sqnr_db=calibrated.recurrent_sqnr_db,
        attends_by_words={node.name for node, reason in reasons.items() if words and reason != SKIPPED},
        divisors=divisors_of(calibrated, recipe),
        forms=plan.forms,
        grid=None if calibrated.grid is None else Grid(*calibrated.grid),
        choices=calibrated.choices,
        tables=calibrated.tables,
    )
    builder.quantizes = functools.partial(as_codes, builder)
    originals = {node.name: node for node in segment.nodes}
    refused: dict[fx.Node, str] = {}
    placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
    for number, node in enumerate(placeholders):
        if inputs is None:
            parts.take_image(builder, node)
        else:
            parts.take(builder, node, inputs[number])
        if segment.inputs[number].op != "placeholder":
            builder.magnitudes[node] = math.inf  # what torch has computed may be any number
    for node in body.graph.nodes:
        if node.op in {"output", "placeholder"} or node in builder.values or node in builder.absorbed:
            continue
        if node in builder.floats.values:
            continue
        absorbed, told = set(builder.absorbed), len(builder.ledger.facts)
        builder.ledger.begin()
        try:
            (lower_float if builder.is_float(node) else _lower_call)(builder, node)
        except Refusal as refusal:
            if refusal.node.name not in originals:
                raise
            kernel = "kernel" if builder.is_float(refusal.node) else "INT8 kernel"
            refused[originals[refusal.node.name]] = f"the native engine has no {kernel} for it {refusal.what}".rstrip()
            builder.absorbed = absorbed
            if not parts.stand_in(builder, node):
                break  # several results, which the rest needs
        builder.ledger.end(told)
    outputs = () if refused else parts.finish(builder)
    return _Lowered(builder, inputs, outputs, refused)


def _lower_call(b: Builder, node: fx.Node) -> None:
    calls, target = b.calls, b.calls.target(node)
    if calls.is_constant(node) or node.op == "get_attr":
        return  # a size, a number or a table: its readers know the value
    if has_weights(calls, node):
        convolve(b, node)
    elif is_recurrent(calls, node):
        recur(b, node)
    elif target is operator.getitem and node.args[0] in b.float_tuples:
        part_of(b, node)
    elif calls.is_activation(node):
        joins.activate(b, node)
    elif affine.is_affine(calls, node):
        affine.scale_and_shift(b, node)
    elif affine.is_sloped(calls, node):
        affine.slope(b, node)
    elif target in {torch.add, torch.sub} and is_plain(node):
        joins.add(b, node)
    elif target is torch.mul and is_plain(node):
        joins.multiply(b, node)
    elif calls.rearranges(node):
        joins.rearrange(b, node)
    elif target in _LOWERED_BY:
        _LOWERED_BY[target](b, node)
    else:
        raise calls.refusal(node)


def _operators(lowered: list[_Lowered]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in lowered:
        for name, count in part.builder.program.operators().items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def _one(
    calls: Calls, segments: list[Segment], lowered: _Lowered, looks: tuple[Any, ...], steps: tuple[Steps, ...]
) -> NativeModel:
    """Return the model of one program, with what comes before and after it."""
    place = next(number for number, each in enumerate(segments) if each.native)
    head, tail = segments[:place], segments[place + 1 :]
    program, (output,) = lowered.builder.program, lowered.outputs
    return NativeModel(
        program.to_bytes(),
        output.shape,
        program.operators(),
        looks,
        steps=steps,
        pixel_input=program.input_channels_pixels > 0,
        image=output.image,
        head=parts.graph_of(calls, head[0]) if head else None,
        tail=parts.graph_of(calls, tail[0]) if tail else None,
        choices=lowered.builder.choices.made,
    ).eval()


def _part(lowered: _Lowered) -> NativePart:
    return NativePart(lowered.builder.program.to_bytes(), lowered.inputs, lowered.outputs)


def _facts(
    calls: Calls, segments: list[Segment], lowered: list[_Lowered], reasons: dict[fx.Node, str]
) -> tuple[tuple[LayerFact, ...], tuple[Any, ...], tuple[Steps, ...]]:
    """Return what became of each layer, where to see its result and what computes it, in the order of the parts."""
    facts: list[LayerFact] = []
    looks: list[Any] = []
    steps: list[Steps] = []
    number = 0
    for segment in segments:
        if segment.native:
            builder = lowered[number].builder
            facts += builder.ledger.facts
            looks += [each and replace(each, part=number) for each in builder.ledger.looks]
            steps += [Steps(number, first, end) for first, end in builder.ledger.spans]
            number += 1
            continue
        for node in segment.nodes:
            if node.op.startswith("call") and not (calls.is_constant(node) or calls.rearranges(node)):
                facts.append(LayerFact(scoped_name(node), calls.kind(node), "fp32", "aten", reason=reasons[node]))
                looks.append(None)
                steps.append(Steps(call=node.name))
    return tuple(facts), tuple(looks), tuple(steps)
