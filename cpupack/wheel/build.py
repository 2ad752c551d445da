"""Builds a wheel from a staged project with hatchling, in this process, and renames it into the output directory."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

from cpupack.artifacts import BuiltWheel, StagedProject
from cpupack.errors import PackagingError
from cpupack.runtime.files import BUILD_NAME, MANIFEST_NAME, ROOT_NAME
from cpupack.runtime.manifest import hash_file, read_manifest
from cpupack.scratch import sweep_parts


def check_out(out: Path) -> None:
    """Raise PackagingError when a wheel cannot be written into ``out``. Nothing is created.

    Also called before long work, because ``build_wheel`` would only fail minutes later.
    """
    existing = out
    while not existing.exists():
        if existing.is_symlink():
            raise PackagingError(f"{existing} is a broken link", hint="choose another --out")
        existing = existing.parent
    if not existing.is_dir():
        raise PackagingError(f"{existing} is not a directory", hint="choose another --out")
    try:
        # Only a write proves it: permission bits do not apply to root and do not show a read-only file system.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise PackagingError(f"cannot write to {existing}: {error.strerror}", hint="choose another --out") from error


def build_wheel(staged: StagedProject, out: Path) -> BuiltWheel:
    """Build the staged project with hatchling and put the finished wheel into ``out`` in one step.

    A failure or an interrupt leaves ``out`` as it was. Raises PackagingError.
    """
    check_out(out)
    try:
        # Built inside the project, which its owner removes. So a killed build leaves nothing in ``out``.
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=staged.root) as directory:
            built = _run_hatchling(staged, Path(directory))
            _check_contents(staged, built)
            out.mkdir(parents=True, exist_ok=True)
            (path,) = _publish([built], out)
    except OSError as error:
        raise PackagingError(f"cannot write the wheel: {error}", hint="check space and permissions") from error
    return BuiltWheel(
        path=path,
        sha256=hash_file(path),
        size_bytes=path.stat().st_size,
        distribution=staged.distribution,
        version=staged.version,
        platform_tag=staged.platform_tag,
    )


def publish(wheels: Sequence[BuiltWheel], out: Path) -> list[BuiltWheel]:
    """Put finished wheels into ``out``, all of them or none. Raises PackagingError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        paths = _publish([wheel.path for wheel in wheels], out)
    except OSError as error:
        raise PackagingError(f"cannot write the wheel: {error}", hint="check space and permissions") from error
    return [replace(wheel, path=path) for wheel, path in zip(wheels, paths, strict=True)]


def _run_hatchling(staged: StagedProject, directory: Path) -> Path:
    try:
        with _temporary_files_in(directory):
            # Set here, because otherwise HATCH_BUILD_* variables of the user's shell would decide.
            build = WheelBuilder(str(staged.root)).build(
                directory=str(directory),
                versions=["standard"],
                hooks_only=False,
                clean=False,
                clean_hooks_after=False,
            )
            built = [Path(path) for path in build]
    except (ValueError, TypeError) as error:  # hatchling raises these for invalid project metadata
        raise PackagingError(f"hatchling cannot build the staged project: {error}") from error
    if len(built) != 1 or not built[0].name.endswith(f"-py3-none-{staged.platform_tag}.whl"):
        raise PackagingError(
            f"hatchling built {', '.join(path.name for path in built) or 'nothing'}, "
            f"not a wheel for {staged.platform_tag}",
            hint="unset HATCH_BUILD_NO_HOOKS and other HATCH_BUILD_* variables",
        )
    return built[0]


@contextmanager
def _temporary_files_in(directory: Path) -> Iterator[None]:
    """Make ``tempfile`` use ``directory``. Otherwise an interrupt would leave hatchling's temporary archive."""
    before = tempfile.tempdir
    tempfile.tempdir = str(directory)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _check_contents(staged: StagedProject, built: Path) -> None:
    """Check that the archive has every file of the manifest and that the package has no other file."""
    manifest = read_manifest(staged.package_dir)
    built_facts = [BUILD_NAME] if (staged.package_dir / BUILD_NAME).is_file() else []
    wanted = {f"{staged.import_name}/{name}" for name in (*manifest.files, MANIFEST_NAME, ROOT_NAME, *built_facts)}
    with zipfile.ZipFile(built) as archive:
        found = {name for name in archive.namelist() if name.startswith(f"{staged.import_name}/")}
    if found != wanted:
        raise PackagingError(f"the wheel differs from its manifest in {', '.join(sorted(found ^ wanted))}")


def _publish(built: Sequence[Path], out: Path) -> list[Path]:
    """Copy ``built`` into ``out`` under hidden names, then rename them, so that no reader sees a partial wheel."""
    parts = [out / f".{wheel.name}.{os.getpid()}.part" for wheel in built]
    try:
        for wheel, part in zip(built, parts, strict=True):
            sweep_parts(out / wheel.name)
            shutil.copyfile(wheel, part)  # not its permissions: some file systems have none, and refuse
        return [part.replace(out / wheel.name) for wheel, part in zip(built, parts, strict=True)]
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
