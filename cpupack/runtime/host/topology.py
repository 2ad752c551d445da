"""Finds the cores, SMT siblings and NUMA nodes of the usable CPUs, and chooses CPUs for each instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .cgroup import parse_cpu_list, read_text

_FAST = 0.7
"""Share of the fastest core's speed from which a core counts as fast. Beside a Cortex-A76 or X1 the cores of the
smaller kinds have 0.2 to 0.55, and a second big kind has 0.75 and more."""

_BINDING_VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables with which an OpenMP library binds its threads itself (OpenMP 5.2, chapter 21; libgomp; libomp)."""


@dataclass(frozen=True)
class Node:
    """The usable CPUs of one NUMA node; ``cores`` counts SMT siblings once."""

    number: int
    cpus: frozenset[int]
    cores: int

    def __post_init__(self) -> None:
        if not 1 <= self.cores <= len(self.cpus):
            raise ValueError(f"node {self.number} has {self.cores} cores on {len(self.cpus)} CPUs")


@dataclass(frozen=True)
class Topology:
    """The NUMA nodes that have usable CPUs, by number. ``home`` is the one this process runs on, None if unknown."""

    nodes: tuple[Node, ...]
    home: int | None = None

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError("a topology needs at least one node")

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset().union(*(node.cpus for node in self.nodes))


def read_topology(root: Path, cpus: frozenset[int]) -> Topology:
    """Return the topology of ``cpus`` as the kernel's files under ``root`` describe it.

    Without such files (a kernel built without NUMA, a container that hides them) every CPU is a core of node 0.
    """
    of_node: dict[int, frozenset[int]] = {}
    for directory in (root / "sys/devices/system/node").glob("node[0-9]*"):
        of_node[int(directory.name.removeprefix("node"))] = (
            parse_cpu_list(read_text(directory / "cpulist") or "") & cpus
        )
    homeless = cpus - frozenset().union(*of_node.values())
    if homeless:
        of_node[0] = of_node.get(0, frozenset()) | homeless
    nodes = tuple(Node(number, own, physical_cores(root, own)) for number, own in sorted(of_node.items()) if own)
    current = _current_cpu(root)
    return Topology(nodes, next((node.number for node in nodes if current in node.cpus), None))


def physical_cores(root: Path, cpus: frozenset[int]) -> int:
    """Return the number of different cores among ``cpus``: SMT siblings count once."""
    return len({_siblings(root, cpu) for cpu in cpus})


def spread(threads: int, instances: int, topology: Topology) -> tuple[frozenset[int], ...] | None:
    """Return the CPUs that each instance should keep to, None where there is only one node.

    Each instance goes to the node with the least load and keeps to that node's CPUs, so its memory is local. Within
    the node the kernel balances, which matters where other containers use the same CPUs. An instance that fits on no
    node may use all CPUs.
    """
    if len(topology.nodes) == 1:
        return None
    load = dict.fromkeys(topology.nodes, 0)
    crowded = threads * instances > len(topology.cpus)  # then some node is overloaded in any case
    placed = []
    for _ in range(instances):
        node = min(load, key=lambda one: ((load[one] + threads) / one.cores, one.number != topology.home, one.number))
        if threads > len(node.cpus) or (load[node] + threads > len(node.cpus) and not crowded):
            placed.append(topology.cpus)
        else:
            load[node] += threads
            placed.append(node.cpus)
    return tuple(placed)


def binding_variable(environ: Mapping[str, str]) -> str | None:
    """Return the variable with which the user binds OpenMP threads to CPUs, None when there is none."""
    for name in _BINDING_VARIABLES:
        if environ.get(name, "").strip().lower() not in ("", "false", "disabled", "none"):
            return name
    return None


def fast_cpus(root: Path, cpus: frozenset[int]) -> frozenset[int]:
    """Return the CPUs of ``cpus`` that are about as fast as the fastest of them: all, where the kernel says nothing.

    ARM hosts mix cores (big.LITTLE). The kernel's ``cpu_capacity`` is their relative speed, the fastest of the host
    has 1024 (Documentation/devicetree/bindings/cpu/cpu-capacity.txt). Without it the highest frequency counts.
    """
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        found = {cpu: read_text(root / f"sys/devices/system/cpu/cpu{cpu}" / name) for cpu in cpus}
        speeds = {cpu: int(text) for cpu, text in found.items() if text is not None and text.isdecimal()}
        if len(speeds) == len(cpus) and any(speeds.values()):
            least = _FAST * max(speeds.values())
            return frozenset(cpu for cpu, speed in speeds.items() if speed >= least)
    return cpus


def _siblings(root: Path, cpu: int) -> str:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    return (
        read_text(topology / "core_cpus_list")
        or read_text(topology / "thread_siblings_list")  # kernels before 5.3
        or str(cpu)
    )


def _current_cpu(root: Path) -> int | None:
    """Return the CPU this process last ran on (proc(5), field 39 of stat)."""
    fields = (read_text(root / "proc/self/stat") or "").rpartition(")")[2].split()
    return int(fields[36]) if len(fields) > 36 else None
