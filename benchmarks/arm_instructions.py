"""How many instructions an inference executes on ARM, for each of the native engine's instruction sets.

``python benchmarks/arm_instructions.py WHEEL.whl...`` takes x86-64 wheels of the native engine (or their ``model.pt``),
runs their programs on emulated ARM CPUs and prints a row for each: model, instruction set, instructions of one image.
``--symbols N`` adds the N functions that execute most. Needs qemu with plugins (apt brings ``qemu-user``) and gcc.

The results must be those of x86 byte for byte, or it stops. Counts are no times: what an instruction costs differs
between CPUs, and nothing here has run on one.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import zipfile
from pathlib import Path

from cpupack.runtime.engine.program import Program

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from layers import Engine  # noqa: E402 - beside this file

from arm import counting, emulator  # noqa: E402 - found by the line before
from hatch_build import LIBRARY  # noqa: E402 - found by the same line

LEVELS = ("neon", "dotprod", "i8mm")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="WHEEL_OR_MODEL")
    parser.add_argument("--levels", nargs="+", default=LEVELS, choices=LEVELS)
    parser.add_argument("--symbols", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    print("model,instruction_set,instructions")  # noqa: T201 - a script
    with tempfile.TemporaryDirectory() as directory:
        for model in arguments.models:
            case = Path(directory) / "case"
            write_case(model, Path(directory), case)
            for level in arguments.levels:
                checked = emulator.run("max", emulator.compile_driver(), "check", case, 1, CPUPACK_ISA=level)
                assert checked.returncode == 0, checked.stdout + checked.stderr
                found = counting.count_instructions(case, level)
                print(f"{name_of(model)},{level},{found.instructions}")  # noqa: T201 - a script
                for name, count in found.functions[: arguments.symbols]:
                    print(f"  {count / found.instructions:6.1%} {count:12} {name}")  # noqa: T201 - a script


def name_of(model: Path) -> str:
    """Return the name of a wheel's package, or of the directory that a ``model.pt`` is in."""
    return model.parent.name if model.suffix == ".pt" else model.name.partition("-")[0]


def write_case(model: Path, directory: Path, case: Path) -> None:
    """Write the program with random pixels and what x86 makes of them, for ``tests/arm/driver.c``."""
    if model.suffix == ".whl":
        with zipfile.ZipFile(model) as wheel:
            (name,) = (each for each in wheel.namelist() if re.search(r"/model[^/]*\.pt$", each))
            model = Path(wheel.extract(name, directory))
    engine = Engine.open(ROOT / LIBRARY, model, 1, 1)
    engine.run()
    program: Program = engine.program
    with case.open("wb") as file:
        head = counting.HEAD.pack(b"model", program.memory.size, engine.batch.nbytes, engine.result.nbytes, 0, 1, 0)
        file.write(head + program.memory.tobytes() + engine.batch.tobytes() + engine.result.tobytes())


if __name__ == "__main__":
    main()
