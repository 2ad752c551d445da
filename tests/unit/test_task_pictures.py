"""Pictures of a build's results, for the report."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from torch import nn

from cpupack.artifacts import FloatModel, Samples
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.rows import pack
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.tasks.metrics import presenter_of
from cpupack.tasks.pictures import pictures

SPEC = PreprocessSpec(resize=(24, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
IMAGE = TensorSpec("image", (3, 24, 32), preprocess=SPEC)
PIXELS = np.zeros((1, 24, 32, 3), np.uint8)
PIXELS[:, :, :16] = (250, 40, 10)


def drawn(signature: Signature, samples: Samples) -> np.ndarray:
    model = FloatModel(nn.Identity(), signature, "", False, None, 0, 0, 0, task=TaskSpec.of("segmentation"))
    maps = {"map": np.zeros((1, 2, 24, 32), np.float32)}
    maps["map"][:, 0] = 1.0  # class 0 is left clear
    (one,) = pictures(presenter_of(model), "segmentation", samples, signature, maps, maps)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(one.int8))), np.float32)


@pytest.mark.parametrize("form", ["pixels", "floats", "rows"])
def test_results_are_drawn_over_the_image_however_it_comes(form: str) -> None:
    """There was none for a model of an image and a number, and for images that are normalized already."""
    output = (OutputSpec("map", (2, 24, 32)),)
    floats = (PIXELS.transpose(0, 3, 1, 2) / 255 - np.reshape(SPEC.mean, (3, 1, 1))) / np.reshape(SPEC.std, (3, 1, 1))
    if form == "rows":
        signature = Signature((TensorSpec("age", (2,)), IMAGE), output)
        samples = Samples(pack(signature, {"age": np.zeros((1, 2), np.float32), "image": PIXELS}), "", ("a",))
    else:
        signature = Signature((IMAGE,), output)
        samples = Samples(PIXELS, "", ("a",), SPEC) if form == "pixels" else Samples(np.float32(floats), "", ("a",))
    enlarged = PIXELS[0].repeat(7, axis=0).repeat(7, axis=1)  # a label would hide an image of 32 pixels
    assert np.abs(drawn(signature, samples) - enlarged)[:, [28, 196]].max() <= 8  # JPEG


def test_boxes_lie_where_they_were_found_in_a_picture_that_is_enlarged() -> None:
    outputs = (OutputSpec("boxes", (1, 4)), OutputSpec("scores", (1, 1)))
    signature = Signature((IMAGE,), outputs)
    task = TaskSpec.of("detection", scores="probabilities")
    model = FloatModel(nn.Identity(), signature, "", False, None, 0, 0, 0, task=task)
    found = {"boxes": np.array([[[16, 12, 32, 24]]], np.float32), "scores": np.array([[[0.9]]], np.float32)}
    samples = Samples(np.zeros_like(PIXELS), "", ("a",), SPEC)
    (one,) = pictures(presenter_of(model), "detection", samples, signature, found, found)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(one.fp32)))).max(axis=2)
    assert picture.shape == (168, 224)
    assert picture[84:168, 112].min() > 60  # the left edge of the box
    assert picture[100:160, 120:215].max() < 30
    assert picture[:60, :].max() < 30


def test_maps_of_both_have_the_colours_of_one_range_and_need_no_image() -> None:
    """With a range for each, a map of half the numbers would look the same."""
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    signature = Signature((TensorSpec("state", (5,)),), (OutputSpec("map", (8, 8)),))
    task = TaskSpec.of("regression", maps=True)
    model = FloatModel(nn.Identity(), signature, "", False, None, 0, 0, 0, task=task)
    samples = Samples(np.zeros((1, 5), np.float32), "", ("a",))
    (one,) = pictures(presenter_of(model), "regression", samples, signature, {"map": ramp}, {"map": ramp / 2})
    fp32, int8 = (np.asarray(Image.open(io.BytesIO(base64.b64decode(each))), float) for each in (one.fp32, one.int8))
    assert fp32.shape == int8.shape
    assert np.abs(fp32[230, 230] - [253, 231, 37]).max() < 30  # the end of viridis
    assert np.abs(int8[230, 230] - [36, 146, 140]).max() < 30  # its middle
