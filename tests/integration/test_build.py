"""Whole builds of a stranger's tiny model: options, kinds of models, terminals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pexpect
import pytest
import tomli

from cpupack.runtime.host.cpu import machine
from helpers.tiny_recipes import FAST, PHOTOS_EACH, SIZE, Outcome, Project
from helpers.waiting import PATIENCE_S

Cpupack = Callable[..., Outcome]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]


def test_json_and_a_real_tune(cpupack: Cpupack, project: Project) -> None:
    """Every engine of this CPU races; stdout is one JSON object although the model's file prints."""
    project.write(
        "data.py",
        "from PIL import Image\nfrom pathlib import Path\n\nHERE = Path(__file__).parent\n\n\n"
        "def load():\n    for path in sorted(HERE.glob('photos/*/*.jpg')):\n        yield Image.open(path)\n",
    )
    done = cpupack(
        "build", "colors.toml", "--json", "--set", "calibration.source=python:data.py:load",
        "--set", "tune.budget_s=6", "--set", "tune.threads=[1]", "--set", "tune.batch_sizes=[1, 4]",
    )  # fmt: skip
    assert done.code == 0, done.err
    (wheel,) = json.loads(done.out)["wheels"]
    assert Path(wheel["wheel"]).is_file()
    assert wheel["wheel_bytes"] == Path(wheel["wheel"]).stat().st_size
    assert len(wheel["engines"]) >= 2
    assert wheel["plan"]["tuned"]
    assert wheel["plan"]["batch_size"] in {1, 4}
    assert wheel["plan"]["rows"]
    assert not wheel["random_weights"]
    assert wheel["report"]["equal_to_quantized"]
    assert wheel["report"]["data"] == "python:data.py:load"
    assert "tune (x86_64)" in wheel["stages_s"]
    assert wheel["stages_s"]["load"] > 0


def test_random_weights_are_unmistakable(cpupack: Cpupack) -> None:
    done = cpupack(
        "build", "colors.toml", *FAST, "--set", "model.weights=random", "--set", "calibration.source=synthetic"
    )
    assert done.code == 0, done.err
    assert done.out == "dist/tiny_colors-0.1.0+random-py3-none-manylinux_2_28_x86_64.whl\n"
    progress, summary = done.err.split("\ntiny_colors-0.1.0+random")
    for warning in ("warning: RANDOM WEIGHTS", "warning: synthetic data"):
        assert progress.count(warning) == 1  # though calibration and comparison are both synthetic
        assert summary.count(warning) == 1
    assert "  weights    RANDOM, not trained: random (seed 0)" in summary


def test_quiet_shows_warnings_and_the_answer(cpupack: Cpupack) -> None:
    done = cpupack("build", "colors.toml", *FAST, "-q", "--set", "calibration.samples=50")
    assert done.code == 0, done.err
    assert done.out == "dist/tiny_colors-0.1.0-py3-none-manylinux_2_28_x86_64.whl\n"
    printed, warning, *others = done.err.splitlines()
    assert all(line.startswith("warning: ") for line in others)
    assert printed == "this file prints while it is imported"
    assert warning == f"warning: images:photos has {3 * PHOTOS_EACH} usable samples; 50 were asked for"


def test_a_recurrent_model_in_dynamic_mode(cpupack: Cpupack, project: Project) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((24, 12, 6), np.float32)
    np.savez(project.root / "series.npz", data=data, labels=np.arange(24) % 4)
    project.write(
        "series.toml",
        'schema = 1\n[package]\nname = "series"\n[model]\nsource = "python:models.py:recurrent"\n'
        'weights = "factory"\ninput_shape = [12, 6]\n[quantize]\nmode = "dynamic"\n'
        '[evaluation]\nsource = "arrays:series.npz"\nmin_agreement = 0.9\n',
    )
    built = cpupack("build", "series.toml", "--json", *FAST)
    assert built.code == 0, built.err
    (wheel,) = json.loads(built.out)["wheels"]
    assert wheel["report"]["labelled_samples"] == 24
    assert wheel["int8_operators"] >= 1  # torch counts the LSTM's kernels as one with FP32 activations
    with zipfile.ZipFile(wheel["wheel"]) as archive:
        archive.extractall(project.root / "installed")
    np.save(project.root / "good.npy", data[0])
    np.save(project.root / "shape.npy", data[0, :, :5])
    np.save(project.root / "dtype.npy", np.zeros((12, 6), np.int64))
    assert _predict(project, "good.npy").returncode == 0
    for name, words in (("shape.npy", "(12, 5)"), ("dtype.npy", "int64"), ("series.toml", ".npy")):
        done = _predict(project, name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("series: error: ")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr


def _predict(project: Project, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "series", "predict", name], cwd=project.root, capture_output=True, text=True,
        check=False, env={**project.environ(), "PYTHONPATH": str(project.root / "installed")},
    )  # fmt: skip


def test_a_model_with_its_own_stubs(cpupack: Cpupack, project: Project) -> None:
    """No graph can be captured of it; pixels of the model's size come from an array."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, SIZE, SIZE, 3), np.uint8)
    np.savez(project.root / "pixels.npz", images=pixels)
    settings = (
        "model.source=python:models.py:stubbed",
        "model.weights=factory",
        "calibration.source=arrays:pixels.npz",
    )
    arguments = [part for setting in settings for part in ("--set", setting)]
    listed = tomli.loads(cpupack("fusions", "colors.toml", *arguments).out)
    assert listed["fuse"]["modules"] == [["conv", "bn", "relu"]]
    done = cpupack("build", "colors.toml", "--json", *FAST, *arguments)
    assert done.code == 0, done.err
    (wheel,) = json.loads(done.out)["wheels"]
    assert wheel["fp32_operators"] == 3  # what looks at the values, outside of the stubs


def test_fusions_can_be_pasted(cpupack: Cpupack, project: Project) -> None:
    done = cpupack("fusions", "colors.toml")
    assert done.code == 0
    assert done.err == "this file prints while it is imported\n"
    assert json.loads(cpupack("fusions", "colors.toml", "--json").out) == tomli.loads(done.out)["fuse"]
    project.write("pasted.toml", project.recipe.read_text() + "\n" + done.out)
    checked = cpupack("check", "--deep", "pasted.toml")
    assert (checked.code, checked.out.count("2 fused chains")) == (0, 1), checked.err


def test_corrupt_photos_are_skipped_where_the_recipe_says_so(cpupack: Cpupack, project: Project) -> None:
    project.write("photos/red/2.jpg", "not an image")
    done = cpupack("build", "colors.toml", *FAST, "--quiet", "--set", "calibration.skip_corrupt=true")
    assert done.code == 0, done.err
    assert f"warning: skipped: {project.root}/photos/red/2.jpg is not an image that Pillow can read" in done.err


def test_no_target_but_the_one_asked_for(cpupack: Cpupack, project: Project) -> None:
    done = cpupack("build", "colors.toml", *FAST, "-q", "--target", "aarch64", "--target", "aarch64")
    assert done.code == 0, done.err
    assert done.out == "dist/tiny_colors-0.1.0-py3-none-manylinux_2_28_aarch64.whl\n"
    assert [path for path in project.left_behind() if "x86_64" in path] == []


def _terminal(project: Project, *arguments: str, **variables: str) -> str:
    """Run on a terminal of 80 columns and return everything that it showed."""
    environ = {key: value for key, value in project.environ().items() if key not in {"NO_COLOR", "COLUMNS", "CI"}}
    child = pexpect.spawn(
        sys.executable, ["-m", "cpupack", *arguments], cwd=str(project.root), dimensions=(24, 80), encoding="utf-8",
        env={**environ, "TERM": "xterm-256color", **variables}, timeout=PATIENCE_S,
    )  # fmt: skip
    shown = child.read()
    child.close()
    return str(shown)


def test_a_terminal_shows_a_bar(project: Project) -> None:
    shown = _terminal(project, "build", "colors.toml", *FAST)
    assert "\x1b[?25l" in shown  # the cursor is hidden while the bar moves
    assert "\x1b[?25h" in shown
    assert "━" in shown
    assert "calibrate ..." not in shown  # the bar says it
    assert shown.rstrip().endswith("dist/tiny_colors-0.1.0-py3-none-manylinux_2_28_x86_64.whl")


def test_no_color(project: Project) -> None:
    colour = "\x1b[31m", "\x1b[1;31m", "\x1b[31m\x1b[1m"
    shown = _terminal(project, "build", "gone.toml")
    assert any(code in shown for code in colour)
    plain = _terminal(project, "build", "gone.toml", NO_COLOR="1")
    assert plain.startswith("error: gone.toml: no such file\r\n")
    assert "\x1b" not in plain


def test_doctor(cpupack: Cpupack) -> None:
    done = cpupack("doctor")
    assert (done.code, done.err) == (0, "")
    assert [line for line in done.out.splitlines() if len(line) > 80] == []
    facts = json.loads(cpupack("doctor", "--json").out)
    assert facts["host"]["cores_usable"] <= len(os.sched_getaffinity(0))
    assert set(facts["torch"]["quantized_engines"]) >= {"fbgemm"}
    assert {build["cpu"] for build in facts["builds"]} == {"x86_64", "aarch64"}
