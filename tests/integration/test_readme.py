"""The README's own-model example, word for word: own file, own checkpoint, own image folder."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cpupack.runtime.host.cpu import machine

README = Path(__file__).parents[2] / "README.md"
LABELS = ("circle", "cross", "square")
MODEL = """\
from torch import nn


def shapes(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the example is built for x86_64"),
]


def draw(label: str, rng: np.random.Generator) -> Image.Image:
    """Draw one shape; each has a colour of its own, so that seconds of training tell them apart."""
    image = Image.new("RGB", (80, 80), tuple(rng.integers(0, 60, 3).tolist()))
    canvas = ImageDraw.Draw(image)
    x, y, size = rng.integers(15, 30, 3).tolist()
    box = [x, y, x + size, y + size]
    match label:
        case "circle":
            canvas.ellipse(box, fill=(220, 40, 40))
        case "square":
            canvas.rectangle(box, fill=(40, 60, 220))
        case _:
            canvas.line(box, fill=(40, 220, 60), width=8)
            canvas.line([x + size, y, x, y + size], fill=(40, 220, 60), width=8)
    return image


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: model.py, shapes.pt, photos/LABEL/*.jpg, and the recipe of the README."""
    root = tmp_path_factory.mktemp("own")
    (root / "model.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    arrays = []
    for number in range(120):
        image = draw(LABELS[number % 3], rng)
        folder = root / "photos" / LABELS[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:03}.jpg")
        arrays.append(np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)))
    _train(root, torch.from_numpy(np.stack(arrays)), torch.arange(120) % 3)
    (recipe,) = re.findall(r"^```toml\n(.*?)^```", README.read_text(), flags=re.S | re.M)
    (root / "shapes.toml").write_text(recipe)
    return root


def _train(root: Path, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    spec = importlib.util.spec_from_file_location("own_model", root / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    model = module.shapes(classes=3)
    inputs = ((pixels.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        for rows in torch.randperm(len(labels)).split(40):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    torch.save(model.state_dict(), root / "shapes.pt")


def cpupack(project: Path, *arguments: str) -> str:
    # By PYTHONPATH, so that it runs from a checkout that is not installed too.
    path = os.pathsep.join(filter(None, [str(README.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "cpupack", *arguments]
    done = subprocess.run(
        command, cwd=project, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_readme_builds(project: Path) -> None:
    assert cpupack(project, "check", "shapes.toml") == "shapes.toml: ok\n"
    (wheel,) = json.loads(cpupack(project, "build", "shapes.toml", "--no-tune", "--json"))["wheels"]
    assert Path(project, wheel["wheel"]).name.startswith("shapes_int8-0.1.0-")
    assert wheel["report"]["labelled_samples"] == 120
    assert wheel["report"]["top1_fp32"] > 0.99
    assert [gate["name"] for gate in wheel["report"]["gates"]] == ["max_drop"]
