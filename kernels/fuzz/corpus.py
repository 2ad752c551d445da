"""Writes what the fuzzers begin with: the programs of the kernel tests, and some of them as exported models.

    python kernels/fuzz/corpus.py DIRECTORY

Makes DIRECTORY/program and DIRECTORY/model_file. The tests' programs have every operator, in odd sizes.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import numpy as np  # noqa: E402 - as the next

from arm.programs import cases  # noqa: E402 - found by the line before
from cpupack.runtime.export.limits import WHOLE, Limit  # noqa: E402 - as the first
from cpupack.runtime.export.model_file import beginning  # noqa: E402 - as the first

LARGEST = 64 * 1024
"""Bytes. Larger programs only slow the fuzzers down: their operators are in smaller ones, too."""
IDENTITY = slice(40, 48)
"""Of a program's header. The fuzzer takes from it how it calls the program (``program.c``)."""


def write(directory: Path) -> int:
    """Write both corpora below ``directory``; return how many programs there are."""
    targets = [directory / "program", directory / "model_file"]
    for target in targets:
        target.mkdir(parents=True, exist_ok=True)
    count = 0
    for number, case in enumerate(cases()):
        if len(case.program) > LARGEST:
            continue
        is_float = case.x.dtype == "float32"
        # One sample and one thread, then three samples and two threads.
        for how in (8 * is_float, 8 * is_float + 6):
            program = bytearray(case.program)
            program[IDENTITY] = how.to_bytes(4, "little") + number.to_bytes(4, "little")
            (targets[0] / f"{number:03}-{how}").write_bytes(program)
        whole = np.frombuffer(case.program, np.uint8)
        limits = [Limit(WHOLE, 0, 1, 1, -1.0, 1.0)] if is_float and number % 2 else []
        (targets[1] / f"{number:03}").write_bytes(beginning(whole, None, limits) + case.program)
        count += 1
    return count


if __name__ == "__main__":
    print(write(Path(sys.argv[1])), "programs")  # noqa: T201 - a script
