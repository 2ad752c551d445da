"""Under ``taskset``, a cgroup quota and OMP_NUM_THREADS: the plan is right, says why, and bench obeys it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime import cli
from cpupack.runtime.bench import run as bench_run
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.plan import decide

CPUS = sorted(os.sched_getaffinity(0))
BENCH = ("bench", "--json", "--duration", "0.1", "--warmup", "0", "--batch-size", "1")


@pytest.fixture
def command(package_dir: Path) -> Callable[..., dict[str, Any]]:
    """Run the package's command in a process of its own and return its JSON."""

    def run(*argv: str, before: tuple[str, ...] = (), **environ: str) -> dict[str, Any]:
        done = subprocess.run(
            [*before, sys.executable, "-m", "tiny_int8", *argv], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(package_dir.parent), **environ},
        )  # fmt: skip
        return json.loads(done.stdout)

    return run


def layout(found: dict[str, Any]) -> tuple[int, int]:
    return found["threads"], found["instances"]


def test_under_taskset_there_is_one_core(command: Callable[..., dict[str, Any]]) -> None:
    one = ("taskset", "-c", str(CPUS[0]))
    info = command("info", "--json", before=one)
    assert info["host"]["cores_usable"] == 1
    assert layout(info["plan"]) == (1, 1)
    assert "the CPU affinity allows 1" in info["plan"]["reasons"]["instances"]
    measured = command(*BENCH, before=one)
    assert layout(measured) == (1, 1)
    assert measured["host"]["cpus_affinity"] == 1


def test_the_users_thread_variable_is_obeyed_and_named(command: Callable[..., dict[str, Any]]) -> None:
    usable = HostProbe().budget().usable
    info = command("info", "--json", OMP_NUM_THREADS=str(usable))
    assert layout(info["plan"]) == (usable, 1)
    assert info["plan"]["reasons"]["threads"].startswith(f"OMP_NUM_THREADS is set to {usable}.")
    assert layout(command(*BENCH, OMP_NUM_THREADS=str(usable))) == (usable, 1)
    explicit = command(*BENCH, "--threads", "1", "--instances", "1", OMP_NUM_THREADS=str(usable))
    assert layout(explicit) == (1, 1)
    assert explicit["plan"]["threads"] == "given explicitly."


@pytest.fixture
def quota_group() -> Iterator[Path]:
    """A real control group of 1.5 CPUs' worth of time, where this host lets the tests make one."""
    root = Path("/sys/fs/cgroup")
    controller = root / "cpu" if (root / "cpu").is_dir() else root
    group = controller / f"cpupack-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("control groups cannot be made here; the emulated one is tested below")
    try:
        try:
            if (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_quota_us").write_text("150000")
            else:
                (group / "cpu.max").write_text("150000 100000")
        except OSError:
            pytest.skip("this control group takes no quota; the emulated one is tested below")
        yield group
    finally:
        group.rmdir()


def test_inside_a_real_quota_the_plan_is_rounded_down(
    quota_group: Path, command: Callable[..., dict[str, Any]]
) -> None:
    inside = ("sh", "-c", f'echo $$ > {quota_group}/cgroup.procs && exec "$@"', "sh")
    info = command("info", "--json", before=inside)
    assert info["host"]["cgroup_quota"] == 1.5
    assert layout(info["plan"]) == (1, 1)
    assert "the cgroup quota is 1.5 CPUs" in info["plan"]["reasons"]["instances"]
    assert layout(command(*BENCH, before=inside)) == (1, 1)


@pytest.mark.parametrize(
    ("cpu_max", "usable"), [("350000 100000", 3), ("50000 100000", 1), ("max 100000", 4)], ids=["3.5", "0.5", "none"]
)
def test_inside_an_emulated_quota(
    tmp_path: Path,
    package_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cpu_max: str,
    usable: int,
) -> None:
    files = {
        "proc/self/cgroup": "0::/app\n",
        "proc/self/mountinfo": "30 20 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/app/cpu.max": cpu_max,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    probe = HostProbe(tmp_path, affinity=frozenset(range(4)))
    for module in (bench_run, host_probe, decide):
        monkeypatch.setattr(module, "HostProbe", lambda: probe)
    assert cli.main(package_dir, ["info"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"instances {usable} - throughput: one a core, {usable} usable core" in text
    if "max" not in cpu_max:
        assert f"the cgroup quota is {float(cpu_max.split()[0]) / 100000:g} CPUs" in text
    assert cli.main(package_dir, list(BENCH)) == 0
    assert layout(json.loads(capsys.readouterr().out)) == (1, usable)
