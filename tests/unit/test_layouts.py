"""Users' code that runs on contiguous tensors alone: ``view`` refuses what a convolution gives in channels_last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.ao.quantization import DeQuantStub, QuantStub

from cpupack.artifacts import FloatModel, Samples
from cpupack.errors import ModelError
from cpupack.progress import SilentProgress
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.stages.capture import capture
from cpupack.stages.load import load
from cpupack.stages.script import script_float
from cpupack.stages.verify import run_reference
from helpers.tiny_models import loaded, recipe

SOURCE = """
import torch
from torch import nn

class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6 * 6 * 6, 5)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.head(x.view(x.size(0), -1))

class Flattening(Viewing):
    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))
"""


def pixels(count: int) -> Samples:
    data = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    names = tuple(map(str, range(count)))
    return Samples(data, "pixels", names, preprocess=PreprocessSpec(resize=(8, 8), crop=None))


@pytest.fixture
def models(tmp_path: Path) -> dict[str, FloatModel]:
    (tmp_path / "nets.py").write_text(SOURCE)
    settings = {name: {"source": f"python:nets.py:{name}", "weights": "factory"} for name in ("Viewing", "Flattening")}
    found = {}
    for name, model in settings.items():
        torch.manual_seed(0)  # the same weights
        found[name] = load(loaded(tmp_path, model=model), SilentProgress())
    return found


def test_a_load_notes_what_needs_contiguous_tensors_and_leaves_the_weights_as_they_were(
    models: dict[str, FloatModel],
) -> None:
    assert {name: model.channels_last for name, model in models.items()} == {"Viewing": False, "Flattening": True}
    assert all(each.is_contiguous() for model in models.values() for each in model.module.parameters())


def test_every_stage_that_runs_the_users_code_gives_it_contiguous_tensors(
    models: dict[str, FloatModel], tmp_path: Path
) -> None:
    data = pixels(70)  # more than the reference compares with the graph, which is channels_last
    assert not data.tensor(slice(3)).is_contiguous()
    outputs, timed = {}, {}
    for name, model in models.items():
        captured = capture(model, data, recipe(), SilentProgress())
        outputs[name] = run_reference(model, data, SilentProgress(), graph=captured.module).outputs
        path = script_float(model, tmp_path / f"{name}.pt", data.tensor(slice(8)))
        with torch.inference_mode():
            timed[name] = torch.jit.load(str(path))(data.tensor(slice(8))).numpy()
    np.testing.assert_allclose(outputs["Viewing"], outputs["Flattening"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(timed["Viewing"], outputs["Flattening"][:8], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_captured_and_needs_contiguous_tensors_is_refused_for_torchs_engines(
    models: dict[str, FloatModel],
) -> None:
    def refused(**tables: Any) -> str:
        with pytest.raises(ModelError, match="on contiguous tensors alone") as caught:
            capture(models["Viewing"], pixels(8), recipe(**tables), SilentProgress())
        return caught.value.hint or ""

    of_torch = {"quantize": {"mode": "dynamic"}, "target": {"x86_64": {"engine": "fbgemm"}}}
    assert refused(**of_torch) == "write flatten or reshape in forward where it has view"
    capture(models["Flattening"], pixels(8), recipe(**of_torch), SilentProgress())
    capture(models["Viewing"], pixels(8), recipe(quantize={"mode": "dynamic"}), SilentProgress())
    stubbed = models["Viewing"].module
    stubbed.add_module("quant", QuantStub())
    stubbed.add_module("dequant", DeQuantStub())
    assert capture(models["Viewing"], pixels(8), recipe(), SilentProgress()).style == "fx"
