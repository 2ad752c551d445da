"""``cpupack bundle``: a directory that installs without a network, by hash, or an error that leaves nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import numpy
import PIL
import pytest

from cpupack.bundle import BundleOptions, gather
from cpupack.bundle.platforms import taken_by
from cpupack.cli import main
from cpupack.errors import CpupackError, PackagingError, UsageError
from cpupack.runtime.host.cpu import machine
from cpupack.stages.package import build_wheel, stage_project
from helpers.containerfiles import complaints, needs_hadolint
from helpers.forged import rewrite
from helpers.native_wheel import native_contents
from helpers.once import once
from helpers.tiny_wheel import TinyWheel

VERSIONS = {"numpy": numpy.__version__, "pillow": PIL.__version__}


@pytest.fixture(scope="module")
def wheel(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(directory: Path) -> None:
        build_wheel(stage_project(native_contents(tiny, directory), directory / "project"), directory / "dist")

    (found,) = once(tmp_path_factory, "verify-native", make).glob("dist/*.whl")
    return found


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of numpy and Pillow that hold a link to this environment's: an index without a network."""
    directory = tmp_path_factory.mktemp("index")
    for name, version in VERSIONS.items():
        info = f"{name}-{version}.dist-info"
        place = PIL.__file__ if name == "pillow" else numpy.__file__
        with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}-shared.pth", f"{Path(place).parents[1]}\n")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
    return directory


def offline(index: Path, **options: str) -> BundleOptions:
    return BundleOptions(pip_args=("--no-index", "--find-links", str(index)), **options)  # type: ignore[arg-type]


def test_what_is_gathered(wheel: Path, index: Path, tmp_path: Path) -> None:
    found = gather(wheel, tmp_path / "bundle", offline(index))
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "bundle/wheels").iterdir()
    }
    assert found.files == files
    assert len(files) == 3
    required = (tmp_path / "bundle" / "requirements.txt").read_text()
    assert f"tiny-int8==1.0.0 --hash=sha256:{files[wheel.name]}" in required
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]  # no part of it beside
    recipe = (tmp_path / "bundle" / "Containerfile").read_text()
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in recipe
    assert 'CMD ["tiny-int8", "verify"]' in recipe
    assert "USER 10001:10001" in recipe
    assert "--require-hashes" in recipe


@needs_hadolint
def test_the_containerfile_pleases_hadolint(wheel: Path, index: Path, tmp_path: Path) -> None:
    gather(wheel, tmp_path / "bundle", offline(index))
    path = tmp_path / "bundle" / "Containerfile"
    assert complaints(path) == ""
    path.write_text(path.read_text() + "RUN sudo true\n")
    assert "DL3004" in complaints(path)  # so that silence means something


def install(root: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    if not (root / "bin").exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    command = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python"), "install", "--no-index"]
    command += ["--require-hashes", "--find-links", "wheels", "-r", "requirements.txt", "--no-compile"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    return subprocess.run(command, cwd=bundle, env=kept, capture_output=True, text=True, check=False)


@pytest.mark.skipif(machine() != "x86_64", reason="the tiny wheel is for x86_64")
def test_it_installs_in_a_fresh_environment_by_hash(wheel: Path, index: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    gather(wheel, bundle, offline(index))
    done = install(tmp_path / "venv", bundle)
    assert done.returncode == 0, done.stderr
    program = tmp_path / "venv" / "bin" / "tiny-int8"
    done = subprocess.run([str(program), "verify", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["equal"]


@pytest.mark.skipif(importlib.util.find_spec("pip_audit") is None, reason="pip-audit is not installed")
def test_pip_audit_can_read_the_requirements(wheel: Path, index: Path, tmp_path: Path) -> None:
    """Its form without a network: what it would ask about is all that the bundle holds, pinned and with hashes."""
    bundle = gather(wheel, tmp_path / "bundle", offline(index))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--dry-run", "--strict", "--disable-pip", "--require-hashes"),
            *("--progress-spinner", "off", "--cache-dir", str(tmp_path / "cache")),
            *("--requirement", str(bundle.directory / "requirements.txt")),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "would have audited 3 packages" in done.stdout + done.stderr


def test_a_changed_file_is_not_installed(wheel: Path, index: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    gather(wheel, bundle, offline(index))
    with (bundle / "wheels" / wheel.name).open("ab") as file:
        file.write(b"\0")
    done = install(tmp_path / "venv", bundle)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_for_another_python_and_an_older_platform(wheel: Path, index: Path, tmp_path: Path) -> None:
    found = gather(wheel, tmp_path / "bundle", offline(index, python="3.12", platform="manylinux_2_34_x86_64"))
    assert (found.python, found.platform) == ("3.12", "manylinux_2_34_x86_64")
    assert "FROM python:3.12-slim" in (tmp_path / "bundle" / "Containerfile").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"python": "2.7"}, "--python 2.7"),
        ({"python": "3.9"}, "--python 3.9"),
        ({"python": "three"}, "--python three"),
        ({"platform": "win_amd64"}, "--platform win_amd64"),
        ({"platform": "manylinux_2_28_aarch64"}, "cannot install a wheel for manylinux_2_28_x86_64"),
        ({"platform": "manylinux_2_17_x86_64"}, "cannot install a wheel for manylinux_2_28_x86_64"),
    ],
)
def test_options_that_cannot_be(wheel: Path, index: Path, tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        gather(wheel, tmp_path / "bundle", offline(index, **options))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_had_leaves_nothing(wheel: Path, index: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PackagingError, match="pip cannot download what tiny-int8 requires"):
        gather(wheel, tmp_path / "bundle", offline(empty))
    bad = rewrite(wheel, empty / wheel.name, {"tiny_int8/model.pt": b"x"})
    with pytest.raises(UsageError, match="not as it was built"):
        gather(bad, tmp_path / "bundle", offline(index))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="is not empty"):
        gather(wheel, tmp_path / "full", offline(index))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_pip_runs_nothing_of_the_working_directory(
    wheel: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m pip` would import these in place of pip's own."""
    for name in ("pip", "json", "packaging", "logging"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    gather(wheel, tmp_path / "out", offline(index))
    assert not (tmp_path / "ran").exists()


def test_an_environment_without_pip_is_said(
    wheel: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("cpupack.bundle.gather"), "find_spec", lambda _: None)
    with pytest.raises(PackagingError, match="pip is not installed beside cpupack"):
        gather(wheel, tmp_path / "out", offline(index))
    assert list(tmp_path.iterdir()) == []


def test_the_remains_of_a_killed_bundle_are_swept(wheel: Path, index: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone, alive = tmp_path / f".bundle.{dead.pid}.part", tmp_path / ".bundle.1.part"
    for part in (gone, alive):
        (part / "wheels").mkdir(parents=True)
    gather(wheel, tmp_path / "bundle", offline(index))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.1.part", "bundle"]


def test_the_command(wheel: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bundle", str(wheel), "--out", str(tmp_path / "b"), "--pip-args", f"--no-index --find-links {index}"]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'b'}\n"
    for wrong in (["--extra", "a b"], ["--pip-args", "'"]):
        with pytest.raises(SystemExit) as left:
            main([*arguments, *wrong])
        assert left.value.code == 2


def test_older_tags() -> None:
    assert taken_by("manylinux_2_18_aarch64") == [
        "manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64",
    ]  # fmt: skip
    taken = taken_by("manylinux_2_28_x86_64")
    assert taken is not None
    assert {"manylinux1_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64"} <= set(taken)
    assert taken_by("any") is None
    assert issubclass(PackagingError, CpupackError)
