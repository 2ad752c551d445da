"""The contest of engines on a real model: what each engine is built from."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.artifacts import CalibratedModel, FusedModel, ScriptedModel
from cpupack.pipeline.contest import Contest, _layer_losses, contend
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.prepare import Prepared, prepare
from cpupack.progress import SilentProgress
from cpupack.stages.calibrate import calibrate
from cpupack.stages.correct import correct
from cpupack.stages.quantize.ranges import choose_ranges
from helpers.tiny_models import Recorder, loaded

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
    (contender,) = contend(prepared, "x86_64", tmp_path, Corrections(), SilentProgress()).judged
    assert contender.quantized.target.activation_bits == 8
    found = contender.quantized.module.get_submodule("2").bias()  # type: ignore[operator]  # torch's quantized modules
    assert torch.equal(found, biases_for(prepared, 256))
    assert not torch.equal(found, biases_for(prepared, 128))


def contest_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speedups: dict[str, list[float]], **evaluation: float
) -> tuple[Contest, Recorder]:
    """Return a contest for AVX2 in which each engine has these speedups, one for each time that it is timed.

    The engines are real; only the clock is not.
    """

    def timed(models: Sequence[ScriptedModel], *_: object, **__: object) -> list[dict[str, Any]]:
        of_float = [{"round": 0, "name": "fp32", "latency_ms": 60.0}]
        return of_float + [
            {"round": 0, "name": (name := each.target.engine), "latency_ms": 60.0 / speedups[name].pop(0)}
            for each in models
        ]

    monkeypatch.setattr("cpupack.pipeline.entries.race", timed)
    (tmp_path / "m.py").write_text(MODEL.replace("layer.weight.abs_()[:, ::2] *= -1.0", "layer.weight.abs_()"))
    np.savez(tmp_path / "data.npz", data=np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32))
    recipe = loaded(
        tmp_path,
        model={"weights": "factory", "input_shape": [4, 8, 8]},
        calibration={"source": "arrays:data.npz", "samples": 16},
        evaluation=evaluation,
        target={"cpu": ["x86_64"], "x86_64": {"engine": "auto", "isa": "avx2"}},
    )
    progress = Recorder()
    prepared = prepare(recipe, tmp_path, progress)
    return contend(prepared, "x86_64", tmp_path, Corrections(), progress), progress


def engines(contest: Contest) -> list[str]:
    return [each.scripted.target.engine for each in contest.judged]


def test_engines_behind_the_first_that_passes_are_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups = {"native": [4.0], "fbgemm": [2.0], "onednn": [3.0]}
    contest, progress = contest_of(tmp_path, monkeypatch, speedups, min_sqnr_db=10.0)
    assert engines(contest) == ["native"]
    assert [(each.engine, each.speedup) for each in contest.slower] == [("onednn", 3.0), ("fbgemm", 2.0)]
    reason = "it is 3.00 times as fast as FP32, native is 4.00 times as fast and passes every gate"
    assert contest.slower[0].reason == reason
    assert f"onednn is not checked: {reason}" in progress.notes
    assert not [note for note in progress.notes if "without VNNI" in note]  # what the search says of this model


def test_every_engine_is_checked_when_none_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups = {"native": [4.0], "fbgemm": [2.0, 2.1], "onednn": [3.0, 3.1]}
    contest, progress = contest_of(tmp_path, monkeypatch, speedups, min_sqnr_db=200.0)
    assert engines(contest) == ["native", "onednn", "fbgemm"]
    assert contest.slower == ()
    assert len([note for note in progress.notes if "8 bits are not safe without VNNI" in note]) == 2
    # Both have 7 bits after the search and are timed again.
    assert [each.report.speedup for each in contest.judged] == [4.0, 3.1, 2.1]
    assert [each.saturation.activation_bits for each in contest.judged if each.saturation] == [8, 7, 7]


def test_an_engine_that_gets_slower_when_it_is_made_safe_does_not_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speedups = {"native": [4.0], "fbgemm": [2.0], "onednn": [5.0, 3.0]}
    contest, _ = contest_of(tmp_path, monkeypatch, speedups, min_sqnr_db=10.0)
    assert engines(contest) == ["native", "onednn"]
    assert [each.engine for each in contest.slower] == ["fbgemm"]


def test_the_samples_run_once_for_each_purpose(tmp_path: Path) -> None:
    """The model as loaded runs on a few samples only: its graph, which is checked against it, runs on the rest."""
    (tmp_path / "m.py").write_text(
        "import torch\nfrom torch import nn\nseen = []\n\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        if not torch.compiler.is_compiling():\n"
        "            seen.append(len(x))\n"
        "        return super().forward(x)\n\n"
        "def make():\n"
        "    import builtins\n"
        "    builtins.seen_by_the_model = seen\n"
        "    return Net(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))\n"
    )
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "calibration.npz", data=rng.standard_normal((40, 4, 8, 8)).astype(np.float32))
    np.savez(tmp_path / "evaluation.npz", data=rng.standard_normal((300, 4, 8, 8)).astype(np.float32))
    recipe = loaded(
        tmp_path,
        model={"weights": "factory", "input_shape": [4, 8, 8]},
        calibration={"source": "arrays:calibration.npz", "samples": 40, "batch_size": 10},
        evaluation={"source": "arrays:evaluation.npz"},
    )
    progress = Recorder()
    prepared = prepare(recipe, tmp_path, progress)
    seen: list[int] = builtins.seen_by_the_model  # type: ignore[attr-defined]  # set by the model above
    assert sum(seen) < 40
    last = [(done, total) for done, total in progress.steps if done == total]
    # Calibration, comparison of the data with the evaluation's, FP32 outputs of the rest of the evaluation data.
    assert last == [(40, 40), (64, 64), (236, 236)]
    with torch.inference_mode():
        expected = prepared.model.module(prepared.reference.samples.tensor(slice(None))).numpy()
    np.testing.assert_allclose(prepared.reference.outputs, expected, rtol=1e-4, atol=1e-5)


DECODER = """
import torch
from torch import nn

class Points(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.heat, self.size = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        maps = self.body(x)
        heat, size = self.heat(maps).sigmoid(), self.size(maps).abs() * 4
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in heat.shape[2:]), indexing="ij")
        boxes = torch.stack([columns - size[:, 0], rows - size[:, 1], columns + size[:, 0], rows + size[:, 1]], -1)
        return {"boxes": boxes.flatten(1, 2), "scores": heat.flatten(2).transpose(1, 2)}

make = Points
"""


def test_what_stays_fp32_is_no_layer_that_loses(tmp_path: Path) -> None:
    """The arithmetic of boxes is FP32 in the wheel: to name it as a layer that loses most would be untrue."""
    (tmp_path / "m.py").write_text(DECODER)
    recipe = loaded(
        tmp_path,
        model={"weights": "factory", "input_shape": [3, 32, 32]},
        task={"kind": "detection", "scores": "probabilities"},
        calibration={"source": "synthetic", "samples": 16},
        target={"cpu": ["x86_64"], "x86_64": {"engine": "native"}},
    )
    prepared = prepare(recipe, tmp_path, SilentProgress())
    corrections = Corrections()
    (contender,) = contend(prepared, "x86_64", tmp_path, corrections, SilentProgress()).judged
    names = {each.name for each in _layer_losses(prepared, contender, corrections, SilentProgress())}
    assert names <= {"body.0", "body.2", "heat", "size"}
    assert {"heat", "size"} <= names
