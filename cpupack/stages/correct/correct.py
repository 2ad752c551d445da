"""The stage: runs the corrections that the recipe asks for, in order, on calibration data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import fx

from cpupack.artifacts import CalibratedModel, FusedModel, Samples
from cpupack.errors import QuantizationError
from cpupack.graph.names import is_within
from cpupack.layout import batch_channels_last, weights_channels_last
from cpupack.progress import Progress
from cpupack.recipe import Quantize
from cpupack.stages.correct.equalize import equalize, find_pairs
from cpupack.stages.correct.layers import Layer, find_layers
from cpupack.stages.correct.reconstruct import Range, Wanted, correct_layers

SAMPLES, FEWEST = 32, 8
"""Enough samples: the mean of a channel is over all positions of all samples. Where a sample has many, fewer are."""
_COMPARED_SAMPLES = 4
_RELATIVE_TOLERANCE = 1e-3
"""FP32 rounds differently at other scales. A difference above this share of the largest output means a wrong pair."""


def correct(
    calibrated: CalibratedModel,
    samples: Samples | None,
    recipe: Quantize,
    levels: int,
    choose: Callable[[CalibratedModel], dict[str, Range]],
    recalibrate: Callable[[FusedModel], CalibratedModel],
    progress: Progress,
    *,
    pixels: bool = False,
    count: int = SAMPLES,
) -> CalibratedModel:
    """Return a calibrated model whose weights and biases lose less when they are rounded to INT8.

    ``samples`` are those of the calibration. ``levels`` is the number of steps of an activation. ``choose`` returns the
    ranges, ``recalibrate`` the statistics of a changed model. ``count`` of the samples are run. With ``pixels``
    the first layer has other weights in INT8 (see ``graph/pixel_model.py``), so it is not rounded and its bias stays.
    The given model is not changed. Raises QuantizationError for a correction that the recipe asks for but that is
    impossible for this model.
    """
    if recipe.mode == "dynamic" or samples is None:
        return calibrated
    if not isinstance(calibrated.fused.module, fx.GraphModule):
        _refuse_without_graph(recipe)
        progress.note("no bias correction: it needs a captured graph, and a model with its own stubs has none")
        return calibrated
    if recipe.equalize:
        calibrated = recalibrate(_equalized(calibrated, samples, recipe, progress))
    wanted = Wanted(rounding=recipe.rounding == "adaround", bias=recipe.bias_correction)
    if not (wanted.rounding or wanted.bias):
        return calibrated
    graph = copy.deepcopy(calibrated.fused.module)
    assert isinstance(graph, fx.GraphModule)
    layers = {
        node: layer for node, layer in _layers(graph, calibrated, recipe).items() if not (pixels and _first(node))
    }
    weights_channels_last(graph)
    some = samples.spread(count)
    batch = batch_channels_last(some.tensor(slice(None)))
    with torch.no_grad():
        correct_layers(graph, layers, choose(calibrated), levels, batch, wanted, progress)
    return dataclasses.replace(calibrated, fused=dataclasses.replace(calibrated.fused, module=graph))


def _refuse_without_graph(recipe: Quantize) -> None:
    for key, asked in (("equalize = true", recipe.equalize), ('rounding = "adaround"', recipe.rounding != "nearest")):
        if asked:
            raise QuantizationError(
                f"[quantize] {key} needs a captured graph, and a model with its own QuantStub has none",
                hint="leave the key out, or use the model without its stubs",
            )


def _equalized(calibrated: CalibratedModel, samples: Samples, recipe: Quantize, progress: Progress) -> FusedModel:
    graph = copy.deepcopy(calibrated.fused.module)
    assert isinstance(graph, fx.GraphModule)
    pairs = find_pairs(graph, _layers(graph, calibrated, recipe))
    batch = batch_channels_last(samples.spread(_COMPARED_SAMPLES).tensor(slice(None)))
    with torch.no_grad():
        farthest = equalize(pairs)
        expected, actual = calibrated.fused.module(batch.clone()), graph(batch)
    difference, largest = float((expected - actual).abs().max()), float(expected.abs().max())
    if not difference <= _RELATIVE_TOLERANCE * largest:
        raise QuantizationError(
            f"[quantize] equalize: the FP32 output differs by {difference:.3g} (largest output {largest:.3g})",
            hint="leave equalize out: the ranges of these layers differ too much to be rescaled in FP32",
        )
    progress.note(f"{len(pairs)} pairs of layers equalized, channels scaled by up to {farthest:.3g}")
    return dataclasses.replace(calibrated.fused, module=graph)


def _layers(graph: fx.GraphModule, calibrated: CalibratedModel, recipe: Quantize) -> dict[fx.Node, Layer]:
    chains = [chain[0] for chain in calibrated.fused.chains if any(is_within(name, recipe.skip) for name in chain)]
    return find_layers(graph, [*recipe.skip, *chains], per_channel=recipe.weights == "per_channel")


def _first(node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and source.op == "placeholder"
