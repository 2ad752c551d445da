"""Queries of several samples, and options that do not go together."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from cpupack.runtime.bench import options
from cpupack.runtime.bench import run as bench_run
from cpupack.runtime.bench.measure import measure
from cpupack.runtime.bench.scenarios import QUERY_SAMPLES, SCENARIOS, WallClock, multi_stream
from cpupack.runtime.errors import InputError
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.manifest import read_manifest
from helpers.bench_fakes import FakeClock, FakePool, quiet_probe


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def parsed(*argv: str) -> options.BenchOptions:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return options.from_arguments(parser.parse_args(argv))


@pytest.mark.parametrize(("batch_size", "calls"), [(1, 8), (3, 3), (4, 2), (8, 1)])
def test_a_query_has_eight_samples_in_calls_over_all_instances(clock: FakeClock, batch_size: int, calls: int) -> None:
    pool = FakePool(clock, lambda *_: 1 / 16, instances=2)
    queries = multi_stream(pool, ["a", "b", "c"], batch_size, clock, 4.0)
    assert len(pool.seen) == calls * len(queries)
    # Calls of one instance wait for each other; the query ends with the last.
    assert queries.latency_ms == pytest.approx(1000 / 16 * -(-calls // 2))
    assert list(queries.start_s[1:]) == list(queries.end_s[:-1])
    assert {instance for instance, _ in pool.seen} == ({0, 1} if calls > 1 else {0})
    assert queries.samples_between(queries.start_s[0], queries.end_s[-1]) == pytest.approx(QUERY_SAMPLES * len(queries))


def test_multi_streams_figures_are_of_queries(clock: FakeClock, tmp_path: Path) -> None:
    pool = FakePool(clock, lambda _, number: 0.5 if number == 300 else 1 / 64, instances=2)
    scenario = SCENARIOS["multi-stream"]
    result = measure(pool, ["a", "b"], 4, scenario, 10.0, 1.0, clock, quiet_probe(tmp_path)).to_dict()
    assert (result["headline"], result["scenario"]) == ("p99", "multi-stream")
    assert result["headline_value"] == result["latency_ms"]["p99"] == pytest.approx(1000 / 64)
    assert result["latency_ms"]["max"] == pytest.approx(500)
    assert result["samples"] == QUERY_SAMPLES * result["calls"]


def test_a_query_is_spread_over_the_instances_of_the_plan(package_dir: Path) -> None:
    manifest = read_manifest(package_dir)
    for cores, instances, batch_size in ((1, 1, 8), (2, 2, 4), (3, 3, 3), (16, 8, 1)):
        # Made-up affinity on a host without topology: every CPU is a core.
        probe = HostProbe(package_dir, affinity=frozenset(range(cores)))
        plan = bench_run.decide(manifest, parsed("--scenario", "multi-stream"), probe)
        assert (plan.instances, plan.batch_size) == (instances, batch_size)
        assert f"{QUERY_SAMPLES} samples" in plan.reasons["batch_size"]
    asked = bench_run.decide(manifest, parsed("--scenario", "multi-stream", "--batch-size", "2"), probe)
    assert (asked.batch_size, asked.reasons["batch_size"]) == (2, "given explicitly.")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--rate", "5"], "--rate"),
        (["--max-latency-ms", "5"], "--max-latency-ms"),
        (["--find-peak", "--scenario", "offline"], "--find-peak"),
        (["--scenario", "server"], "--rate"),
        (["--scenario", "server", "--rate", "5", "--find-peak"], "--rate"),
        (["--scenario", "multi-stream", "--batch-size", "9"], "--batch-size"),
        (["--scenario", "multi-stream", "--instances", "9"], "--instances"),
        (["--loadgen-out", "logs"], "--loadgen-out"),
        (["--loadgen", "--scenario", "server", "--find-peak"], "--find-peak"),
    ],
)
def test_options_that_do_not_go_together_are_refused(argv: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        parsed(*argv)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--scenario", "server", "--rate", "5"],
        ["--scenario", "server", "--find-peak", "--max-latency-ms", "9"],
        ["--scenario", "multi-stream", "--batch-size", "8"],
        ["--loadgen", "--loadgen-out", "logs", "--from", "images:photos"],
    ],
)
def test_options_that_go_together_pass(argv: list[str]) -> None:
    given = parsed(*argv)
    assert given.loadgen == ("--loadgen" in argv)
    assert given.scenario == (argv[1] if argv[:1] == ["--scenario"] else "offline")


def test_sleeping_ends_after_the_moment_and_not_long_after() -> None:
    clock = WallClock()
    due_s = clock.now() + 0.02
    clock.sleep_until(due_s)
    assert due_s <= clock.now() < due_s + 1.0
    clock.sleep_until(due_s - 5.0)
