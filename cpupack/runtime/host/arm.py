"""Names the cores of a 64-bit ARM CPU and reads the instruction sets that the kernel grants.

``/proc/cpuinfo`` has numbers there and no names: the implementer and the part of the register MIDR_EL1 (Arm's manuals
and the kernel's ``arch/arm64/include/asm/cputype.h``). Cores of one host may differ (big.LITTLE).
"""

from __future__ import annotations

import re
from pathlib import Path

_AT_HWCAP, _AT_HWCAP2 = 16, 26
_HWCAPS = {"asimd": (_AT_HWCAP, 1), "asimddp": (_AT_HWCAP, 20), "sve": (_AT_HWCAP, 22), "i8mm": (_AT_HWCAP2, 13)}
"""Flag as ``/proc/cpuinfo`` names it -> entry of the auxiliary vector and bit (arch/arm64/include/uapi/asm/hwcap.h)."""

_IMPLEMENTERS = {
    0x41: "Arm", 0x42: "Broadcom", 0x43: "Cavium", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x50: "APM",
    0x51: "Qualcomm", 0x53: "Samsung", 0x56: "Marvell", 0x61: "Apple", 0x69: "Intel", 0x6D: "Microsoft",
    0x70: "Phytium", 0xC0: "Ampere",
}  # fmt: skip

_PARTS = {
    0x41: {
        0xD02: "Cortex-A34", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD06: "Cortex-A65",
        0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76",
        0xD0C: "Neoverse N1", 0xD0D: "Cortex-A77", 0xD0E: "Cortex-A76AE", 0xD40: "Neoverse V1", 0xD41: "Cortex-A78",
        0xD42: "Cortex-A78AE", 0xD43: "Cortex-A65AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710",
        0xD48: "Cortex-X2", 0xD49: "Neoverse N2", 0xD4A: "Neoverse E1", 0xD4B: "Cortex-A78C", 0xD4C: "Cortex-X1C",
        0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD4F: "Neoverse V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720",
        0xD82: "Cortex-X4", 0xD83: "Neoverse V3AE", 0xD84: "Neoverse V3", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725",
        0xD88: "Cortex-A520AE", 0xD89: "Cortex-A720AE", 0xD8A: "C1-Nano", 0xD8B: "C1-Pro", 0xD8C: "C1-Ultra",
        0xD8E: "Neoverse N3", 0xD8F: "Cortex-A320", 0xD90: "C1-Premium",
    },
    0x42: {0x516: "ThunderX2"},
    0x43: {0x0A1: "ThunderX", 0x0AF: "ThunderX2", 0x0B8: "ThunderX3"},
    0x46: {0x001: "A64FX", 0x003: "MONAKA"},
    0x48: {0xD01: "TaiShan v110", 0xD02: "TaiShan v120"},
    0x4E: {0x000: "Denver", 0x003: "Denver 2", 0x004: "Carmel", 0x010: "Olympus"},
    0x50: {0x000: "X-Gene"},
    0x51: {
        0x001: "Oryon", 0x201: "Kryo", 0x205: "Kryo", 0x211: "Kryo", 0x800: "Kryo 2XX Gold", 0x801: "Kryo 2XX Silver",
        0x802: "Kryo 3XX Gold", 0x803: "Kryo 3XX Silver", 0x804: "Kryo 4XX Gold", 0x805: "Kryo 4XX Silver",
        0xC00: "Falkor", 0xC01: "Saphira",
    },
    0x53: {0x001: "Exynos M1", 0x002: "Exynos M3", 0x003: "Exynos M4", 0x004: "Exynos M5"},
    0x61: {
        0x022: "M1 Icestorm", 0x023: "M1 Firestorm", 0x024: "M1 Pro Icestorm", 0x025: "M1 Pro Firestorm",
        0x028: "M1 Max Icestorm", 0x029: "M1 Max Firestorm", 0x032: "M2 Blizzard", 0x033: "M2 Avalanche",
        0x034: "M2 Pro Blizzard", 0x035: "M2 Pro Avalanche", 0x038: "M2 Max Blizzard", 0x039: "M2 Max Avalanche",
        0x000: "silicon in a virtual machine",
    },
    0x6D: {0xD49: "Azure Cobalt 100 (Neoverse N2)"},
    0x70: {0x303: "FTC310", 0x660: "FTC660", 0x661: "FTC661", 0x662: "FTC662", 0x663: "FTC663", 0x862: "FTC862"},
    0xC0: {0xAC3: "AmpereOne", 0xAC4: "AmpereOne A", 0xAC5: "AmpereOne B"},
}  # fmt: skip

_MAKER_IN_NAME = {0x41, 0xC0, 0x6D}
"""Implementers that go without saying, or whose names of parts have theirs."""

Core = tuple[int, int, int, int]
"""Implementer, part, variant and revision of one core."""


def hwcaps() -> frozenset[str]:
    """Return the flags of ``_HWCAPS`` that the kernel grants this process, empty where it cannot be asked."""
    import ctypes  # here: only ARM needs it, and every start pays for what is imported

    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):  # a C library without it
        return frozenset()
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return frozenset(flag for flag, (entry, bit) in _HWCAPS.items() if getauxval(entry) >> bit & 1)


def cores(root: Path = Path("/")) -> list[Core]:
    """Return the cores that the kernel lists, one for each CPU; empty where it names none.

    Of ``/proc/cpuinfo``, else of the registers below ``/sys``, which some containers and emulators show alone.
    """
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return _of_cpuinfo(text) or _of_registers(root)


def name(found: list[Core]) -> str:
    """Return the cores as text: ``Cortex-A76``, or ``4 x Cortex-A76 + 4 x Cortex-A55`` where they differ."""
    counts: dict[str, int] = {}
    for core in found:
        counts[_core_name(core)] = counts.get(_core_name(core), 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return " + ".join(f"{count} x {each}" for each, count in sorted(counts.items(), key=lambda item: item[0]))


def identity(found: list[Core]) -> str:
    """Return the numbers of the different cores as text, in an order that does not depend on the CPUs'."""
    return ", ".join(f"{core[0]:#x} {core[1]:#x} {core[2]:#x} {core[3]}" for core in sorted(set(found)))


def _core_name(core: Core) -> str:
    implementer, part = core[:2]
    maker = _IMPLEMENTERS.get(implementer, f"ARM implementer {implementer:#x}")
    known = _PARTS.get(implementer, {}).get(part)
    if known is None:
        return f"{maker} part {part:#05x}"
    return known if implementer in _MAKER_IN_NAME else f"{maker} {known}"


def _of_cpuinfo(text: str) -> list[Core]:
    found = []
    for block in re.split(r"\n\s*\n", text):
        facts = {}
        for line in block.splitlines():
            key, _, value = line.partition(":")
            facts[key.strip()] = value.strip()
        numbers = [_number(facts.get(f"CPU {key}", "")) for key in ("implementer", "part", "variant", "revision")]
        if numbers[0] is not None and numbers[1] is not None:
            found.append((numbers[0], numbers[1], numbers[2] or 0, numbers[3] or 0))
    return found


def _of_registers(root: Path) -> list[Core]:
    found = []
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/regs/identification/midr_el1"):
        try:
            midr = _number(path.read_text(encoding="utf-8", errors="replace").strip())
        except OSError:
            continue
        if midr is not None:  # fields of MIDR_EL1: implementer 31:24, variant 23:20, part 15:4, revision 3:0
            found.append((midr >> 24 & 0xFF, midr >> 4 & 0xFFF, midr >> 20 & 0xF, midr & 0xF))
    return found


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None
