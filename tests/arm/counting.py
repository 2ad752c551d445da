"""Counts the instructions that the driver executes, by a plugin of qemu (``instructions.c``)."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from arm import emulator

HEAD = struct.Struct("120s6q")
"""What stands before a program in a file of ``driver.c``."""
MORE_RUNS = 3


@dataclass(frozen=True)
class Counted:
    """The instructions of one run of a file's programs, and those of its functions, the most first."""

    instructions: int
    functions: list[tuple[str, int]]


def count_instructions(case: Path, level: str) -> Counted:
    """Count a run with the kernels ``level``: the difference of some runs and one run more, by the runs between."""
    once, more = (_counts(case, level, runs) for runs in (1, 1 + MORE_RUNS))
    each = {name: (count - once.get(name, 0)) // MORE_RUNS for name, count in more.items()}
    functions = sorted(((name, count) for name, count in each.items() if count > 0), key=lambda pair: -pair[1])
    return Counted(sum(count for _, count in functions), functions)


def _counts(case: Path, level: str, runs: int) -> dict[str, int]:
    qemu, libraries = emulator.qemu_with_plugins()
    command = [str(qemu), "-cpu", "max", "-plugin", f"{compile_plugin()},symbols=on"]
    done = subprocess.run(
        [*command, str(emulator.compile_driver()), "run", str(case), str(runs)],
        env={"CPUPACK_ISA": level, "LD_LIBRARY_PATH": str(libraries)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, int] = {}
    for count, name in re.findall(r"^symbol (\d+) (.*)$", done.stderr, re.MULTILINE):
        found[name] = found.get(name, 0) + int(count)
    return found


def compile_plugin() -> Path:
    """Compile ``instructions.c`` for this host, unless that is done. Returns its path."""
    source = Path(__file__).with_name("instructions.c")
    library = emulator.DRIVER.with_name("libinstructions.so")
    if library.is_file() and library.stat().st_mtime >= source.stat().st_mtime:
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        made = Path(directory) / library.name
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
        made.replace(library)
    return library
