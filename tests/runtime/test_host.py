"""The host's limits, read from made-up kernel files."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import pytest

from cpupack.runtime.host import cgroup, limits
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.host.probe import HostProbe

V2_MOUNT = "30 20 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def probe(root: Path, cpus: int = 8) -> HostProbe:
    return HostProbe(root, affinity=frozenset(range(cpus)))


@pytest.mark.parametrize(("text", "cpus"), [("0-3,8", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("0,2-2\n", {0, 2})])
def test_cpu_lists_are_ranges_and_numbers(text: str, cpus: set[int]) -> None:
    assert cgroup.parse_cpu_list(text) == cpus


def test_without_any_file_the_affinity_is_the_limit(tmp_path: Path) -> None:
    budget = probe(tmp_path, 3).budget()
    assert (budget.usable, budget.quota, budget.cpuset) == (3, None, None)


def test_a_sandbox_that_tells_no_affinity_and_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getaffinity", refused)
    monkeypatch.setattr(resource, "getrlimit", refused)
    root = write(tmp_path, {"sys/devices/system/cpu/online": "0-2"})
    assert HostProbe(root).budget().usable == 3
    assert limits.why_no_file() == "too many files are open (no limit is known); raise the limit, or close some"
    assert limits.no_room_for_libraries() is None


@pytest.mark.parametrize(
    ("cpu_max", "quota", "usable"),
    [("max 100000", None, 8), ("250000 100000", 2.5, 2), ("50000 100000", 0.5, 1), ("400000", 4.0, 4)],
)
def test_version_2_quota_is_rounded_down_to_at_least_one(
    tmp_path: Path, cpu_max: str, quota: float | None, usable: int
) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pod/app/cpu.max": cpu_max,
        },
    )
    budget = probe(root).budget()
    assert (budget.quota, budget.usable) == (quota, usable)


def test_a_group_above_limits_too(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pod/app/cpu.max": "600000 100000",
            "sys/fs/cgroup/pod/cpu.max": "300000 100000",
        },
    )
    assert probe(root).budget().quota == 3.0


def test_version_1_quota_and_cpuset(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpuset:/app\n1:cpu,cpuacct:/app\n0::/\n",
            "proc/self/mountinfo": V1_MOUNTS,
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "350000",
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpuset/app/cpuset.cpus": "0-4",
        },
    )
    budget = probe(root).budget()
    assert (budget.quota, budget.cpuset, budget.usable) == (3.5, 5, 3)
    assert budget.reason.startswith("the cgroup quota is 3.5 CPUs")


def test_version_1_minus_one_means_no_quota(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "1:cpu,cpuacct:/\n",
            "proc/self/mountinfo": V1_MOUNTS,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert probe(root).budget().quota is None


def test_in_a_container_the_mount_is_the_own_group(tmp_path: Path) -> None:
    """Without a cgroup namespace the kernel names the group as the host sees it and mounts that one only."""
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/abc\n",
            "proc/self/mountinfo": V2_MOUNT.replace(" / ", " /docker/abc ", 1),
            "sys/fs/cgroup/cpu.max": "200000 100000",
        },
    )
    assert probe(root).budget().usable == 2
    (root / "proc/self/cgroup").write_text("0::/elsewhere\n")
    assert probe(root).budget().usable == 2


def test_the_memory_that_a_group_may_still_take(tmp_path: Path) -> None:
    """The least of all levels. Files that were not used lately are given back first."""
    assert cgroup.memory_left_bytes(tmp_path) is None
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "9:memory:/old\n0::/pod/app\n",
            "proc/self/mountinfo": V2_MOUNT
            + "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n",
            "sys/fs/cgroup/pod/app/memory.max": "max",
            "sys/fs/cgroup/pod/app/memory.current": "700",
            "sys/fs/cgroup/pod/memory.max": "1000",
            "sys/fs/cgroup/pod/memory.current": "900",
            "sys/fs/cgroup/pod/memory.stat": "anon 500\ninactive_file 150\n",
        },
    )
    assert cgroup.memory_left_bytes(root) == 250
    write(
        root,
        {
            "sys/fs/cgroup/memory/old/memory.limit_in_bytes": "800",
            "sys/fs/cgroup/memory/old/memory.usage_in_bytes": "790",
            "sys/fs/cgroup/memory/old/memory.stat": "cache 9\ntotal_inactive_file 30\n",
        },
    )
    assert cgroup.memory_left_bytes(root) == 40


def test_smt_siblings_count_once(tmp_path: Path) -> None:
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = write(tmp_path, {topology.format(cpu): f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
    assert probe(root).budget().usable == 4
    # Two CPUs of one core are one core.
    assert HostProbe(root, affinity=frozenset({0, 4})).budget().usable == 1


def test_a_cpuset_that_contradicts_the_scheduler_does_not_leave_nothing(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpuset.cpus.effective": "6-7",
        },
    )
    assert HostProbe(root, affinity=frozenset({0})).budget().usable == 1


def test_throttling_of_both_versions_in_seconds(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "1:cpu,cpuacct:/\n0::/\n",
            "proc/self/mountinfo": V1_MOUNTS + V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 2500000000\n",
            "sys/fs/cgroup/unified/cpu.stat": "usage_usec 5\nnr_throttled 1\nthrottled_usec 500000\n",
        },
    )
    assert cgroup.throttling(root) == (5, 3.0)


def test_cpu_ticks_are_those_of_the_allowed_cpus(tmp_path: Path) -> None:
    import os

    ticks_per_s = os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal guest guest_nice
    root = write(
        tmp_path,
        {
            "proc/stat": f"cpu  9 9 9 9 9 9 9 9 0 0\n"
            f"cpu0 {3 * ticks_per_s} 0 {ticks_per_s} 7 7 0 0 {2 * ticks_per_s} 0 0\n"
            f"cpu1 {50 * ticks_per_s} 0 0 0 0 0 0 0 0 0\nintr 5\n"
        },
    )
    assert probe(root).cpu_ticks(frozenset({0})) == (4.0, 2.0)
    assert probe(tmp_path / "none").cpu_ticks(frozenset({0})) is None


def test_this_host_is_described_in_json() -> None:
    facts = json.loads(json.dumps(host_probe.describe(engine="onednn")))
    assert facts["cores_usable"] >= 1
    assert facts["engine"] == "onednn"
    assert {key: facts[key] for key in host_probe.fingerprint()} == host_probe.fingerprint()
    assert facts["memory_bytes"] > 0
    assert HostProbe().peak_memory_bytes() > 0
