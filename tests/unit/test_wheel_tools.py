"""What other tools say of our wheels: twine, check-wheel-contents, auditwheel and pip, each where it is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cpupack.runtime.host.cpu import machine
from cpupack.stages.package import build_wheel, stage_project
from helpers.native_wheel import native_contents
from helpers.once import once
from helpers.tiny_wheel import TinyWheel


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed")


@pytest.fixture(scope="module")
def wheels(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One wheel of the native engine and one of torch's."""

    def native(directory: Path) -> None:
        build_wheel(stage_project(native_contents(tiny, directory), directory / "project"), directory / "dist")

    def of_torch(directory: Path) -> None:
        build_wheel(stage_project(tiny.contents(), directory / "project"), directory / "dist")

    made = [once(tmp_path_factory, "verify-native", native), once(tmp_path_factory, "tools-torch", of_torch)]
    return [next((each / "dist").glob("*.whl")) for each in made]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)


@needs("twine")
def test_twine_takes_the_metadata(wheels: list[Path]) -> None:
    done = run("twine", "check", "--strict", *map(str, wheels))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == len(wheels)


@needs("check_wheel_contents")
def test_check_wheel_contents_finds_nothing(wheels: list[Path]) -> None:
    done = run("check_wheel_contents", *map(str, wheels))
    assert done.returncode == 0, done.stdout + done.stderr


@needs("auditwheel")
@pytest.mark.skipif(machine() != "x86_64", reason="auditwheel looks at wheels of its own CPU family")
def test_auditwheel_agrees_with_the_tag(wheels: list[Path]) -> None:
    """The library asks for no newer glibc than the tag promises, and for no other library."""
    done = run("auditwheel", "show", str(wheels[0]))
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "manylinux_2_" in text
    tags = {int(part.split("_")[0]) for part in text.split("manylinux_2_")[1:] if part[:1].isdigit()}
    assert min(tags) <= 28
    assert "requires no external shared libraries" in text or "libc.so.6" in text


def test_pip_takes_the_wheel_and_its_requirements(wheels: list[Path]) -> None:
    """``pip install --dry-run`` reads tags and metadata as an installation does, and resolves the requirements here."""
    report = run(
        "pip", "install", "--dry-run", "--no-index", "--no-deps", "--quiet", "--report", "-", "--ignore-installed",
        str(wheels[0]),
    )  # fmt: skip
    assert report.returncode == 0, report.stderr
    (item,) = json.loads(report.stdout)["install"]
    assert item["metadata"]["name"] == "tiny-int8"
    assert item["download_info"]["archive_info"]["hashes"]["sha256"]


def test_every_file_is_in_record_once(wheels: list[Path]) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            (record,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
            rows = [line.partition(",")[0] for line in archive.read(record).decode().splitlines()]
            assert sorted(rows) == sorted(archive.namelist())
            assert not [name for name in archive.namelist() if name.endswith((".pyc", ".part", ".lock"))]
