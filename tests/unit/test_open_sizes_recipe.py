"""``[sizes]`` in recipes: what is refused, and which sizes a model is found to take."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.errors import ModelError, RecipeError
from cpupack.model.open_sizes import open_sizes
from cpupack.model.signature import fit_signature
from cpupack.pipeline.size_proof import least_db
from cpupack.recipe import Recipe
from cpupack.recipe.file import parse_recipe
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.runtime.signature import Signature
from helpers.open_nets import Shuffled, Squeezed, UNet
from helpers.tiny_models import Recorder

RECIPE = """
schema = 1
[package]
name = "tiny-int8"
[model]
source = "export:model.pt2"
weights = "factory"
input_shape = [3, "height", "width"]
[sizes]
max = [256, 512]
typical = [96, 96]
[preprocess]
mean = [0.5]
[calibration]
source = "synthetic"
"""


def parsed(directory: Path, *changes: tuple[str, str]) -> tuple[Recipe | None, str]:
    (directory / "model.pt2").write_bytes(b"")
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    recipe, problems, _ = parse_recipe(text, "r.toml", directory)
    return recipe, "\n".join(text for _, text in problems)


@pytest.mark.parametrize(
    ("gate", "random", "least"),
    [
        (None, False, 6.0),
        (None, True, -math.inf),
        ('"off"', False, -math.inf),
        ("3.0", False, 3.0),
        ("3.0", True, 3.0),
        ("30.0", False, 6.0),
    ],
)
def test_other_sizes_have_the_gate_of_the_recipe(tmp_path: Path, gate: str | None, random: bool, least: float) -> None:
    """Two samples of another size are no proof of a high bound, so that is judged at the typical size alone."""
    more = "[calibration]" if gate is None else f"[evaluation]\nmin_sqnr_db = {gate}\n[calibration]"
    recipe, problems = parsed(tmp_path, ("[calibration]", more))
    assert not problems
    assert recipe is not None
    assert least_db(recipe, random=random) == least


def test_the_build_works_on_the_typical_size(tmp_path: Path) -> None:
    recipe, problems = parsed(tmp_path)
    assert not problems
    assert recipe is not None
    assert recipe.engine_input_shape == (3, 96, 96)
    assert recipe.preprocess is not None
    assert recipe.preprocess.crop == [96, 96]
    assert recipe.target.x86_64.engine == "native"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"height", "width"]', '"height", 96]', "has the width 512, and the shape has 96"),
        ('"height", "width"]', "96, 96]", "sizes: has no effect without names in the shape"),
        ('[3, "height", "width"]', '["width", 3, 3]', 'has "width" in dimension 0'),
        ('"width"]', '"breadth"]', 'has other names than "height" and "width" of an image, or one or two of your own'),
        ('"width"]', '"a b"]', 'or with [sizes] "height" or "width"'),
        (
            "[256, 512]",
            "{ height = 256, time = 512 }",
            "sizes.max: has height, time, and is [HEIGHT, WIDTH] for images",
        ),
        ("[sizes]\nmax = [256, 512]\ntypical = [96, 96]\n", "", "needs [sizes] with max = [HEIGHT, WIDTH]"),
        ("max = [256, 512]\n", "", "sizes.max: is missing"),
        ("[96, 96]", "[96, 1024]", "has the width 1024, more than max: 512"),
        ("typical = [96, 96]", "typical = [96, 96]\nmin = [128, 8]", "has the height 128, more than the typical 96"),
        ("mean = [0.5]", "crop = 96", "would give all images one size"),
        ("mean = [0.5]", "resize = [96, 96]", "would give all images one size"),
        ("[calibration]", '[target.x86_64]\nengine = "onednn"\n[calibration]', "has programs for one size alone"),
    ],
)
def test_contradictions(tmp_path: Path, old: str, new: str, message: str) -> None:
    recipe, problems = parsed(tmp_path, (old, new))
    assert recipe is None
    assert message in problems


def test_sides_of_an_image_may_have_their_names(tmp_path: Path) -> None:
    by_name = "{ height = 256, width = 512 }"
    recipe, problems = parsed(tmp_path, ("[256, 512]", by_name), ("[96, 96]", "{ width = 64, height = 96 }"))
    assert not problems
    assert recipe is not None
    assert recipe.sizes is not None
    assert (recipe.sizes.max, recipe.sizes.typical) == ([256, 512], [96, 64])
    assert recipe.engine_input_shape == (3, 96, 64)


def found(net: nn.Module, tmp_path: Path, *changes: tuple[str, str]) -> tuple[tuple[int, int], ...]:
    recipe, problems = parsed(tmp_path, *changes)
    assert recipe is not None, problems
    shape = recipe.engine_input_shape
    with torch.inference_mode():
        output = net(torch.zeros(1, *shape))
    sizes = open_sizes(net, Signature.plain(shape, tuple(output.shape[1:])), recipe)
    assert sizes is not None
    return sizes.least, sizes.most, sizes.multiple


def test_the_multiple_is_found(tmp_path: Path) -> None:
    assert found(UNet("nearest"), tmp_path) == ((32, 32), (256, 512), (4, 4))
    assert found(UNet("transposed"), tmp_path) == ((32, 32), (256, 512), (4, 4))
    assert found(Shuffled(), tmp_path)[2] == (1, 1)
    assert found(Squeezed(), tmp_path)[2] == (8, 8)  # two strides, and two windows of an adaptive average


@pytest.mark.parametrize("side", [4, 16, 32])
def test_patches_have_their_size_as_the_multiple(tmp_path: Path, side: int) -> None:
    """64 to 67 pixels have as many patches of 16: neighbours alone do not tell."""
    net = nn.Sequential(nn.Conv2d(3, 8, side, side), nn.ReLU(), nn.Flatten(2))
    most, typical = (f"[{count * side}, {count * side}]" for count in (8, 2))
    assert found(net, tmp_path, ("[256, 512]", most), ("[96, 96]", typical))[2] == (side, side)


class Shifted(nn.Module):
    """Windows of 4 x 4 patches of 16 pixels, shifted where a map has more than one, as in Swin's last stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        rows, columns = x.shape[2:]
        x = F.pad(x, (0, -columns % 4, 0, -rows % 4))
        return torch.roll(x, (2, 2), (2, 3)) * 2 if x.shape[2] > 4 else x


def test_a_model_that_is_another_one_at_its_least_size_is_told_where_the_other_begins(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="something else for images of 128 x 128 or more") as caught:
        found(Shifted(), tmp_path, ("[256, 512]", "[256, 256]"), ("[96, 96]", "[64, 64]"))
    assert "set [sizes] min to 128" in (caught.value.hint or "")
    sizes = (("[256, 512]", "[512, 512]"), ("[96, 96]", "[256, 256]\nmin = [128, 128]"))
    assert found(Shifted(), tmp_path, *sizes) == ((128, 128), (512, 512), (64, 64))


def test_a_multiple_may_be_a_divisor_of_the_sizes_alone(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 176, 176), nn.Flatten(2))
    sizes = (("[256, 512]", "[704, 704]"), ("[96, 96]", "[352, 352]\nmin = [176, 176]"))
    assert found(net, tmp_path, *sizes)[2] == (176, 176)


def test_one_side_may_be_fixed(tmp_path: Path) -> None:
    fixed = found(Shuffled(), tmp_path, ('"height"', "96"), ("[256, 512]", "[96, 512]"))
    assert fixed == ((96, 32), (96, 512), (96, 1))


def test_sizes_that_are_no_multiples_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"max: a width of 510 is no multiple of 4.*508 or 512"):
        found(UNet("nearest"), tmp_path, ("512", "510"))
    with pytest.raises(RecipeError, match=r"min: a height of 30"):
        found(UNet("nearest"), tmp_path, ("[96, 96]", "[96, 96]\nmin = [30, 32]"))


class Heads(nn.Module):
    """Scores of the whole image, a map of half its size, boxes of each cell, and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv(x)
        whole = self.last(x.mean((2, 3)))
        return {"scores": whole, "map": x, "cells": x.flatten(2).transpose(1, 2), "number": whole[:, 0]}


def test_each_of_several_outputs_has_a_shape_for_each_size(tmp_path: Path) -> None:
    recipe, problems = parsed(tmp_path)
    assert recipe is not None, problems
    fitted = fit_signature(Heads(), "python:x", recipe, Recorder())
    sizes = open_sizes(fitted.module, fitted.signature, recipe)
    assert sizes is not None
    assert sizes.multiple == (2, 2)
    assert OpenSizes.from_dict(json.loads(json.dumps(sizes.to_dict()))) == sizes
    signature = dataclasses.replace(fitted.signature, sizes=sizes)
    for height, width in ((64, 64), (32, 98), (96, 34)):
        image = torch.randn(2, 3, height, width)
        with torch.inference_mode():
            expected, rows = fitted.module.user(image), fitted.module(image)
        found = signature.of_size((height, width)).unpack(rows.numpy())
        assert {name: torch.from_numpy(each).shape for name, each in found.items()} == {
            name: each.shape for name, each in expected.items()
        }
        for name, each in expected.items():
            np.testing.assert_array_equal(found[name], each.numpy())
    assert signature.of_size(None) is signature


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 2, 3), nn.Linear(2 * 94 * 94, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.conv(x).flatten(1))
        return result


def test_a_model_of_one_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"do not grow in step with the image.*it fails"):
        found(OneSize(), tmp_path)


def test_positions_of_a_pad_come_first(tmp_path: Path) -> None:
    """Sound of shape (1, samples) has one position by that rule, and so one length."""
    begin, end = RECIPE.index("input_shape"), RECIPE.index("[calibration]")
    sound = '[[input]]\nname = "x"\nshape = [1, 800]\npad = 0\n'
    recipe, problems = parsed(tmp_path, (RECIPE[begin:end], sound))
    assert recipe is None
    assert "input[0].pad: is for positions" in problems
    assert "[1, 800] has one position" in problems
    recipe, problems = parsed(tmp_path, (RECIPE[begin:end], sound.replace("[1, 800]", "[800, 1]")))
    assert not problems
