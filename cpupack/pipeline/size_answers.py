"""What FP32 answers to inputs of a size, and the largest size at which it can be asked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cpupack.accuracy import FloatArray
from cpupack.artifacts import FloatModel, Samples
from cpupack.effort import GIGA
from cpupack.errors import QuantizationError
from cpupack.model.cost import Cost, counted
from cpupack.model.one_row import OneRow
from cpupack.model.open_sizes import output_shapes
from cpupack.model.user_code import describe_failure
from cpupack.pipeline.prepare import Prepared
from cpupack.pipeline.sized_samples import cut_samples, resized_rows
from cpupack.recipe import Recipe
from cpupack.runtime.open_sizes import OpenSizes, Size
from cpupack.runtime.signature import Signature

_MOST_MACS = 1000 * GIGA
"""Multiply-adds of FP32 for one sample, some 20 seconds of two cores."""
_MOST_VALUES = 2**28
"""Values of the largest tensor of FP32 for one sample: 1 GiB, and there are several at a time."""

_HALF = 70
"""Percent of the way to an image that leave half of its pixels."""


@dataclass(frozen=True)
class Answers:
    """FP32's answers to ``batch``, whose samples are of a size, and what each took."""

    size: Size
    batch: torch.Tensor
    values: FloatArray
    signature: Signature
    cost: Cost


def answers_at(prepared: Prepared, own: Recipe, size: Size, count: int) -> tuple[Answers, FloatModel, Samples]:
    """Ask FP32 about a few samples of a size; return the model and the samples, too. ``own`` is the size's recipe."""
    samples = prepared.reference.samples if prepared.calibration is None else prepared.calibration
    sizes = prepared.model.sizes
    assert sizes is not None  # the recipe has them
    inputs = tuple(
        dataclasses.replace(spec, shape=at.shape, preprocess=at.preprocess)
        for spec, at in zip(prepared.model.signature.inputs, own.input_specs, strict=True)
    )
    signature = dataclasses.replace(prepared.model.signature, inputs=inputs)
    some = samples.spread(count)
    if sizes.inputs:
        rows = resized_rows(some.data, prepared.model.signature.inputs, inputs)
        some = dataclasses.replace(some, data=rows, targets=None)
    else:
        some = cut_samples(some, size, sizes)
    model = dataclasses.replace(prepared.model, signature=signature)
    if isinstance(model.module, OneRow):
        model = dataclasses.replace(model, module=model.module.with_inputs(inputs).eval())
    batch = some.tensor(slice(None))
    try:
        answer, cost = counted(model.module, batch.clone(memory_format=torch.contiguous_format))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise QuantizationError(
            f"[sizes]: the model fails for inputs of {sizes.size_text(size)}: {describe_failure(error)}",
            hint="set min and max to sizes that it takes",
        ) from error
    shapes = output_shapes(model.module, batch[:1])
    if sizes.outputs and shapes != list(sizes.shapes(size)):
        raise QuantizationError(
            f"the model has no outputs for any size: at {sizes.size_text(size)} they have the shapes {shapes}, "
            f"and other sizes say {list(sizes.shapes(size))}",
            hint="leave [sizes] out and give input_shape numbers; docs/how-to/sizes.md says what else there is",
        )
    outputs = tuple(
        dataclasses.replace(each, shape=shape) for each, shape in zip(signature.outputs, shapes, strict=True)
    )
    signature = dataclasses.replace(signature, outputs=outputs)
    model = dataclasses.replace(model, signature=signature)
    return Answers(size, batch, answer.numpy(), signature, cost), model, some


def farthest(prepared: Prepared, recipe: Recipe, top: Size) -> Answers:
    """Return FP32's answers at ``top``, or at the largest size on the way to it that FP32 can be asked at.

    Time and memory grow with the positions, with attention by their square; ``[sizes] max`` may be a thousand times the
    typical size. So sizes are asked one after the other, each about twice as large as the one before.
    """
    sizes = prepared.model.sizes
    assert sizes is not None  # the recipe has them
    found: Answers | None = None
    for size in _steps(sizes.typical(prepared.model.input_shape), top, sizes):
        if found is not None and not _can_ask(found, size):
            return found
        found = answers_at(prepared, recipe.at_size(*size), size, 1)[0]
    assert found is not None
    return found


def _steps(typical: Size, top: Size, sizes: OpenSizes) -> Iterator[Size]:
    """Yield the typical size, sizes on the way to ``top``, and ``top``."""
    found = [top]
    while math.prod(found[-1]) > 2 * math.prod(typical):
        found.append(on_the_way(typical, found[-1], sizes, _HALF))
    yield from dict.fromkeys([typical, *reversed(found)])


def on_the_way(near: Size, far: Size, sizes: OpenSizes, percent: int) -> Size:
    """Return the size that has so much of the way from one to another."""
    return tuple(
        own + (side - own) * percent // 100 // step * step
        for own, side, step in zip(near, far, sizes.multiple, strict=True)
    )


def _can_ask(found: Answers, size: Size) -> bool:
    more = (math.prod(size) / math.prod(found.size)) ** 2
    return found.cost.macs * more <= _MOST_MACS and found.cost.values * more <= _MOST_VALUES
