"""Gathers a wheel and what it requires with ``pip download``, and writes the files to install them from."""

from __future__ import annotations

import os
import platform as host_platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from cpupack.bundle.platforms import taken_by
from cpupack.errors import PackagingError, UsageError
from cpupack.runtime.errors import HostError
from cpupack.runtime.host.cpu import machine
from cpupack.runtime.host.processes import module_command, run
from cpupack.runtime.manifest import Manifest, hash_file
from cpupack.scratch import sweep_parts
from cpupack.templates import render
from cpupack.wheel.verify import verify_wheel

_PYTHON = re.compile(r"3\.(\d{1,2})")
_OLDEST_MINOR = 10
_TAIL = 5


@dataclass(frozen=True)
class BundleOptions:
    """What is gathered: for which Python (``3.11``) and platform tag, None for this host's; with which extras.

    ``pip_args`` are passed to pip, such as an index.
    """

    python: str | None = None
    platform: str | None = None
    extras: tuple[str, ...] = ()
    pip_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """A finished bundle: ``wheels/``, ``requirements.txt`` with hashes, and a ``Containerfile``."""

    directory: Path
    python: str
    platform: str
    files: dict[str, str]
    """SHA-256 of each wheel."""


def gather(wheel: Path, directory: Path, options: BundleOptions) -> Bundle:
    """Verify a wheel, and put it into ``directory`` with all that it requires. The directory must be new or empty.

    A failure leaves nothing there. Raises UsageError for options, and for a wheel that is not as it was built;
    PackagingError where pip finds no wheel of something, or where a file cannot be written.
    """
    found = verify_wheel(wheel)
    if found.problems:
        raise UsageError(f"{wheel} is not as it was built: {found.problems[0]}", hint="build or copy the wheel again")
    manifest = found.inspection.manifest
    python, platform = _python(options.python), _platform(options.platform, found.inspection.tags, manifest)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        what = "is not empty" if directory.is_dir() else "is not a directory"
        raise UsageError(f"{directory} {what}", hint="choose another --out")
    part = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    try:
        sweep_parts(directory)
        (part / "wheels").mkdir(parents=True)
        _download(wheel, part / "wheels", python, platform, options, manifest)
        files = {path.name: hash_file(path) for path in sorted((part / "wheels").iterdir())}
        (part / "requirements.txt").write_text(_requirements(files), encoding="utf-8")
        (part / "Containerfile").write_text(_containerfile(manifest, python, options.extras), encoding="utf-8")
        if directory.exists():
            directory.rmdir()
        part.rename(directory)
    except OSError as error:
        raise PackagingError(f"cannot write {directory}: {error.strerror or error}", hint="check space") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Bundle(directory, python, platform, files)


def _python(text: str | None) -> str:
    if text is None:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    found = _PYTHON.fullmatch(text)
    if found is None or int(found[1]) < _OLDEST_MINOR:
        raise UsageError(f"--python {text}: must be 3.{_OLDEST_MINOR} or later, such as 3.11")
    return text


def _platform(wanted: str | None, tags: Sequence[str], manifest: Manifest) -> str:
    own = tags[0].rpartition("-")[2] if tags else ""
    platform = wanted or own
    taken = taken_by(platform)
    if taken is None:
        raise UsageError(f"--platform {platform}: must be a tag such as manylinux_2_28_{manifest.target['cpu']}")
    if own not in taken:
        raise UsageError(
            f"--platform {platform}: a host of this tag cannot install a wheel for {own}",
            hint=f"name {own} or a later one, or build a wheel for that CPU",
        )
    return platform


def _download(
    wheel: Path, directory: Path, python: str, platform: str, options: BundleOptions, manifest: Manifest
) -> None:
    shutil.copyfile(wheel, directory / wheel.name)  # not its permissions: some file systems refuse
    extras = f"[{','.join(options.extras)}]" if options.extras else ""
    command = ["download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--dest", str(directory), *_tags(python, platform), *options.pip_args]
    command.append(f"{directory / wheel.name}{extras}")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if find_spec("pip") is None:  # as in an environment of uv
        raise PackagingError("pip is not installed beside cpupack", hint="python -m ensurepip, or uv pip install pip")
    try:
        done = run([*module_command("pip"), *command], env=environ, stdin=subprocess.DEVNULL)
    except HostError as error:
        raise PackagingError(f"pip cannot be started: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        said = "\n".join(f"  {line}" for line in lines[-_TAIL:]) or f"  exit code {done.returncode}"
        raise PackagingError(
            f"pip cannot download what {manifest.name} requires for Python {python} on {platform}:\n{said}",
            hint="pip takes its index from its own settings; --pip-args passes options to it",
        )


def _tags(python: str, platform: str) -> list[str]:
    """Return pip's options for a Python and a platform, none where these are this host's: pip then knows better."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    glibc = host_platform.libc_ver()
    if python == here and platform.endswith(f"_{machine()}") and glibc[0] == "glibc" and _fits(platform, glibc[1]):
        return []
    minor = python.partition(".")[2]
    options = ["--python-version", python, "--implementation", "cp"]
    for abi in (f"cp3{minor}", "abi3", "none"):
        options += ["--abi", abi]
    for tag in taken_by(platform) or ():
        options += ["--platform", tag]
    return options


def _fits(platform: str, glibc: str) -> bool:
    """Whether this host's glibc is the one that the platform names: a later one would take wheels that are too new."""
    return platform.startswith(f"manylinux_{glibc.replace('.', '_')}_")


def _requirements(files: dict[str, str]) -> str:
    lines = [
        "# Written by cpupack. In this directory:",
        "#   pip install --no-index --require-hashes --find-links wheels -r requirements.txt",
    ]
    for name, sha256 in files.items():
        try:
            distribution, version, *_ = parse_wheel_filename(name)
        except InvalidWheelFilename as error:
            raise PackagingError(f"pip downloaded {name}, which is no wheel: {error}") from error
        lines.append(f"{distribution}=={version} --hash=sha256:{sha256}")
    return "\n".join(lines) + "\n"


def _containerfile(manifest: Manifest, python: str, extras: Sequence[str]) -> str:
    return render(
        "bundle/Containerfile.j2", name=manifest.name, version=manifest.version, python=python, serves="serve" in extras
    )
