"""Reads the frequency of the CPUs' clock, where the kernel reports it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from . import cgroup

_MOST_READ = 16
"""Most CPUs that are read, because reading the frequency of a CPU may interrupt it."""


def cpu_mhz(root: Path, cpus: Iterable[int]) -> float | None:
    """Return the mean frequency of ``cpus`` in MHz now, None where the kernel does not report it.

    It is read from cpufreq (Documentation/admin-guide/pm/cpufreq.rst of the Linux sources), and without that from
    ``/proc/cpuinfo``, where a virtual machine shows a constant.
    """
    wanted = sorted(cpus)[:_MOST_READ]
    found = []
    for cpu in wanted:
        text = cgroup.read_text(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq")
        if text and text.isdigit():
            found.append(int(text) / 1000.0)
    return sum(found) / len(found) if found else _from_cpuinfo(root, frozenset(wanted))


def _from_cpuinfo(root: Path, cpus: frozenset[int]) -> float | None:
    found, number = [], -1
    for line in (cgroup.read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "processor" if value.strip().isdigit():
                number = int(value)
            case "cpu MHz" if number in cpus:
                found.append(float(value))
    return sum(found) / len(found) if found else None
