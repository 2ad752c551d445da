"""The work that all targets share: loads, fuses and calibrates the FP32 model, and computes its outputs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
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
from cpupack.diagnostics import diagnose
from cpupack.errors import QuantizationError
from cpupack.lock.facts import graph_hash
from cpupack.pipeline.data import bounded, calibration_samples, evaluation_samples, needs_labels
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe, Quantize, Recipe
from cpupack.stages.calibrate import calibrate, observe
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import check_skip
from cpupack.stages.quantize.ranges import choose_ranges
from cpupack.stages.script import script_float
from cpupack.stages.verify import check_gates, load_metric, run_reference

_OBSERVED_BATCH = 8
_RACE_BATCH = 8
_COMPARED_SAMPLES = 64


@dataclass(frozen=True)
class Prepared:
    """What all targets share: the FP32 model, its statistics, and the reference outputs."""

    loaded: LoadedRecipe
    model: FloatModel
    fused: FusedModel
    calibrated: CalibratedModel
    calibration: Samples | None
    reference: Reference
    float_path: Path
    diagnosis: CalibrationReport | None = None
    graph_sha256: str = ""
    """Of the captured graph, before the fusion changes it."""


def prepare(loaded: LoadedRecipe, work: Path, progress: Progress) -> Prepared:
    """Load, capture, fuse and calibrate the model and run it in FP32: all work that does not depend on the target."""
    recipe = loaded.recipe
    with progress.stage("load"):
        model = load(loaded, progress)
        check_gates(recipe.evaluation, model.signature)
        metric = load_metric(loaded)
    with progress.stage("read data"):
        calibration = calibration_samples(loaded, model, progress)
        evaluation = evaluation_samples(loaded, model, calibration, progress)
        calibrates = evaluation is calibration
        evaluation = bounded(evaluation, model.output_shape, progress)
    with progress.stage("capture"):
        captured = capture(model, calibration, recipe, progress)
        graph_sha256 = graph_hash(captured)
        check_skip(model.module, captured.module, recipe.quantize.skip)  # before the long calibration
    with progress.stage("fuse"):
        fused = fuse(captured, recipe, progress)
    with progress.stage("calibrate"):
        data = evaluation if calibration is None else calibration
        calibrated = calibrate(fused, data, recipe.calibration_batch_size, progress)
        other = None if calibrates else evaluation
        diagnosis, known = diagnosed(calibrated, other, recipe.quantize, progress)
    with progress.stage("run FP32"):
        reference = run_reference(
            model,
            evaluation,
            progress,
            metric=metric,
            labels_required=needs_labels(recipe.evaluation),
            graph=fused.module if isinstance(fused.module, fx.GraphModule) else None,
            known=known,
        )
        # A trace of the model as loaded may hold the size of its batch, so it is that of the race.
        rows = np.arange(race_batch_size(recipe)) % len(reference.samples)
        sample = reference.samples.take(rows).tensor(slice(None))
        float_path = _timed_float(model, captured, work / "float.pt", sample, progress)
    return Prepared(loaded, model, fused, calibrated, calibration, reference, float_path, diagnosis, graph_sha256)


def _timed_float(
    model: FloatModel, captured: CapturedModel, path: Path, sample: torch.Tensor, progress: Progress
) -> Path:
    """Save the FP32 model that engines are timed against: as loaded, or as captured where torch cannot trace it."""
    try:
        return script_float(model, path, sample)
    except QuantizationError as error:
        progress.note(f"FP32 is timed as captured, since torch cannot trace the model as loaded: {error}")
        return script_float(dataclasses.replace(model, module=captured.module), path, sample)


def race_batch_size(recipe: Recipe) -> int:
    """Return how many samples a call has when engines are timed against FP32."""
    return 1 if recipe.tune.objective == "latency" else _RACE_BATCH


def diagnosed(
    calibrated: CalibratedModel, evaluation: Samples | None, spec: Quantize, progress: Progress
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
        seen, outputs = observe(calibrated, evaluation.take(rows), _OBSERVED_BATCH, progress)
        known = dict(zip(rows.tolist(), outputs, strict=True)) if len(outputs) == len(rows) else {}
    ranges = choose_ranges(calibrated.stats, spec.observer, 256, spec.percentile)
    report = diagnose(calibrated, ranges, spec.observer, seen, evaluation)
    for warning in report.warnings:
        progress.warn(warning)
    return report, known


def run_float(loaded: LoadedRecipe, progress: Progress) -> tuple[FloatModel, Samples | None, Reference]:
    """Load the FP32 model and the data of a recipe, and run the model on the data. No INT8 model is made."""
    with progress.stage("load"):
        model = load(loaded, progress)
    with progress.stage("read data"):
        calibration = calibration_samples(loaded, model, progress)
        evaluation = evaluation_samples(loaded, model, calibration, progress)
        evaluation = bounded(evaluation, model.output_shape, progress)
    with progress.stage("run FP32"):
        required = needs_labels(loaded.recipe.evaluation)
        return model, calibration, run_reference(model, evaluation, progress, labels_required=required)
