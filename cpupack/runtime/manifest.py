"""The manifest: what a wheel says about itself (``manifest.json``), read before anything is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any

from .errors import HostError, IntegrityError, RunnerError
from .files import BUILD_NAME, MANIFEST_NAME, ROOT_NAME
from .host.limits import system_fault

MANIFEST_SCHEMA = 1

_CHUNK_BYTES = 1 << 18
"""What is read at a time to be hashed: it fits into the second cache."""

_SPEEDS, _SPEED_GATE = ("speedup", "speedup_ci95"), "min_speedup"
"""What of the accuracy section and its gates is a measurement of time."""
_UNKNOWN = "no measurements of the build are known"

_FIELD_TYPES: dict[str, type | UnionType] = {
    **dict.fromkeys(("name", "import_name", "version"), str),
    "random_weights": bool,
    **dict.fromkeys(("model", "target", "quantize", "accuracy", "bench", "torch", "build"), dict),
    **dict.fromkeys(("preprocess", "calibration", "task", "tokenizer", "sizes"), dict | None),
    **dict.fromkeys(("inputs", "outputs"), list),
    "labels": str | None,
}
_NAMES = {
    "name": re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"),
    "import_name": re.compile(r"[A-Za-z_][A-Za-z0-9_]*"),
    "version": re.compile(r"[A-Za-z0-9]([A-Za-z0-9.!+_-]*[A-Za-z0-9])?"),
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
    not). ``preprocess`` is None for models that take arrays only, or rows. Shapes have no batch dimension; those in
    ``model`` are the engine's. ``inputs`` and ``outputs`` describe the tensors that callers hand in and get
    (``signature.py``); they are empty in wheels of earlier versions, which have one of each. ``task`` is the kind
    of the outputs with its settings (``tasks/spec.py``), None in wheels of earlier versions. ``tokenizer`` says how
    inputs are made from text (``text/spec.py``), None for models that take none. ``sizes`` says which sizes of images
    it takes (``open_sizes.py``), None where that in ``model`` is the only one.
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
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    schema: int = MANIFEST_SCHEMA
    task: dict[str, Any] | None = None
    tokenizer: dict[str, Any] | None = None
    sizes: dict[str, Any] | None = None

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
        """Return the file's text without what was measured: keys sorted, so that equal manifests give equal bytes."""
        raw = dataclasses.asdict(self)
        plan = {"objective": self.plan.objective, "max_latency_ms": self.plan.max_latency_ms, "reason": _UNKNOWN}
        raw["plan"] = {"tuned": False, "threads": None, "instances": None, "batch_size": None} | plan
        raw["bench"] = {**self.bench, "build": None}
        raw["build"] = {name: value for name, value in self.build.items() if name != "host"}
        raw["accuracy"] = {**self.accuracy, **dict.fromkeys(_SPEEDS)}
        raw["accuracy"]["gates"] = [each for each in self.accuracy.get("gates", ()) if each["name"] != _SPEED_GATE]
        return json.dumps(raw, indent=2, sort_keys=True) + "\n"

    def measured(self) -> dict[str, Any]:
        """Return what was measured at the build and ``to_json`` leaves out, as ``build.json`` has it."""
        return {
            "plan": dataclasses.asdict(self.plan),
            "bench": self.bench.get("build"),
            "host": self.build.get("host"),
            "speeds": {name: self.accuracy.get(name) for name in _SPEEDS},
            "gates": [each for each in self.accuracy.get("gates", ()) if each["name"] == _SPEED_GATE],
        }


def parse_manifest(
    text: str, where: str, measured: Mapping[str, Any] | None = None, *, later: bool = False
) -> Manifest:
    """Parse ``manifest.json``, and put back what was ``measured``.

    ``later`` takes that of a later version, which says more than this one knows: so do the tools that verify wheels. A
    runner has the manifest of its own build. Raises IntegrityError naming ``where`` when this runtime cannot read it.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{where} is not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("schema") != MANIFEST_SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise IntegrityError(f"{where} has schema {found!r}; this runtime reads {MANIFEST_SCHEMA}")
    try:
        if measured is not None:
            raw["plan"] = measured["plan"]
            raw["bench"]["build"] = measured["bench"]
            if measured.get("host") is not None:  # a wheel of an earlier cpupack has it in the manifest itself
                raw["build"]["host"] = measured["host"]
            raw["accuracy"].update(measured["speeds"])
            raw["accuracy"]["gates"] = [*raw["accuracy"]["gates"], *measured["gates"]]
        known = _known if later else _all
        raw["plan"] = PlanEntry(**known(PlanEntry, raw["plan"]))
        raw["files"] = {name: FileEntry(**known(FileEntry, entry)) for name, entry in raw["files"].items()}
        manifest = Manifest(**known(Manifest, raw))
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{where} is damaged: {error}") from error
    problem = _damage(manifest)
    if problem is not None:
        raise IntegrityError(f"{where} is damaged: {problem}")
    return manifest


def _known(kind: type[Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return what this version has fields for."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in raw.items() if name in names}


def _all(_: type[Any], raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return raw


def _damage(manifest: Manifest) -> str | None:
    """Return the first problem with what the runner relies on: missing, or of another type. None without one."""
    for name, types in _FIELD_TYPES.items():
        if not isinstance(getattr(manifest, name), types):
            return f"{name} is {type(getattr(manifest, name)).__name__}"
    for key, form in _NAMES.items():  # they become paths, commands and lines of other files
        if form.fullmatch(getattr(manifest, key)) is None:
            return f"{key} is {getattr(manifest, key)!r}"
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
    """Read ``package_dir/manifest.json``, and what was measured at the build from ``build.json``.

    Raises IntegrityError when a file is missing or damaged, or when the manifest is not the one that was built.
    """
    path = package_dir / MANIFEST_NAME
    text = _read_text(path)
    facts = read_build_facts(package_dir)
    manifest = parse_manifest(text, str(path), facts.get("measured"))
    if _read_text(package_dir / ROOT_NAME) != _root_line(text):
        raise IntegrityError(f"{path} is not the file that was built: {ROOT_NAME} has another hash; reinstall it")
    return manifest


def root_text(manifest: Manifest) -> str:
    """Return the text of ``manifest.sha256``."""
    return _root_line(manifest.to_json())


def root_hash(manifest: Manifest) -> str:
    """Return one hash over the whole package, as hex: the manifest's, which has those of all other files."""
    return hashlib.sha256(manifest.to_json().encode()).hexdigest()


def _root_line(text: str) -> str:
    return f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST_NAME}\n"


def read_build_facts(package_dir: Path) -> dict[str, Any]:
    """Return what ``build.json`` holds, {} where there is none: in a project that is not finished.

    Raises IntegrityError when it is damaged.
    """
    path = package_dir / BUILD_NAME
    if not path.is_file():
        return {}
    try:
        facts = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not JSON: {error}; reinstall the package") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("measured", {}), dict):
        raise IntegrityError(f"{path} is damaged; reinstall the package")
    return facts


def build_rows(package_dir: Path) -> list[Any]:
    """Return the measurements of the build's search for a setting, [] without one. Raises IntegrityError."""
    plan = read_build_facts(package_dir).get("plan") or {}
    rows = plan.get("rows", []) if isinstance(plan, dict) else None
    if not isinstance(rows, list):
        raise IntegrityError(f"{package_dir / BUILD_NAME} is damaged; reinstall the package")
    return rows


def extra_files(package_dir: Path, manifest: Manifest) -> list[str]:
    """Return the files in the package that it was not built with, but for bytecode that Python itself writes."""
    known = {*manifest.files, MANIFEST_NAME, ROOT_NAME, BUILD_NAME}
    found = (path for path in package_dir.rglob("*") if not path.is_dir() or path.is_symlink())
    names = sorted(path.relative_to(package_dir).as_posix() for path in found)
    return [name for name in names if name not in known and not _is_bytecode(name, known)]


def _is_bytecode(name: str, known: Collection[str]) -> bool:
    """Return whether a file is bytecode of a module of the package (PEP 3147): ``a/__pycache__/b.cpython-311.pyc``."""
    path = PurePosixPath(name)
    if path.parent.name != "__pycache__" or path.suffix != ".pyc":
        return False
    return (path.parent.parent / f"{path.name.partition('.')[0]}.py").as_posix() in known


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except NotADirectoryError as error:
        archive = next((each for each in path.parents if each.is_file()), path)
        raise IntegrityError(
            f"cannot read {path}: {archive} is a file. Kernels and model are loaded from files of their own, and not "
            "from within an archive; install the wheel with pip, or unpack it and import it from there"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise IntegrityError(f"cannot read {path}: {error}") from error


def _unreadable(path: Path, error: OSError) -> RunnerError:
    """Return the error for a file of the package that the system does not let this process read."""
    if (refused := system_fault(error)) is not None:
        return HostError(refused)
    return IntegrityError(f"cannot read {path}: {error.strerror or error}")


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
        try:
            if not path.is_file():
                raise IntegrityError(f"{path} is missing; reinstall {manifest.name}")
            same = path.stat().st_size == entry.bytes and (path in without or hash_file(path) == entry.sha256)
        except OSError as error:
            raise _unreadable(path, error) from error
        if not same:
            raise IntegrityError(f"{path} is not the file that was built; reinstall {manifest.name}")


def check_left_out(package_dir: Path, manifest: Manifest, paths: Collection[Path]) -> None:
    """Compare the hashes of the files that ``check_files`` was called ``without``.

    Raises IntegrityError naming a file that differs.
    """
    for path in paths:
        try:
            same = hash_file(path) == manifest.files[path.relative_to(package_dir).as_posix()].sha256
        except OSError as error:
            raise _unreadable(path, error) from error
        if not same:
            raise IntegrityError(f"{path} is not the file that was built; reinstall {manifest.name}")
