"""Inputs and outputs whose batch is not the first dimension: captured, and native with the batch first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.artifacts import FloatModel
from cpupack.errors import ModelError
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.recipe.file import parse_recipe
from cpupack.runtime.rows import pack
from cpupack.stages.capture import capture
from cpupack.stages.load import load
from helpers.tiny_models import Recorder

SOURCE = """
import torch
from torch import nn


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.r, self.head = nn.LSTM(8, 12), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.r(x)[0])


class Both(Steps):
    def forward(self, x, scale):
        return self.head(self.r(x)[0][-1]) * scale[:, None]
"""
X = {"name": "x", "shape": [6, 8], "batch_dim": 1}


def loaded(directory: Path, net: str, *inputs: dict[str, object], stream: bool = False) -> tuple[FloatModel, Recipe]:
    (directory / "nets.py").write_text(SOURCE)
    raw = {
        "schema": 1,
        "package": {"name": "net"},
        "model": {"source": f"python:nets.py:{net}", "weights": "factory", "stream": stream},
        "input": list(inputs),
        "calibration": {"source": "synthetic", "samples": 8},
    }
    recipe = Recipe.model_validate(raw)
    return load(LoadedRecipe(recipe=recipe, path=directory / "recipe.toml", text=""), Recorder()), recipe


def user_of(model: FloatModel) -> nn.Module:
    return model.module.user  # type: ignore[return-value]  # of OneRow


@pytest.mark.parametrize("net", ["Steps", "Both"])
def test_steps_come_first_in_forward_and_the_batch_for_callers(tmp_path: Path, net: str) -> None:
    random, more = np.random.default_rng(0), [{"name": "scale", "shape": []}] if net == "Both" else []
    model, recipe = loaded(tmp_path, net, X, *more)
    x = random.standard_normal((3, 6, 8)).astype(np.float32)
    given = {"x": x, "scale": random.standard_normal(3).astype(np.float32)} if more else {"x": x}
    batch = torch.from_numpy(pack(model.signature, given) if more else x)
    turned = [torch.from_numpy(x).transpose(0, 1), *(torch.from_numpy(given[each]) for each in list(given)[1:])]
    with torch.no_grad():
        expected = user_of(model)(*turned)
        expected = expected if more else expected.transpose(0, 1)
        torch.testing.assert_close(model.module(batch), expected)
        graph = capture(model, None, recipe, Recorder()).module
        torch.testing.assert_close(graph(batch), expected)
    assert model.signature.outputs[0].shape == ((5,) if more else (6, 5))


def test_a_model_that_is_not_batch_first_is_told_of_the_key(tmp_path: Path) -> None:
    model, recipe = loaded(tmp_path, "Steps", {"name": "x", "shape": [6, 8]})
    with pytest.raises(ModelError, match="depends on the other samples") as caught:
        capture(model, None, recipe, Recorder())
    assert "batch_dim = 1" in (caught.value.hint or "")


def test_a_stream_goes_along_the_steps(tmp_path: Path) -> None:
    model, _ = loaded(tmp_path, "Steps", X, stream=True)
    assert [each.name for each in model.signature.inputs] == ["x", "r_h", "r_c"]


def test_a_batch_beyond_the_dimensions_is_refused(tmp_path: Path) -> None:
    text = """
schema = 1
[package]
name = "net"
[model]
source = "python:nets.py:Steps"
weights = "factory"
[[input]]
name = "x"
shape = [6]
batch_dim = 2
[calibration]
source = "synthetic"
"""
    (tmp_path / "nets.py").write_text(SOURCE)
    _, problems, _ = parse_recipe(text, "recipe.toml", tmp_path)
    assert ["is 2, and forward takes 2 dimensions of it" in each for _, each in problems] == [True]
