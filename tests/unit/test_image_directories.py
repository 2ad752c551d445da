"""Directories of transformers whose models read images: the wheel's preprocessing is that of the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.errors import ModelError, RecipeError
from cpupack.progress import SilentProgress
from cpupack.recipe.file import load_recipe
from cpupack.recipe.image_directory import image_settings, with_own
from cpupack.recipe.recipe import Recipe
from cpupack.runtime.images.preprocess import normalize, to_pixels
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.stages.load import load
from helpers.tiny_text import library

HALF, IMAGENET = [0.5, 0.5, 0.5], [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
NORMAL: dict[str, Any] = {"image_mean": IMAGENET, "image_std": IMAGENET_STD, "resample": 3}
CASES: dict[str, dict[str, Any]] = {
    "vit": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 48}, "resample": 2,
        "image_mean": HALF, "image_std": HALF, "rescale_factor": 1 / 255, "do_resize": True,
    },
    "vit of old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 40, **NORMAL, "resample": 2},
    "fast": {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 40, "width": 40}, **NORMAL},
    "deit": {
        "image_processor_type": "DeiTImageProcessor", "size": {"height": 50, "width": 50},
        "crop_size": {"height": 40, "width": 40}, **NORMAL,
    },
    "clip": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 48}, **NORMAL,
        "crop_size": {"height": 40, "width": 40}, "do_center_crop": True,
    },
    "clip of old": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 48, "crop_size": 40, **NORMAL},
    "dinov2": {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 64}, **NORMAL,
        "crop_size": {"height": 56, "width": 56},
    },
    "resnet of old": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 56, "crop_pct": 0.875, **NORMAL},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 56}, **NORMAL},
    "convnext, large": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, **NORMAL},
    "beit": {
        "image_processor_type": "BeitImageProcessor", "size": {"height": 40, "width": 40}, "do_center_crop": False,
        "crop_size": {"height": 32, "width": 32}, "do_reduce_labels": True, **NORMAL,
    },
    "segformer of old": {"feature_extractor_type": "SegformerFeatureExtractor", "size": 64, **NORMAL, "resample": 2},
    "siglip": {
        "image_processor_type": "SiglipImageProcessor", "size": {"height": 40, "width": 40}, "resample": 3,
        "image_mean": HALF, "image_std": HALF,
    },
    "mobilevit of old": {
        "feature_extractor_type": "MobileViTFeatureExtractor", "size": 48, "crop_size": 40, "resample": 2,
        "do_flip_channel_order": True, "do_resize": True,
    },
    "levit": {
        "image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56}, **NORMAL,
    },
    "poolformer": {
        "image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 56}, "crop_pct": 0.9,
        "crop_size": {"height": 56, "width": 56}, **NORMAL,
    },
    "efficientnet": {
        "image_processor_type": "EfficientNetImageProcessor", "size": {"height": 40, "width": 40}, **NORMAL,
        "include_top": True, "rescale_offset": True, "rescale_factor": 1 / 127.5,
    },
    "scaled by itself": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 40}, "do_rescale": False,
        "image_mean": [123.0, 117.0, 104.0], "image_std": [58.0, 57.0, 56.0], "resample": 2,
    },
    "not normalized": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 40}, "do_normalize": False,
        "resample": 2,
    },
}  # fmt: skip


def write(directory: Path, settings: dict[str, Any]) -> Path:
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return directory


def photo(width: int, height: int) -> Image.Image:
    """Return a picture with detail of every size; numbers of one seed."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", CASES)
def test_preprocessing_is_that_of_the_library(tmp_path: Path, name: str) -> None:
    settings = image_settings(write(tmp_path, CASES[name]), {})
    assert settings is not None
    table = with_own(settings, None, None)
    assert table is not None
    spec = PreprocessSpec.from_dict(table.model_dump())
    processor = library("transformers").AutoImageProcessor.from_pretrained(str(tmp_path))
    for size in ((240, 120), (120, 240), (64, 64)):  # what is cropped is even: else one begins a pixel earlier
        expected = processor(photo(*size), return_tensors="np")["pixel_values"][0]
        found = normalize(to_pixels(photo(*size), spec)[None], spec)[0]
        assert found.shape == expected.shape == settings.shape
        levels = (found - expected) * np.asarray(spec.std)[:, None, None] * 255
        # Both resize with the same filter, in integers of other widths: a level, and a few where it overshoots.
        assert np.sqrt(np.square(levels).mean()) <= 0.75
        assert np.abs(levels).max() <= 8.0


def test_the_part_of_a_processor_is_read_and_the_recipe_wins(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": CASES["clip"]}))
    write(tmp_path, CASES["vit"])
    settings = image_settings(tmp_path, {}, ("mean",))
    assert settings is not None
    assert settings.file == "processor_config.json"
    own = recipe(tmp_path, "[preprocess]\nmean = [0.1]\n").preprocess
    assert own is not None
    found = with_own(settings, own, None)
    assert found is not None
    assert (found.mean, found.std, found.resize, found.crop) == ([0.1], IMAGENET_STD, 48, [40, 40])
    placed = recipe(tmp_path, "[preprocess]\nresize = [32, 32]\n").preprocess
    assert placed is not None
    settings = image_settings(tmp_path, {}, placed.model_fields_set)
    assert settings is not None
    found = with_own(settings, placed, None)
    assert found is not None
    assert (found.mean, found.resize, found.crop, found.interpolation) == (IMAGENET, [32, 32], None, "bicubic")


def test_another_shape_sees_the_same_share_of_an_image(tmp_path: Path) -> None:
    settings = image_settings(write(tmp_path, CASES["clip"]), {})
    assert settings is not None
    found = with_own(settings, None, [3, 80, 80])
    assert found is not None
    assert (found.resize, found.crop) == (96, [80, 80])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_pad": True}, "has do_pad"),
        ({"size": {"shortest_edge": 48, "longest_edge": 90}}, "has the size"),
        ({"size": {"shortest_edge": 48}, "do_center_crop": False}, "gives images of different sizes"),
        ({"resample": 4}, "resamples images by the method 4"),
        ({"resample": None}, "does not say resample"),
        ({"size_divisor": 32}, "makes sizes multiples of 32"),
        ({"image_mean": None}, "has no image_mean"),
        ({"image_std": [0.2, 0.2]}, "has image_std"),
        ({"size": {"height": 0, "width": 4}}, "is no number of pixels"),
        ({"rescale_factor": "1/255"}, "is no positive number"),
        ({"image_std": [0.2, 0.0, 0.2]}, "no positive number"),
    ],
)
def test_what_a_table_cannot_say_is_an_error(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, CASES["vit"] | change)
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, "")


def recipe(directory: Path, more: str) -> Recipe:
    (directory / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    path = directory / "recipe.toml"
    path.write_text(
        f'schema = 1\n[package]\nname = "x-int8"\n[model]\nsource = "transformers:."\nweights = "random"\n{more}'
        '[calibration]\nsource = "synthetic"\n'
    )
    return load_recipe(path).recipe


def test_a_model_of_images_brings_preprocessing_shape_and_labels(tmp_path: Path) -> None:
    path = tiny_vit(tmp_path)
    progress = SilentProgress()
    model = load(load_recipe(path), progress)
    assert (model.kind, model.labels) == ("classification", ("cat", "dog", "fish"))
    (only,) = model.signature.inputs
    assert only.shape == (3, 32, 32)
    assert only.preprocess is not None
    assert (only.preprocess.mean, only.preprocess.resize) == (tuple(HALF), (32, 32))


def test_what_the_library_does_otherwise_is_an_error(tmp_path: Path) -> None:
    """Perceiver's processor cuts the middle out before it resizes, which no key of its file says."""
    path = tiny_vit(tmp_path, image_processor_type="PerceiverImageProcessor", crop_size={"height": 64, "width": 64})
    with pytest.raises(ModelError, match="from what the library's PerceiverImageProcessor makes of it"):
        load(load_recipe(path), SilentProgress())


def tiny_vit(directory: Path, **settings: Any) -> Path:
    transformers = library("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "fish"}, label2id={"cat": 0, "dog": 1, "fish": 2},
    )  # fmt: skip
    place = directory / "model"
    transformers.ViTForImageClassification(config).save_pretrained(place)
    write(place, CASES["vit"] | {"size": {"height": 32, "width": 32}} | settings)
    path = directory / "recipe.toml"
    path.write_text(
        'schema = 1\n[package]\nname = "tiny-int8"\n[model]\nsource = "transformers:model"\nweights = "pretrained"\n'
        '[calibration]\nsource = "synthetic"\n'
    )
    return path
