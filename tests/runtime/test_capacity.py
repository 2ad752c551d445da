"""``NAME plan``: the queueing model against theory, and its answers on made-up tables."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.runtime import cli
from cpupack.runtime.capacity.planning import MAX_UTILISATION, CapacityPlan, plan_capacity
from cpupack.runtime.capacity.profiles import profiles
from cpupack.runtime.capacity.queueing import simulate
from cpupack.runtime.files import BUILD_NAME
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.manifest import PlanEntry, read_manifest
from cpupack.runtime.plan import table
from helpers.tiny_package import keep_manifest

# The queue --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("utilisation", [0.3, 0.5, 0.8])
def test_one_instance_waits_as_long_as_m_d_1(utilisation: float) -> None:
    """Pollaczek and Khinchine: the mean wait of M/D/1 is rho S / (2 (1 - rho))."""
    call_s = 0.01
    queue = simulate(utilisation / call_s, 1, {1: call_s}, requests=400_000)
    expected_s = utilisation * call_s / (2 * (1 - utilisation))
    assert float(np.mean(queue.waiting_s)) == pytest.approx(expected_s, rel=0.04)
    assert np.allclose(queue.latency_s, queue.waiting_s + call_s)


@pytest.mark.parametrize(("instances", "utilisation"), [(2, 0.7), (4, 0.8), (8, 0.8)])
def test_several_instances_wait_as_long_as_m_d_c(instances: int, utilisation: float) -> None:
    """Cosmetatos (1975) approximates M/D/c from M/M/c (Erlang C) within 2 % or so at these loads."""
    load = instances * utilisation
    last = load**instances / math.factorial(instances) / (1 - utilisation)
    erlang_c = last / (sum(load**k / math.factorial(k) for k in range(instances)) + last)
    exponential = erlang_c / (instances * (1 - utilisation))
    correction = (
        (1 - utilisation) * (instances - 1) * (math.sqrt(4 + 5 * instances) - 2) / (16 * instances * utilisation)
    )
    queue = simulate(load, instances, {1: 1.0}, requests=400_000)
    assert float(np.mean(queue.waiting_s)) == pytest.approx(0.5 * exponential * (1 + correction), rel=0.06)


def test_a_call_takes_what_waits_and_never_more_than_the_largest_size() -> None:
    """The rate is ten times that of one instance with single samples; in batches of 16 it keeps up."""
    shapes = {1: 0.01, 2: 0.01, 4: 0.01, 8: 0.01, 16: 0.01}
    queue = simulate(1000.0, 1, shapes)
    assert float(queue.latency_s.max()) < 0.04
    overloaded = simulate(1000.0, 1, {1: 0.01, 2: 0.01, 4: 0.01})
    assert float(overloaded.latency_s.max()) > 1.0
    assert np.array_equal(queue.latency_s, simulate(1000.0, 1, shapes).latency_s)


@pytest.mark.parametrize("wrong", [(0.0, 1, {1: 1.0}), (1.0, 0, {1: 1.0}), (1.0, 1, {2: 1.0})])
def test_what_is_no_queue_is_refused(wrong: tuple[float, int, dict[int, float]]) -> None:
    with pytest.raises(ValueError, match="no queue"):
        simulate(*wrong)


# The answer -------------------------------------------------------------------------------------------------


def row(threads: int, instances: int, batch_size: int, rate: float, **more: Any) -> dict[str, Any]:
    p99_ms = 1000.0 * batch_size * instances / rate
    return {
        "threads": threads, "instances": instances, "batch_size": batch_size, "throughput_per_s": rate,
        "latency_ms": {"p99": p99_ms}, "round": 0, **more,
    }  # fmt: skip


FOUR = [row(1, 4, 1, 400.0), row(1, 4, 4, 600.0), row(1, 4, 16, 640.0), row(4, 1, 1, 250.0)]
"""Calls of one sample take 10 ms on one of four instances and 4 ms on four threads together."""


def answer(rate: float, bound_ms: float, rows: list[dict[str, Any]] = FOUR) -> CapacityPlan:
    return plan_capacity(profiles(rows), rate, bound_ms)


def test_a_light_load_needs_one_instance_and_no_batch() -> None:
    found = answer(20.0, 50.0)
    assert found.feasible
    assert (found.hosts, found.setting.instances, found.setting.batch_size) == (1, 1, 1)
    # 20 requests of 10 ms a second keep one instance busy for a fifth of the time.
    assert found.setting.utilisation == pytest.approx(0.2)
    assert found.setting.p99_ms <= 50.0


def test_more_load_takes_more_instances_then_batches_then_hosts() -> None:
    rates = [20.0, 150.0, 300.0, 450.0, 2000.0]
    found = [answer(rate, 60.0) for rate in rates]
    instances = [one.setting.instances for one in found]
    assert instances == sorted(instances)
    assert [one.hosts for one in found[:4]] == [1, 1, 1, 1]
    assert found[3].setting.batch_size > 1  # one at a time, four instances do 400 a second
    assert not found[4].feasible
    assert found[4].hosts >= math.ceil(2000 / (MAX_UTILISATION * 640))
    assert all(one.setting.utilisation <= MAX_UTILISATION for one in found)
    assert all(one.setting.p99_ms <= 60.0 for one in found)


def test_the_hosts_share_the_rate_and_one_less_would_not_do() -> None:
    found = answer(5000.0, 40.0)
    hosts = found.hosts
    assert found.setting.rate_per_s == pytest.approx(5000.0 / hosts)
    assert found.peak_per_s < 5000.0 / (hosts - 1)
    assert f"{hosts} hosts like this" in " ".join(found.reasons)


def test_a_tight_bound_takes_the_layout_with_the_shortest_calls() -> None:
    assert answer(20.0, 9.0).setting.threads == 4


def test_a_bound_below_the_fastest_call_is_out_of_reach_of_any_number_of_hosts() -> None:
    found = answer(1.0, 3.0)
    assert (found.feasible, found.setting, found.hosts) == (False, None, None)
    assert "4.0 ms" in found.reasons[0]


def test_the_reasons_say_what_one_instance_less_would_mean() -> None:
    found = answer(300.0, 60.0)
    assert found.setting.instances > 1
    assert any("one instance less" in reason for reason in found.reasons)


def test_sizes_that_were_not_measured_take_the_time_of_the_next_larger_or_between() -> None:
    (profile,) = profiles([row(1, 1, 4, 100.0), row(1, 1, 8, 160.0)])
    assert [profile.call_ms(size) for size in (1, 2, 4, 6, 8)] == pytest.approx([40.0, 40.0, 40.0, 45.0, 50.0])


def test_of_repeated_rows_the_median_counts() -> None:
    (profile,) = profiles([row(1, 1, 1, rate) for rate in (100.0, 50.0, 98.0)])
    assert profile.calls[0].mean_ms == pytest.approx(1000 / 98)


# NAME plan --------------------------------------------------------------------------------------------------


@pytest.fixture
def call(package_dir: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: object, package: Path = package_dir) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main(package, ["plan", *map(str, argv)], prog="tiny-int8")
        return code, *capfd.readouterr()

    return run


ASKED = ("--rate", 20, "--max-latency-ms", 50)


def keep(package_dir: Path, **changes: Any) -> Path:
    manifest = read_manifest(package_dir)
    fields = {
        "fingerprint": host_probe.fingerprint(),
        "cores_usable": HostProbe().budget().usable,
        "model": table.model_digest(manifest),
        "objective": "throughput",
        "max_latency_ms": None,
        "threads": 1,
        "instances": 1,
        "batch_size": 1,
        "reason": "",
        "searched_s": 1.0,
        "rows": [row(1, 1, 1, 100.0), {"threads": 1, "instances": 1, "batch_size": 2, "round": 0, "error": "killed"}],
    }
    path = table.table_path(manifest)
    table.write_table(path, table.TunedTable(**{**fields, **changes}))
    return path


def test_without_a_table_it_says_to_tune_first(call: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = call(*ASKED)
    assert code == 2
    assert err.count("\n") == 1
    assert "run `tiny-int8 tune` first" in err


def test_the_host_tuned_table_answers(call: Callable[..., tuple[int, str, str]], package_dir: Path) -> None:
    path = keep(package_dir)
    code, out, _ = call(*ASKED, "--json")
    found = json.loads(out)
    assert (code, found["feasible"], found["setting"]["batch_size"]) == (0, True, 1)
    assert str(path) in found["source"]
    code, out, _ = call(*ASKED)
    assert code == 0
    assert "yes, on this host" in out
    assert found["check"] in out
    for reason in found["reasons"]:
        assert reason in " ".join(out.split())


def test_an_answer_of_no_is_an_answer_too(call: Callable[..., tuple[int, str, str]], package_dir: Path) -> None:
    keep(package_dir)
    code, out, _ = call("--rate", 1000, "--max-latency-ms", 50)
    assert code == 0
    assert "not on this host; on 1" in out  # one host carries 100/s at most, so it takes more than ten
    code, out, _ = call("--rate", 1, "--max-latency-ms", 1)
    assert code == 0
    assert "/s with a p99 of at most 1 ms: no" in out


def test_the_table_of_another_cpu_is_not_trusted(call: Callable[..., tuple[int, str, str]], package_dir: Path) -> None:
    keep(package_dir, fingerprint={**host_probe.fingerprint(), "cpu_id": "another"})
    code, _, err = call(*ASKED)
    assert code == 2
    assert "another" in err


def test_the_wheels_table_holds_on_an_equal_cpu_only(
    call: Callable[..., tuple[int, str, str]], package_dir: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(package_dir, tmp_path / "tiny_int8"))
    built_on = {**host_probe.fingerprint(), "cores_usable": HostProbe().budget().usable}
    built = dataclasses.replace(
        read_manifest(copy), plan=PlanEntry(True, "throughput", 1, 1, 1, None, ""), build={"host": built_on}
    )
    keep_manifest(copy, built, rows=[row(1, 1, 1, 100.0)])
    code, out, _ = call(*ASKED, package=copy)
    assert code == 0
    assert "tuned at build time on an equal CPU" in out
    (copy / BUILD_NAME).write_text("{")
    assert call(*ASKED, package=copy)[0] == 3
    other = dataclasses.replace(built, build={"host": {**built_on, "isa": "other"}})
    keep_manifest(copy, other, rows=[row(1, 1, 1, 100.0)])
    code, _, err = call(*ASKED, package=copy)
    assert code == 2
    assert "isa = 'other'" in err


def test_disturbed_measurements_are_a_caution(call: Callable[..., tuple[int, str, str]], package_dir: Path) -> None:
    keep(package_dir, rows=[row(1, 1, 1, 100.0, disturbed=True), row(1, 1, 2, 110.0)])
    assert "other work disturbed 50% of the measurements" in call(*ASKED)[1]


@pytest.mark.parametrize(
    "wrong", [["--rate", "0", "--max-latency-ms", "5"], ["--rate", "5"], ["--rate", "5", "--max-latency-ms", "-1"]]
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    call: Callable[..., tuple[int, str, str]], wrong: list[str]
) -> None:
    code, _, err = call(*wrong)
    assert code == 2
    assert err.count("\n") == 1
