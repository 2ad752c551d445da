"""What becomes of a staged project: the plan that is written at last, and the wheel."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelArchive

from cpupack.artifacts import StagedProject, TunePlan
from cpupack.errors import PackagingError
from cpupack.runtime.manifest import check_files, hash_file, read_manifest
from cpupack.stages.package import build_wheel, check_out, finish, stage_project
from helpers.plan import FACTS, PLAN
from helpers.tiny_wheel import TinyWheel


@pytest.fixture
def staged(tiny: TinyWheel, tmp_path: Path) -> StagedProject:
    return stage_project(tiny.contents(), tmp_path / "project")


def test_finish_writes_the_plan_and_keeps_the_hashes_true(staged: StagedProject) -> None:
    compiled = staged.package_dir / "__pycache__" / "x.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    manifest = read_manifest(finish(staged, PLAN, FACTS).package_dir)
    check_files(staged.package_dir, manifest)
    assert (manifest.plan.threads, manifest.plan.instances, manifest.plan.batch_size) == (1, 2, 4)
    assert manifest.bench["build"]["throughput_per_s"] == 205.0  # the median of the chosen setting's three measurements
    assert not any("__pycache__" in name for name in manifest.files)
    facts = json.loads((staged.package_dir / "build.json").read_text())
    measured = facts.pop("measured")
    assert facts == FACTS
    assert measured == manifest.measured()
    assert "build.json" not in manifest.files
    assert "2 x 1 threads, batch 4" not in (staged.root / "README.md").read_text()


def test_finish_without_tuning_says_why(staged: StagedProject) -> None:
    finish(staged, TunePlan(tuned=False, objective="throughput", reason="--no-tune"), FACTS)
    assert not read_manifest(staged.package_dir).plan.tuned
    assert read_manifest(staged.package_dir).plan.reason == "--no-tune"


# --- the wheel


def test_the_wheel_is_named_and_tagged_for_its_platform(
    tiny: TinyWheel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    staged = stage_project(tiny.contents(random_weights=True), tmp_path / "project")
    built = build_wheel(staged, tmp_path / "dist")
    assert built.path == tmp_path / "dist" / "tiny_int8-1.0.0+random-py3-none-manylinux_2_28_x86_64.whl"
    assert (built.sha256, built.size_bytes) == (hash_file(built.path), built.path.stat().st_size)
    with zipfile.ZipFile(built.path) as wheel:
        metadata = wheel.read("tiny_int8-1.0.0+random.dist-info/WHEEL").decode()
    assert "Root-Is-Purelib: false" in metadata
    assert "Tag: py3-none-manylinux_2_28_x86_64" in metadata
    assert capsys.readouterr().out == ""


def test_the_wheel_has_an_sbom(staged: StagedProject, tmp_path: Path) -> None:
    built = build_wheel(staged, tmp_path / "dist")
    with zipfile.ZipFile(built.path) as wheel:
        bom = json.loads(wheel.read("tiny_int8-1.0.0.dist-info/sboms/tiny_int8.cdx.json"))
    assert bom["specVersion"] == "1.6"


def test_equal_inputs_make_equal_wheels(tiny: TinyWheel, tmp_path: Path) -> None:
    built = [
        build_wheel(finish(stage_project(tiny.contents(), tmp_path / name / "project"), PLAN, FACTS), tmp_path / name)
        for name in ("one", "two")
    ]
    assert built[0].path.read_bytes() == built[1].path.read_bytes()


def test_names_are_normalized_in_the_wheel_and_kept_in_the_scripts(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(tiny.contents(name="Tiny.INT8"), tmp_path / "project")
    assert staged.import_name == "tiny_int8"
    built = build_wheel(staged, tmp_path / "dist").path
    assert built.name == "tiny_int8-1.0.0-py3-none-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(built) as wheel:
        scripts = wheel.read("tiny_int8-1.0.0.dist-info/entry_points.txt").decode()
    assert "Tiny.INT8 = tiny_int8._entry:main" in scripts


def test_two_targets_make_two_wheels(tiny: TinyWheel, tmp_path: Path) -> None:
    for cpu in ("x86_64", "aarch64"):
        build_wheel(stage_project(tiny.contents(cpu=cpu), tmp_path / cpu), tmp_path / "dist")
    names = sorted(path.name for path in (tmp_path / "dist").iterdir())
    assert names == [f"tiny_int8-1.0.0-py3-none-manylinux_2_28_{cpu}.whl" for cpu in ("aarch64", "x86_64")]


def test_an_ignore_file_around_the_project_does_not_thin_the_wheel(staged: StagedProject, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("*.pt\n*.npz\nproject/\n")
    with zipfile.ZipFile(build_wheel(staged, tmp_path / "dist").path) as wheel:
        assert {"tiny_int8/model.pt", "tiny_int8/golden.npz"} <= set(wheel.namelist())


def test_a_file_the_manifest_does_not_know_is_not_packed_quietly(staged: StagedProject, tmp_path: Path) -> None:
    (staged.package_dir / "stray.txt").write_text("x")
    with pytest.raises(PackagingError, match=r"tiny_int8/stray\.txt"):
        build_wheel(staged, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_disabled_hooks_do_not_make_a_wheel_for_any_platform(
    staged: StagedProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATCH_BUILD_NO_HOOKS", "1")
    with pytest.raises(PackagingError, match="HATCH_BUILD"):
        build_wheel(staged, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("no space")])
def test_a_failure_leaves_the_output_directory_as_it_was(
    staged: StagedProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def stop(*args: object) -> None:
        raise failure

    out = tmp_path / "dist"
    first = build_wheel(staged, out)
    # At the very last step: the archive is complete and copied beside its name.
    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises((KeyboardInterrupt, PackagingError)):
        build_wheel(staged, out)
    assert [path.name for path in out.iterdir()] == [first.path.name]
    assert hash_file(first.path) == first.sha256
    assert not list(staged.root.glob(".wheel-*"))


def test_an_interrupt_inside_hatchling_leaves_nothing_anywhere(
    staged: StagedProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(WheelArchive, "write_metadata", stop)
    with pytest.raises(KeyboardInterrupt):
        build_wheel(staged, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()
    assert list(temporary.iterdir()) == []
    assert not list(staged.root.glob(".wheel-*"))
    assert tempfile.tempdir == str(temporary)


def test_out_may_not_exist_yet_and_is_not_made_by_the_check(tmp_path: Path) -> None:
    check_out(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PackagingError, match="is not a directory"):
            check_out(out)


def test_an_out_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(PackagingError, match="cannot write"):
        check_out(Path("/proc/self"))  # for root too, which no permission bit stops
