"""A wheel of Faster R-CNN, from the recipe to the installed wheel without torch: it finds what torchvision finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cpupack.runtime.host.cpu import machine
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.runtime.tasks.boxes import iou
from helpers.fresh_venv import make_environment
from helpers.two_stages import MEAN, SIZE, STD, detector, own_forward

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "recipes" / "photos" / "espresso.jpg"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]

MODEL = f"""\
import sys

sys.path.insert(0, {str(ROOT / "tests")!r})
from helpers.two_stages import detector
"""
RECIPE = f"""\
schema = 1
[package]
name = "tiny-objects"
[model]
source = "python:nets.py:detector"
weights = "factory"
input_shape = [3, {SIZE[0]}, {SIZE[1]}]
labels = ["nothing", "cup", "saucer", "spoon"]
[preprocess]
resize = [{SIZE[0]}, {SIZE[1]}]
mean = {MEAN}
std = {STD}
[calibration]
source = "images:photos"
"""
OPTIONS = ("--no-tune", "--json", "--set", "target.x86_64.engine=native")


def views_of_the_photo(count: int) -> list[np.ndarray]:
    """Return parts of the photo in the size of the model's input."""
    random, found = np.random.default_rng(0), []
    with Image.open(PHOTO) as image:
        for _ in range(count):
            wide, high = (int(side * random.uniform(0.4, 1.0)) for side in image.size)
            left, top = (int(random.uniform(0, end - side)) for end, side in zip(image.size, (wide, high), strict=True))
            part = image.convert("RGB").crop((left, top, left + wide, top + high))
            found.append(np.asarray(part.resize(SIZE[::-1])))
    return found


def test_the_wheel_finds_what_torchvisions_own_model_finds(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(MODEL)
    (tmp_path / "objects.toml").write_text(RECIPE)
    (tmp_path / "photos").mkdir()
    views = views_of_the_photo(24)
    for number, view in enumerate(views):
        Image.fromarray(view).save(tmp_path / "photos" / f"{number}.png")
    done = subprocess.run(
        [sys.executable, "-m", "cpupack", "build", "objects.toml", *OPTIONS],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = json.loads(done.stdout)["wheels"]
    only = ("numpy", "numpy.libs", "pil", "pillow", "pillow.libs")
    environment = make_environment(tmp_path / "venv", tmp_path / wheel["wheel"], only)
    assert environment.run("python", "-c", "import torch").returncode != 0
    assert environment.run("tiny-objects", "verify").returncode == 0
    # Photos of the input's size are not resized, so FP32 sees the same pixels.
    photos = [str(tmp_path / "photos" / f"{number}.png") for number in range(3)]
    answers = environment.json("tiny-objects", "predict", *photos)["predictions"]
    (alone,) = environment.json("tiny-objects", "predict", photos[1])["predictions"]
    assert alone["detections"] == answers[1]["detections"]
    spec = PreprocessSpec.from_dict({"resize": list(SIZE), "mean": MEAN, "std": STD})
    x = torch.from_numpy(np.ascontiguousarray(normalize(np.stack(views[:3]), spec)))
    _, expected = own_forward(detector(), x)
    shared = total = 0
    for answer, wanted in zip(answers, expected, strict=True):
        found = answer["detections"]
        scores = [one["score"] for one in found]
        assert scores == sorted(scores, reverse=True)
        total += len(found) + len(wanted["labels"])
        shared += 2 * sum(_is_among(one, wanted) for one in found)
    assert total > 30
    assert shared / total > 0.7
    saved = tmp_path / "drawn.png"
    assert environment.run("tiny-objects", "predict", photos[0], "--save", str(saved)).returncode == 0
    assert saved.is_file()


def _is_among(one: dict[str, Any], wanted: dict[str, torch.Tensor]) -> bool:
    """Whether a box of the same class overlaps by half, with a score that differs by a tenth at most."""
    overlaps = iou(np.array(one["box"], np.float32), wanted["boxes"].numpy())
    alike = (wanted["labels"].numpy() == one["index"]) & (np.abs(wanted["scores"].numpy() - one["score"]) < 0.1)
    return bool(((overlaps > 0.5) & alike).any())
