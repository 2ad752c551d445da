"""The work that all targets share: loads, fuses and calibrates the FP32 model, and computes its outputs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import fx

from cpupack.accuracy import FloatArray
from cpupack.artifacts import (
    CalibratedModel,
    CalibrationReport,
    CapturedModel,
    FloatModel,
    FusedModel,
    Reference,
    Samples,
    Seen,
)
from cpupack.cache import StageCache
from cpupack.diagnostics import diagnose
from cpupack.effort import GIGA, power_of_two, samples_within
from cpupack.errors import QuantizationError, RecipeError
from cpupack.lock.facts import graph_hash
from cpupack.model.two_stages import gives_proposals
from cpupack.pipeline.data import bounded, calibration_samples, evaluation_samples, needs_labels
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.stages.calibrate import calibrate, observe
from cpupack.stages.capture import capture, examples
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import check_names
from cpupack.stages.quantize.native.plan import rounded_by_range
from cpupack.stages.quantize.ranges import choose_ranges
from cpupack.stages.script import script_float
from cpupack.stages.verify import check_gates, load_metric, run_reference
from cpupack.targets.engines import ENGINES
from cpupack.tasks.scores import told_by_data

_OBSERVED_BATCH = 8
_RACE_BATCH = 8
_RACE_MACS = 64 * GIGA
"""Multiply-adds of a call of FP32 that is timed, about two seconds of one thread. Larger models get smaller batches."""
_COMPARED_SAMPLES = 64


@dataclass(frozen=True)
class TimedFloat:
    """The FP32 model that engines are timed against. It is traced when it is first needed: a known race needs none."""

    model: FloatModel
    captured: CapturedModel
    sample: Samples
    path: Path

    def saved(self, progress: Progress) -> Path:
        """Return the file: the model as loaded, or as captured where torch cannot trace it."""
        if self.path.exists():
            return self.path
        sample = self.sample.tensor(slice(None))
        try:
            return script_float(self.model, self.path, sample)
        except QuantizationError as error:
            progress.note(f"FP32 is timed as captured, since torch cannot trace the model as loaded: {error}")
            return script_float(dataclasses.replace(self.model, module=self.captured.module), self.path, sample)


@dataclass(frozen=True)
class Prepared:
    """What all targets share: the FP32 model, its statistics, and the reference outputs."""

    loaded: LoadedRecipe
    model: FloatModel
    fused: FusedModel
    calibrated: CalibratedModel
    calibration: Samples | None
    reference: Reference
    timed_float: TimedFloat
    diagnosis: CalibrationReport | None = None
    graph_sha256: str = ""
    """Of the captured graph, before the fusion changes it."""
    cache: StageCache = field(default_factory=StageCache.none)

    @property
    def is_timed(self) -> bool:
        """Whether engines are timed against FP32: not where a part of FP32 is cpupack's own code, and slow."""
        return not gives_proposals(self.model.module)


def prepare(loaded: LoadedRecipe, work: Path, progress: Progress, cache: StageCache | None = None) -> Prepared:
    """Load, capture, fuse and calibrate the model and run it in FP32: all work that does not depend on the target.

    Results that ``cache`` has are taken from it. Model and data are always loaded: what they are decides about that.
    """
    recipe, cache = loaded.recipe, cache or StageCache.none()
    with progress.stage("load"):
        model = load(loaded, progress)
        check_gates(recipe.evaluation, model.signature, model.kind)
        metric = load_metric(loaded, model)
        _check_times(model, recipe, progress)
    with progress.stage("read data"):
        calibration = calibration_samples(loaded, model, progress)
        evaluation = evaluation_samples(loaded, model, calibration, progress)
        calibrates = evaluation is calibration
        if (told := told_by_data(model, evaluation)) is not model:
            model, metric = told, load_metric(loaded, told)
        evaluation = bounded(evaluation, model.output_shape, progress)
        cache.identify(model, loaded, progress)
    with progress.stage("capture"):
        captured = captured_from(model, calibration, recipe, cache, progress)
        graph_sha256 = graph_hash(captured)
        check_names(model.module, captured.module, recipe.quantize)  # before the long calibration
    with progress.stage("fuse"):
        fused = fuse(captured, recipe, progress)
    with progress.stage("calibrate"):
        data = evaluation if calibration is None else calibration
        calibrated = calibrated_on(fused, data, recipe, cache, progress)
        other = None if calibrates else evaluation
        diagnosis, known = diagnosed(calibrated, other, recipe, progress, cache)
    with progress.stage("run FP32"):
        reference = run_reference(
            model,
            evaluation,
            progress,
            metric=metric,
            confident=recipe.evaluation.confident,
            labels_required=needs_labels(recipe.evaluation),
            graph=fused.module if isinstance(fused.module, fx.GraphModule) else None,
            known=known,
            cached=cache.outputs,
        )
        # A trace of the model as loaded may hold the size of its batch, so it is that of the race.
        rows = np.arange(race_batch_size(recipe, model.macs)) % len(reference.samples)
        timed_float = TimedFloat(model, captured, reference.samples.take(rows), work / "float.pt")
    return Prepared(
        loaded, model, fused, calibrated, calibration, reference, timed_float, diagnosis, graph_sha256, cache
    )


def _check_times(model: FloatModel, recipe: Recipe, progress: Progress) -> None:
    """Raise RecipeError for a gate on the speed over FP32 of a model whose FP32 form is not timed."""
    if not gives_proposals(model.module):
        return
    if recipe.evaluation.min_speedup is not None:
        raise RecipeError(
            "[evaluation] min_speedup cannot be measured for a detector of two stages: here the step between the "
            "stages is Python in FP32, and a speedup over that would be no one's",
            hint="delete it",
        )
    progress.note("FP32 is not timed: the step between the two stages of the detector is Python there")


def captured_from(
    model: FloatModel, samples: Samples | None, recipe: Recipe, cache: StageCache, progress: Progress
) -> CapturedModel:
    """Return the captured graph of a model, from the cache if it has it. ``samples`` are those of the calibration."""
    return cache.capture(
        model,
        samples,
        examples(model, samples),
        recipe,
        progress,
        lambda heard: capture(model, samples, recipe, heard),
    )


def calibrated_on(
    fused: FusedModel, samples: Samples | None, recipe: Recipe, cache: StageCache, progress: Progress
) -> CalibratedModel:
    """Return the statistics of a fused model on the calibration samples, from the cache if it has them."""
    batch_size = recipe.calibration_batch_size
    return cache.calibrate(
        fused, samples, batch_size, progress, lambda heard: calibrate(fused, samples, batch_size, heard)
    )


def race_batch_size(recipe: Recipe, macs: int) -> int:
    """Return how many samples a call has when engines are timed against FP32, by a sample's multiply-adds."""
    if recipe.tune.objective == "latency":
        return 1
    return power_of_two(samples_within(_RACE_MACS, macs, most=_RACE_BATCH, least=1))


def diagnosed(
    calibrated: CalibratedModel,
    evaluation: Samples | None,
    recipe: Recipe,
    progress: Progress,
    cache: StageCache | None = None,
) -> tuple[CalibrationReport | None, dict[int, FloatArray]]:
    """Report on the calibration, compared with the evaluation data if that is other data. None without statistics.

    Also returns the FP32 outputs of the fused model on the samples that it ran for that, by their indices.
    """
    if not calibrated.stats:
        return None, {}
    seen: dict[str, Seen] = {}
    known: dict[int, FloatArray] = {}
    if evaluation is not None:
        rows = evaluation.spread_rows(_COMPARED_SAMPLES)
        some = evaluation.take(rows)
        seen, outputs = (cache or StageCache.none()).observe(
            calibrated, some, _OBSERVED_BATCH, progress, lambda heard: observe(calibrated, some, _OBSERVED_BATCH, heard)
        )
        known = dict(zip(rows.tolist(), outputs, strict=True)) if len(outputs) == len(rows) else {}
    spec = recipe.quantize
    ranges = choose_ranges(calibrated.stats, spec.observer, 256, spec.percentile)
    report = diagnose(calibrated, ranges, spec.observer, seen, evaluation, lambda: _rounded(calibrated, recipe))
    for warning in report.warnings:
        progress.warn(warning)
    return report, known


def run_float(
    loaded: LoadedRecipe, progress: Progress, cache: StageCache | None = None
) -> tuple[FloatModel, Samples | None, Reference]:
    """Load the FP32 model and the data of a recipe, and run the model on the data. No INT8 model is made.

    Outputs that ``cache`` has are taken from it.
    """
    cache = cache or StageCache.none()
    with progress.stage("load"):
        model = load(loaded, progress)
    with progress.stage("read data"):
        calibration = calibration_samples(loaded, model, progress)
        evaluation = evaluation_samples(loaded, model, calibration, progress)
        model = told_by_data(model, evaluation)
        evaluation = bounded(evaluation, model.output_shape, progress)
        cache.identify(model, loaded, progress)
    with progress.stage("run FP32"):
        required = needs_labels(loaded.recipe.evaluation)
        reference = run_reference(model, evaluation, progress, labels_required=required, cached=cache.outputs)
    return model, calibration, reference


def _rounded(calibrated: CalibratedModel, recipe: Recipe) -> frozenset[str] | None:
    """Return what INT8 rounds in a range from calibration; None where that is all, or where it depends on the engine.

    The native engine gives the tokens of a transformer a range each while it runs.
    """
    names = {getattr(recipe.target, cpu).engine for cpu in recipe.target.cpu}
    of_torch = any(ENGINES[name].quantizer != "native" for name in names & set(ENGINES))
    if of_torch or calibrated.fused.canonical is None:
        return None
    try:
        return rounded_by_range(calibrated, recipe.quantize, calibrated.fused.sample_shape or recipe.engine_input_shape)
    except QuantizationError:  # the native engine is out: the race says so
        return None
