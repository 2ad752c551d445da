"""Build hook: compile kernels/*/*.c into the package, with pip's compiler (ziglang: clang, lld, any glibc).

There is a library for x86-64 and one for aarch64, and both are compiled whatever the host is: they ship inside the
wheels that cpupack builds, and any host builds wheels for both. ``python hatch_build.py`` compiles in a checkout where
ziglang is installed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARIES = {cpu: f"cpupack/runtime/kernels/cpupack_int8.{cpu}.so" for cpu in ("x86_64", "aarch64")}
LIBRARY = LIBRARIES["x86_64"]
SOURCES = "kernels"
NOT_SHIPPED = {"fuzz"}
"""The directories of sources that no library has."""
OWN_SOURCES = {"x86_64": ("amx", "avx2", "avx512", "vnni", "x86"), "aarch64": ("neon",)}
"""The directories of sources for one CPU family alone."""
PUBLIC_HEADERS = "cpupack/runtime/export/c"
"""The header for programs in C, which ships beside the library."""
COMPILER = "ziglang"

_COMMON_FLAGS = (
    *("-std=gnu11", "-O3", "-Wall", "-Wextra", "-fPIC", "-pthread", f"-I{SOURCES}", f"-I{PUBLIC_HEADERS}"),
    # torch's exceptions pass through the frame of the operator (kernels/torch/operator.c).
    "-fexceptions",
    # Equal sources make an equal file: no debug information, no paths, no build id.
    *("-g0", "-s", "-Wl,--build-id=none"),
    *("-shared", f"-Wl,--version-script={SOURCES}/exports.map"),
)
# The C library of manylinux_2_28, whatever the host has.
FLAGS_OF = {
    # All code may use AVX2, which the loader checks before it loads the library. Kernels for AVX-512 and AMX raise that
    # function by function (kernels/avx512/target.h), and kernels/engine/cpu.c calls them only where the CPU has these.
    "x86_64": ("-target", "x86_64-linux-gnu.2.28", "-mcpu=x86_64_v3", *_COMMON_FLAGS),
    # Every CPU of the family can run all code but what kernels/neon/target.h raises.
    "aarch64": ("-target", "aarch64-linux-gnu.2.28", "-mcpu=generic", *_COMMON_FLAGS),
}
FLAGS = FLAGS_OF["x86_64"]


class Kernels(BuildHookInterface):
    """Compiles the native kernels before a wheel, or an editable installation, is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        compile_kernels(Path(self.root))


def compile_kernels(root: Path) -> tuple[Path, ...]:
    """Compile what lies in ``root/kernels``, each library unless it is newer than its sources. Returns their paths.

    Raises RuntimeError when there is no compiler, or with what the compiler says.
    """
    directories = (root / SOURCES, root / PUBLIC_HEADERS)
    found = (path for directory in directories for path in directory.rglob("*.*"))
    sources = (path for path in found if path.suffix in {".c", ".h", ".inc", ".map"})
    newest_s = max(path.stat().st_mtime for path in (*sources, Path(__file__)))
    libraries = {cpu: root / name for cpu, name in LIBRARIES.items()}
    for cpu, library in libraries.items():
        if library.exists() and library.stat().st_mtime >= newest_s:
            continue
        if importlib.util.find_spec(COMPILER) is None:
            raise RuntimeError(
                f"{COMPILER} is not installed, and compiles the native kernels; run: pip install {COMPILER}"
            )
        compile_library(root, library, (sys.executable, "-m", COMPILER, "cc", *FLAGS_OF[cpu]), cpu)
    return tuple(libraries.values())


def sources_of(root: Path, cpu: str) -> list[Path]:
    """Return the sources of the library for a CPU family."""
    others = NOT_SHIPPED | {name for family, names in OWN_SOURCES.items() if family != cpu for name in names}
    sources = root / SOURCES
    return sorted(path for path in sources.rglob("*.c") if path.relative_to(sources).parts[0] not in others)


def compile_library(root: Path, library: Path, command: Sequence[str], cpu: str = "x86_64") -> None:
    """Compile the sources of ``root`` for a CPU family to ``library`` with ``command``: a compiler and its flags.

    Raises RuntimeError with what the compiler says.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    # In a directory of its own and renamed: a running process may have the old file mapped, and writing into that
    # would change its code.
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".compile-") as directory:
        built = Path(directory) / library.name
        names = [str(path.relative_to(root)) for path in sources_of(root, cpu)]
        # The compiler's cache would be in the home directory, which a build need not have.
        caches = {f"ZIG_{kind}_CACHE_DIR": str(root / "build" / "zig") for kind in ("GLOBAL", "LOCAL")}
        done = subprocess.run(
            [*command, *names, "-lm", "-o", str(built)],
            cwd=root,
            env={**caches, **os.environ},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the native kernels do not compile for {cpu}:\n{done.stderr.strip()}")
        sys.stderr.write(done.stderr)
        built.replace(library)


if __name__ == "__main__":
    print(*compile_kernels(Path(__file__).parent), sep="\n")  # noqa: T201 - a script
