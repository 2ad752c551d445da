"""The manifest: what a wheel says about itself (``manifest.json``), read by the runner before anything is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import IntegrityError

MANIFEST_NAME = "manifest.json"
MANIFEST_SCHEMA = 1


@dataclass(frozen=True)
class FileEntry:
    """SHA-256 and size of one shipped file, path relative to the package directory."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class PlanEntry:
    """The build's tuned setting. None where nothing was tuned: the runner plans from the host."""

    tuned: bool
    objective: str
    threads: int | None
    instances: int | None
    batch_size: int | None
    max_latency_ms: float | None
    reason: str


@dataclass(frozen=True)
class Manifest:
    """Everything the runner must know. Sections the runner only shows (``model``, ``accuracy``, ``build``) are dicts.

    ``model``: source, weights, weights_sha256, input_shape, output_shape, parameters, macs, fp32_bytes, int8_bytes,
    int8_operators, fp32_operators, operators. ``target``: cpu, engine, isa, activation_bits, memory_format,
    platform_tag. ``torch``: version, requires. ``preprocess`` is None for models that take arrays only.
    """

    name: str
    import_name: str
    version: str
    random_weights: bool
    model: dict[str, Any]
    target: dict[str, Any]
    preprocess: dict[str, Any] | None
    labels: str | None
    quantize: dict[str, Any]
    calibration: dict[str, Any] | None
    accuracy: dict[str, Any]
    plan: PlanEntry
    bench: dict[str, Any]
    torch: dict[str, Any]
    build: dict[str, Any]
    files: dict[str, FileEntry]
    schema: int = MANIFEST_SCHEMA

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.model["input_shape"])

    def to_json(self) -> str:
        """Return the file's text: sorted keys, two spaces, final newline; equal manifests give equal bytes."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"


def parse_manifest(text: str, where: str) -> Manifest:
    """Parse ``manifest.json``. Raises IntegrityError naming ``where`` when it is not a manifest this runtime reads."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise IntegrityError(f"{where} is not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("schema") != MANIFEST_SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise IntegrityError(f"{where} has schema {found!r}; this runtime reads {MANIFEST_SCHEMA}")
    try:
        raw["plan"] = PlanEntry(**raw["plan"])
        raw["files"] = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        return Manifest(**raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{where} is damaged: {error}") from error


def read_manifest(package_dir: Path) -> Manifest:
    """Read ``package_dir/manifest.json``. Raises IntegrityError when it is missing or damaged."""
    path = package_dir / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"cannot read {path}: {error}") from error
    return parse_manifest(text, str(path))


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(package_dir: Path, manifest: Manifest) -> None:
    """Compare every shipped file with the manifest. Raises IntegrityError naming the first that differs."""
    for name, entry in sorted(manifest.files.items()):
        path = package_dir / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing; reinstall {manifest.name}")
        if path.stat().st_size != entry.bytes or hash_file(path) != entry.sha256:
            raise IntegrityError(f"{path} is not the file that was built; reinstall {manifest.name}")
