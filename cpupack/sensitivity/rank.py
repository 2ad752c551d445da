"""Ranks layers by the loss when only that layer is INT8."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cpupack import accuracy
from cpupack.accuracy import FloatArray
from cpupack.artifacts import FusedModel, Samples
from cpupack.layout import batch_channels_last
from cpupack.metric import Metric
from cpupack.progress import Progress
from cpupack.runtime.signature import Signature, worst_sqnr_db
from cpupack.sensitivity.rounding import Noise, Range, round_weight
from cpupack.sensitivity.trials import Layer, trials_of

BATCH_SIZE = 8
COUNT = 32
"""Default number of samples. The SQNR averages over all output values, so few samples are enough."""


@dataclass(frozen=True)
class LayerSensitivity:
    """The loss of one layer, measured with every other layer in FP32.

    ``name`` is the module's path in the FP32 model; for a fused chain, that of its first module. For a function call it
    is the path of the calling module and the call's name in the graph: ``layer1.0.add``. ``skip`` is the name for
    ``[quantize] skip`` that keeps the layer in FP32, None for a function call. ``weight_sqnr_db`` compares the int8
    weights with the FP32 weights (None without weights). ``activation_sqnr_db`` compares the layer's output before and
    after rounding to its calibrated range (None in dynamic mode, where outputs stay FP32). ``output_sqnr_db`` compares
    the model's outputs, and is that of the worst of several. ``agreement`` is the share of equal top-1 (0 to 1), None
    if the output is not ``(classes,)``. ``top1_drop`` is the loss of top-1 accuracy as a fraction, None without labels
    of the model's classes. ``metric_drop`` is how much worse the user's metric gets, None without one. ``noise_share``
    is this layer's share (0 to 1) of the sum of all layers' noise in the model's outputs.
    """

    name: str
    kind: str
    skip: str | None
    weight_sqnr_db: float | None
    activation_sqnr_db: float | None
    output_sqnr_db: float
    agreement: float | None
    top1_drop: float | None
    metric_drop: float | None
    noise_share: float


def rank(
    fused: FusedModel,
    ranges: Mapping[str, Range],
    samples: Samples,
    progress: Progress,
    *,
    levels: int = 256,
    count: int = COUNT,
    metric: Metric | None = None,
    signature: Signature | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[LayerSensitivity, ...]:
    """Return every layer that INT8 rounds, sorted by the SQNR of the model's outputs, the most sensitive first.

    ``ranges`` maps a name of ``CalibratedModel.stats`` to the (low, high) that INT8 covers, with low <= 0 <= high;
    it is empty for dynamic quantization, which measures inputs at run time. ``levels`` is 256 for 8-bit activations and
    128 for 7 bits. ``count`` samples, spread evenly over ``samples``, are run in batches of ``batch_size``. ``metric``
    is measured if the samples have targets, on what the runner gives by ``signature``.

    For a layer in INT8, its inputs, its weights (symmetric, per channel) and its output are rounded. Everything else
    stays FP32. The part of the model before a layer is run only once for all layers. Layers are sorted by SQNR because
    it is continuous: of a few dozen samples seldom more than one changes its class.
    """
    chosen = samples.spread(count)
    trials = trials_of(fused, ranges, levels)
    outputs: list[list[FloatArray]] = [[] for _ in trials.layers]
    noises = [Noise() for _ in trials.layers]
    references: list[FloatArray] = []
    batches = -(-len(chosen) // batch_size)
    with torch.inference_mode():
        for number, batch in enumerate(chosen.batches(batch_size)):
            for done, (index, output) in enumerate(trials.run(batch_channels_last(batch), noises)):
                outputs[index].append(output.numpy())
                progress.step(number * len(trials.layers) + done + 1, batches * len(trials.layers), "layers x batches")
            references.append(trials.reference.numpy())
        reference = np.concatenate(references)
        measured = [
            _measure(layer, noise, reference, np.concatenate(parts), chosen, metric, signature)
            for layer, noise, parts in zip(trials.layers, noises, outputs, strict=True)
        ]
    return tuple(sorted(_shared_out(measured), key=lambda each: each.output_sqnr_db))


def _measure(
    layer: Layer,
    noise: Noise,
    reference: FloatArray,
    output: FloatArray,
    samples: Samples,
    metric: Metric | None,
    signature: Signature | None,
) -> LayerSensitivity:
    classes = accuracy.has_classes(reference.shape[1:])
    top1_drop = metric_drop = None
    if classes and samples.labels is not None and samples.labels.max() < reference.shape[1]:
        top1_drop = accuracy.top_k(reference, samples.labels, 1) - accuracy.top_k(output, samples.labels, 1)
    if metric is not None and samples.targets is not None:
        of = (lambda values: values) if signature is None else signature.result
        loss = metric(of(reference), samples.targets) - metric(of(output), samples.targets)
        metric_drop = loss if metric.goal == "max" else -loss
    weights = Noise()
    for weight, axis in layer.weights:
        weights.add(weight, round_weight(weight, axis))
    return LayerSensitivity(
        name=layer.name,
        kind=layer.kind,
        skip=layer.skip,
        weight_sqnr_db=weights.sqnr_db if layer.weights else None,
        activation_sqnr_db=noise.sqnr_db if layer.rounds_output else None,
        output_sqnr_db=_sqnr_db(reference, output, signature),
        agreement=accuracy.agreement(reference, output) if classes else None,
        top1_drop=top1_drop,
        metric_drop=metric_drop,
        noise_share=0.0,
    )


def _sqnr_db(reference: FloatArray, output: FloatArray, signature: Signature | None) -> float:
    """Return the SQNR of a trial, of the worst of several outputs, as gates have it.

    All outputs together would hide one of small values. Rows of proposals, which have no order, are compared box by
    box; what is not judged does not count.
    """
    if signature is None:
        return accuracy.sqnr_db(reference, output)
    return worst_sqnr_db(signature, reference, output)


def _shared_out(layers: list[LayerSensitivity]) -> list[LayerSensitivity]:
    noise = np.array([10.0 ** (-np.clip(layer.output_sqnr_db, -200.0, 300.0) / 10.0) for layer in layers])
    shares = noise / noise.sum() if layers else noise
    return [dataclasses.replace(layer, noise_share=float(share)) for layer, share in zip(layers, shares, strict=True)]
