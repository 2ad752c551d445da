"""A stranger's project: an own model file, a checkpoint of it, a small folder of photos, and a short recipe."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import cpupack
from helpers import forked
from helpers.waiting import PATIENCE_S

CLASSES = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
PHOTOS_EACH = 6
SIZE = 16
NAME = "tiny-colors"
FAST = ("--no-tune", "--set", "target.x86_64.engine=fbgemm")
"""Options that keep a build to a few seconds: one engine, no search."""

RECIPE = f"""\
schema = 1

[package]
name = "{NAME}"

[model]
source = "python:models.py:residual"
weights = "colors.pt"
input_shape = [3, {SIZE}, {SIZE}]
labels = ["blue", "green", "red"]

[preprocess]
resize = {SIZE}
crop = {SIZE}

[calibration]
source = "images:photos"
samples = {PHOTOS_EACH * len(CLASSES)}
"""
MODELS = (Path(__file__).parent / "user_models.py").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Project:
    """A directory with ``colors.toml`` and everything that it names."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "colors.toml"

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return path

    def drop(self, key: str) -> None:
        """Delete a line of the recipe."""
        lines = self.recipe.read_text(encoding="utf-8").splitlines()
        self.recipe.write_text("\n".join(line for line in lines if not line.startswith(f"{key} =")), encoding="utf-8")

    def left_behind(self) -> list[str]:
        """Return what is in ``dist``, and in the directory for temporary files."""
        found = [*(self.root / "dist").rglob("*"), *(self.root / "tmp").rglob("*")]
        # torch._dynamo makes its cache directory, once for a user, when it is imported.
        return [str(path.relative_to(self.root)) for path in found if not path.name.startswith("torchinductor_")]

    def environ(self) -> dict[str, str]:
        """Return the environment of a process that works here: the checkout's cpupack, own temporary directory."""
        checkout = str(Path(cpupack.__file__).parents[1])
        return {**os.environ, "PYTHONPATH": checkout, "TMPDIR": str(self.root / "tmp"), "COLUMNS": "80"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in a process of its own."""
        return forked.run_command(arguments, self.root, self.environ(), PATIENCE_S)


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def make_project(root: Path) -> Project:
    """Write the project: photos of three colours that the checkpoint tells apart, and models that do not work."""
    (root / "tmp").mkdir()
    _photos(root / "photos")
    project = Project(root)
    project.write("models.py", MODELS)
    project.write("colors.toml", RECIPE)
    torch.save(_trained_by_hand().state_dict(), root / "colors.pt")
    return project


def _photos(directory: Path) -> None:
    rng = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (directory / name).mkdir(parents=True)
        for number in range(PHOTOS_EACH):
            pixels = (np.array(colour) + rng.normal(0, 30, (20, 24, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(directory / name / f"{number}.jpg")


def _trained_by_hand() -> nn.Module:
    """Return the model with weights that make a photo's mean colour its class: no training, and sure of its answer."""
    from helpers.user_models import residual  # here, because that file prints while it is imported

    module = residual()
    weights = module.state_dict()  # the tensors themselves, not copies
    weights["conv.weight"].mul_(0.1)
    for name in ("stem.0.weight", "head.weight", "head.bias"):
        weights[name].zero_()
    for index, channel in enumerate((2, 1, 0)):  # classes in alphabetical order are blue, green, red
        weights["stem.0.weight"][index, channel, 1, 1] = 1.0
        weights["head.weight"][index, index] = 4.0
    return module.eval()
