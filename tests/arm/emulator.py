"""qemu's emulator of ARM programs, kept in the user's cache directory, and the static driver that it runs.

apt brings qemu without being root: the package is downloaded and one file is taken out of it. pip's ziglang compiles.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hatch_build import COMPILER, PUBLIC_HEADERS, SOURCES, sources_of  # noqa: E402 - found by the line before

CPUS = {
    "cortex-a53": "neon",  # Raspberry Pi 3
    "cortex-a72": "neon",  # Raspberry Pi 4
    "cortex-a76": "dotprod",  # Raspberry Pi 5
    "neoverse-n1": "dotprod",  # Graviton 2, Ampere Altra
    "max": "i8mm",  # all that qemu knows
}
"""CPUs as qemu names them, and the kernels that run there."""

DRIVER = ROOT / "build" / "arm" / "driver"
PACKAGE = "qemu-user-static"


class UnavailableError(Exception):
    """The emulator cannot be had here; says why and what to do."""


def cache() -> Path:
    """Return the directory where downloads are kept. ``CPUPACK_ARM_CACHE`` names another."""
    own = os.environ.get("CPUPACK_ARM_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else base / "cpupack" / "arm"


def qemu() -> Path:
    """Return the emulator, that of the system or one out of apt's package. Raises UnavailableError."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        installed = shutil.which(name)
        if installed:
            return Path(installed)
    kept = cache() / "qemu-aarch64"
    if kept.is_file():
        return kept
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError(f"there is no qemu-aarch64, and no apt to download {PACKAGE}; install it")
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as directory:
        done = _download(Path(directory))
        if done.returncode != 0 and os.geteuid() == 0:  # there may be no lists of packages yet
            subprocess.run(["apt-get", "-qq", "update"], capture_output=True, check=False)
            done = _download(Path(directory))
        packages = list(Path(directory).glob("*.deb"))
        if done.returncode != 0 or not packages:
            raise UnavailableError(f"apt-get cannot download {PACKAGE}: {done.stderr.strip()[-300:]}")
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(Path(directory) / "files")], check=True)
        found = Path(directory) / "files" / "usr" / "bin" / "qemu-aarch64-static"
        found.chmod(0o755)
        found.replace(kept)
    return kept


def _download(directory: Path) -> subprocess.CompletedProcess[str]:
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", PACKAGE]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def compile_driver() -> Path:
    """Compile ``driver.c`` and the kernels to one static program, unless it is newer. Returns its path."""
    source = Path(__file__).with_name("driver.c")
    found = [path for path in (ROOT / SOURCES).rglob("*.*") if path.suffix in {".c", ".h", ".inc"}]
    newest_s = max(path.stat().st_mtime for path in (source, Path(__file__), *found))
    if DRIVER.is_file() and DRIVER.stat().st_mtime >= newest_s:
        return DRIVER
    DRIVER.parent.mkdir(parents=True, exist_ok=True)
    made = DRIVER.with_name(f"driver.{os.getpid()}")
    # torch's operator throws through C++'s libraries, which a static program for musl does not have.
    sources = [path for path in sources_of(ROOT, "aarch64") if path.parent.name != "torch"]
    caches = {f"ZIG_{kind}_CACHE_DIR": str(ROOT / "build" / "zig") for kind in ("GLOBAL", "LOCAL")}
    flags = ("-target", "aarch64-linux-musl", "-mcpu=generic", "-static", "-std=gnu11", "-O3", "-Wall", "-Wextra")
    flags += ("-Werror", "-pthread", f"-I{SOURCES}", f"-I{PUBLIC_HEADERS}")
    done = subprocess.run(
        [sys.executable, "-m", COMPILER, "cc", *flags, str(source), *map(str, sources), "-lm", "-o", str(made)],
        cwd=ROOT,
        env={**caches, **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the driver does not compile:\n{done.stderr.strip()}")
    made.replace(DRIVER)
    return DRIVER


def run(
    cpu: str, program: Path, *arguments: str | Path | int, options: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run an ARM program on an emulated ``cpu``, with ``options`` of qemu."""
    command = [str(qemu()), "-cpu", cpu, *options, str(program), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
