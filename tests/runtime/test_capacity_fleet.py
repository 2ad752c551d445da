"""``NAME plan --fleet``: replicas behind a balancer, with room for failures, and what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpupack.runtime import cli
from cpupack.runtime.capacity import planning
from cpupack.runtime.capacity.fleet import SERVER_MS, Fleet, FleetOptions, job, plan_fleet
from cpupack.runtime.capacity.planning import HTTP_MS, MAX_UTILISATION
from cpupack.runtime.capacity.profiles import CallTime, Profile
from cpupack.runtime.capacity.queueing import simulate
from cpupack.runtime.errors import InputError
from cpupack.runtime.files import BUILD_NAME
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.plan import table


@pytest.fixture(autouse=True, scope="module")
def short_simulations() -> Iterator[None]:
    """Simulate 2,000 requests instead of 20,000: the rules tested here do not depend on the number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "simulate", partial(simulate, requests=2_000))
        yield


FOUR = [
    Profile(1, 4, (CallTime(1, 10.0, 11.0), CallTime(4, 28.0, 30.0), CallTime(16, 100.0, 110.0))),
    Profile(4, 1, (CallTime(1, 4.0, 4.5), CallTime(4, 11.0, 12.0))),
]
"""Calls of one sample take 10 ms on one of four instances and 4 ms on four threads together."""
LATENCY_MS = 60.0


def fleets(rate: float, bound_ms: float = LATENCY_MS, **options: Any) -> tuple[Fleet, ...]:
    return plan_fleet(FOUR, rate, bound_ms, FleetOptions(**options))


def replicas_by_size(rate: float, bound_ms: float = LATENCY_MS, **options: Any) -> dict[int, int]:
    return {fleet.each.cores: fleet.replicas for fleet in fleets(rate, bound_ms, **options)}


def test_what_is_left_after_a_failure_carries_the_rate() -> None:
    for fleet in fleets(1000.0, spare=2):
        assert fleet.spare == 2
        assert fleet.degraded.rate_per_s == pytest.approx(1000.0 / (fleet.replicas - 2))
        assert fleet.degraded.rate_per_s <= fleet.peak_per_s
        assert fleet.degraded.p99_ms <= LATENCY_MS - HTTP_MS
        assert fleet.degraded.utilisation <= MAX_UTILISATION + 1e-9
        # One replica less than that would be too much for each.
        assert 1000.0 / (fleet.replicas - 3) > fleet.peak_per_s
        assert fleet.each.rate_per_s == pytest.approx(1000.0 / fleet.replicas)


def test_the_cheapest_fleet_comes_first_and_each_size_once() -> None:
    found = fleets(1000.0)
    assert [fleet.cpus for fleet in found] == sorted(fleet.cpus for fleet in found)
    assert sorted(fleet.each.cores for fleet in found) == [1, 2, 4]


def test_one_replica_by_hand() -> None:
    """20 requests of 10 ms a second: one instance is busy for a fifth of the time, with the server a little longer."""
    fleet = next(one for one in plan_fleet(FOUR[:1], 20.0, LATENCY_MS, FleetOptions(spare=0)) if one.each.cores == 1)
    assert fleet.replicas == 1
    size = fleet.each.batch_size
    call = next(call for call in FOUR[0].calls if call.size == size)
    assert fleet.each.utilisation == pytest.approx(20.0 * (call.mean_ms / size + SERVER_MS) / 1000.0)
    assert fleet.each == fleet.degraded


def test_a_bound_below_one_call_is_out_of_reach() -> None:
    """The shortest call takes 4.5 ms at p99, the server and HTTP a millisecond each."""
    assert fleets(1.0, 5.7) == ()
    assert fleets(1.0, 8.0) != ()


RATES = st.floats(0.5, 50_000.0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(RATES, st.floats(1.0, 4.0))
def test_more_rate_never_takes_fewer_replicas_nor_cpus(rate: float, times: float) -> None:
    less, more = replicas_by_size(rate), replicas_by_size(rate * times)
    assert all(more[size] >= number for size, number in less.items())
    assert fleets(rate * times)[0].cpus >= fleets(rate)[0].cpus


@settings(max_examples=4, deadline=None, derandomize=True)
@given(RATES, st.floats(20.0, 200.0), st.floats(1.0, 3.0))
def test_a_longer_bound_never_takes_more_cpus(rate: float, bound_ms: float, times: float) -> None:
    """Within 2 %: the highest rate within a bound is searched in steps of 1 %."""
    short, long = fleets(rate, bound_ms)[0], fleets(rate, bound_ms * times)[0]
    assert long.cpus <= math.ceil(1.02 * short.cpus) + short.each.cores


@settings(max_examples=10, deadline=None, derandomize=True)
@given(RATES, st.integers(0, 4), st.integers(1, 4))
def test_each_spare_replica_is_one_more(rate: float, spare: int, more: int) -> None:
    few, many = replicas_by_size(rate, spare=spare), replicas_by_size(rate, spare=spare + more)
    assert {size: number + more for size, number in few.items()} == many


@settings(max_examples=4, deadline=None, derandomize=True)
@given(RATES, st.floats(0.0, 5.0), st.floats(0.0, 5.0))
def test_slower_decoding_never_takes_fewer_cpus(rate: float, decode_ms: float, more_ms: float) -> None:
    quick = fleets(rate, 200.0, decode_ms=decode_ms)[0]
    slow = fleets(rate, 200.0, decode_ms=decode_ms + more_ms)[0]
    # As above: the search has steps of 1 %.
    assert slow.cpus >= math.floor(0.98 * quick.cpus) - quick.each.cores


def test_a_job_takes_the_cpu_hours_of_the_fastest_layout() -> None:
    """Batches of 16 on one CPU take 100 ms: 160 samples a second. 10^9 of them are 1736.1 hours."""
    options = FleetOptions(cost_per_cpu_hour=0.05)
    found = job(FOUR, options, None)
    assert found.per_cpu_per_s == pytest.approx(160.0)
    assert found.cpu_hours == pytest.approx(1e9 / 160 / 3600)
    assert found.cost == pytest.approx(0.05 * 1e9 / 160 / 3600)
    assert found.hours_on_fleet is None
    fleet = fleets(1000.0)[0]
    assert job(FOUR, options, fleet).hours_on_fleet == pytest.approx(found.cpu_hours / fleet.cpus)
    # Decoding of 2 ms each makes it 132 ms: 121.2 samples a second.
    assert job(FOUR, FleetOptions(decode_ms=2.0), None).per_cpu_per_s == pytest.approx(16 / 0.132)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"spare": -1}, "--spare -1"),
        ({"spare": 1001}, "--spare 1001"),
        ({"decode_ms": -1.0}, "--decode-ms -1"),
        ({"decode_ms": math.nan}, "--decode-ms nan"),
        ({"cost_per_cpu_hour": math.inf}, "--cost-per-cpu-hour inf"),
        ({"cost_per_cpu_hour": -0.1}, "--cost-per-cpu-hour -0.1"),
        ({"images": 0.0}, "--images 0"),
        ({"images": math.nan}, "--images nan"),
    ],
)
def test_impossible_options_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        FleetOptions(**wrong)


def test_a_rate_beyond_all_fleets_is_an_error() -> None:
    with pytest.raises(InputError, match="replicas; more than"):
        fleets(1e12)


# NAME plan --fleet ------------------------------------------------------------------------------------------


@pytest.fixture
def call(package_dir: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    manifest = read_manifest(package_dir)
    rows = [
        {
            "threads": 1, "instances": 1, "batch_size": size, "throughput_per_s": rate,
            "latency_ms": {"p99": 1100.0 * size / rate}, "round": 0,
        }
        for size, rate in ((1, 100.0), (4, 200.0))
    ]  # fmt: skip
    kept = table.TunedTable(
        fingerprint=host_probe.fingerprint(), cores_usable=HostProbe().budget().usable,
        model=table.model_digest(manifest), objective="throughput", max_latency_ms=None, threads=1, instances=1,
        batch_size=1, reason="", searched_s=1.0, rows=rows,
    )  # fmt: skip
    path = table.table_path(manifest)
    assert path is not None
    table.write_table(path, kept)
    assert (package_dir / BUILD_NAME).parent.is_dir()

    def run(*argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main(package_dir, ["plan", "--rate", "1000", "--max-latency-ms", "80", *map(str, argv)], prog="tiny")
        return code, *capfd.readouterr()

    return run


def test_the_command_says_replicas_shape_cost_and_model(call: Callable[..., tuple[int, str, str]]) -> None:
    asked = ("--fleet", "--cost-per-cpu-hour", 0.04, "--spare", 2)
    code, out, _ = call(*asked, "--json")
    found = json.loads(out)["fleet"]
    chosen = found["chosen"]
    assert (code, chosen["spare"], chosen["cpus"]) == (0, 2, chosen["replicas"])
    assert chosen["cost_per_hour"] == pytest.approx(0.04 * chosen["cpus"])
    assert found["job"]["images"] == 1e9
    code, out, _ = call(*asked)
    assert code == 0
    flat = " ".join(out.split())
    assert f"{chosen['replicas']} replicas of 1 CPU (2 spare), {chosen['cpus']} CPUs" in flat
    assert "2 failed" in flat
    assert "1,000,000,000 samples" in flat
    assert found["model"] in flat


def test_without_fleet_nothing_changes_and_its_options_are_refused(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call("--json")
    assert (code, json.loads(out)["fleet"]) == (0, None)
    code, _, err = call("--spare", 2)
    assert (code, "--spare needs --fleet" in err) == (2, True)
    code, _, err = call("--fleet", "--images", 0)
    assert (code, "--images 0" in err) == (2, True)
