"""The wheel as a stranger meets it: installed by pip into an environment that does not have cpupack."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpupack.artifacts import StagedProject
from cpupack.runtime.host.cpu import machine
from cpupack.stages.package import build_wheel, stage_project
from helpers.fresh_venv import Environment, make_environment
from helpers.once import once
from helpers.tiny_wheel import LABELS, TinyWheel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the tiny wheel is built for x86_64"),
]


@pytest.fixture(scope="module")
def staged(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> StagedProject:
    return stage_project(tiny.contents(random_weights=True), tmp_path_factory.mktemp("staged") / "project")


@pytest.fixture(scope="module")
def wheel(staged: StagedProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(staged, tmp_path_factory.mktemp("dist")).path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(once(tmp_path_factory, "tiny-venv", lambda root: make_environment(root, wheel)))


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


def test_a_changed_file_is_refused(wheel: Path, tmp_path: Path) -> None:
    own = make_environment(tmp_path / "venv", wheel)  # other tests may be running from the shared one
    (model,) = own.root.glob("lib/python*/site-packages/tiny_int8/model.pt")
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    done = own.run("tiny-int8", "verify")
    assert done.returncode == 3
    assert "model.pt is not the file that was built" in done.stderr
    assert "Traceback" not in done.stderr


def test_pip_refuses_the_wheel_of_another_cpu(environment: Environment, tiny: TinyWheel, tmp_path: Path) -> None:
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
