"""The manifest's text and the hashes it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime.errors import IntegrityError
from cpupack.runtime.files import MANIFEST_NAME
from cpupack.runtime.manifest import check_files, parse_manifest, read_manifest


def test_text_survives_reading(package_dir: Path) -> None:
    text = (package_dir / MANIFEST_NAME).read_text()
    assert read_manifest(package_dir).to_json() == text
    assert text.endswith("}\n")


def test_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"cannot read .*manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"schema": 2}'])
def test_text_that_is_no_manifest(text: str) -> None:
    with pytest.raises(IntegrityError, match=r"^here (is not JSON|has schema)"):
        parse_manifest(text, "here")


def _drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw.pop(key)


@pytest.mark.parametrize(
    "damage",
    [
        *(_drop(key) for key in ("name", "plan", "files", "target", "torch", "labels")),
        lambda raw: raw.update(surprise=1),
        lambda raw: raw.update(files=[]),
        lambda raw: raw.update(plan={"tuned": True}),
        lambda raw: raw.update(target=None),
        lambda raw: raw.update(model=[]),
        lambda raw: raw["target"].pop("engine"),
        lambda raw: raw["target"].pop("isa"),
        lambda raw: raw["torch"].pop("requires"),
        lambda raw: raw["model"].pop("input_shape"),
        lambda raw: raw["model"].update(input_shape="big"),
        lambda raw: raw["model"].update(input_shape=[3, -1, 4]),
        lambda raw: raw["model"].pop("output_shape"),
        lambda raw: raw.update(name=7),
        lambda raw: raw.update(labels=["cat"]),
        lambda raw: raw.update(preprocess="none"),
        lambda raw: raw.update(random_weights="no"),
        lambda raw: raw["files"].update({"../outside": {"sha256": "0" * 64, "bytes": 1}}),
    ],
)
def test_damage_is_one_line_that_names_the_file(package_dir: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((package_dir / MANIFEST_NAME).read_text())
    damage(raw)
    with pytest.raises(IntegrityError, match=r"^here is damaged: ") as caught:
        parse_manifest(json.dumps(raw), "here")
    assert "\n" not in str(caught.value)


def test_files_are_compared_with_the_manifest(edited: Callable[..., Path]) -> None:
    copy = edited()
    manifest = read_manifest(copy)
    check_files(copy, manifest)
    path = copy / "labels.txt"
    path.write_text("cat\ndog\nbird\nfisk\n")  # same size, other bytes
    with pytest.raises(IntegrityError, match=r"labels\.txt is not the file that was built"):
        check_files(copy, manifest)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"labels\.txt is missing"):
        check_files(copy, manifest)


def test_a_package_inside_an_archive_says_what_to_do(tmp_path: Path) -> None:
    """Python imports from a wheel that is on its path, and the error was only "Not a directory"."""
    wheel = tmp_path / "net.whl"
    wheel.write_bytes(b"PK")
    with pytest.raises(IntegrityError, match=r"net\.whl is a file.*install the wheel with pip, or unpack it"):
        read_manifest(wheel / "net")
