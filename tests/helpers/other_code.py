"""A package with other code, as that of another version of the runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cpupack.runtime.manifest import FileEntry, Manifest, hash_file, read_manifest

_NAME = "_runtime/names.py"


def with_other_code(package_dir: Path) -> Manifest:
    """Add a comment to a module of the package, and return the manifest that says so."""
    path = package_dir / _NAME
    path.write_text(path.read_text("utf-8") + "# other code\n", "utf-8")
    manifest = read_manifest(package_dir)
    entry = FileEntry(hash_file(path), path.stat().st_size)
    return dataclasses.replace(manifest, files={**manifest.files, _NAME: entry})
