"""Reads a wheel that cpupack made and checks whether it is unchanged. None of the wheel's code is run."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from cpupack import __version__
from cpupack.errors import UsageError
from cpupack.runtime.errors import IntegrityError
from cpupack.runtime.files import BUILD_NAME, MANIFEST_NAME, ROOT_NAME
from cpupack.runtime.manifest import Manifest, parse_manifest
from cpupack.wheel.facts import fact_rows, megabytes
from cpupack.wheel.foreign import MALFORMED, read_json
from cpupack.wheel.limits import name_problems, refusal

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """One file of a wheel: uncompressed and compressed size in bytes, SHA-256 of the contents as hex."""

    name: str
    bytes: int
    compressed_bytes: int
    sha256: str


@dataclass(frozen=True)
class Inspection:
    """A wheel's manifest, metadata and files. ``problems`` names every contradiction between them.

    ``facts`` is the manifest as text: (label, value) rows.
    """

    path: Path
    size_bytes: int
    manifest: Manifest
    facts: tuple[tuple[str, str], ...]
    requires: tuple[str, ...]
    requires_python: str
    tags: tuple[str, ...]
    members: tuple[Member, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for ``--json``: the manifest's sections, metadata, files and integrity."""
        facts = dataclasses.asdict(self.manifest)
        del facts["files"]  # "members" has every file with its actual hash; "files" has only the expected ones
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            **facts,
            "requires": list(self.requires),
            "requires_python": self.requires_python,
            "tags": list(self.tags),
            "members": [dataclasses.asdict(member) for member in self.members],
            "integrity": {"ok": not self.problems, "problems": list(self.problems)},
        }


def check_file(path: Path) -> None:
    """Raise UsageError for a pipe or a device in place of a wheel: reading it may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"{path} is a pipe or a device, not a wheel", hint="save the wheel as a file")


def inspect(path: Path) -> Inspection:
    """Read a wheel and check every file against RECORD and the manifest.

    Raises UsageError for a file that is not a wheel, a wheel not made by cpupack, or an archive that cannot be read.
    A file that differs from the build is not an error; it gets a line in ``problems``.
    """
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if (why := refusal(archive)) is not None:
                raise UsageError(f"{path} is refused: {why}")
            return _inspect(path, archive)
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path} is not a wheel, or it is damaged: {error}", hint="build it again") from error
    except (zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, struct.error, csv.Error) as error:
        # RuntimeError: the archive is encrypted
        raise UsageError(f"{path} is damaged: {error}", hint="build it again, or copy it again") from error
    except (OSError, OverflowError, UnicodeDecodeError) as error:  # of zipfile: places and names that cannot be
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def format_inspection(inspection: Inspection) -> str:
    """Return the facts as text for a terminal: facts, dependencies, files, and the verdict on the hashes."""
    manifest = inspection.manifest
    lines = [f"{manifest.name} {manifest.version}  ({inspection.path.name}, {megabytes(inspection.size_bytes)})"]
    if manifest.random_weights:
        lines.append("WARNING: random weights; the predictions mean nothing")
    rows = [
        *inspection.facts,
        ("Requires", ", ".join([f"python{inspection.requires_python}", *inspection.requires])),
        ("Tag", ", ".join(inspection.tags)),
        ("Built with", f"cpupack {manifest.build['cpupack']}, torch {manifest.build['torch']}"),
    ]
    width = max(len(label) for label, _ in rows)
    lines += ["", *(f"{label:<{width}}  {value}" for label, value in rows)]
    lines += ["", "Operators", *_operator_lines(manifest)]
    lines += ["", f"Files{'bytes':>26}{'in wheel':>12}"]
    lines += [f"{member.bytes:>31,}{member.compressed_bytes:>12,}  {member.name}" for member in inspection.members]
    lines.append("")
    if inspection.problems:
        lines.append(f"DAMAGED: {len(inspection.problems)} files differ from the build")
        lines += [f"  {problem}" for problem in inspection.problems]
    else:
        lines.append("All hashes agree with the manifest and RECORD.")
    return "\n".join(lines)


def _operator_lines(manifest: Manifest) -> list[str]:
    counts: dict[str, int] = manifest.model["operators"]
    return [f"{count:>6}  {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _inspect(path: Path, archive: zipfile.ZipFile) -> Inspection:
    names = archive.namelist()
    dist_info = next((name.split("/")[0] for name in names if name.endswith(".dist-info/WHEEL")), None)
    if dist_info is None:
        raise UsageError(f"{path} is a zip file but not a wheel: it has no .dist-info/WHEEL")
    package = _package_of(path, archive)
    manifest, problems = _manifest(path, archive, package)
    facts = _facts(path, manifest)
    members = tuple(_member(archive, info) for info in archive.infolist() if not info.filename.endswith("/"))
    metadata = _headers(path, archive, f"{dist_info}/METADATA")
    wheel = _headers(path, archive, f"{dist_info}/WHEEL")
    hashes = {member.name: member.sha256 for member in members}
    problems += _record_problems(path, archive, f"{dist_info}/RECORD", hashes)
    problems += _manifest_problems(package, manifest, members)
    problems += _root_problems(path, archive, package)
    problems += name_problems(archive)
    if (found := metadata.get_all("Version", [])) != [manifest.version]:
        problems.append(f"METADATA says version {', '.join(found)}, the manifest {manifest.version}")
    return Inspection(
        path=path,
        size_bytes=path.stat().st_size,
        manifest=manifest,
        facts=facts,
        requires=tuple(metadata.get_all("Requires-Dist", [])),
        requires_python=metadata.get("Requires-Python", ""),
        tags=tuple(wheel.get_all("Tag", [])),
        members=members,
        problems=tuple(problems),
    )


def _package_of(path: Path, archive: zipfile.ZipFile) -> str:
    """Return the package that contains a manifest and cpupack's runtime."""
    for name in archive.namelist():
        package, _, rest = name.partition("/")
        if rest == MANIFEST_NAME and f"{package}/_runtime/manifest.py" in archive.namelist():
            return package
    raise UsageError(f"{path} was not made by cpupack: no package in it has a manifest and a runtime")


def _manifest(path: Path, archive: zipfile.ZipFile, package: str) -> tuple[Manifest, list[str]]:
    """Return the manifest, and a problem where the file of measurements, which it takes the plan from, is damaged."""
    name, facts_name = f"{package}/{MANIFEST_NAME}", f"{package}/{BUILD_NAME}"
    measured, problems = None, []
    if facts_name in archive.namelist():
        try:
            facts = read_json(archive.read(facts_name))
            measured = facts.get("measured") if isinstance(facts, dict) else None
        except (ValueError, RecursionError) as error:  # JSON and UTF-8
            problems.append(f"{facts_name}: cannot be read: {error}")
    try:
        read_json(archive.read(name))
        text = archive.read(name).decode("utf-8")
        try:
            return parse_manifest(text, f"{path}: {name}", measured, later=True), problems
        except IntegrityError as error:
            if measured is None:
                raise
            # good by itself, so the measurements are what is damaged
            found = parse_manifest(text, f"{path}: {name}", later=True)
            return found, [f"{facts_name}: {error}"]
    except IntegrityError as error:
        raise UsageError(str(error), hint="inspect it with the cpupack version that built it") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {name} cannot be read: {error}", hint="build it again") from error


def _root_problems(path: Path, archive: zipfile.ZipFile, package: str) -> list[str]:
    """Compare the manifest with the root hash. Wheels of earlier versions of cpupack have none."""
    name = f"{package}/{ROOT_NAME}"
    if name not in archive.namelist():
        return []
    found = hashlib.sha256(archive.read(f"{package}/{MANIFEST_NAME}")).hexdigest()
    return (
        []
        if _text(path, archive, name).partition(" ")[0] == found
        else [f"{package}/{MANIFEST_NAME}: differs from {ROOT_NAME}"]
    )


def _facts(path: Path, manifest: Manifest) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(fact_rows(manifest))
    except (*MALFORMED, IntegrityError) as error:
        made_by = manifest.build.get("cpupack")
        if _is_later(made_by):  # its hashes and its signature count, whatever it says of itself
            return (("Facts", f"not shown: this is cpupack {__version__}, and cpupack {made_by} wrote them ({error})"),)
        raise UsageError(f"{path}: the manifest is damaged: {error!r}", hint="build it again") from error


def _is_later(version: object) -> bool:
    """Whether a version is later than this one."""
    try:
        return Version(str(version)) > Version(__version__)
    except InvalidVersion:
        return False


def _headers(path: Path, archive: zipfile.ZipFile, name: str) -> Any:
    return HeaderParser().parsestr(_text(path, archive, name))


def _text(path: Path, archive: zipfile.ZipFile, name: str) -> str:
    try:
        return archive.read(name).decode("utf-8")
    except (KeyError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a complete wheel: {name} is missing or damaged") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    digest = hashlib.sha256()
    with archive.open(info) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return Member(info.filename, info.file_size, info.compress_size, digest.hexdigest())


def _record_problems(path: Path, archive: zipfile.ZipFile, record: str, hashes: dict[str, str]) -> list[str]:
    """Compare the hashes with RECORD (packaging.python.org/specifications/recording-installed-packages)."""
    problems, recorded = [], set()
    for row in csv.reader(io.StringIO(_text(path, archive, record))):
        name, expected = (*row, "", "")[:2]
        recorded.add(name)
        if name not in hashes:
            problems.append(f"{name}: in RECORD but not in the wheel")
        elif expected and expected != _record_hash(hashes[name]):
            problems.append(f"{name}: differs from RECORD")
    problems += [f"{name}: not in RECORD" for name in sorted(set(hashes) - recorded)]
    return problems


def _record_hash(sha256: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode("ascii").rstrip("=")


def _manifest_problems(package: str, manifest: Manifest, members: tuple[Member, ...]) -> list[str]:
    found = {member.name: member for member in members if member.name.startswith(f"{package}/")}
    wanted = {f"{package}/{name}": entry for name, entry in manifest.files.items()}
    problems = [f"{name}: in the manifest but not in the wheel" for name in sorted(set(wanted) - set(found))]
    extra = set(found) - set(wanted) - {f"{package}/{name}" for name in (MANIFEST_NAME, ROOT_NAME, BUILD_NAME)}
    problems += [f"{name}: not in the manifest" for name in sorted(extra)]
    for name in sorted(set(wanted) & set(found)):
        if (found[name].sha256, found[name].bytes) != (wanted[name].sha256, wanted[name].bytes):
            problems.append(f"{name}: differs from the manifest")
    return problems
