"""Wheels for aarch64 on emulated ARM CPUs: installed there by pip, with the bytes of the x86-64 wheel."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arm import wheels
from arm.emulator import CPUS, UnavailableError
from arm.environment import ArmEnvironment, ensure
from arm.wheels import Installed
from cpupack.runtime.engine.program import read_program
from cpupack.runtime.host.cpu import machine
from helpers.fresh_venv import make_environment
from helpers.once import once

pytestmark = [
    pytest.mark.slow,
    pytest.mark.arm,
    pytest.mark.skipif(machine() != "x86_64", reason="ARM is emulated on x86_64"),
]
pytest.importorskip("sklearn", reason="the digits come with scikit-learn (extra: digits)")

FULL = "CPUPACK_ARM_FULL"
full = pytest.mark.skipif(FULL not in os.environ, reason="takes many minutes of emulation; `make test-arm` runs it")
NATIVE = ("target.x86_64.engine=native", "target.aarch64.engine=native")
NAMES = {
    "cortex-a53": "Cortex-A53",
    "cortex-a72": "Cortex-A72",
    "cortex-a76": "Cortex-A76",
    "neoverse-n1": "Neoverse N1",
    "max": "ARM implementer 0x0 part 0x051",
}
MIXED_MODEL = """\
import torch
from torch import nn


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.before = nn.Conv2d(3, 8, 3, padding=1)
        self.after = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.before(x)
        x = self.after(torch.linalg.inv(0.05 * x + torch.eye(x.shape[-1])))
        return self.fc(x.mean((2, 3)))


def mixed():
    torch.manual_seed(0)
    return Mixed()
"""
MIXED_RECIPE = """\
schema = 1
[package]
name = "mixed-int8"
[model]
source = "python:model.py:mixed"
weights = "factory"
input_shape = [3, 16, 16]
[calibration]
source = "synthetic"
samples = 32
"""


def environment_or_skip(*, torch: bool) -> ArmEnvironment:
    """Return the environment. Tests of every day wait minutes for it, `make test-arm` as long as it takes."""
    try:
        return ensure(torch=torch, patience_s=3600.0 if FULL in os.environ else 240.0)
    except UnavailableError as reason:
        pytest.skip(f"no emulated ARM: {reason}")


@pytest.fixture(scope="session")
def emulated() -> ArmEnvironment:
    return environment_or_skip(torch=False)


@pytest.fixture(scope="session")
def emulated_torch() -> ArmEnvironment:
    return environment_or_skip(torch=True)


@pytest.fixture(scope="session")
def digits(emulated: ArmEnvironment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels of the digits. After ``emulated``: without it they are of no use."""
    assert emulated.emulator.is_file()
    made = once(tmp_path_factory, "arm-digits", lambda root: wheels.build("digits", root, *NATIVE))
    return {cpu: next(made.glob(f"*_{cpu}.whl")) for cpu in ("x86_64", "aarch64")}


@pytest.fixture(scope="session")
def installed(emulated: ArmEnvironment, digits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    made = once(tmp_path_factory, "arm-venv", lambda root: wheels.install(emulated, digits["aarch64"], root / "venv"))
    return Installed(emulated, made / "venv", "digits_int8")


@pytest.fixture(scope="session")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    path = wheels.ROOT / "recipes/digits/data.py"
    spec = importlib.util.spec_from_file_location("digits_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pixels, labels = module.held_out_set()
    return pixels, labels


def golden(wheel: Path) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(wheels.member(wheel, "golden.npz"))) as arrays:
        return dict(arrays)


def manifest(wheel: Path) -> dict[str, Any]:
    return dict(json.loads(wheels.member(wheel, "manifest.json")))


def test_both_wheels_have_the_same_program_and_golden_outputs(digits: dict[str, Path], tmp_path: Path) -> None:
    ours, theirs = (golden(digits[cpu]) for cpu in ("aarch64", "x86_64"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    programs = []
    for cpu, wheel in digits.items():
        path = tmp_path / f"{cpu}.pt"
        path.write_bytes(wheels.member(wheel, "model.pt"))
        programs.append(read_program(path).memory.tobytes())
    assert programs[0] == programs[1]


def test_the_wheel_is_for_arm_alone_and_needs_no_torch(digits: dict[str, Path]) -> None:
    wheel = digits["aarch64"]
    assert wheel.name.endswith("-py3-none-manylinux_2_28_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
    assert [name.rpartition("/")[2] for name in libraries] == ["cpupack_int8.aarch64.so"]
    requires = [line for line in wheels.member(wheel, "METADATA").decode().splitlines() if line.startswith("Requires-")]
    assert not any(line.startswith("Requires-Dist: torch") for line in requires)
    target = manifest(wheel)["target"]
    assert (target["cpu"], target["engine"], target["isa"]) == ("aarch64", "native", "neon")


ONE_FOR_EACH_PATH = ("cortex-a72", "neoverse-n1", "max")
OTHERS = [pytest.param(cpu, marks=full) for cpu in CPUS if cpu not in ONE_FOR_EACH_PATH]


@pytest.mark.parametrize("cpu", [*ONE_FOR_EACH_PATH, *OTHERS])
def test_info_names_the_cpu_and_its_path(installed: Installed, cpu: str) -> None:
    facts = installed.json(cpu, "info")
    assert facts["runs_here"]
    assert facts["host"]["cpu"] == NAMES[cpu]
    assert facts["host"]["isa"] == facts["kernels"]["isa"] == CPUS[cpu]


@pytest.mark.parametrize("cpu", [*ONE_FOR_EACH_PATH, *OTHERS])
def test_verify_replays_the_outputs_of_x86_bit_for_bit(installed: Installed, cpu: str) -> None:
    found = installed.json(cpu, "verify")
    assert found["passed"]
    assert found["equal"]


@pytest.mark.parametrize("isa", ["neon", "dotprod"])
def test_a_lower_path_can_be_forced(installed: Installed, isa: str) -> None:
    assert installed.json("max", "info", CPUPACK_ISA=isa)["kernels"]["isa"] == isa
    assert installed.json("max", "verify", CPUPACK_ISA=isa)["equal"]


@pytest.mark.parametrize(
    ("isa", "says"),
    [("i8mm", "CPUPACK_ISA is i8mm, and this CPU"), ("avx2", "on aarch64 it may be neon, dotprod, i8mm")],
)
def test_a_path_that_the_cpu_does_not_have_is_refused(installed: Installed, isa: str, says: str) -> None:
    done = installed.run("cortex-a72", "verify", CPUPACK_ISA=isa)
    assert done.returncode == 3
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_predict(installed: Installed, held_out: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    photo = tmp_path / "digit.png"
    Image.fromarray(held_out[0][0][..., 0]).save(photo)
    (found,) = installed.json("cortex-a72", "predict", photo)["predictions"]
    assert found["top"][0]["label"] == str(held_out[1][0])


def test_the_accuracy_is_that_of_the_manifest(
    installed: Installed, digits: dict[str, Path], held_out: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    pixels, labels = held_out
    assert len(labels) >= 100
    outputs = installed.outputs("max", pixels, tmp_path)
    accuracy = manifest(digits["aarch64"])["accuracy"]
    assert accuracy["labelled_samples"] == len(labels)
    assert float((outputs.argmax(axis=1) == labels).mean()) == pytest.approx(accuracy["top1_int8"], abs=1e-12)


def test_a_short_bench(installed: Installed) -> None:
    found = installed.json("neoverse-n1", "bench", "--duration", "0.5")
    assert found["samples"] > 0
    assert found["host"]["cpu"] == "Neoverse N1"
    assert found["host"]["isa"] == "dotprod"


# --- the wheel of the other family


def test_pip_refuses_the_other_family_both_ways(
    emulated: ArmEnvironment, installed: Installed, digits: dict[str, Path]
) -> None:
    arm = emulated.pip(installed.python("max"), "install", "--no-index", "--no-deps", digits["x86_64"])
    x86: list[str | Path] = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", digits["aarch64"]]
    for command in (arm, [*x86, "--target", installed.directory / "never"]):
        done = wheels.run(command)
        assert done.returncode != 0
        assert "is not a supported wheel on this platform" in done.stderr


COMMANDS = (
    ("info",),
    ("predict", "x.png"),
    ("serve", "--max-latency-ms", "50"),
)
OTHER_COMMANDS = (
    ("verify",),
    ("bench",),
    ("tune",),
    ("plan", "--rate", "9", "--max-latency-ms", "50"),
    ("export", "--c", "x"),
)
EMULATED = [*COMMANDS, *(pytest.param(each, marks=full) for each in OTHER_COMMANDS)]


@pytest.mark.parametrize("arguments", EMULATED, ids=lambda each: each[0])
def test_forced_in_on_arm_every_command_says_so_in_one_line(
    emulated: ArmEnvironment, digits: dict[str, Path], arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with zipfile.ZipFile(digits["x86_64"]) as archive:
        archive.extractall(tmp_path)
    sites = os.pathsep.join(map(str, (tmp_path, emulated.directory / "site")))
    done = wheels.run([emulated.python("cortex-a72"), "-m", "digits_int8", *arguments], PYTHONPATH=sites)
    check_refused(done, "built for x86_64 and this host is aarch64")


@pytest.mark.parametrize("arguments", [*COMMANDS, *OTHER_COMMANDS], ids=lambda each: each[0])
def test_forced_in_on_x86_every_command_says_so_in_one_line(
    digits: dict[str, Path], arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with zipfile.ZipFile(digits["aarch64"]) as archive:
        archive.extractall(tmp_path)
    done = wheels.run([sys.executable, "-m", "digits_int8", *arguments], PYTHONPATH=str(tmp_path))
    check_refused(done, "built for aarch64 and this host is x86_64")


def check_refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert says in line
    assert "its aarch64 wheel" not in line


# --- with torch, and large models: `make test-arm`


@full
def test_qnnpack_replays_the_outputs_of_x86_bit_for_bit(
    emulated_torch: ArmEnvironment, held_out: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    built = wheels.build("digits", tmp_path / "dist", "target.aarch64.engine=qnnpack", cpus=("aarch64",))
    here = wheels.install(emulated_torch, built["aarch64"], tmp_path / "venv")
    assert here.json("neoverse-n1", "verify")["equal"]
    pixels, labels = held_out
    outputs = here.outputs("neoverse-n1", pixels[:128], tmp_path)
    own = manifest(built["aarch64"])["accuracy"]["top1_int8"]
    # Of the first 128 alone; the whole set has the manifest's accuracy within its interval.
    assert abs(float((outputs.argmax(axis=1) == labels[:128]).mean()) - own) < 0.05


@full
def test_a_native_wheel_with_a_layer_of_torch(emulated_torch: ArmEnvironment, tmp_path: Path) -> None:
    """The program and torch take turns: the library registers its operator with the torch of ARM."""
    (tmp_path / "model.py").write_text(MIXED_MODEL)
    (tmp_path / "mixed.toml").write_text(MIXED_RECIPE)
    built = wheels.build(tmp_path / "mixed.toml", tmp_path / "dist", *NATIVE)
    assert "inv" in manifest(built["aarch64"])["torch"]["reason"]
    here = wheels.install(emulated_torch, built["aarch64"], tmp_path / "venv")
    found = here.json("max", "verify")
    assert found["passed"]


@full
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_large_model(emulated: ArmEnvironment, name: str, tmp_path: Path) -> None:
    built = wheels.build(name, tmp_path / "dist", *NATIVE)
    ours, theirs = (golden(built[cpu])["output"] for cpu in ("aarch64", "x86_64"))
    assert ours.tobytes() == theirs.tobytes()
    here = wheels.install(emulated, built["aarch64"], tmp_path / "venv")
    for cpu, isa in (("cortex-a72", "neon"), ("neoverse-n1", "dotprod"), ("max", "i8mm")):
        assert here.json(cpu, "info")["kernels"]["isa"] == isa
        assert here.json(cpu, "verify")["equal"]
    photo = wheels.ROOT / "recipes/photos/espresso.jpg"
    on_arm = here.json("max", "predict", photo)["predictions"]
    on_x86 = make_environment(tmp_path / "x86", built["x86_64"])
    assert (
        on_arm[0]["top"]
        == on_x86.json(f"{name.replace('_', '-')}-int8", "predict", str(photo))["predictions"][0]["top"]
    )
    assert here.json("max", "bench", "--duration", "1", "--batch-size", "1")["samples"] > 0
