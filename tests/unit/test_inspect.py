"""What ``inspect`` finds in a wheel, and what it says of wheels that are none, foreign or damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cpupack.errors import UsageError
from cpupack.stages.package import build_wheel, stage_project
from cpupack.wheel.inspect import format_inspection, inspect
from helpers.forged import rewrite
from helpers.tiny_wheel import TinyWheel

MODEL = "tiny_int8/model.pt"


@pytest.fixture(scope="module")
def built(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inspect")
    return build_wheel(stage_project(tiny.contents(), directory / "project"), directory / "dist").path


def test_the_facts_are_those_of_the_build(tiny: TinyWheel, built: Path) -> None:
    facts, contents = inspect(built).to_dict(), tiny.contents()
    assert facts["integrity"] == {"ok": True, "problems": []}
    assert facts["size_bytes"] == built.stat().st_size
    for key in ("parameters", "macs", "fp32_bytes"):
        assert facts["model"][key] == getattr(contents.model, key)
    assert facts["model"]["int8_operators"] == contents.scripted.int8_operators
    assert facts["model"]["fp32_operators"] == contents.scripted.fp32_operators
    assert facts["tags"] == [f"py3-none-{contents.target.platform_tag}"]
    assert any(text.startswith("torch") for text in facts["requires"])
    sizes = {member["name"]: member["bytes"] for member in facts["members"]}
    assert sizes[MODEL] == contents.scripted.size_bytes
    json.dumps(facts, allow_nan=False)


def test_the_text_names_what_a_reader_looks_for(built: Path) -> None:
    text = format_inspection(inspect(built))
    for wanted in (
        "tiny-int8 1.0.0",
        "2 INT8, 1 FP32",
        "3.9 k",
        "SQNR 41.5 dB",
        ">=2.10,<2.1",
        "All hashes agree",
    ):
        assert wanted in text
    assert "WARNING" not in text


def test_random_weights_are_loud(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(tiny.contents(random_weights=True), tmp_path / "project")
    text = format_inspection(inspect(build_wheel(staged, tmp_path).path))
    assert "WARNING: random weights" in text


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({MODEL: b"other"}, [f"{MODEL}: differs from RECORD", f"{MODEL}: differs from the manifest"]),
        (
            {MODEL: None},
            [f"{MODEL}: in RECORD but not in the wheel", f"{MODEL}: in the manifest but not in the wheel"],
        ),
        (
            {"tiny_int8/x.py": b"import os"},
            ["tiny_int8/x.py: not in RECORD", "tiny_int8/x.py: not in the manifest"],
        ),
        ({"elsewhere.pth": b"x"}, ["elsewhere.pth: not in RECORD"]),
    ],
)
def test_a_changed_wheel_is_found_out(
    built: Path, tmp_path: Path, changes: dict[str, bytes | None], problems: list[str]
) -> None:
    inspection = inspect(rewrite(built, tmp_path / built.name, changes))
    assert list(inspection.problems) == problems
    assert not inspection.to_dict()["integrity"]["ok"]
    assert "DAMAGED" in format_inspection(inspection)


def test_what_is_not_a_wheel(tmp_path: Path) -> None:
    text = tmp_path / "text.whl"
    text.write_text("hello")
    archive = tmp_path / "archive.whl"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(UsageError, match="is not a wheel"):
        inspect(text)
    with pytest.raises(UsageError, match="zip file but not a wheel"):
        inspect(archive)
    with pytest.raises(UsageError, match="No such file"):
        inspect(tmp_path / "missing.whl")
    with pytest.raises(UsageError, match="Is a directory"):
        inspect(tmp_path)


def test_a_wheel_that_cpupack_did_not_make(tmp_path: Path) -> None:
    wheel = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("other/__init__.py", "")
        file.writestr("other-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    with pytest.raises(UsageError, match="not made by cpupack"):
        inspect(wheel)


@pytest.mark.parametrize("change", [{"tiny_int8/manifest.json": text} for text in (b"{", b'{"schema": 9}', b"\xff")])
def test_an_unreadable_manifest(built: Path, tmp_path: Path, change: dict[str, bytes | None]) -> None:
    with pytest.raises(UsageError, match=r"manifest\.json"):
        inspect(rewrite(built, tmp_path / built.name, change))


def test_a_manifest_with_a_section_of_another_shape(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        manifest = json.loads(archive.read("tiny_int8/manifest.json"))
    manifest["quantize"] = {}
    changed = {"tiny_int8/manifest.json": json.dumps(manifest).encode()}
    with pytest.raises(UsageError, match="manifest is damaged"):
        inspect(rewrite(built, tmp_path / built.name, changed))


def test_a_cut_off_archive(built: Path, tmp_path: Path) -> None:
    cut = tmp_path / built.name
    cut.write_bytes(built.read_bytes()[:-1000])
    with pytest.raises(UsageError, match="is not a wheel, or it is damaged"):
        inspect(cut)


def test_flipped_bits_in_a_member(built: Path, tmp_path: Path) -> None:
    damaged = shutil.copy(built, tmp_path)
    with zipfile.ZipFile(built) as archive:
        info = archive.getinfo(MODEL)
    data = bytearray(built.read_bytes())
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2  # 30: a local header's fixed part
    data[middle] ^= 0xFF
    Path(damaged).write_bytes(data)
    with pytest.raises(UsageError, match="damaged"):
        inspect(Path(damaged))


def test_inspecting_does_not_import_torch() -> None:
    code = "import sys, cpupack.wheel.inspect; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
