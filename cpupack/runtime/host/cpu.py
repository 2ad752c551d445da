"""Finds the CPU's family and instruction set, as the kernel reports them."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

ISA_LEVELS = ("avx2", "avx512", "avx512_vnni", "amx")
"""Instruction sets of x86-64 that matter for INT8. Each contains the one before it."""

_FLAGS = {
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512_vnni": {"avx512_vnni"},
    "amx": {"amx_tile", "amx_int8"},
}

_ID_FIELDS = (
    "vendor_id", "cpu family", "model", "stepping",
    "CPU implementer", "CPU variant", "CPU part", "CPU revision",
)  # fmt: skip


@cache
def cpu_info() -> tuple[str, frozenset[str]]:
    """Return the CPU's model name and its flags as the kernel names them (none without /proc/cpuinfo)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine(), frozenset()
    name, flags = "", frozenset[str]()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name":
                name = value.strip()
            case "flags" | "Features":
                flags = frozenset(value.split())
                break
    # Arm CPUs have no name there. platform.processor starts a process, which takes longer than all the rest.
    return name or platform.processor() or platform.machine(), flags


@cache
def cpu_id() -> str:
    """Return the vendor's number of this CPU: family-model-stepping on x86, variant and part on Arm, "" if unknown."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    facts: dict[str, str] = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    return " ".join(facts[key] for key in _ID_FIELDS if key in facts)


def machine() -> str:
    """Return ``x86_64`` or ``aarch64``, or the kernel's name of another family."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def isa_of(flags: frozenset[str]) -> str | None:
    """Return the highest level of ``ISA_LEVELS`` whose flags, and all lower ones', are in ``flags``."""
    best = None
    for level in ISA_LEVELS:
        if not _FLAGS[level] <= flags:
            break
        best = level
    return best


def detect_isa() -> str | None:
    """Return this host's level of ``ISA_LEVELS``, None below AVX2 or on another family."""
    return isa_of(cpu_info()[1]) if machine() == "x86_64" else None
