"""The native engine on emulated ARM CPUs: every program of the kernel tests, layer by layer, byte for byte.

What x86 leaves is what is wanted; there the kernel tests compare the same programs with plain numpy.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arm import emulator
from helpers import native_reference
from helpers.once import once

pytestmark = [
    pytest.mark.arm,
    pytest.mark.skipif(not native_reference.runs_here(), reason="the programs are run on x86-64 with AVX2 first"),
]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static program that runs and compares programs."""
    try:
        once(tmp_path_factory, "arm-driver", lambda _: (emulator.qemu(), emulator.compile_driver()))
    except emulator.UnavailableError as reason:
        pytest.skip(str(reason))
    return emulator.DRIVER


@pytest.fixture(scope="session")
def programs(driver: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All programs, with what each layer leaves here. ``driver`` comes first: without it they are of no use."""

    def export(directory: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("programs.py")), str(directory / "programs.bin")]
        subprocess.run(command, check=True)

    return once(tmp_path_factory, "arm-programs", export) / "programs.bin"


@pytest.mark.parametrize(
    ("cpu", "isa"),
    [("cortex-a72", "neon"), ("neoverse-n1", "dotprod"), ("max", "i8mm")],
)
def test_every_program_leaves_the_bytes_of_x86(cpu: str, isa: str, driver: Path, programs: Path) -> None:
    done = emulator.run(cpu, driver, "check", programs, 1, 3)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    counts = done.stdout.split()
    assert counts[0] == f"{isa}:"
    assert int(counts[1]) > 300  # programs
    assert int(counts[3]) > 350  # layers


@pytest.mark.parametrize(("cpu", "isa"), list(emulator.CPUS.items()))
def test_each_cpu_runs_the_best_kernels_it_can(cpu: str, isa: str, driver: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    done = emulator.run(cpu, driver, "check", empty, 1)
    assert done.stdout == f"{isa}: 0 programs, 0 layers, 0 bad\n", done.stderr


LEVELS = ["neon", "dotprod", "i8mm"]


@pytest.mark.parametrize("cpu", ["cortex-a53", "neoverse-n1", "max"])
@pytest.mark.parametrize("wish", [*LEVELS, "avx2", ""])
def test_kernels_can_be_named_and_are_refused_where_the_cpu_cannot_run_them(
    cpu: str, wish: str, driver: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    done = emulator.run(cpu, driver, "check", empty, 1, CPUPACK_ISA=wish)
    best = emulator.CPUS[cpu]
    if wish and (wish not in LEVELS or LEVELS.index(wish) > LEVELS.index(best)):
        assert done.returncode == 3
        assert "or not those of CPUPACK_ISA" in done.stderr
    else:
        assert done.stdout.startswith(f"{wish or best}:"), done.stderr
