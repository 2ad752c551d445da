"""NUMA nodes and SMT siblings, read from made-up kernel files, and the plan that follows from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.host.topology import Node, Topology, read_topology
from cpupack.runtime.info import format_info
from cpupack.runtime.manifest import Manifest
from cpupack.runtime.plan import decide as plan_decide
from cpupack.runtime.plan import table as tables
from helpers.plan_fixtures import manifest, numbers, table

ENVIRON = {"XDG_CACHE_HOME": "/nowhere"}


def machine(root: Path, nodes: list[str], siblings: int = 1, running_on: int | None = None) -> HostProbe:
    """Write a host of these NUMA nodes (CPU lists). With two siblings, CPU n and n + half are one core."""
    count = 0
    for number, cpus in enumerate(nodes):
        path = root / f"sys/devices/system/node/node{number}/cpulist"
        path.parent.mkdir(parents=True)
        path.write_text(cpus + "\n")
        count += len(host_probe.cgroup.parse_cpu_list(cpus))
    half = count // siblings
    for cpu in range(count):
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"
        path.parent.mkdir(parents=True)
        path.write_text(",".join(str(cpu % half + half * number) for number in range(siblings)))
    (root / "sys/devices/system/cpu/online").write_text(f"0-{count - 1}")
    if running_on is not None:
        stat = root / "proc/self/stat"
        stat.parent.mkdir(parents=True, exist_ok=True)
        stat.write_text("1 (a (b) c) S " + " ".join(["0"] * 35 + [str(running_on)] + ["0"] * 13))
    return HostProbe(root, affinity=frozenset(range(count)))


def test_two_nodes_with_smt(tmp_path: Path) -> None:
    probe = machine(tmp_path, ["0-3,8-11", "4-7,12-15"], siblings=2, running_on=5)
    budget = probe.budget()
    assert (budget.usable, budget.most) == (8, 16)
    assert "8 physical cores for 16 SMT threads" in budget.reason
    assert probe.topology() == Topology(
        (Node(0, frozenset({0, 1, 2, 3, 8, 9, 10, 11}), 4), Node(1, frozenset({4, 5, 6, 7, 12, 13, 14, 15}), 4)), home=1
    )


def test_a_quota_limits_smt_threads_too(tmp_path: Path) -> None:
    probe = machine(tmp_path, ["0-7"], siblings=2)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("650000 100000")
    budget = probe.budget()
    assert (budget.usable, budget.most) == (4, 6)


def test_only_allowed_cpus_count_and_nodes_without_any_vanish(tmp_path: Path) -> None:
    machine(tmp_path, ["0-3", "4-7"])
    assert [node.number for node in read_topology(tmp_path, frozenset({5, 6})).nodes] == [1]


def test_without_numa_files_there_is_one_node(tmp_path: Path) -> None:
    found = read_topology(tmp_path, frozenset({0, 3}))
    assert found == Topology((Node(0, frozenset({0, 3}), 2),), None)


def test_this_hosts_topology_has_every_allowed_cpu() -> None:
    probe = HostProbe()
    assert probe.topology().cpus == probe.budget().cpus
    assert sum(node.cores for node in probe.topology().nodes) == probe.budget().physical


# Placement --------------------------------------------------------------------------------------------------


def a_plan(threads: int, instances: int) -> plan_decide.Plan:
    return plan_decide.Plan(threads, instances, 1, {}, "host")


LEFT, RIGHT = frozenset(range(4)), frozenset(range(4, 8))
TWO = Topology((Node(0, LEFT, 4), Node(1, RIGHT, 4)))


@pytest.mark.parametrize(
    ("threads", "instances", "expected"),
    [
        (1, 2, [LEFT, RIGHT]),
        (2, 4, [LEFT, RIGHT, LEFT, RIGHT]),
        (4, 2, [LEFT, RIGHT]),
        (3, 2, [LEFT, RIGHT]),
        (8, 1, [LEFT | RIGHT]),  # no node has eight
        (3, 3, [LEFT, RIGHT, LEFT]),  # more threads than CPUs, so some node is overloaded in any case
    ],
)
def test_instances_are_spread_and_their_threads_stay_on_a_node(
    threads: int, instances: int, expected: list[frozenset[int]]
) -> None:
    assert plan_decide.placement(a_plan(threads, instances), TWO) == tuple(expected)


def test_an_instance_that_fits_on_no_node_any_more_may_use_all() -> None:
    wide = Topology((Node(0, frozenset(range(6)), 6), Node(1, frozenset(range(6, 12)), 6)))
    placed = plan_decide.placement(a_plan(4, 3), wide)
    assert placed is not None
    assert placed[:2] == (wide.nodes[0].cpus, wide.nodes[1].cpus)
    assert placed[2] == wide.cpus


def test_one_node_leaves_nothing_to_place() -> None:
    assert plan_decide.placement(a_plan(1, 4), Topology((Node(0, LEFT, 4),))) is None


def test_the_first_instance_goes_where_the_process_runs() -> None:
    assert plan_decide.placement(a_plan(2, 1), dataclasses.replace(TWO, home=1)) == (RIGHT,)


def test_nodes_of_unequal_size_are_loaded_alike() -> None:
    big = frozenset(range(6))
    uneven = Topology((Node(0, big, 6), Node(1, frozenset({6, 7}), 2)))
    placed = plan_decide.placement(a_plan(1, 8), uneven)
    assert placed is not None
    assert (placed.count(big), len(placed)) == (6, 8)


# The plan ---------------------------------------------------------------------------------------------------


def decide(probe: HostProbe, of: Manifest | None = None, **options: object) -> plan_decide.Plan:
    environ = {**ENVIRON, **options.pop("environ", {})}  # type: ignore[dict-item]
    return plan_decide.decide(of or manifest(), environ=environ, probe=probe, **options)  # type: ignore[arg-type]


def test_the_plan_names_the_cpus_of_each_instance(tmp_path: Path) -> None:
    decided = decide(machine(tmp_path, ["0-1", "2-3"]))
    assert numbers(decided)[:2] == (1, 4)
    assert decided.cpus == ((0, 1), (2, 3), (0, 1), (2, 3))
    assert "2 NUMA nodes" in decided.reasons["cpus"]


def test_one_request_gets_the_cores_of_one_node(tmp_path: Path) -> None:
    decided = decide(machine(tmp_path, ["0-2", "3-5"]), objective="latency")
    assert numbers(decided) == (3, 1, 1)
    assert "one NUMA node" in decided.reasons["threads"]
    assert decided.cpus == ((0, 1, 2),)


@pytest.mark.parametrize("variable", ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_the_users_own_binding_of_threads_is_left_alone(tmp_path: Path, variable: str) -> None:
    probe = machine(tmp_path, ["0-1", "2-3"])
    decided = decide(probe, environ={variable: "close"})
    assert decided.cpus is None
    assert variable in decided.reasons["cpus"]
    assert decide(probe, environ={"OMP_PROC_BIND": "false"}).cpus is not None


def test_info_shows_the_cpus_and_the_reason(tmp_path: Path, package_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cpupack.runtime import info

    probe = machine(tmp_path, ["0-1", "2-3"])
    monkeypatch.setattr(plan_decide, "HostProbe", lambda: probe)
    text = " ".join(format_info(info.collect(package_dir)).split())
    assert "instances 0, 2 on CPUs 0-1; instances 1, 3 on CPUs 2-3 - 2 NUMA nodes" in text
    assert "explicit arguments, OMP_NUM_THREADS" in text


def test_a_tuned_setting_may_use_smt_siblings(tmp_path: Path) -> None:
    probe = machine(tmp_path / "host", ["0-7"], siblings=2)
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    made_here = {"fingerprint": host_probe.fingerprint(probe), "cores_usable": 4}
    for threads, instances, source in ((1, 8, "host-tuned"), (1, 9, "host")):
        found = table(**made_here, threads=threads, instances=instances)
        tables.write_table(tables.table_path(manifest(), environ), found)
        decided = plan_decide.decide(manifest(), environ=environ, probe=probe)
        assert decided.source == source
    assert "SMT siblings are used too" in decide(probe, threads=1, instances=8).reasons["threads"]
    assert "will share cores" in decide(probe, threads=1, instances=9).reasons["threads"]
