"""RECORD: the hashes that pip keeps of what it installed (packaging.python.org, recording installed packages)."""

from __future__ import annotations

import base64
import csv
from pathlib import Path

from .errors import IntegrityError
from .manifest import Manifest, hash_file


def check_record(package_dir: Path, manifest: Manifest) -> None:
    """Compare the installed files with RECORD, which also covers what the manifest does not: ``build.json``, scripts.

    A package that no installer put there has no RECORD, and nothing is compared. The scripts that pip makes are beside
    the package: they are compared where they are there, since images are often made of the packages alone. Raises
    IntegrityError naming the first file that differs.
    """
    site = package_dir.parent
    record = site / f"{manifest.import_name}-{manifest.version}.dist-info" / "RECORD"  # the name in its normal form
    if not record.is_file():
        return
    try:
        with record.open(encoding="utf-8", newline="") as file:
            rows = [(*row, "", "")[:2] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise IntegrityError(f"cannot read {record}: {error}; reinstall {manifest.name}") from error
    if f"{manifest.import_name}/manifest.json" not in {path for path, _ in rows}:
        raise IntegrityError(f"{record} does not name the package's manifest; reinstall {manifest.name}")
    for path, expected in rows:
        if not expected.startswith("sha256="):
            continue
        places = [site / path]
        if path.startswith("../"):
            # `pip install --target DIR` names its scripts as in another layout, and puts them into DIR/bin.
            places = [each for each in (site / path, site / "bin" / Path(path).name) if each.exists()]
        if places and not any(_is(each, expected) for each in places):
            raise IntegrityError(f"{places[0]} is not the file that was installed; reinstall {manifest.name}")


def _is(path: Path, expected: str) -> bool:
    try:
        digest = base64.urlsafe_b64encode(bytes.fromhex(hash_file(path))).decode("ascii").rstrip("=")
    except OSError:
        return False
    return f"sha256={digest}" == expected
