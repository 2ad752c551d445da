"""ARM hosts, read from made-up kernel files: the names of their cores, their instruction sets, fast and slow cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpupack.runtime.host import arm, cpu
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.plan import decide as plan_decide
from helpers.plan_fixtures import manifest, numbers

BLOCK = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: {implementer}
CPU architecture: 8
CPU variant\t: {variant}
CPU part\t: {part}
CPU revision\t: {revision}

"""


def host(root: Path, parts: list[tuple[str, str]], variant: str = "0x0", revision: int = 3) -> Path:
    """Write /proc/cpuinfo of a host whose CPUs have these implementers and parts."""
    path = root / "proc/cpuinfo"
    path.parent.mkdir(parents=True)
    blocks = (
        BLOCK.format(number=number, implementer=implementer, part=part, variant=variant, revision=revision)
        for number, (implementer, part) in enumerate(parts)
    )
    path.write_text("".join(blocks) + "Hardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n")
    return root


@pytest.mark.parametrize(
    ("implementer", "part", "name"),
    [
        ("0x41", "0xd03", "Cortex-A53"),  # Raspberry Pi 3
        ("0x41", "0xd08", "Cortex-A72"),  # Raspberry Pi 4, Graviton
        ("0x41", "0xd0b", "Cortex-A76"),  # Raspberry Pi 5
        ("0x41", "0xd0c", "Neoverse N1"),  # Graviton 2, Ampere Altra
        ("0x41", "0xd40", "Neoverse V1"),  # Graviton 3
        ("0x41", "0xd4f", "Neoverse V2"),  # Graviton 4, Grace
        ("0x41", "0xd84", "Neoverse V3"),
        ("0x41", "0xd44", "Cortex-X1"),
        ("0x41", "0xd85", "Cortex-X925"),
        ("0x61", "0x023", "Apple M1 Firestorm"),
        ("0x46", "0x001", "Fujitsu A64FX"),
        ("0xc0", "0xac3", "AmpereOne"),
        ("0x4e", "0x004", "NVIDIA Carmel"),
        ("0x41", "0xfff", "Arm part 0xfff"),
        ("0x99", "0x012", "ARM implementer 0x99 part 0x012"),
    ],
)
def test_a_core_is_named(tmp_path: Path, implementer: str, part: str, name: str) -> None:
    assert arm.name(arm.cores(host(tmp_path, [(implementer, part)] * 4))) == name


def test_cores_that_differ_are_counted(tmp_path: Path) -> None:
    found = arm.cores(host(tmp_path, [("0x41", "0xd05")] * 4 + [("0x41", "0xd0b")] * 2 + [("0x41", "0xd44")] * 2))
    assert arm.name(found) == "4 x Cortex-A55 + 2 x Cortex-A76 + 2 x Cortex-X1"
    assert arm.identity(found) == "0x41 0xd05 0x0 3, 0x41 0xd0b 0x0 3, 0x41 0xd44 0x0 3"
    assert arm.identity(list(reversed(found))) == arm.identity(found)


def test_without_numbers_in_cpuinfo_the_registers_count(tmp_path: Path) -> None:
    """As on an emulator that shows the /proc/cpuinfo of the x86-64 host below it."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 17\n\n")
    assert arm.cores(tmp_path) == []
    register = tmp_path / "sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
    register.parent.mkdir(parents=True)
    register.write_text("0x00000000413fd0c1\n")  # implementer 0x41, variant 3, part 0xd0c, revision 1
    assert arm.cores(tmp_path) == [(0x41, 0xD0C, 3, 1)]
    assert arm.name(arm.cores(tmp_path)) == "Neoverse N1"


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ({"fp", "asimd"}, "neon"),
        ({"asimd", "asimddp"}, "dotprod"),
        ({"asimd", "asimddp", "i8mm"}, "i8mm"),
        ({"asimd", "i8mm"}, "neon"),  # the kernels for I8MM use dot products too
        ({"fp"}, None),
    ],
)
def test_the_level_follows_from_the_flags(flags: set[str], isa: str | None) -> None:
    assert cpu.isa_of(frozenset(flags), "aarch64") == isa
    assert cpu.isa_of(frozenset(flags), "x86_64") is None


def test_a_32_bit_python_is_of_another_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert cpu.machine() == "aarch64"
    monkeypatch.setattr("sys.maxsize", 2**31 - 1)
    assert cpu.machine() == "armv7l"


def mixed(root: Path, capacities: list[int], file: str = "cpu_capacity") -> HostProbe:
    for number, capacity in enumerate(capacities):
        path = root / f"sys/devices/system/cpu/cpu{number}" / file
        path.parent.mkdir(parents=True)
        path.write_text(f"{capacity}\n")
    return HostProbe(root, affinity=frozenset(range(len(capacities))), family="aarch64")


def decide(probe: HostProbe, **options: object) -> plan_decide.Plan:
    environ = {"XDG_CACHE_HOME": "/nowhere", **options.pop("environ", {})}  # type: ignore[dict-item]
    return plan_decide.decide(manifest(), environ=environ, probe=probe, **options)  # type: ignore[arg-type]


def test_the_plan_counts_the_fast_cores(tmp_path: Path) -> None:
    """An RK3588: four Cortex-A55 beside four Cortex-A76."""
    probe = mixed(tmp_path, [530] * 4 + [1024] * 4)
    budget = probe.budget()
    assert (budget.usable, budget.most, budget.fast) == (4, 8, frozenset({4, 5, 6, 7}))
    assert budget.reason.startswith("4 of them are fast, 4 slow")
    decided = decide(probe)
    assert numbers(decided)[:2] == (1, 4)
    assert decided.cpus == ((4, 5, 6, 7),) * 4
    assert "fast cores" in decided.reasons["cpus"]
    assert "4 of them are fast, 4 slow" in decided.reasons["instances"]
    assert numbers(decide(probe, objective="latency"))[:2] == (4, 1)


def test_what_the_user_asks_for_may_use_the_slow_cores_too(tmp_path: Path) -> None:
    decided = decide(mixed(tmp_path, [530] * 4 + [1024] * 4), threads=1, instances=8)
    assert decided.cpus is None
    assert "slow cores are used too" in decided.reasons["threads"]
    assert "4 fast cores for more threads" in decided.reasons["cpus"]


def test_the_users_own_binding_is_left_alone(tmp_path: Path) -> None:
    decided = decide(mixed(tmp_path, [530] * 4 + [1024] * 4), environ={"OMP_PROC_BIND": "close"})
    assert decided.cpus is None
    assert "OMP_PROC_BIND" in decided.reasons["cpus"]


@pytest.mark.parametrize(
    ("capacities", "fast"),
    [
        ([1024] * 4, None),  # Raspberry Pi, Graviton
        ([250, 250, 250, 250, 760, 760, 760, 1024], {4, 5, 6, 7}),  # two kinds of big cores
        ([485, 485, 485, 485, 1024, 1024], {4, 5}),  # RK3399
        ([0] * 4, None),
    ],
)
def test_cores_about_as_fast_as_the_fastest_count(tmp_path: Path, capacities: list[int], fast: set[int] | None) -> None:
    assert mixed(tmp_path, capacities).budget().fast == fast


def test_without_capacities_the_highest_frequency_counts(tmp_path: Path) -> None:
    probe = mixed(tmp_path, [1_200_000] * 2 + [2_400_000] * 2, "cpufreq/cpuinfo_max_freq")
    assert probe.budget().fast == {2, 3}


def test_where_only_some_cpus_tell_their_speed_all_count(tmp_path: Path) -> None:
    probe = mixed(tmp_path, [530, 1024])
    (tmp_path / "sys/devices/system/cpu/cpu0/cpu_capacity").unlink()
    assert probe.budget().fast is None


def test_only_allowed_cpus_are_compared(tmp_path: Path) -> None:
    root = mixed(tmp_path, [530] * 4 + [1024] * 4).root
    assert HostProbe(root, affinity=frozenset({0, 1}), family="aarch64").budget().usable == 2


def test_hybrids_of_x86_count_all_cores(tmp_path: Path) -> None:
    root = mixed(tmp_path, [530] * 4 + [1024] * 4).root
    assert HostProbe(root, affinity=frozenset(range(8)), family="x86_64").budget().usable == 8


def test_a_board_is_named_by_its_firmware(tmp_path: Path) -> None:
    assert HostProbe(tmp_path).board() is None
    path = tmp_path / "proc/device-tree/model"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    assert HostProbe(tmp_path).board() == "Raspberry Pi 5 Model B Rev 1.0"
