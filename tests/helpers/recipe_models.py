"""The models of this checkout's recipes, quantized for the native engine in this process."""

from __future__ import annotations

from pathlib import Path

from cpupack.artifacts import QuantizedModel, Samples
from cpupack.pipeline.data import calibration_samples, evaluation_samples
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.runtime.engine import library
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import quantize
from helpers.tiny_models import target

RECIPES = Path(__file__).parents[2] / "recipes"
_QUIET = SilentProgress()


def quantized(name: str, calibration: int, evaluation: int | None) -> tuple[QuantizedModel, Samples]:
    """Return a recipe's model for the native engine, and its evaluation data: None for a recipe that names none."""
    sizes = [f"calibration.samples={calibration}"]
    if evaluation is not None:
        sizes.append(f"evaluation.samples={evaluation}")
    loaded = load_recipe(RECIPES / f"{name}.toml", sizes)
    model, recipe = load(loaded, _QUIET), loaded.recipe
    data = calibration_samples(loaded, model, _QUIET)
    held_out = evaluation_samples(loaded, model, data, _QUIET)
    fused = fuse(capture(model, data, recipe, _QUIET), recipe, _QUIET)
    library.load()
    int8 = quantize(calibrate(fused, data, 8, _QUIET), model.module, recipe, target("native"))
    assert all(each.kernel != "aten" for each in int8.layers)  # no layer is torch's
    return int8, held_out
