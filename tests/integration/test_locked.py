"""``cpupack lock`` and ``build --locked``: the same bytes again, or a sentence that names what has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli

from cpupack.runtime.host.cpu import machine
from helpers import forked
from helpers.tiny_recipes import FAST, Project, make_project
from helpers.waiting import PATIENCE_S

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]
TUNED = (
    "--set", "target.x86_64.engine=native", "--set", "tune.budget_s=2", "--set", "tune.threads=[1]",
    "--set", "tune.batch_sizes=[1, 4]",
)  # fmt: skip
SETS = FAST[1:]


def run(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run cpupack in a process of its own: torch numbers the types of saved models through the life of a process."""
    return forked.run_command(arguments, root, {**Project(root).environ(), **variables}, PATIENCE_S)


def run_afresh(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run cpupack in a new interpreter: it hashes strings with a seed of its own, so sets have another order."""
    environ = {**Project(root).environ(), **variables}
    return subprocess.run(
        [sys.executable, "-m", "cpupack", *arguments],
        env=environ, cwd=root, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def built(
    root: Path, *arguments: str, by: Callable[..., subprocess.CompletedProcess[str]] = run_afresh, **variables: str
) -> Path:
    done = by(root, "build", "colors.toml", "--quiet", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return root / done.stdout.splitlines()[-1]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cloned(project: Project, root: Path) -> Path:
    """Copy a project to another directory as git would: the same files, other times."""
    shutil.copytree(project.root, root, ignore=shutil.ignore_patterns("dist", "tmp", "__pycache__"))
    (root / "tmp").mkdir()
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return root


@pytest.mark.parametrize(
    ("options", "sets"),
    [
        pytest.param(FAST, FAST[1:], id="fbgemm", marks=pytest.mark.night),
        pytest.param(TUNED, TUNED, id="native, tuned"),
        pytest.param((*TUNED[2:], "--no-tune"), TUNED[2:], id="raced", marks=pytest.mark.night),
    ],
)
def test_the_first_build_and_two_locked_builds_have_one_hash(
    tmp_path: Path, options: tuple[str, ...], sets: tuple[str, ...]
) -> None:
    (tmp_path / "one").mkdir()
    project = make_project(tmp_path / "one")
    first = built(project.root, *options)
    lock = tomli.loads((project.root / "colors.lock.toml").read_text())
    assert sha256(first) == lock["wheels"]["x86_64"]["sha256"]
    two = cloned(project, tmp_path / "two")
    for root, threads in ((project.root, "1"), (two, "2")):
        again = built(root, "--locked", "--out", "again", *sets, OMP_NUM_THREADS=threads)
        assert sha256(again) == sha256(first)
    assert {path.name for path in (two / "again").iterdir()} == {first.name}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a lock that `cpupack lock` wrote. Copy it before you change it."""
    project = make_project(tmp_path_factory.mktemp("locked"))
    project.write("blocks.py", "WIDTH = 1\n")
    model = (project.root / "models.py").read_text()
    project.write("models.py", model + "\nimport blocks\n")
    done = run(project.root, "lock", "colors.toml", "--quiet", *FAST)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("colors.lock.toml")
    assert not (project.root / "dist").exists()
    return project


def test_what_the_lock_names(locked: Project) -> None:
    lock = tomli.loads((locked.root / "colors.lock.toml").read_text())
    inputs, wheel = lock["inputs"], lock["wheels"]["x86_64"]
    photos = {path.relative_to(locked.root).as_posix() for path in (locked.root / "photos").rglob("*.jpg")}
    assert set(inputs["files"]) == {"colors.pt", "models.py", "blocks.py", *photos}
    assert inputs["files"]["colors.pt"] == sha256(locked.root / "colors.pt") == inputs["model"]["weights"]
    assert {"torch", "cpupack", "numpy", "python"} <= set(inputs["versions"])
    assert ["stem.0", "stem.1", "stem.2"] in inputs["fused"]
    assert (wheel["engine"], wheel["plan"]["tuned"]) == ("fbgemm", False)
    assert "source_date_epoch" not in lock


def _edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(change((root / name).read_bytes()))


def _other_version(root: Path) -> None:
    text = (root / "colors.lock.toml").read_text()
    version = tomli.loads(text)["inputs"]["versions"]["numpy"]
    (root / "colors.lock.toml").write_text(text.replace(f'numpy = "{version}"', 'numpy = "0.1"'))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_edit("colors.pt", lambda data: data[:-1] + bytes([data[-1] ^ 1])), "colors.pt: changed"),
        (_edit("models.py", lambda data: data + b"\n"), "models.py: changed"),
        (_edit("blocks.py", lambda data: data + b"\n"), "blocks.py: changed"),
        (_edit("colors.toml", lambda data: data + b"batch_size = 4\n"), "[calibration] of the recipe changed"),
        (lambda root: (root / "photos/red/0.jpg").unlink(), "photos/red/0.jpg: missing"),
        (lambda root: shutil.copy(root / "photos/red/0.jpg", root / "photos/red/9.jpg"), "photos/red/9.jpg: not in"),
        (_other_version, "version of numpy: 0.1 in the lock"),
        (lambda root: (root / "colors.lock.toml").unlink(), "does not exist"),
        (_edit("colors.lock.toml", lambda data: data[: len(data) // 2]), "colors.lock.toml is"),
    ],
    ids=["weights", "source", "import", "recipe", "photo gone", "photo added", "version", "no lock", "cut"],
)  # fmt: skip
def test_drift_is_named(locked: Project, tmp_path: Path, change: Callable[[Path], object], named: str) -> None:
    root = cloned(locked, tmp_path / "clone")
    change(root)
    sets = list(SETS)
    if named.startswith("photos/red/9"):  # else it is not drawn among the 18 that the recipe asks for
        sets += ["--set", "calibration.samples=18"]
    done = run(root, "build", "colors.toml", "--quiet", "--locked", *SETS)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (root / "dist").exists()


def test_another_setting_is_drift_too(locked: Project, tmp_path: Path) -> None:
    root = cloned(locked, tmp_path / "clone")
    done = run(root, "build", "colors.toml", "--quiet", "--locked", *SETS, "--set", "quantize.observer=minmax")
    assert done.returncode == 2
    assert "[quantize] of the recipe changed" in done.stderr
    done = run(root, "build", "colors.toml", "--quiet", "--locked", "--no-tune", *SETS)
    assert done.returncode == 2
    assert "leave --no-tune out" in done.stderr


def test_code_that_changed_without_its_version_is_found_in_the_wheel(locked: Project, tmp_path: Path) -> None:
    root = cloned(locked, tmp_path / "clone")
    path = root / "colors.lock.toml"
    lock = tomli.loads(path.read_text())
    runtime = lock["wheels"]["x86_64"]["contents"]["tiny_colors/_runtime"]
    text = path.read_text().replace(runtime, "0" * 64)
    path.write_text(text.replace(lock["wheels"]["x86_64"]["sha256"], "0" * 64))
    done = run(root, "build", "colors.toml", "--quiet", "--locked", *SETS)
    assert done.returncode == 2
    assert "tiny_colors/_runtime" in done.stderr
    assert not (root / "dist").exists()


def test_the_date_is_the_users_and_stays(locked: Project, tmp_path: Path) -> None:
    root = cloned(locked, tmp_path / "clone")
    done = run(root, "lock", "colors.toml", "--json", *FAST, SOURCE_DATE_EPOCH="1700000000")
    assert done.returncode == 0, done.stderr
    ((_, wanted),) = json.loads(done.stdout)["locks"][0]["wheels"].items()
    wheel = built(root, "--locked", *SETS, by=run)  # the lock remembers the date
    assert sha256(wheel) == wanted
    with zipfile.ZipFile(wheel) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    done = run(root, "build", "colors.toml", "--quiet", "--locked", *SETS, SOURCE_DATE_EPOCH="1700000002")
    assert done.returncode == 2
    assert "SOURCE_DATE_EPOCH: 1700000000 in the lock, now 1700000002" in done.stderr
    for wrong in ("yesterday", "-1", "12", "9" * 30):
        done = run(root, "build", "colors.toml", "--quiet", *FAST, SOURCE_DATE_EPOCH=wrong)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


def test_a_later_build_keeps_the_lock_and_says_what_differs(locked: Project, tmp_path: Path) -> None:
    root = cloned(locked, tmp_path / "clone")
    before = (root / "colors.lock.toml").read_bytes()
    done = run(root, "build", "colors.toml", *FAST, "--set", "quantize.observer=minmax")
    assert done.returncode == 0, done.stderr
    assert (root / "colors.lock.toml").read_bytes() == before
    assert "[quantize] of the recipe changed" in " ".join(done.stderr.split())
