"""Outputs of whole numbers and truth values, and lengths that begin at 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.artifacts import FloatModel
from cpupack.errors import ModelError, RecipeError
from cpupack.graph.native_model import NativeModel
from cpupack.progress import SilentProgress
from cpupack.quantized_engine import engine
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.errors import InputError
from cpupack.runtime.random_rows import random_rows
from cpupack.runtime.rows import pack
from cpupack.runtime.signature import OutputSpec, Signature, worst_sqnr_db
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import quantize
from cpupack.stages.verify.outputs import run_reference
from helpers.lowered import needs_kernels
from helpers.tiny_models import samples, target

MODEL = """
import torch
from torch import nn

torch.manual_seed(0)


class Classes(nn.Module):
    def __init__(self, several=False):
        super().__init__()
        self.one, self.two, self.several = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), several

    def forward(self, x):
        scores = self.two(torch.relu(self.one(x)))
        if not self.several:
            return scores.argmax(1)
        best, places = scores.mean((2, 3)).topk(2)
        mask = scores.amax(1) > 0.1
        return {"mask": mask, "best": best, "places": places.int(), "count": mask.sum((1, 2))}


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.scores = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x, lengths, kind):
        steps, _ = self.cells(x)
        last = steps.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, 8))
        return self.scores(last[:, 0]) + kind[:, None]


class Key(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 2)

    def forward(self, x):
        return self.one(x), (x > 0).long() * 16777217
"""
IMAGE: dict[str, Any] = {"input_shape": [3, 8, 8]}


def loaded(directory: Path, net: str, model: dict[str, Any], **tables: Any) -> tuple[Recipe, FloatModel]:
    (directory / "nets.py").write_text(MODEL)
    model = {"source": f"python:nets.py:{net}", "weights": "factory", **model}
    recipe = Recipe.model_validate({"schema": 1, "package": {"name": "tiny"}, "model": model, **tables})
    return recipe, load(LoadedRecipe(recipe=recipe, path=directory / "r.toml", text=""), SilentProgress())


@needs_kernels
@pytest.mark.parametrize("several", [False, True])
def test_whole_numbers_are_answered_as_what_they_are(tmp_path: Path, several: bool) -> None:
    recipe, model = loaded(tmp_path, "Classes", IMAGE | {"kwargs": {"several": several}})
    signature = model.signature
    assert signature.to_dicts() == Signature.from_dicts(**signature.to_dicts()).to_dicts()
    assert model.task is not None
    assert model.task.kind == "raw"
    data = samples((3, 8, 8))
    fused = fuse(capture(model, data, recipe, SilentProgress()), recipe, SilentProgress())
    stats = calibrate(fused, data, 4, SilentProgress())
    native = quantize(stats, model.module, recipe, target("native"), frozenset()).module
    assert isinstance(native, NativeModel)
    batch = torch.from_numpy(data.data)
    with torch.inference_mode(), engine("native"):
        expected, found = model.module(batch).numpy(), native(batch).numpy()
    assert worst_sqnr_db(signature, expected, found.reshape(expected.shape)) > 10
    answers, wanted = signature.unpack(found.reshape(expected.shape)), signature.unpack(expected)
    dtypes = {name: str(each.dtype) for name, each in answers.items()}
    if not several:
        assert dtypes == {"output": "int64"}
        assert (answers["output"] == wanted["output"]).mean() > 0.9
        return
    assert dtypes == {"mask": "bool", "best": "float32", "places": "int64", "count": "int64"}
    assert np.array_equal(wanted["count"], wanted["mask"].sum((1, 2)))
    assert np.array_equal(answers["count"], answers["mask"].sum((1, 2)))


def test_numbers_that_a_wheel_would_round_are_refused(tmp_path: Path) -> None:
    """2^24 + 1 is 2^24 in float32."""
    _, model = loaded(tmp_path, "Key", {"input_shape": [3]})
    with pytest.raises(ModelError, match=r'"output_1" has whole numbers up to 1677721\d, and a wheel has them exactly'):
        run_reference(model, samples((3,)), SilentProgress())


def test_whole_numbers_are_compared_by_how_many_are_equal() -> None:
    """One of ten differs: the noise is a tenth of the signal, 10 dB, however far it is. Where it is near, that counts:
    the squares up to 9 have the sum 285, which is 24.5 dB above the square of 1.
    """
    signature = Signature((TensorSpec("x", (1,)),), (OutputSpec("classes", (10,), whole="int64"),))
    expected = np.arange(10, dtype=np.float32)[None]
    for other, decibels in ((0.0, 10.0), (900.0, 10.0), (8.0, 24.548)):
        found = expected.copy()
        found[0, 7] = other
        assert worst_sqnr_db(signature, expected, found) == pytest.approx(decibels, abs=1e-3)
    assert not signature.is_plain
    assert signature.class_scores is None


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match='"output": sigmoid is for scores, and the model gives int64'):
        loaded(tmp_path, "Classes", IMAGE, output=[{"name": "output", "apply": "sigmoid"}])
    with pytest.raises(ModelError, match=r'kind = "detection" is of scores or other floats, and .* is int64'):
        loaded(tmp_path, "Classes", IMAGE, task={"kind": "detection"})


def test_lengths_begin_at_one_where_the_model_fails_with_none(tmp_path: Path) -> None:
    tables = [
        {"name": "x", "shape": [6, 4]},
        {"name": "lengths", "shape": [], "dtype": "int64"},
        {"name": "kind", "shape": [], "dtype": "int64"},
    ]
    _, model = loaded(tmp_path, "Last", {}, input=tables)
    signature = model.signature
    assert [each.least for each in signature.inputs] == [0, 1, 0]
    assert [each.vocabulary for each in signature.inputs] == [None, 7, None]
    rows = random_rows(signature.inputs, np.random.default_rng(0), 100)
    assert set(rows[:, 24]) == {1, 2, 3, 4, 5, 6}
    given = {"x": np.zeros((1, 6, 4), np.float32), "lengths": [0], "kind": [0]}
    with pytest.raises(InputError, match=r'"lengths": sample 0 has 0.*a length of at least 1'):
        pack(signature, given)
