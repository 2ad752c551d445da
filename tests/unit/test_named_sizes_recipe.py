"""Names of one's own in a shape: what is refused, and which sizes a model is found to take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.errors import CalibrationError, ModelError, RecipeError
from cpupack.model.open_sizes import open_sizes
from cpupack.model.signature import fit_signature
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.recipe.file import parse_recipe
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.sources.request import Request, floats_of
from helpers.named_nets import Attended, Levels, Pooled, Tagger
from helpers.tiny_models import Recorder

RECIPE = """
schema = 1
[package]
name = "tiny-int8"
[model]
source = "export:model.pt2"
weights = "factory"
input_shape = [8, "time"]
[sizes]
min = { time = 32 }
typical = { time = 64 }
max = { time = 256 }
[calibration]
source = "synthetic"
"""
TABLE = '[[input]]\nname = "x"\nshape = [8, "time"]\n'


def parsed(directory: Path, *changes: tuple[str, str]) -> tuple[Recipe | None, str]:
    (directory / "model.pt2").write_bytes(b"")
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    recipe, problems, _ = parse_recipe(text, "r.toml", directory)
    return recipe, "\n".join(text for _, text in problems)


def test_the_build_works_on_the_typical_length(tmp_path: Path) -> None:
    for changes in ((), (('input_shape = [8, "time"]\n', TABLE),)):
        recipe, problems = parsed(tmp_path, *changes)
        assert recipe is not None, problems
        assert recipe.engine_input_shape == (8, 64)
        assert recipe.at_size(1, 96).engine_input_shape == (8, 96)
        assert recipe.target.x86_64.engine == "native"
    recipe, problems = parsed(
        tmp_path, ('[8, "time"]', '["time", 4, "bands"]'), ("= 32", "= 32, bands = 8"), ("= 64", "= 64, bands = 8"),
        ("= 256", "= 256, bands = 16"),
    )  # fmt: skip
    assert recipe is not None, problems
    assert recipe.engine_input_shape == (64, 4, 8)
    assert recipe.at_size(96, 16).engine_input_shape == (96, 4, 16)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('[8, "time"]', '["time", "time"]', "or one or two of your own"),
        ('[8, "time"]', '["a", "b", "time"]', "or one or two of your own"),
        ("min = { time = 32 }\n", "", "sizes: needs min = { time = "),
        ("min = { time = 32 }", "min = { length = 32 }", "sizes.min: has length, and the shape has the names time"),
        ("max = { time = 256 }", "max = [1, 256]", "sizes.max: is a list, and the shape has the names time"),
        ("= 32", "= 65", "sizes.min: has time = 65, more than typical: 64"),
        ("= 64", "= 512", "sizes.typical: has time = 512, more than max: 256"),
        (RECIPE[RECIPE.index("[sizes]") : RECIPE.index("[calibration]")], "", "needs [sizes] with max = { time = "),
        ("[sizes]", "stream = true\n[sizes]", "model.stream: is for chunks of one length"),
        ("[calibration]", "[preprocess]\n[calibration]", 'an image of any size is [channels, "height", "width"]'),
        ("[calibration]", '[target.x86_64]\nengine = "onednn"\n[calibration]', "has programs for one size alone"),
        ('input_shape = [8, "time"]\n', TABLE + "pad = 0\n", "input[0].pad: is for a shape of numbers"),
    ],
)
def test_contradictions(tmp_path: Path, old: str, new: str, message: str) -> None:
    recipe, problems = parsed(tmp_path, (old, new))
    assert recipe is None
    assert message in problems


def found(net: nn.Module, tmp_path: Path, *changes: tuple[str, str]) -> OpenSizes:
    recipe, problems = parsed(tmp_path, *changes)
    assert recipe is not None, problems
    fitted = fit_signature(net.eval(), "python:x", recipe, Recorder())
    sizes = open_sizes(fitted.module, fitted.signature, recipe)
    assert sizes is not None
    return sizes


SEQUENCE = ('[8, "time"]', '["time", 8]')


def test_the_step_is_found(tmp_path: Path) -> None:
    sizes = found(Pooled(), tmp_path)
    assert (sizes.least, sizes.most, sizes.multiple, sizes.shape) == ((1, 32), (1, 256), (1, 4), (8, 64))
    assert found(Levels(), tmp_path).multiple == (1, 2)
    for net in (Tagger(), Attended()):
        assert found(net, tmp_path, SEQUENCE).multiple == (1, 1)


def test_lengths_that_are_no_multiples_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"max: a time of 255 is no multiple of 4.*252 or 256"):
        found(Pooled(), tmp_path, ("256", "255"))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(512, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.scores(x.flatten(1))
        return result


def test_the_layer_that_fixes_the_length_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"takes no other time.*at time = 32: in scores \(Linear\): RuntimeError"):
        found(Flat(), tmp_path)


class Heads(Pooled):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        y = self.one(x)
        return {"map": y, "steps": y.transpose(1, 2), "whole": y.mean(2)}


def test_each_of_several_outputs_has_a_shape_for_each_length(tmp_path: Path) -> None:
    sizes = found(Heads(), tmp_path)
    assert sizes.shapes((1, 96)) == ((16, 48), (48, 16), (16,))


def test_of_longer_samples_the_centre_is_taken_and_shorter_ones_are_refused(tmp_path: Path) -> None:
    recipe, problems = parsed(tmp_path)
    assert recipe is not None, problems
    loaded = LoadedRecipe(recipe=recipe, path=tmp_path / "r.toml", text=RECIPE)
    request = Request("arrays:x.npz", loaded, recipe.input_specs, None, 0, False, False, Recorder())
    data = np.broadcast_to(np.arange(70, dtype=np.float32), (1, 8, 70))
    assert np.array_equal(floats_of(data, request, ["one"])[0, 0], np.arange(3, 67))
    with pytest.raises(CalibrationError, match="one: time is 60, less than the typical size, 64") as refused:
        floats_of(data[..., :60], request, ["one"])
    assert refused.value.hint is not None
    assert "typical to time = 60 or less" in refused.value.hint
