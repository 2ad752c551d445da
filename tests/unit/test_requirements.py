"""What a wheel requires: torch only where some layer is torch's, packages of some commands as extras, and a Python."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch
from packaging.requirements import Requirement
from torch import nn

import cpupack.runtime
from cpupack.artifacts import LayerFact, QuantizedModel, StagedProject
from cpupack.errors import PackagingError
from cpupack.graph.native_model import NativeModel
from cpupack.runtime import extras
from cpupack.runtime.errors import HostError
from cpupack.runtime.manifest import read_manifest
from cpupack.stages.package import requirements, stage_project
from cpupack.stages.script import why_torch
from cpupack.wheel.facts import fact_rows
from helpers.lowered import needs_kernels
from helpers.native_wheel import TARGET, native_contents
from helpers.tiny_models import quantized
from helpers.tiny_wheel import TinyWheel

ROOT = Path(__file__).resolve().parents[2]


def project_table(root: Path) -> dict[str, Any]:
    with (root / "pyproject.toml").open("rb") as file:
        table: dict[str, Any] = tomli.load(file)["project"]
    return table


def required(staged: StagedProject) -> list[str]:
    return [Requirement(text).name for text in project_table(staged.root)["dependencies"]]


# --- torch


@needs_kernels
def test_a_native_wheel_requires_no_torch(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(native_contents(tiny, tmp_path), tmp_path / "project")
    assert required(staged) == ["numpy", "pillow"]
    assert dict(fact_rows(read_manifest(staged.package_dir)))["Torch required"] == "not needed"
    assert "| Torch required | not needed |" in (staged.root / "README.md").read_text()


def test_a_wheel_of_torch_requires_it_and_says_why(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(tiny.contents(), tmp_path / "project")
    assert required(staged) == ["torch", "numpy", "pillow"]
    text = dict(fact_rows(read_manifest(staged.package_dir)))["Torch required"]
    assert text == f"{requirements.torch_range(torch.__version__)}, because its engine is torch's"


@needs_kernels
def test_what_a_wheel_says_of_torch_must_be_true(tiny: TinyWheel, tmp_path: Path) -> None:
    native, other = native_contents(tiny, tmp_path), tiny.contents()
    claims = dataclasses.replace(native, scripted=dataclasses.replace(native.scripted, torch_reason="of a mistake"))
    with pytest.raises(PackagingError, match="the model does not need torch, and the wheel would say otherwise"):
        stage_project(claims, tmp_path / "one")
    denies = dataclasses.replace(other, scripted=dataclasses.replace(other.scripted, torch_reason=None))
    with pytest.raises(PackagingError, match="the model needs torch, and the wheel would say otherwise"):
        stage_project(denies, tmp_path / "two")


def native_model(**parts: Any) -> NativeModel:
    return NativeModel(b"program", (5, 2, 3) if parts.get("image") else (5,), {}, **parts)


def facts(*kernels: str) -> tuple[LayerFact, ...]:
    return tuple(LayerFact(f"layer{number}", "conv", "fp32", kernel) for number, kernel in enumerate(kernels))


@pytest.mark.parametrize(
    ("module", "layers", "reason"),
    [
        (native_model(), ("cpupack::conv",), None),
        (native_model(tail=nn.Softmax(1)), ("cpupack::conv", "aten"), "torch runs the layers that stay FP32: layer1"),
        (
            native_model(head=nn.ReLU()),
            ("aten",) * 7,
            "torch runs the layers that stay FP32: layer0, layer1, layer2, layer3, layer4 and 2 more",
        ),
        (native_model(image=True), ("cpupack::conv",), None),
    ],
    ids=["program", "tail", "many", "image"],
)
def test_the_reason_names_the_layers(module: NativeModel, layers: tuple[str, ...], reason: str | None) -> None:
    assert why_torch(QuantizedModel(module, TARGET, layers=facts(*layers))) == reason


def test_an_engine_of_torch_is_the_reason() -> None:
    _, int8 = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "qnnpack")
    assert why_torch(int8) == "torch runs the model: qnnpack is an engine of torch"


# --- the numbers that are written twice


def test_ranges_are_those_of_cpupack_itself() -> None:
    own = {each.name: each.specifier for each in map(Requirement, project_table(ROOT)["dependencies"])}
    for text in (*requirements.RUNTIME_REQUIREMENTS, requirements.BUILD_REQUIRES, extras.JINJA2):
        assert Requirement(text).specifier == own[Requirement(text).name]
    assert f">={requirements.OLDEST_TORCH}" in str(own["torch"])
    for text in (extras.LOADGEN, extras.SIMPLEJPEG, *extras.SERVE):
        ours = {each.name: each.specifier for each in map(Requirement, _development())}
        assert Requirement(text).specifier == ours[Requirement(text).name]


def _development() -> list[str]:
    return [text for text in project_table(ROOT)["optional-dependencies"]["dev"] if not text.startswith("build")]


def test_torch_is_bounded_by_the_builders_minor() -> None:
    assert requirements.requirements("2.13.0+cpu", needs_torch=True)[0] == "torch>=2.10,<2.14"


# --- extras


def test_every_extra_is_in_the_wheel(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(tiny.contents(), tmp_path / "project")
    found = project_table(staged.root)["optional-dependencies"]
    assert found == {name: wanted for name, (wanted, _) in requirements.EXTRAS.items()}


def test_what_is_missing_is_named_with_the_command_that_installs_it() -> None:
    extras.require("numpy", "numpy>=1", "this test")
    with pytest.raises(HostError, match=r'--html needs no_such_module, .* run: pip install "no-such>=1,<2"'):
        extras.require("no_such_module", "no-such>=1,<2", "--html")


# --- Python


def oldest_python_problems(*paths: Path) -> str:
    """Return what vermin finds that Python 3.10 does not have, "" for nothing."""
    oldest = requirements.REQUIRES_PYTHON.removeprefix(">=")
    code = "from vermin import main; main()"
    options = ("--no-tips", f"-t={oldest}-", "--violations", "--eval-annotations", "--no-parse-comments")
    command = [sys.executable, "-c", code, *options, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_what_ships_needs_no_newer_python_than_it_promises(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(tiny.contents(), tmp_path / "project")
    runtime = Path(cpupack.runtime.__file__).parent
    assert oldest_python_problems(runtime, staged.root) == ""


@pytest.mark.parametrize(
    "newer",
    ["import tomllib", "from datetime import UTC", "import hashlib\nhashlib.file_digest", "from typing import Self",
     "try:\n    pass\nexcept* OSError:\n    pass", "import asyncio\nasyncio.TaskGroup()", "from enum import StrEnum"],
)  # fmt: skip
def test_what_is_newer_is_found(newer: str, tmp_path: Path) -> None:
    (tmp_path / "newer.py").write_text(newer + "\n")
    assert "3.11" in oldest_python_problems(tmp_path)
