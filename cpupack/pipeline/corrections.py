"""The corrected forms of a calibrated model. Each is made when first needed and shared by the engines."""

from __future__ import annotations

from torch import fx

from cpupack.artifacts import CalibratedModel
from cpupack.effort import GIGA, samples_within
from cpupack.pipeline.prepare import Prepared, calibrated_on
from cpupack.progress import Progress
from cpupack.recipe import Quantize, Recipe
from cpupack.stages.correct import FEWEST, SAMPLES, correct
from cpupack.stages.quantize.native.plan import rounded_by_range
from cpupack.stages.quantize.ranges import choose_ranges
from cpupack.targets import Target

_CORRECTED_MACS = 1000 * GIGA
"""Multiply-adds of FP32 on the samples that a correction runs, which it does twice for each form."""


class Corrections:
    """Keeps the corrected forms of one model for one ``[quantize]`` table. Another table drops them.

    Each form holds a copy of the weights, so forms of earlier trials are not kept.
    """

    def __init__(self) -> None:
        self._settings = ""
        self._by_levels: dict[tuple[int, bool], CalibratedModel] = {}

    def corrected(self, prepared: Prepared, spec: Quantize, target: Target, progress: Progress) -> CalibratedModel:
        """Return the calibrated model with the corrections that ``spec`` asks for, for the bits of ``target``."""
        settings = spec.model_dump_json(exclude={"recover", "budget_s"})
        if settings != self._settings:
            self._settings, self._by_levels = settings, {}
        levels = 2**target.activation_bits
        key = levels, target.record.quantizer == "native"
        if key not in self._by_levels:
            recipe = prepared.loaded.recipe
            self._by_levels[key] = correct(
                prepared.calibrated,
                prepared.calibration,
                spec,
                levels,
                choose=lambda calibrated: _ranges(calibrated, recipe, spec, target),
                recalibrate=lambda fused: calibrated_on(fused, prepared.calibration, recipe, prepared.cache, progress),
                progress=progress,
                pixels=recipe.engine_preprocess is not None,
                count=samples_within(_CORRECTED_MACS, prepared.model.macs, most=SAMPLES, least=FEWEST),
            )
        return self._by_levels[key]


def _ranges(
    calibrated: CalibratedModel, recipe: Recipe, spec: Quantize, target: Target
) -> dict[str, tuple[float, float]]:
    """Return the ranges in which an engine rounds activations: a correction must see no other errors."""
    ranges = choose_ranges(calibrated.stats, spec.observer, 2**target.activation_bits, spec.percentile)
    if target.record.quantizer != "native" or not isinstance(calibrated.fused.module, fx.GraphModule):
        return ranges
    rounded = rounded_by_range(calibrated, spec, calibrated.fused.sample_shape or recipe.engine_input_shape)
    return {name: each for name, each in ranges.items() if name in rounded}
