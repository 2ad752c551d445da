"""recipes/digits.toml from the recipe to the installed wheel: trained weights, real images, real gates."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.host.cpu import machine
from helpers import forked
from helpers.fresh_venv import Environment, make_environment
from helpers.once import once
from helpers.waiting import PATIENCE_S

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.toml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]
pytest.importorskip("sklearn", reason="the digits come with scikit-learn (extra: digits)")


def build(out: Path, *arguments: str) -> dict[str, Any]:
    """Build the recipe in a process of its own, and return the facts of its one wheel."""
    command = ["build", str(RECIPE), "--out", str(out), "--json", *arguments]
    done = forked.run_command(command, RECIPE.parents[1], os.environ, PATIENCE_S)
    assert done.returncode == 0, done.stderr
    (wheel,) = json.loads(done.stdout)["wheels"]
    return wheel


def check_accuracy(wheel: dict[str, Any]) -> None:
    """The promise of the recipe: FP32 at least 97 %, INT8 within half a point of it."""
    report = wheel["report"]
    assert report["labelled_samples"] == len(data_module().held_out_set()[1])
    assert report["top1_fp32"] >= 0.97
    assert report["top1_fp32"] - report["top1_int8"] <= 0.005
    assert {gate["name"] for gate in report["gates"]} == {"max_drop", "min_top1", "min_sqnr_db"}
    assert not wheel["random_weights"]


def data_module() -> ModuleType:
    """Import recipes/digits/data.py, which is no package."""
    spec = importlib.util.spec_from_file_location("digits_data", RECIPE.with_suffix("") / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The recipe as it stands, tuning included."""

    def make(root: Path) -> None:
        (root / "facts.json").write_text(json.dumps(build(root / "dist", "--set", "tune.budget_s=10")))

    return json.loads((once(tmp_path_factory, "digits", make) / "facts.json").read_text())


@pytest.fixture(scope="module")
def environment(wheel: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = once(tmp_path_factory, "digits-venv", lambda root: make_environment(root, Path(wheel["wheel"])))
    return Environment(made)


def test_the_split_keeps_the_held_out_images_apart() -> None:
    data = data_module()
    (training, training_labels), (held_out, held_out_labels) = data.training_set(), data.held_out_set()
    assert len(training) + len(held_out) == 1797
    seen = {pixels.tobytes() for pixels in training}
    assert not any(pixels.tobytes() in seen for pixels in held_out)
    assert all(pixels.tobytes() in seen for pixels in data.calibration())
    for digit in range(10):
        count = int((held_out_labels == digit).sum())
        assert count == round(0.3 * (count + int((training_labels == digit).sum())))


def test_the_gates_hold_whichever_engine_is_fastest(wheel: dict[str, Any]) -> None:
    check_accuracy(wheel)
    assert wheel["plan"]["tuned"]


@pytest.mark.parametrize("engine", ["fbgemm", "x86", "onednn"])
def test_the_gates_hold_on_each_x86_engine(engine: str, tmp_path: Path) -> None:
    found = build(tmp_path, "--no-tune", "--set", f"target.x86_64.engine={engine}")
    check_accuracy(found)
    assert found["target"]["engine"] == engine


@pytest.mark.parametrize(("wanted", "engine"), [("auto", "native"), ("qnnpack", "qnnpack")])
def test_the_gates_hold_for_aarch64(tmp_path: Path, wanted: str, engine: str) -> None:
    found = build(tmp_path, "--target", "aarch64", "--set", f"target.aarch64.engine={wanted}")
    check_accuracy(found)
    assert (found["target"]["engine"], found["target"]["isa"]) == (engine, "neon")
    assert found["report"]["speedup"] is None
    assert found["wheel"].endswith("_aarch64.whl")


def test_a_wheel_for_cpus_without_vnni_is_shown_to_be_safe_and_agrees_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.py").write_text(
        "def right(outputs, targets):\n    return float((outputs.argmax(axis=1) == targets).mean())\n"
    )
    settings = [
        "target.x86_64.isa=avx2",
        "target.x86_64.engine=onednn",
        f"evaluation.metric=python:{tmp_path / 'metrics.py'}:right",
        "evaluation.max_metric_drop=0.005",
    ]
    found = build(tmp_path / "dist", "--no-tune", *(part for each in settings for part in ("--set", each)))
    report, saturation = found["report"], found["saturation"]
    assert report["metric_int8"] == pytest.approx(report["top1_int8"])
    assert [gate["name"] for gate in report["gates"] if gate["passed"]][-1] == "max_metric_drop"
    assert found["target"]["isa"] == saturation["isa"] == "avx2"
    assert found["target"]["activation_bits"] == saturation["activation_bits"]
    assert saturation["layers"]
    assert not any(layer["overflows"] for layer in saturation["layers"])
    # oneDNN told to use no more than AVX2 is such a CPU; the golden outputs are of this host.
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    environment = make_environment(tmp_path / "venv", Path(found["wheel"]))
    assert environment.json("digits-int8", "verify")["passed"]


def test_a_gate_that_fails_stops_the_build(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cpupack", "build", str(RECIPE), "--out", str(tmp_path / "dist"), "--no-tune"]
    impossible = ["--set", "evaluation.min_top1=1.0", "--set", "target.x86_64.engine=fbgemm"]
    done = subprocess.run([*command, *impossible], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "min_top1 = 1, measured 0.9" in done.stderr
    assert not list(tmp_path.glob("dist/*"))


def test_the_installed_wheel_reads_held_out_digits(
    environment: Environment, wheel: dict[str, Any], tmp_path: Path
) -> None:
    pixels, labels = data_module().held_out_set()
    files = []
    for row, image in enumerate(pixels):
        files.append(str(tmp_path / f"{row:03}.png"))
        Image.fromarray(image[:, :, 0]).save(files[-1])
    answer = environment.json("digits-int8", "predict", *files)
    found = [int(one["top"][0]["label"]) for one in answer["predictions"]]
    # What the build measured is what ships, image by image through a PNG file.
    assert np.mean(np.array(found) == labels) == wheel["report"]["top1_int8"]
    assert not answer["random_weights"]


def test_a_larger_picture_of_a_digit_is_scaled_down(environment: Environment, tmp_path: Path) -> None:
    pixels, labels = data_module().held_out_set()
    for row in range(10):
        picture = Image.fromarray(pixels[row, :, :, 0]).resize((160, 160), Image.Resampling.BICUBIC).convert("RGB")
        picture.save(tmp_path / f"{row}.jpg")
    answer = environment.json("digits-int8", "predict", *[str(tmp_path / f"{row}.jpg") for row in range(10)])
    found = [int(one["top"][0]["label"]) for one in answer["predictions"]]
    assert np.mean(np.array(found) == labels[:10]) >= 0.9


def test_the_installed_wheel_verifies_itself(environment: Environment) -> None:
    assert environment.json("digits-int8", "verify")["passed"]
