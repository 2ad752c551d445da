"""The wheel as a stranger meets it: installed by pip into an environment that does not have cpupack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_wheel import LABELS, TinyWheel

from cpupack.artifacts import StagedProject
from cpupack.runtime.cpu import machine
from cpupack.stages.package import build_wheel, stage_project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the tiny wheel is built for x86_64"),
]


@dataclass(frozen=True)
class Environment:
    """A virtual environment outside the checkout."""

    root: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Without what the test run itself sets: PYTHONPATH would make the checkout importable.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
        kept |= {"XDG_CACHE_HOME": str(self.root / "cache"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        command = [str(self.root / "bin" / program), *arguments]
        return subprocess.run(command, cwd=self.root, env=kept, capture_output=True, text=True, check=False)

    def json(self, program: str, *arguments: str) -> dict:
        done = self.run(program, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def staged(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> StagedProject:
    return stage_project(tiny.contents(random_weights=True), tmp_path_factory.mktemp("staged") / "project")


@pytest.fixture(scope="module")
def wheel(staged: StagedProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(staged, tmp_path_factory.mktemp("dist")).path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Make a virtual environment that sees this one's packages except cpupack; install the wheel with pip.

    With its dependencies and without an index: pip itself checks that the ranges take the installed torch. No
    pip and setuptools of its own, which would hide those that the shared torch asks for.
    """
    root = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    shared = root / "shared"
    shared.mkdir()
    for entry in Path(torch.__file__).parents[1].iterdir():
        if not entry.name.startswith(("cpupack", "_cpupack", "__editable__")) and entry.suffix != ".pth":
            (shared / entry.name).symlink_to(entry)
    (site_packages,) = root.glob("lib/python*/site-packages")
    (site_packages / "shared.pth").write_text(f"{shared}\n")
    environment = Environment(root)
    done = environment.run("python", "-m", "pip", "install", "--no-index", str(wheel))
    assert done.returncode == 0, done.stderr
    return environment


def test_cpupack_is_not_there(environment: Environment) -> None:
    done = environment.run("python", "-c", "import tiny_int8, cpupack")
    assert "No module named 'cpupack'" in done.stderr


def test_info(environment: Environment) -> None:
    assert "1.0.0+random" in environment.run("tiny-int8", "info").stdout
    environment.json("tiny-int8", "info")


def test_verify_replays_the_golden_inputs(environment: Environment) -> None:
    assert environment.json("tiny-int8", "verify")["passed"]


def test_predict(environment: Environment, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    done = environment.run("tiny-int8", "predict", str(photo), "--json")
    assert done.returncode == 0, done.stderr
    (prediction,) = json.loads(done.stdout)["predictions"]
    assert sorted(one["label"] for one in prediction["top"]) == sorted(LABELS)
    assert "random weights" in done.stderr


def test_bench_by_every_entry(environment: Environment) -> None:
    short = ("--duration", "0.2", "--json")
    for program, *arguments in (
        ("tiny-int8", "bench"),
        ("tiny-int8-bench",),
        ("python", "-m", "tiny_int8", "bench"),
    ):
        done = environment.run(program, *arguments, *short)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["throughput_per_s"] > 0
        assert result["manifest"]["random_weights"]


def test_the_python_api(environment: Environment) -> None:
    code = (
        "import numpy, warnings; warnings.simplefilter('ignore')\n"
        "from tiny_int8 import Runner\n"
        "with Runner(threads=1) as runner:\n"
        "    print(len(runner.predict(numpy.zeros((9, 9, 3), numpy.uint8), top_k=2)))\n"
    )
    done = environment.run("python", "-c", code)
    assert done.stdout.strip() == "2", done.stderr


def test_a_changed_file_is_refused(environment: Environment) -> None:
    (model,) = environment.root.glob("lib/python*/site-packages/tiny_int8/model.pt")
    contents = model.read_bytes()
    model.write_bytes(contents[:-1] + b"x")
    try:
        done = environment.run("tiny-int8", "verify")
    finally:
        model.write_bytes(contents)
    assert done.returncode == 3
    assert "model.pt is not the file that was built" in done.stderr
    assert "Traceback" not in done.stderr


def test_pip_refuses_the_wheel_of_another_cpu(
    environment: Environment, tiny: TinyWheel, tmp_path: Path
) -> None:
    other = build_wheel(stage_project(tiny.contents(cpu="aarch64"), tmp_path / "project"), tmp_path / "dist")
    done = environment.run("python", "-m", "pip", "install", "--no-index", "--no-deps", str(other.path))
    assert done.returncode != 0
    assert "is not a supported wheel on this platform" in done.stderr


def test_python_m_build_makes_the_same_wheel(staged: StagedProject, wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    done = subprocess.run([*command, str(staged.root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    built = tmp_path / wheel.name
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]
    with zipfile.ZipFile(built) as theirs, zipfile.ZipFile(wheel) as ours:
        assert theirs.namelist() == ours.namelist()
        for name in ours.namelist():
            assert theirs.read(name) == ours.read(name), name
