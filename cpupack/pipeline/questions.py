"""Answers questions of commands about a model, without building a wheel."""

from __future__ import annotations

from cpupack.artifacts import (
    FloatModel,
    FusedModel,
)
from cpupack.cache import StageCache
from cpupack.pipeline.data import calibration_samples, evaluation_samples, example_samples
from cpupack.pipeline.prepare import calibrated_on, captured_from
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.sensitivity.ranking import SensitivityReport, report_on
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse, list_chains
from cpupack.stages.load import load
from cpupack.stages.quantize import check_names
from cpupack.stages.quantize.ranges import choose_ranges
from cpupack.stages.verify import check_gates, load_metric
from cpupack.torch_noise import quiet_internals


@quiet_internals()
def check_model(loaded: LoadedRecipe, progress: Progress) -> tuple[FloatModel, FusedModel]:
    """Load the model and resolve every module name of the recipe (``cpupack check --deep``)."""
    model = load(loaded, progress)
    check_gates(loaded.recipe.evaluation, model.signature, model.kind)
    load_metric(loaded, model)
    captured = capture(model, example_samples(loaded, model, progress), loaded.recipe, progress)
    check_names(model.module, captured.module, loaded.recipe.quantize)
    return model, fuse(captured, loaded.recipe, progress)


@quiet_internals()
def rank_layers(
    loaded: LoadedRecipe, count: int, progress: Progress, cache: StageCache | None = None
) -> SensitivityReport:
    """Rank the layers of a recipe's model by the loss of each in INT8, on ``count`` samples. No INT8 model is made.

    The captured graph and the statistics are taken from ``cache`` where it has them.
    """
    recipe, cache = loaded.recipe, cache or StageCache.none()
    spec = recipe.quantize
    with progress.stage("load"):
        model = load(loaded, progress)
        metric = load_metric(loaded, model)
    with progress.stage("read data"):
        calibration = calibration_samples(loaded, model, progress)
        evaluation = evaluation_samples(loaded, model, calibration, progress)
        cache.identify(model, loaded, progress)
    with progress.stage("capture"):
        captured = captured_from(model, calibration, recipe, cache, progress)
    with progress.stage("fuse"):
        fused = fuse(captured, recipe, progress)
    with progress.stage("calibrate"):
        calibrated = calibrated_on(fused, calibration, recipe, cache, progress)
        ranges = choose_ranges(calibrated.stats, spec.observer, 256, spec.percentile)
    with progress.stage("rank"):
        return report_on(loaded, model, calibrated, ranges, evaluation, progress, count=count, metric=metric)


@quiet_internals()
def fusible_chains(loaded: LoadedRecipe, progress: Progress) -> tuple[tuple[str, ...], ...]:
    """Return every chain that ``[fuse] modules = "auto"`` would fuse."""
    model = load(loaded, progress)
    return list_chains(capture(model, example_samples(loaded, model, progress), loaded.recipe, progress))
