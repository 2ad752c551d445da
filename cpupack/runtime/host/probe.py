"""Describes this machine, and how much of it this process may use. Imports no torch."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cgroup, granted
from .cpu import cpu_id, cpu_info, detect_isa, machine
from .granted import Grant
from .topology import Topology, fast_cpus, physical_cores, read_topology

FLAGS_OF_INTEREST = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16",
    "amx_tile", "amx_int8", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
"""CPU flags, as the kernel names them, that decide which INT8 kernels run."""

_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")


@dataclass(frozen=True)
class CpuBudget:
    """How many cores this process may keep busy, and every limit that went into it.

    ``usable`` is the smallest of ``affinity`` (CPUs the scheduler allows), ``cpuset`` (CPUs of the control
    group), ``quota`` rounded down but at least 1 (CPUs' worth of time), and ``physical`` (cores without SMT
    siblings among the allowed CPUs). None means no such limit. ``cpus`` are the allowed CPUs. ``fast`` are the fast
    ones among them where an ARM host has slow ones too, else None; then only their cores count as usable. ``grant`` is
    the share that a cluster's scheduler has given this process.
    """

    affinity: int
    cpuset: int | None
    quota: float | None
    physical: int
    cpus: frozenset[int]
    fast: frozenset[int] | None = None
    grant: Grant | None = None

    @property
    def usable(self) -> int:
        limits = [self.affinity, self.physical, *([] if self.fast is None else [len(self.fast)])]
        limits += [] if self.grant is None else [self.grant.cpus]
        limits += [] if self.cpuset is None else [self.cpuset]
        limits += [] if self.quota is None else [max(1, math.floor(self.quota))]
        return max(1, min(limits))

    @property
    def most(self) -> int:
        """The most threads that may run at once when SMT siblings and slow cores are used too."""
        limits = [len(self.cpus), 2 * self.physical, *([] if self.grant is None else [self.grant.cpus])]
        limits += [] if self.quota is None else [max(1, math.floor(self.quota))]
        return max(self.usable, min(limits))

    @property
    def reason(self) -> str:
        """One clause for ``info`` that names every limit, beginning with those that decide."""
        limits = [(self.affinity, f"the CPU affinity allows {self.affinity}")]
        smt = f" for {len(self.cpus)} SMT threads" if len(self.cpus) > self.physical else ""
        cores = f"{self.physical} physical core{'s' * (self.physical != 1)}"
        limits += [(self.physical, f"the allowed CPUs have {cores}{smt}")]
        if self.fast is not None:
            slow = len(self.cpus) - len(self.fast)
            text = f"{len(self.fast)} of them {'is' if len(self.fast) == 1 else 'are'} fast, {slow} slow"
            limits.append((len(self.fast), text))
        if self.cpuset is not None:
            limits.append((self.cpuset, f"the cpuset has {self.cpuset}"))
        if self.quota is not None:
            limits.append((max(1, math.floor(self.quota)), f"the cgroup quota is {self.quota:g} CPUs"))
        if self.grant is not None:
            limits.append((self.grant.cpus, self.grant.text))
        binding = [text for count, text in limits if count == self.usable]
        others = [text for count, text in limits if count != self.usable]
        return ", ".join(binding + others)


@dataclass(frozen=True)
class HostProbe:
    """Reads the kernel's files under ``root``. The others replace what the system says, for made-up hosts."""

    root: Path = Path("/")
    affinity: frozenset[int] | None = None
    family: str | None = None
    grant: Grant | None = None

    def budget(self) -> CpuBudget:
        """Return the CPUs and the share of them that this process may use."""
        affinity = self.affinity if self.affinity is not None else self._affinity()
        cpuset = cgroup.cpu_set(self.root)
        # An empty intersection happens only when a made-up or stale cpuset file contradicts the scheduler.
        allowed = (affinity & cpuset if cpuset else affinity) or affinity
        # ARM alone: its small cores have a fifth to half of the speed. Hybrids of x86-64 were not measured.
        fast = fast_cpus(self.root, allowed) if (self.family or machine()) == "aarch64" else allowed
        return CpuBudget(
            affinity=len(affinity),
            cpuset=len(cpuset) if cpuset else None,
            quota=cgroup.cpu_quota(self.root),
            physical=physical_cores(self.root, allowed),
            cpus=allowed,
            fast=fast if fast != allowed else None,
            grant=self.grant or granted.find(),
        )

    def online(self) -> frozenset[int]:
        """Return the CPUs that are switched on."""
        text = cgroup.read_text(self.root / "sys/devices/system/cpu/online")
        return cgroup.parse_cpu_list(text) if text else frozenset(range(os.cpu_count() or 1))

    def _affinity(self) -> frozenset[int]:
        try:
            return frozenset(os.sched_getaffinity(0))
        except OSError:  # a sandbox does not let this process ask
            return self.online()

    def topology(self) -> Topology:
        """Return the NUMA nodes of the CPUs that this process may use."""
        return read_topology(self.root, self.budget().cpus)

    def board(self) -> str | None:
        """Return the name of the board or of the cloud's instance, as its firmware has it; None without one."""
        for name in ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "sys/class/dmi/id/product_name"):
            if text := (cgroup.read_text(self.root / name) or "").strip("\0 "):
                return text
        return None

    def governor(self) -> str | None:
        """Return the frequency governor of the first CPU, None where the kernel scales none."""
        return cgroup.read_text(self.root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")

    def memory_bytes(self) -> int | None:
        """Return the host's memory in bytes."""
        for line in (cgroup.read_text(self.root / "proc/meminfo") or "").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
        return None

    def load_1m(self) -> float | None:
        """Return the load average of the last minute."""
        text = cgroup.read_text(self.root / "proc/loadavg")
        return float(text.split()[0]) if text else None

    def cpu_ticks(self, cpus: frozenset[int]) -> tuple[float, float] | None:
        """Return (busy, stolen) seconds of ``cpus`` since boot, of all processes; None if unknown."""
        busy, stolen, seen = 0, 0, False
        for line in (cgroup.read_text(self.root / "proc/stat") or "").splitlines():
            name, *fields = line.split()
            if not name.startswith("cpu") or not name[3:].isdigit() or int(name[3:]) not in cpus:
                continue
            seen = True
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        return (busy / ticks_per_s, stolen / ticks_per_s) if seen else None

    def peak_memory_bytes(self) -> int | None:
        """Return the largest resident size of this process image.

        Not ``getrusage``: its ``ru_maxrss`` survives ``execve`` and would show the parent's peak in a child.
        """
        for line in (cgroup.read_text(self.root / "proc/self/status") or "").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None

    def allocator(self) -> str:
        """Return the malloc mapped into this process: tcmalloc, jemalloc, mimalloc, or the C library's."""
        maps = cgroup.read_text(self.root / "proc/self/maps") or ""
        return next((name for name in _ALLOCATORS if f"lib{name}" in maps), "libc")


def fingerprint(probe: HostProbe | None = None) -> dict[str, Any]:
    """Return what must be equal for a tuned table to hold on this host: CPU name and model, cores and ISA.

    ``cpu_id`` is needed because clouds give many CPUs the same name, and Arm CPUs have none.
    """
    probe = probe or HostProbe()
    return {
        "cpu": cpu_info()[0],
        "cpu_id": cpu_id(),
        "cores_physical": physical_cores(probe.root, probe.online()),
        "isa": detect_isa(),
    }


def describe(probe: HostProbe | None = None, *, engine: str | None = None) -> dict[str, Any]:
    """Return the facts of this host that a reader of a benchmark result needs. Memory in bytes, quota in CPUs."""
    probe = probe or HostProbe()
    budget = probe.budget()
    flags = cpu_info()[1]
    return {
        **fingerprint(probe),
        "machine": machine(),
        "board": probe.board(),
        "flags": [flag for flag in FLAGS_OF_INTEREST if flag in flags],
        "cores_usable": budget.usable,
        "cores_usable_reason": budget.reason,
        "smt": len(budget.cpus) > budget.physical,
        "numa_nodes": len(probe.topology().nodes),
        "cpus_affinity": budget.affinity,
        "cgroup_quota": budget.quota,
        "governor": probe.governor(),
        "load_1m": probe.load_1m(),
        "memory_bytes": probe.memory_bytes(),
        "allocator": probe.allocator(),
        "engine": engine,
        "torch": _installed("torch"),
        "numpy": _installed("numpy"),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
    }


def _installed(distribution: str) -> str | None:
    from importlib import metadata  # here: it brings the parser of e-mails, 15 ms of a start

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
