"""One build for both CPU families: what it prints, its wheels, and the one of this host, installed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.host.cpu import machine
from helpers.fresh_venv import Environment, make_environment
from helpers.once import once
from helpers.page_checks import check_page, numbers
from helpers.tiny_recipes import CLASSES, FAST, SIZE, Outcome, Project, make_project

Cpupack = Callable[..., Outcome]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]

_X86 = "tiny_colors-1.2.3-py3-none-manylinux_2_28_x86_64.whl"
_ARM = "tiny_colors-1.2.3-py3-none-manylinux_2_28_aarch64.whl"


@pytest.fixture(scope="session")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project in which ``both`` are built; tests that change one take ``project``."""
    return Project(once(tmp_path_factory, "both", _build_both))


def _build_both(root: Path) -> None:
    """Build for both CPU families in a process of its own, with labelled data, gates and a second version."""
    project = make_project(root)
    done = project.run(
        "build", "colors.toml", *FAST, "--out", "dist/new", "--set", "package.version=1.2.3",
        "--set", 'target.cpu=["x86_64", "aarch64"]', "--set", "evaluation.source=images:photos",
        "--set", "evaluation.max_drop=0.0", "--set", "evaluation.min_top1=1.0", "--set", "evaluation.min_sqnr_db=20",
        "--set", "target.aarch64.engine=qnnpack",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"dist/new/{_X86}\ndist/new/{_ARM}\n"
    project.write("stderr", done.stderr)
    assert sorted(path.name for path in (root / "dist" / "new").iterdir()) == [_ARM, _X86]


@pytest.fixture(scope="session")
def both(shared_project: Project) -> tuple[Path, Path]:
    directory = shared_project.root / "dist" / "new"
    return directory / _X86, directory / _ARM


@pytest.fixture(scope="session")
def environment(both: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(once(tmp_path_factory, "both-venv", lambda root: make_environment(root, both[0])))


@pytest.fixture
def photos(shared_project: Project) -> list[str]:
    return [str(shared_project.root / "photos" / name / "0.jpg") for name in CLASSES]


def test_plain_progress(both: tuple[Path, Path], shared_project: Project) -> None:
    text = (shared_project.root / "stderr").read_text()
    assert "\x1b" not in text
    lines = text.splitlines()
    for stage in ("load", "calibrate", "quantize (x86_64)", "quantize (aarch64)", "package"):
        assert f"{stage} ..." in lines
        assert any(line.startswith(f"done {stage} ") and line.endswith(" s") for line in lines)
    assert "this file prints while it is imported" in lines  # which would spoil stdout
    assert "Warning" not in text


def test_the_summary_fits_a_terminal(both: tuple[Path, Path], shared_project: Project) -> None:
    lines = (shared_project.root / "stderr").read_text().splitlines()
    summary = lines[next(number for number, line in enumerate(lines) if line.startswith(_X86)) :]
    assert any(line.startswith(_ARM) for line in summary)
    assert [line for line in summary if len(line) > 80 and not line.startswith("warning: ")] == []
    assert [line for line in summary if line != line.rstrip()] == []
    assert any(line.startswith("  top-1      FP32 100.00% [") and "INT8 100.00% [" in line for line in summary)
    assert any(line.strip().startswith("no drop [") for line in summary)
    assert "  weights    colors.pt" in summary
    assert any(line.startswith("  gate       min_top1 = 1 holds: 1") for line in summary)
    assert "  speed      not measured: the build host is no aarch64 CPU" in summary
    (total,) = [line for line in summary if line.startswith("  time ")]
    assert total.endswith(" s")
    assert any(re.search(r"calibrate \d+\.\d", line) for line in summary)


def test_pip_takes_this_cpus_wheel_and_refuses_the_other(both: tuple[Path, Path], environment: Environment) -> None:
    done = environment.run("python", "-m", "pip", "install", "--no-index", "--no-deps", str(both[1]))
    assert done.returncode != 0
    assert "is not a supported wheel on this platform" in done.stderr


def test_inspect(both: tuple[Path, Path], shared_project: Project) -> None:
    for path, cpu in zip(both, ("x86_64", "aarch64"), strict=True):
        found = json.loads(shared_project.run("inspect", str(path), "--json").stdout)
        assert found["integrity"] == {"ok": True, "problems": []}
        assert found["tags"] == [f"py3-none-manylinux_2_28_{cpu}"]
        assert found["target"]["cpu"] == cpu
        assert found["model"]["int8_operators"] > 0
    text = shared_project.run("inspect", str(both[0])).stdout
    assert "All hashes agree with the manifest and RECORD." in text


def test_inspect_layers(both: tuple[Path, Path], shared_project: Project) -> None:
    for path in both:
        layers = json.loads(shared_project.run("inspect", "--layers", "--json", str(path)).stdout)["layers"]
        assert all(layer["kernel"] for layer in layers)
        weighted = [layer for layer in layers if layer["name"] in {"stem.0", "conv", "head"}]
        assert [layer["name"] for layer in weighted] == ["stem.0", "conv", "head"]
        assert all(layer["precision"] == "int8" for layer in weighted)
        assert any(layer["scale"] for layer in layers)
        shown = shared_project.run("inspect", "--layers", str(path)).stdout
        assert all(layer["name"] in shown for layer in layers)
        int8 = sum(layer["precision"] == "int8" for layer in layers)
        assert f"{int8} of {len(layers)} layers run in INT8" in shown


def test_report(both: tuple[Path, Path], shared_project: Project, tmp_path: Path) -> None:
    for path in both:
        done = shared_project.run("report", str(path), "--out", str(tmp_path / path.stem))
        target = tmp_path / path.stem / "tiny-colors-1.2.3.html"
        assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
        page = check_page(target.read_text(encoding="utf-8"))
        facts = json.loads(shared_project.run("report", str(path), "--json").stdout)["build_facts"]
        assert {"accuracy", "layers", "calibration", "provenance"} <= page.with_id()
        for layer in facts["layers"]:
            assert layer["name"] in page.text
        assert f"{facts['report']['sqnr_db']:.1f}" in numbers(page)


def test_a_damaged_wheel_is_an_error(both: tuple[Path, Path], cpupack: Cpupack, tmp_path: Path) -> None:
    damaged = tmp_path / both[0].name
    damaged.write_bytes(both[0].read_bytes()[:-100])
    done = cpupack("inspect", str(damaged))
    assert done.code == 2
    assert done.err.startswith("error: ")


def test_info(environment: Environment) -> None:
    assert environment.run("tiny-colors", "--version").stdout == "tiny-colors 1.2.3\n"
    assert environment.json("tiny-colors", "info")
    done = environment.run("tiny-colors", "info")
    assert (done.returncode, done.stderr) == (0, "")
    assert "colors.pt" in done.stdout


def test_verify_in_the_environment(environment: Environment) -> None:
    found = environment.json("tiny-colors", "verify")
    assert found["passed"]
    assert found["equal"]
    done = environment.run("tiny-colors", "verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "verified"


def test_predict_knows_the_colours(environment: Environment, photos: list[str]) -> None:
    done = environment.run("tiny-colors", "predict", *photos, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)["predictions"]
    assert [one["top"][0]["label"] for one in found] == list(CLASSES)
    assert [one["input"] for one in found] == photos


def test_the_benchs_page_in_the_environment(environment: Environment, tmp_path: Path) -> None:
    result = environment.json("tiny-colors", "bench", "--duration", "0.2", "--html", str(tmp_path / "bench.html"))
    page = check_page((tmp_path / "bench.html").read_text(encoding="utf-8"))
    assert f"{result['latency_ms']['p99']:.2f}" in numbers(page)


def test_bench_in_the_environment(environment: Environment) -> None:
    result = environment.json("tiny-colors", "bench", "--duration", "0.2")
    assert {"scenario", "batch_size", "threads", "instances", "duration_s", "samples", "throughput_per_s", "latency_ms",
            "valid", "invalid_reasons", "host", "manifest"} <= set(result)  # fmt: skip
    assert {"mean", "p50", "p90", "p95", "p99", "p99_9", "min", "max"} <= set(result["latency_ms"])
    done = environment.run("tiny-colors-bench", "--duration", "0.2")
    assert done.returncode == 0
    assert done.stderr == ""


def test_tune_in_the_environment(environment: Environment) -> None:
    options = ("--budget-s", "4", "--threads", "1", "--batch-sizes", "1,8")
    result = environment.json("tiny-colors", "tune", *options)
    assert Path(result["path"]).is_file()
    assert Path(result["path"]).is_relative_to(environment.root / "cache")
    assert result["batch_size"] in {1, 8}
    assert "tuned on this host" in environment.run("tiny-colors", "info").stdout


def _bad_inputs(root: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    (root / "text.jpg").write_text("not an image")
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(root / "whole.jpg")
    (root / "cut.jpg").write_bytes((root / "whole.jpg").read_bytes()[:600])
    (root / "empty.png").touch()
    np.save(root / "array.npy", np.zeros((3, SIZE, SIZE), np.float32))
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text.jpg", "is not an image that Pillow can read"),
        ("cut.jpg", "is a truncated or damaged image"),
        ("empty.png", "is empty"),
        ("array.npy", "is an array of numpy"),
        ("gone.jpg", "no such file"),
    ],
)
def test_bad_inputs_of_the_runner(environment: Environment, tmp_path: Path, name: str, words: str) -> None:
    path = _bad_inputs(tmp_path).get(name, tmp_path / name)
    done = environment.run("tiny-colors", "predict", str(path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tiny-colors: error: ")
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
    assert words in done.stderr


def test_bad_arguments_of_the_runner(environment: Environment) -> None:
    code = (
        "import numpy, tiny_colors\n"
        "from tiny_colors import Runner\n"
        "from tiny_colors._runtime.errors import InputError\n"
        "with Runner(threads=1, instances=1) as runner:\n"
        "    for call in (lambda: runner.predict([]), lambda: runner(numpy.zeros((1, 3, 4, 4), 'float32')),\n"
        "                 lambda: runner(numpy.zeros((0, 3, 16, 16), 'float32')),\n"
        "                 lambda: runner(numpy.zeros((1, 3, 16, 16), 'float64')), lambda: runner('photo.jpg')):\n"
        "        try:\n"
        "            call()\n"
        "        except InputError as error:\n"
        "            print(error)\n"
    )
    done = environment.run("python", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 5
