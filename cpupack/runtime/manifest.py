"""The manifest: what a wheel says about itself (``manifest.json``), read before anything is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any

from .errors import IntegrityError
from .files import MANIFEST_NAME

MANIFEST_SCHEMA = 1

_CHUNK_BYTES = 1 << 18
"""What is read at a time to be hashed: it fits into the second cache."""

_FIELD_TYPES: dict[str, type | UnionType] = {
    **dict.fromkeys(("name", "import_name", "version"), str),
    "random_weights": bool,
    **dict.fromkeys(("model", "target", "quantize", "accuracy", "bench", "torch", "build"), dict),
    **dict.fromkeys(("preprocess", "calibration"), dict | None),
    "labels": str | None,
}
_REQUIRED_KEYS = {
    "model": ("input_shape", "output_shape"),
    "target": ("cpu", "engine", "isa"),
    "torch": ("requires",),
}


@dataclass(frozen=True)
class FileEntry:
    """SHA-256 and size of one shipped file, path relative to the package directory."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class PlanEntry:
    """The build's tuned setting. Its numbers are None where nothing was tuned; the runner then plans from the host."""

    tuned: bool
    objective: str
    threads: int | None
    instances: int | None
    batch_size: int | None
    max_latency_ms: float | None
    reason: str


@dataclass(frozen=True)
class Manifest:
    """Everything that the runner must know. Sections that it mostly shows (``model``, ``accuracy`` ...) are dicts.

    ``model``: source, weights, weights_sha256, input_shape, output_shape, parameters, macs, fp32_bytes,
    int8_bytes, int8_operators, fp32_operators, operators. ``target``: cpu, engine, isa, activation_bits,
    memory_format, platform_tag. ``torch``: version, requires, reason (why running takes torch, None where it does
    not). ``preprocess`` is None for models that take arrays only. Shapes have no batch dimension.
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

    @property
    def pixel_input(self) -> bool:
        """Whether the model also takes uint8 pixels with a mask channel (see ``images/inputs.py``)."""
        return bool(self.model.get("pixel_input", False))

    @property
    def torch_text(self) -> str:
        """Which torch the package needs, and why."""
        if "reason" not in self.torch:  # written by an older cpupack, whose packages all required it
            return str(self.torch["requires"])
        reason = self.torch["reason"]
        return "not needed" if reason is None else f"{self.torch['requires']}, because {reason}"

    def to_json(self) -> str:
        """Return the file's text: keys sorted, so that equal manifests give equal bytes."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"


def parse_manifest(text: str, where: str) -> Manifest:
    """Parse ``manifest.json``. Raises IntegrityError naming ``where`` when this runtime cannot read it."""
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
        manifest = Manifest(**raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{where} is damaged: {error}") from error
    problem = _damage(manifest)
    if problem is not None:
        raise IntegrityError(f"{where} is damaged: {problem}")
    return manifest


def _damage(manifest: Manifest) -> str | None:
    """Return the first problem with what the runner relies on: missing, or of another type. None without one."""
    for name, types in _FIELD_TYPES.items():
        if not isinstance(getattr(manifest, name), types):
            return f"{name} is {type(getattr(manifest, name)).__name__}"
    for section, keys in _REQUIRED_KEYS.items():
        for key in keys:
            if key not in getattr(manifest, section):
                return f"{section}.{key} is missing"
    for key in ("input_shape", "output_shape"):
        shape = manifest.model[key]
        if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
            return f"model.{key} is {shape!r}"
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            return f"files names {name!r}, which is outside the package"
    return None


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
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK_BYTES)  # hashlib.file_digest needs Python 3.11
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def check_files(package_dir: Path, manifest: Manifest, without: Collection[Path] = ()) -> None:
    """Compare every shipped file with the manifest. Raises IntegrityError naming the first that differs.

    Files in ``without`` are not hashed; their sizes are compared.
    """
    for name, entry in sorted(manifest.files.items()):
        path = package_dir / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing; reinstall {manifest.name}")
        if path.stat().st_size != entry.bytes or (path not in without and hash_file(path) != entry.sha256):
            raise IntegrityError(f"{path} is not the file that was built; reinstall {manifest.name}")


@contextmanager
def hashed_meanwhile(package_dir: Path, manifest: Manifest, paths: Collection[Path]) -> Iterator[None]:
    """Hash ``paths`` of the package in another thread while the block runs, and compare them with the manifest.

    Raises IntegrityError naming a file that differs, in place of any error of the block.
    """
    differing: list[Path] = []

    def compare() -> None:
        for path in paths:
            entry = manifest.files[path.relative_to(package_dir).as_posix()]
            try:
                if hash_file(path) != entry.sha256:
                    differing.append(path)
            except OSError:
                differing.append(path)

    thread = threading.Thread(target=compare, name="hash", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system allows no more threads
        compare()
    try:
        yield
    finally:
        if thread.ident is not None:
            thread.join()
        for path in differing:
            raise IntegrityError(f"{path} is not the file that was built; reinstall {manifest.name}")
