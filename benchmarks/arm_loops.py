"""What llvm-mca says of the inner loops of the products on ARM: cycles of a turn, and the share of a CPU's peak.

``python benchmarks/arm_loops.py`` compiles the kernels as they ship, takes the loop of a whole tile (eight rows by
eight columns, sixteen inputs of each) out of each instruction set's ``panel_plain`` and prints a row for each CPU
model: the instructions of a turn, its cycles, multiply-adds a cycle, and the share of what the CPU's multipliers
could do at most.
Needs ``llvm-mca`` and ``llvm-objdump`` of LLVM 17 or later on the path (apt: ``llvm-19``); ``--llvm DIR`` names others.

These are models of CPUs, not CPUs: loads are assumed to hit the first cache.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from arm import emulator  # noqa: E402 - found by the line before

TURN = 8 * 8 * 16
"""Multiply-adds of a turn of the loop, but for NEON alone: its tile is four by four."""

PEAKS = {
    # Multiply-adds a cycle: the registers of 16 bytes that a CPU multiplies at once, by what an instruction makes.
    "neon": {"cortex-a72": 8.0, "neoverse-n1": 8.0},  # SMULL and SMLAL on one unit: 8 products each
    "dotprod": {"neoverse-n1": 32.0, "neoverse-v1": 64.0, "neoverse-n2": 32.0, "neoverse-v2": 64.0},
    "i8mm": {"neoverse-v1": 128.0, "neoverse-n2": 64.0, "neoverse-v2": 128.0},
}
PRODUCTS = {"neon": "smlal2", "dotprod": "sdot", "i8mm": "usmmla"}
OF_A_TURN = {"neon": 16, "dotprod": 64, "i8mm": 32}
"""How many of these instructions a turn of a whole tile has."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llvm", default="", metavar="DIR", help="where llvm-mca and llvm-objdump are")
    arguments = parser.parse_args()
    tools = [str(Path(arguments.llvm) / name) for name in ("llvm-objdump", "llvm-mca")]
    print("instruction_set,cpu_model,instructions_of_a_turn,cycles,multiply_adds_a_cycle,share_of_peak")  # noqa: T201 - a script
    for level, peaks in PEAKS.items():
        loop = loop_of(tools[0], level)
        for cpu, peak in peaks.items():
            cycles = cycles_of(tools[1], loop, cpu)
            each = TURN / (4 if level == "neon" else 1) / cycles
            row = f"{level},{cpu},{len(loop)},{cycles:.1f},{each:.1f},{each / peak:.0%}"
            print(row)  # noqa: T201 - a script


def loop_of(objdump: str, level: str) -> list[str]:
    """Return the instructions of the loop of a whole tile: from where its last branch jumps to."""
    driver = str(emulator.compile_driver())
    done = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", "--mattr=+dotprod,+i8mm", driver],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for function in re.findall(r"<panel_plain>:\n(.*?)(?=\n\n|\Z)", done.stdout, re.DOTALL):
        rows = [line.split(None, 1) for line in function.splitlines() if ":" in line]
        places = {row[0].rstrip(":"): i for i, row in enumerate(rows)}
        for end, row in enumerate(rows):
            jump = re.match(r"b\.\w+\s+0x(\w+)", row[1])
            begin = places.get(jump[1], end) if jump else end
            loop = [each[1].split(" <")[0] for each in rows[begin : end + 1]]
            if sum(each.startswith(PRODUCTS[level] + "\t") for each in loop) == OF_A_TURN[level]:
                return [*loop[:-1], "b.ne\tturn"]
    raise RuntimeError(f"no loop of {OF_A_TURN[level]} {PRODUCTS[level]}")


def cycles_of(mca: str, loop: list[str], cpu: str) -> float:
    """Return the cycles of a turn."""
    with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
        file.write("turn:\n" + "\n".join(loop) + "\n")
        file.flush()
        command = [mca, "-mtriple=aarch64", f"-mcpu={cpu}", "-mattr=+dotprod,+i8mm", "-iterations=1000", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found is not None, done.stdout
    return int(found[1]) / 1000


if __name__ == "__main__":
    main()
