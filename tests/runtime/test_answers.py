"""In which image the results of a sample lie, and over which they are drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.errors import InputError
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tasks.answers import Answers
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec


def answers(package_dir: Path, kind: str, *inputs: TensorSpec) -> Answers:
    manifest = dataclasses.replace(read_manifest(package_dir), task=TaskSpec.of(kind).to_dict())
    return Answers(package_dir, manifest, None, Signature(inputs, (OutputSpec("output", (5, 6)),)))


def test_results_lie_in_the_first_of_several_images(array_package_dir: Path) -> None:
    """They lay in the model's input: boxes were too small by the resize, and --save ended with a traceback."""
    spec = PreprocessSpec(resize=(8, 8))
    images = [TensorSpec(name, (3, 8, 8), preprocess=spec) for name in ("before", "after")]
    made = answers(array_package_dir, "detection", TensorSpec("depth", (1, 4, 4)), *images)
    item = {"before": Image.new("RGB", (80, 40)), "after": Image.new("RGB", (16, 16)), "depth": np.zeros((1, 4, 4))}
    frame = made.frame(item)
    assert frame == Frame(80, 40, 8, 8, 8, 8)
    found = made.result({"output": np.array([[0, 0, 4, 4, 9.0, -9.0]], np.float32)}, frame, 5)
    assert found[0].box == (0.0, 0.0, 40.0, 20.0)
    assert made.drawing(found, item).size == (80, 40)
    assert made.frame({"after": item["after"]}) is None  # left out, for its default


def test_what_can_be_drawn_without_an_image(array_package_dir: Path) -> None:
    made = answers(array_package_dir, "image", TensorSpec("latent", (16,)))
    picture = made.result({"output": np.zeros((4, 6), np.float32)}, None, 5)
    assert made.drawing(picture, np.zeros(16, np.float32)).size == (6, 4)
    made = answers(array_package_dir, "segmentation", TensorSpec("scan", (1, 4, 6)))
    mask = made.result({"output": np.zeros((4, 6), np.float32)}, None, 5)
    with pytest.raises(InputError, match="no image to draw over"):
        made.drawing(mask, np.zeros((1, 4, 6), np.float32))
