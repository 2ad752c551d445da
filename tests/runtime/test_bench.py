"""The bench: its loop under a fake clock, its figures, its verdict, and one real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.runtime import cli
from cpupack.runtime.bench import run as bench_run
from cpupack.runtime.bench import stats
from cpupack.runtime.bench.feeds import make_batches
from cpupack.runtime.bench.measure import WINDOWS, warm_up
from cpupack.runtime.bench.measure import measure as run_measure
from cpupack.runtime.bench.options import BenchOptions
from cpupack.runtime.bench.scenarios import SCENARIOS, offline, single_stream
from cpupack.runtime.bench.text import format_table
from cpupack.runtime.bench.verdict import Counters, disturbances, weaknesses
from cpupack.runtime.errors import InputError, RunnerError
from cpupack.runtime.manifest import read_manifest
from helpers.bench_fakes import FakeClock, FakePool, quiet_probe


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def measure(clock: FakeClock, pool: FakePool, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    settings = {"scenario": "offline", "batch_size": 4, "duration_s": 2.0, "warmup_s": 1.0, **changes}
    return run_measure(
        pool,
        ["a", "b", "c"],
        settings["batch_size"],
        SCENARIOS[settings["scenario"]],
        settings["duration_s"],
        settings["warmup_s"],
        clock,
        quiet_probe(tmp_path),
    ).to_dict()


def test_offline_keeps_every_instance_busy(clock: FakeClock, tmp_path: Path) -> None:
    service_s = 1 / 64  # exact in binary
    result = measure(clock, FakePool(clock, lambda *_: service_s, instances=2), tmp_path)
    assert result["throughput_per_s"] == pytest.approx(2 * 4 / service_s)
    assert result["samples"] == pytest.approx(result["throughput_per_s"] * result["duration_s"])
    assert result["calls"] == 2 * 2.0 / service_s
    assert set(result["latency_ms"].values()) == {service_s * 1000}
    assert result["windows_per_s"] == pytest.approx([2 * 4 / service_s] * WINDOWS)
    assert (result["valid"], result["invalid_reasons"]) == (True, [])


def test_calls_that_straddle_the_end_count_by_their_share(clock: FakeClock, tmp_path: Path) -> None:
    """One instance just misses the end and starts one more long call: the rate must not fall by a quarter."""
    services = (0.98, 1.01)
    result = measure(clock, FakePool(clock, lambda instance, _: services[instance], 2), tmp_path, duration_s=1.0)
    assert result["duration_s"] == pytest.approx(1.01)
    assert result["throughput_per_s"] == pytest.approx(4 / 0.98 + 4 / 1.01)


def test_single_stream_waits_for_each_query_on_one_instance(clock: FakeClock) -> None:
    pool = FakePool(clock, lambda *_: 0.125, instances=2)
    calls = single_stream(pool, ["a", "b"], 1, clock, 1.0)
    assert len(calls) == 8
    assert {instance for instance, _ in pool.seen} == {0}
    assert list(calls.start_s[1:]) == list(calls.end_s[:-1])


@pytest.mark.parametrize("scenario", ["offline", "single-stream"])
def test_a_stall_shows_in_the_tail_and_in_the_verdict(clock: FakeClock, tmp_path: Path, scenario: str) -> None:
    pool = FakePool(clock, lambda _, number: 1.0 if number == 150 else 0.01)
    result = measure(clock, pool, tmp_path, scenario=scenario, duration_s=4.0, batch_size=1)
    assert result["latency_ms"]["max"] == pytest.approx(1000)
    assert result["latency_ms"]["p50"] == pytest.approx(10)
    # 1 s of 4 went to one call, 10 ms to each other.
    assert result["throughput_per_s"] == pytest.approx((3.0 / 0.01 + 1) / 4.0, rel=0.01)
    assert not result["valid"]
    assert result["invalid_reasons"][0].startswith("unstable windows")


def test_percentiles_are_numpys_on_the_raw_latencies(clock: FakeClock, tmp_path: Path) -> None:
    random = np.random.default_rng(0).gamma(2.0, 0.005, 10_000)
    times: list[float] = []

    def service(_: int, number: int) -> float:
        times.append(float(random[number]))
        return times[-1]

    result = measure(clock, FakePool(clock, service), tmp_path, scenario="single-stream", batch_size=1)
    raw_ms = np.array(times[-result["calls"] :]) * 1000
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("p99_9", 99.9)):
        assert result["latency_ms"][name] == pytest.approx(np.percentile(raw_ms, percent))
    assert result["latency_ms"]["mean"] == pytest.approx(raw_ms.mean())
    assert result["latency_ms"]["min"] == pytest.approx(raw_ms.min())


def test_batches_take_turns_on_every_instance(clock: FakeClock) -> None:
    pool = FakePool(clock, lambda *_: 0.1, instances=2)
    offline(pool, ["a", "b", "c"], 1, clock, 1.2)
    for number, order in ((0, "abcabcabc"), (1, "bcabcabca")):
        seen = "".join(batch for instance, batch in pool.seen if instance == number)
        assert seen.startswith(order)


@pytest.mark.parametrize("drive", [offline, single_stream])
def test_a_failing_model_ends_the_measurement_with_its_error(clock: FakeClock, drive: Any) -> None:
    pool = FakePool(clock, lambda *_: 0.1, instances=2)
    pool.fail_after = 5
    with pytest.raises(RunnerError, match="the model failed"):
        drive(pool, ["a"], 1, clock, 10.0)


def test_a_pool_closed_meanwhile_is_an_error_and_no_endless_wait(clock: FakeClock) -> None:
    pool = FakePool(clock, lambda *_: 0.1, instances=2)
    pool.closed_after = 4
    with pytest.raises(RunnerError, match="closed"):
        offline(pool, ["a"], 1, clock, 10.0)


def test_warm_up_goes_on_until_calls_settle(clock: FakeClock) -> None:
    pool = FakePool(clock, lambda _, number: 0.1 + (0.3 / (number + 1) if number < 12 else 0.0))
    warmup = warm_up(pool, ["a"], 1, clock, 60.0)
    # Rounds of two or three calls; the first two that agree within 5 % are those around the 12th
    # before.
    assert warmup.stable
    assert 12 <= warmup.calls <= 18


def test_warm_up_that_never_settles_ends_at_its_limit_and_says_so(clock: FakeClock) -> None:
    warmup = warm_up(FakePool(clock, lambda _, number: 0.01 * 1.1**number), ["a"], 1, clock, limit_s=2.0)
    assert not warmup.stable
    assert warmup.duration_s <= 2.0


def test_warm_up_makes_two_calls_an_instance_whatever_the_limit(clock: FakeClock) -> None:
    pool = FakePool(clock, lambda *_: 5.0, instances=2)
    assert warm_up(pool, ["a"], 1, clock, limit_s=0.0).calls == 4


def test_too_few_calls_or_too_short_is_not_valid(clock: FakeClock, tmp_path: Path) -> None:
    result = measure(clock, FakePool(clock, lambda *_: 0.1), tmp_path, duration_s=0.5)
    assert [reason[:9] for reason in result["invalid_reasons"]] == ["too short", "too short"]
    assert weaknesses(100, 100, 1.0, [1.0] * 5) == []


def counters(**changes: float) -> Counters:
    fields = {"wall_s": 0.0, "own_s": 0.0, "busy_s": 0.0, "stolen_s": 0.0, "throttled_count": 0}
    return Counters(**{**fields, "throttled_s": 0.0, **changes})


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ({"own_s": 20.0, "busy_s": 20.0}, None),
        ({"own_s": 10.0, "busy_s": 20.0}, "busy host: other processes used 1.0 of 2 CPUs"),
        ({"own_s": 18.5, "busy_s": 20.0}, None),
        ({"stolen_s": 1.0}, "stolen time: the hypervisor took 5%"),
        ({"throttled_s": 3.0, "throttled_count": 30}, "CPU throttled by cgroup: held back 30 times, 3.00 s"),
        ({"busy_s": None, "stolen_s": None}, None),
    ],
)
def test_what_the_machine_did_meanwhile(after: dict[str, Any], reason: str | None) -> None:
    found = disturbances(counters(), counters(wall_s=10.0, **after), cpus=2)
    assert [text for text in found if text.startswith(reason or "")] == found
    assert bool(found) == (reason is not None)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    trials = 4000
    hits = 0
    for _ in range(trials):
        low, high = stats.interval_95(list(random.normal(7.0, 2.0, WINDOWS)))
        hits += low <= 7.0 <= high
    # Binomial: four standard deviations around 0.95.
    assert abs(hits / trials - 0.95) < 4 * (0.95 * 0.05 / trials) ** 0.5


def test_inputs_are_equal_for_equal_seeds_and_distinct(package_dir: Path, array_package_dir: Path) -> None:
    for directory in (package_dir, array_package_dir):
        manifest = read_manifest(directory)
        first, again, other = (make_batches(manifest, 2, seed) for seed in (5, 5, 6))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[0], other[0])
        assert len({batch.tobytes() for batch in first}) == len(first) >= 3
        assert {(batch.dtype, tuple(batch.shape)) for batch in first} == {(np.dtype(np.float32), (2, 3, 16, 16))}


@pytest.mark.parametrize(
    "wrong",
    [
        ["--duration", "-1"],
        ["--duration", "0"],
        ["--duration", "nan"],
        ["--duration", "soon"],
        ["--batch-size", "0"],
        ["--batch-size", "2.5"],
        ["--threads", "0"],
        ["--instances", "-2"],
        ["--scenario", "server-side"],
        ["--warmup", "-1"],
        ["--seed", "-1"],
        ["--scenario", "single-stream", "--instances", "2"],
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    package_dir: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert cli.main(package_dir, ["bench", *wrong]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert wrong[-2] in err


def test_single_stream_with_instances_is_refused_before_anything_is_loaded(package_dir: Path) -> None:
    with pytest.raises(InputError, match="single-stream"):
        bench_run.run(package_dir, BenchOptions(scenario="single-stream", instances=2))


def test_the_packages_own_bench_in_a_fresh_process(package_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tiny_int8", "bench", "--json", "--duration", "0.3", "--batch-size", "2"],
        env={**os.environ, "PYTHONPATH": str(package_dir.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["scenario"] == "offline"
    assert (result["batch_size"], result["threads"]) == (2, 1)
    assert result["plan"]["threads"] == "OMP_NUM_THREADS is set to 1."
    assert result["instances"] >= 1
    assert result["duration_s"] >= 0.299
    # Samples are whole ones; the rate counts those under way at the end by their share.
    assert result["throughput_per_s"] * result["duration_s"] == pytest.approx(result["samples"], abs=0.5)
    assert set(result["latency_ms"]) == {"mean", "p50", "p90", "p95", "p99", "p99_9", "min", "max"}
    assert not result["valid"]  # 0.3 s is too short, and it says so
    assert result["invalid_reasons"][0].startswith("too short")
    assert result["input"] == "float32"
    assert result["cold_start_ms"]["total"] > result["cold_start_ms"]["load"] > 0
    assert result["peak_memory_bytes"] > 0
    assert result["host"]["engine"] == result["manifest"]["engine"]
    assert result["manifest"] | {"name": "tiny-int8", "version": "1.0.0"} == result["manifest"]

    table = format_table(result)
    assert f"{result['throughput_per_s']:,.1f} samples/s" in table
    assert f"p99 {result['latency_ms']['p99']:.2f}" in table
    assert "NOT valid" in table
