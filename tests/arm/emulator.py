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


class UnavailableError(Exception):
    """The emulator, or what it is to run, cannot be had here or not in the time that was given; says why."""


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
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as directory:
            _unpack("qemu-user-static", Path(directory))
            keep(Path(directory) / "usr" / "bin" / "qemu-aarch64-static", kept)
    return kept


def qemu_with_plugins() -> tuple[Path, Path]:
    """Return the emulator that takes plugins, and the directory of libraries that it needs. Raises UnavailableError.

    The static one takes none.
    """
    kept, libraries = cache() / "qemu-aarch64-plugins", cache() / "lib"
    if not kept.is_file():
        libraries.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as directory:
            _unpack("qemu-user", Path(directory))
            program = Path(directory) / "usr" / "bin" / "qemu-aarch64"
            needed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
            missing = [line.split()[0] for line in needed.splitlines() if "not found" in line]
            depends = subprocess.run(["apt-cache", "depends", "qemu-user"], capture_output=True, text=True, check=True)
            names = [line.split()[1] for line in depends.stdout.splitlines() if line.strip().startswith("Depends:")]
            # libcapstone.so.4 is in libcapstone4
            for package in {name for name in names for each in missing if name.startswith(each.partition(".so")[0])}:
                _unpack(package, Path(directory))
            for path in Path(directory).rglob("*.so.*"):
                shutil.copy(path, libraries / path.name)
            keep(program, kept)
    return kept, libraries


def keep(program: Path, kept: Path) -> None:
    """Put a program into the cache, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    made = kept.with_name(f"{kept.name}.{os.getpid()}")
    shutil.copy(program, made)
    made.chmod(0o755)
    made.replace(kept)


def _unpack(package: str, directory: Path) -> None:
    """Unpack one of apt's packages in a directory. Raises UnavailableError."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError(f"there is no {package}, and no apt to download it; install it")
    done = _download(package, directory)
    if done.returncode != 0 and os.geteuid() == 0:  # there may be no lists of packages yet
        subprocess.run(["apt-get", "-qq", "update"], capture_output=True, check=False)
        done = _download(package, directory)
    found = list(directory.glob(f"{package}_*.deb"))
    if done.returncode != 0 or not found:
        raise UnavailableError(f"apt-get cannot download {package}: {done.stderr.strip()[-300:]}")
    subprocess.run(["dpkg-deb", "-x", str(found[0]), str(directory)], check=True)


def _download(package: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package]
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
