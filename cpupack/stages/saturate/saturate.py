"""Quantizes for a CPU without VNNI: 8-bit activations if no sum overflows, else 7, else also 7-bit weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from cpupack.artifacts import LayerSaturation, QuantizedModel, Samples, SaturationReport
from cpupack.errors import VerificationError
from cpupack.layout import batch_channels_last
from cpupack.progress import Progress
from cpupack.quantized_engine import engine
from cpupack.stages.saturate.pairs import LEAST, PairSums
from cpupack.stages.saturate.watch import OperatorWatcher
from cpupack.targets import Target

BATCH_SIZE = 16

Quantize = Callable[[Target, frozenset[str]], QuantizedModel]
"""Quantizes for a target with the weights of the named layers within -64..64."""


def make_safe(
    quantize: Quantize, target: Target, samples: Samples, progress: Progress
) -> tuple[QuantizedModel, SaturationReport]:
    """Return an INT8 model whose 16-bit sums do not overflow on the samples, and a report.

    Tries in this order: 8-bit activations; 7-bit activations (values beyond the calibrated range still have codes up to
    255); also 7-bit weights in the layers that still overflow, because 255 * 64 * 2 fits for any activations. With
    synthetic samples, 8 bits are used only if no activations at all can overflow. Raises VerificationError with the
    names of the layers that still overflow.
    """
    refused: list[LayerSaturation] = []
    limited: frozenset[str] = frozenset()
    for bits in (8, 7):
        quantized = quantize(dataclasses.replace(target, activation_bits=bits), limited)
        layers = overflowing_layers(quantized, samples)
        wrong = [each for each in layers if _refuses(each, synthetic=samples.synthetic and bits == 8)]
        if not wrong:
            return quantized, _report(quantized.target, layers, limited, refused, samples)
        progress.note(f"{target.engine}: {bits} bits are not safe without VNNI in {_names(wrong, most=1)}")
        refused += wrong
    while True:
        named = frozenset(each.name for each in wrong)
        if named <= limited:
            raise VerificationError(
                f"[target.x86_64] isa = {target.isa!r}: without VNNI the 16-bit sums of {_names(wrong)} overflow on "
                f"{samples.origin} even with 7-bit activations, and these layers' weights cannot be limited",
                hint='keep these layers in FP32 with [quantize] skip, or set isa = "avx512_vnni" for CPUs that have it',
            )
        limited |= named
        quantized = quantize(dataclasses.replace(target, activation_bits=7), limited)
        layers = overflowing_layers(quantized, samples)
        wrong = [each for each in layers if each.overflows]
        if not wrong:
            return quantized, _report(quantized.target, layers, limited, refused, samples)


def overflowing_layers(quantized: QuantizedModel, samples: Samples) -> tuple[LayerSaturation, ...]:
    """Run the model on all samples and return the result for the 16-bit sums of each layer.

    The activations are those of the INT8 model. On a CPU without VNNI they are wrong after a layer that overflows, but
    the first such layer is found.
    """
    watcher = OperatorWatcher(quantized.module)
    with torch.inference_mode(), engine(quantized.target.engine), watcher:
        for batch in samples.batches(BATCH_SIZE):
            quantized.module(batch_channels_last(batch))
    bits = quantized.target.activation_bits
    return tuple(_layer(name, bits, sums) for name, sums in watcher.sums().items())


def _layer(name: str, bits: int, sums: PairSums) -> LayerSaturation:
    if sums.overflows:
        decision = "overflows"
    else:
        decision = "safe for any input" if sums.bound < -LEAST else "safe on these samples"
    return LayerSaturation(name, bits, sums.pairs, sums.bound, sums.overflows, sums.largest, decision)


def _refuses(layer: LayerSaturation, *, synthetic: bool) -> bool:
    return layer.overflows > 0 or (synthetic and layer.bound >= -LEAST)


def _report(
    target: Target,
    layers: tuple[LayerSaturation, ...],
    limited: frozenset[str],
    refused: list[LayerSaturation],
    samples: Samples,
) -> SaturationReport:
    order = tuple(each.name for each in layers if each.name in limited)
    return SaturationReport(
        target.isa, target.activation_bits, len(samples), samples.origin, layers, order, tuple(refused)
    )


def _names(layers: list[LayerSaturation], most: int = 3) -> str:
    named = sorted(layers, key=lambda each: each.overflows, reverse=True)[:most]
    listed = ", ".join(f"{each.name} ({each.overflows:,} of {each.pairs:,} pairs of weights)" for each in named)
    more = len(layers) - len(named)
    return listed + (f" and {more} more layer{'s' if more > 1 else ''}" if more else "")
