"""The contest of engines on a real model: what each engine is built from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cpupack.artifacts import CalibratedModel, FusedModel
from cpupack.pipeline.contest import contend
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.prepare import Prepared, prepare
from cpupack.progress import SilentProgress
from cpupack.stages.calibrate import calibrate
from cpupack.stages.correct import correct
from cpupack.stages.quantize.ranges import choose_ranges
from helpers.tiny_models import loaded

# Neighbours of unlike signs: no sum of two products overflows, so 8 bits stay where there is no VNNI.
MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.abs_()[:, ::2] *= -1.0
    return net
"""


def biases_for(prepared: Prepared, levels: int) -> torch.Tensor:
    """Return the last convolution's biases that make up for activations of ``levels`` steps."""
    data = prepared.calibration
    assert data is not None

    def recalibrate(fused: FusedModel) -> CalibratedModel:
        return calibrate(fused, data, 16, SilentProgress())

    corrected = correct(
        prepared.calibrated,
        data,
        prepared.loaded.recipe.quantize,
        levels,
        lambda each: choose_ranges(each.stats, "minmax", levels),
        recalibrate,
        SilentProgress(),
        pixels=False,
    )
    return corrected.fused.module.get_submodule("2").bias.detach()


def test_corrections_are_for_the_bits_that_are_kept(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(MODEL)
    np.savez(tmp_path / "data.npz", data=np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32))
    recipe = loaded(
        tmp_path,
        model={"weights": "factory", "input_shape": [4, 8, 8]},
        calibration={"source": "arrays:data.npz", "samples": 16},
        quantize={"observer": "minmax", "bias_correction": True, "weights": "per_tensor"},
        target={"cpu": ["x86_64"], "x86_64": {"engine": "fbgemm", "isa": "avx2"}},
    )
    prepared = prepare(recipe, tmp_path, SilentProgress())
    (contender,), _ = contend(prepared, "x86_64", tmp_path, Corrections(), SilentProgress())
    assert contender.quantized.target.activation_bits == 8
    found = contender.quantized.module.get_submodule("2").bias()  # type: ignore[operator]  # torch's quantized modules
    assert torch.equal(found, biases_for(prepared, 256))
    assert not torch.equal(found, biases_for(prepared, 128))
