"""Finds the CPU's family and instruction set, as the kernel reports them."""

from __future__ import annotations

import platform
import sys
from functools import cache
from pathlib import Path

from . import arm

ISA_LEVELS = ("avx2", "avx512", "avx512_vnni", "amx")
"""Instruction sets of x86-64 that matter for INT8. Each contains the one before it."""

ARM_ISA_LEVELS = ("neon", "dotprod", "i8mm")
"""Instruction sets of 64-bit ARM that matter for INT8. Each contains the one before it."""

LEVELS = {"x86_64": ISA_LEVELS, "aarch64": ARM_ISA_LEVELS}
"""The levels of each CPU family for which there are wheels, lowest first."""

LACKING = {"x86_64": "no AVX2", "aarch64": "no NEON"}
"""What a CPU below the lowest level is said to have."""

_FLAGS = {
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512_vnni": {"avx512_vnni"},
    "amx": {"amx_tile", "amx_int8"},
    "neon": {"asimd"},
    "dotprod": {"asimddp"},
    "i8mm": {"i8mm"},
}

_ID_FIELDS = ("vendor_id", "cpu family", "model", "stepping")
_FAMILIES = {"amd64": "x86_64", "arm64": "aarch64"}
_NARROW = {"x86_64": "i686", "aarch64": "armv7l"}
"""The family of a 32-bit Python on a 64-bit kernel, such as that of Raspberry Pi OS with 32 bits."""


@cache
def cpu_info() -> tuple[str, frozenset[str]]:
    """Return the CPU's model name and its flags as the kernel names them (none without /proc/cpuinfo)."""
    name, flags = _cpuinfo()
    if machine() == "aarch64":
        # The kernel's word to this process, not the file's: an emulator may show the file of another CPU.
        flags = arm.hwcaps() or flags
        name = arm.name(arm.cores()) if arm.cores() else name
    return name or platform.processor() or platform.machine(), flags


def _cpuinfo() -> tuple[str, frozenset[str]]:
    """Return the name and the flags of the first CPU that /proc/cpuinfo has, "" and none without the file."""
    name, flags = "", frozenset[str]()
    for line in _cpuinfo_text().splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name":
                name = value.strip()
            case "flags" | "Features":
                flags = frozenset(value.split())
                break
    return name, flags


def _cpuinfo_text() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


@cache
def cpu_id() -> str:
    """Return the vendor's numbers of this CPU, "" if unknown: family, model and stepping on x86, all cores' on Arm."""
    if machine() == "aarch64":
        return arm.identity(arm.cores())
    facts: dict[str, str] = {}
    for line in _cpuinfo_text().split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    return " ".join(facts[key] for key in _ID_FIELDS if key in facts)


def machine() -> str:
    """Return ``x86_64`` or ``aarch64``, or the name of another family, which is also that of a 32-bit Python."""
    found = _FAMILIES.get(platform.machine().lower(), platform.machine().lower())
    return found if sys.maxsize > 2**32 else _NARROW.get(found, found)


def isa_of(flags: frozenset[str], family: str = "x86_64") -> str | None:
    """Return the highest of the family's ``LEVELS`` whose flags, and all lower ones', are in ``flags``."""
    best = None
    for level in LEVELS.get(family, ()):
        if not _FLAGS[level] <= flags:
            break
        best = level
    return best


def detect_isa() -> str | None:
    """Return this host's level of its family's ``LEVELS``, None below the lowest or on another family."""
    return isa_of(cpu_info()[1], machine())
