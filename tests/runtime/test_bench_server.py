"""The server scenario under a fake clock: against queueing theory, against stalls, and its search for the peak."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.runtime.bench import peak
from cpupack.runtime.bench.measure import measure_server
from cpupack.runtime.bench.results import Measurement
from cpupack.runtime.bench.server import MIN_REQUESTS, Load, Requests, serve, shapes_up_to
from cpupack.runtime.errors import InputError, RunnerError
from helpers.bench_fakes import FakeClock, FakePool, quiet_probe

SERVICE_S = 1 / 128  # exact in binary


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def constant(clock: FakeClock, instances: int = 1, service_s: float = SERVICE_S) -> FakePool:
    return FakePool(clock, lambda *_: service_s, instances)


def measured(clock: FakeClock, pool: FakePool, tmp_path: Path, batch_size: int = 1, **load: Any) -> Measurement:
    offered = Load(**{"rate_per_s": 50.0, "duration_s": 10.0, "seed": 0, **load})
    cuts = {size: [size * letter for letter in "abc"] for size in shapes_up_to(batch_size)}
    return measure_server(pool, cuts, offered, 1.0, clock, quiet_probe(tmp_path))


def offer(clock: FakeClock, pool: FakePool, tmp_path: Path, batch_size: int = 1, **load: Any) -> dict[str, Any]:
    return measured(clock, pool, tmp_path, batch_size, **load).to_dict()


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_waiting_times_are_those_of_md1(tmp_path: Path, utilization: float) -> None:
    """One server, Poisson arrivals, constant service time D at utilization r: the mean wait is r D / (2 (1 - r)).

    Pollaczek and Khinchine; Kleinrock, Queueing Systems 1, 5.6. The stated interval of each of 20 runs either holds
    that or not; with probability 0.95 each, fewer than 16 happen in 0.3 % of all sets of seeds.
    """
    rate_per_s = utilization / SERVICE_S
    expected_ms = utilization * SERVICE_S * 1000 / (2 * (1 - utilization))
    hits, means = 0, []
    for seed in range(20):
        clock = FakeClock()
        result = offer(clock, constant(clock), tmp_path, rate_per_s=rate_per_s, duration_s=3000 / rate_per_s, seed=seed)
        low, high = result["server"]["waiting_ci95_ms"]["mean"]
        hits += low <= expected_ms <= high
        means.append(result["server"]["waiting_ms"]["mean"])
        assert high - low < expected_ms  # an interval that holds everything would prove nothing
    assert hits >= 16
    # The mean of all runs, too; its error is known from the 20 runs.
    assert abs(np.mean(means) - expected_ms) < 3 * np.std(means, ddof=1) / 20**0.5


def test_as_many_requests_wait_as_the_server_is_busy(clock: FakeClock, tmp_path: Path) -> None:
    """Poisson arrivals see time averages (Wolff 1982): the share that finds the server busy is its utilization."""
    load = Load(0.7 / SERVICE_S, 20_000 * SERVICE_S / 0.7, 1)
    requests = serve(constant(clock), {1: ["a"]}, load, clock)
    assert np.mean(requests.waiting_ms > 1e-9) == pytest.approx(0.7, abs=0.02)
    assert requests.service_ms == pytest.approx(SERVICE_S * 1000)


def test_arrivals_are_poisson_and_repeatable() -> None:
    load = Load(100.0, 100.0, 3)
    gaps = np.diff(load.arrivals_s())
    assert np.array_equal(load.arrivals_s(), Load(100.0, 100.0, 3).arrivals_s())
    assert not np.array_equal(load.arrivals_s()[:50], Load(100.0, 100.0, 4).arrivals_s()[:50])
    assert load.arrivals_s()[-1] < 100.0
    # Exponential gaps: mean and standard deviation are both 10 ms; 4 standard errors of about 10,000 of them.
    assert gaps.mean() == pytest.approx(0.01, rel=4 / 100)
    assert gaps.std() == pytest.approx(0.01, rel=4 * 2**0.5 / 100)


def test_a_stall_lengthens_what_arrived_meanwhile(clock: FakeClock, tmp_path: Path) -> None:
    """One call of a second among 10 ms calls: a closed loop would show one slow request, the schedule shows them all.

    At 50/s about 50 requests arrive during the stall, and the queue they leave drains for about another second.
    """
    pool = FakePool(clock, lambda _, number: 1.0 if number == 200 else 0.01)
    result = offer(clock, pool, tmp_path, rate_per_s=50.0, duration_s=20.0, max_latency_ms=100.0)
    assert result["latency_ms"]["max"] == pytest.approx(1000, abs=30)
    late = result["server"]["over_bound"] * result["server"]["requests"]
    assert 60 < late < 140
    assert result["latency_ms"]["p99"] > 500
    assert result["latency_ms"]["p50"] < 20
    # The times of the calls hide the stall: it is one of a thousand.
    assert result["server"]["service_ms"]["p99"] == pytest.approx(10)
    assert result["server"]["passed"] is False


def test_latency_counts_from_the_schedule_even_when_the_generator_is_late(tmp_path: Path) -> None:
    class Sleepy(FakeClock):
        def sleep_until(self, time_s: float) -> None:
            super().sleep_until(time_s + 0.005)

    clock = Sleepy()
    result = offer(clock, constant(clock, service_s=0.001), tmp_path, rate_per_s=20.0, duration_s=50.0)
    assert result["latency_ms"]["p50"] == pytest.approx(6.0)
    assert result["server"]["late_ms"]["p50"] == pytest.approx(5.0)
    assert [reason[:19] for reason in result["invalid_reasons"]] == ["late load generator"]


def test_percentiles_are_numpys_on_the_raw_latencies(clock: FakeClock, tmp_path: Path) -> None:
    load = Load(100.0, 20.0, 5)
    service = np.random.default_rng(0).gamma(2.0, 0.002, 10_000)
    pool = FakePool(clock, lambda _, number: float(service[number]))
    requests = serve(pool, {1: ["a"]}, load, clock)
    # Lindley's recursion: what one server, first come first served, makes of these arrivals and times.
    free_s, expected = 0.0, []
    for arrival_s, took_s in zip(load.arrivals_s(), service, strict=False):
        free_s = max(free_s, arrival_s) + took_s
        expected.append(free_s - arrival_s)
    assert requests.latency_ms == pytest.approx(np.array(expected) * 1000)
    again = FakeClock()
    # Warm-up takes the first calls, so the run itself is compared with its own raw values.
    result = offer(
        again, FakePool(again, lambda _, number: float(service[number % 10_000])), tmp_path, rate_per_s=100.0
    )
    curve = dict(map(tuple, result["percentiles"]))
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("p99_9", 99.9), ("max", 100)):
        assert curve[percent] == pytest.approx(result["latency_ms"][name])


def test_instances_share_one_queue(clock: FakeClock) -> None:
    pool = constant(clock, instances=3)
    requests = serve(pool, {1: ["a"]}, Load(2.5 / SERVICE_S, 10.0, 0), clock)
    assert np.all(np.diff(requests.issued_s) >= 0)  # first come, first served
    counts = np.bincount(requests.instance)
    assert len(counts) == 3
    assert counts.min() > 0.8 * counts.max()
    idle_while_waiting = requests.waiting_ms[requests.waiting_ms > 1e-9].min()
    assert idle_while_waiting > 0
    # At no time are fewer than three at work while one waits.
    for number in np.flatnonzero(requests.waiting_ms > 1e-9)[:200]:
        moment = requests.issued_s[number] - 1e-9
        assert np.sum((requests.issued_s <= moment) & (requests.end_s > moment)) == 3


def test_shapes_are_powers_of_two_and_the_batch_size() -> None:
    assert [shapes_up_to(size) for size in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


def test_waiting_requests_go_together_in_warmed_shapes_only(clock: FakeClock, tmp_path: Path) -> None:
    """A call of any size takes the same time here, so batches keep up with three times the rate of single calls."""
    pool = constant(clock)
    result = offer(clock, pool, tmp_path, batch_size=8, rate_per_s=3 / SERVICE_S, duration_s=20.0)
    sizes = result["server"]["calls_by_size"]
    assert set(sizes) <= {"1", "2", "4", "8"}
    assert int(sizes["4"]) > 0
    assert sum(int(size) * calls for size, calls in sizes.items()) == result["server"]["requests"]
    assert not any(reason.startswith("overloaded") for reason in result["invalid_reasons"])
    # Distinct inputs for every size.
    assert {batch for _, batch in pool.seen} >= {"a", "b", "c", "aaaa", "bbbb", "cccc"}


def test_more_than_the_server_can_take_is_overload_and_ends(clock: FakeClock, tmp_path: Path) -> None:
    result = offer(clock, constant(clock), tmp_path, rate_per_s=5 / SERVICE_S, duration_s=2.0, max_latency_ms=50.0)
    assert result["duration_s"] <= 2 * 2.0 + 2 * SERVICE_S
    assert result["server"]["unserved"] > 0
    assert result["server"]["passed"] is False
    assert result["throughput_per_s"] == pytest.approx(1 / SERVICE_S, rel=0.02)
    assert "overloaded: 12" in result["invalid_reasons"][0]


def test_what_was_never_served_counts_with_the_time_it_waited(clock: FakeClock) -> None:
    requests = serve(constant(clock), {1: ["a"]}, Load(5 / SERVICE_S, 2.0, 0), clock)
    waited = requests.latency_ms[-requests.unserved :]
    assert waited == pytest.approx((requests.end_s.max() - requests.start_s[-requests.unserved :]) * 1000)
    assert len(requests) == len(Load(5 / SERVICE_S, 2.0, 0).arrivals_s())


def test_pass_needs_ninety_nine_of_a_hundred(clock: FakeClock, tmp_path: Path) -> None:
    quiet = offer(clock, constant(clock), tmp_path, rate_per_s=10.0, duration_s=100.0, max_latency_ms=20.0)
    assert (quiet["server"]["passed"], quiet["valid"]) == (True, True)
    assert offer(clock, constant(clock), tmp_path)["server"]["passed"] is None


def test_too_few_requests_cannot_show_a_p99(clock: FakeClock, tmp_path: Path) -> None:
    assert 0.99**MIN_REQUESTS < 0.01 < 0.99 ** (MIN_REQUESTS - 1)
    result = offer(clock, constant(clock), tmp_path, rate_per_s=10.0, duration_s=5.0)
    assert result["invalid_reasons"][0].startswith("too short: ")
    assert "at least 459" in result["invalid_reasons"][0]


@pytest.mark.parametrize("attribute", ["fail_after", "closed_after"])
def test_a_failing_model_ends_the_run_with_its_error(clock: FakeClock, attribute: str) -> None:
    pool = constant(clock, instances=2)
    setattr(pool, attribute, 5)
    with pytest.raises(RunnerError, match=r"failed|closed"):
        serve(pool, {1: ["a"]}, Load(100.0, 10.0, 0), clock)


@pytest.mark.parametrize(("rate", "duration"), [(0.0, 1.0), (-1.0, 1.0), (1e9, 60.0)])
def test_an_impossible_load_is_refused(rate: float, duration: float) -> None:
    with pytest.raises(InputError, match="--rate"):
        Load(rate, duration, 0)


def test_a_low_rate_still_has_a_request() -> None:
    assert len(Load(0.001, 1.0, 0).arrivals_s()) == 1


@pytest.fixture
def valid(tmp_path: Path) -> Measurement:
    """A valid measurement with a bound, for results that are made up."""
    clock = FakeClock()
    found = measured(clock, constant(clock), tmp_path, rate_per_s=10.0, duration_s=100.0, max_latency_ms=50.0)
    assert found.valid
    return found


def made_up(limit_per_s: float, seen: list[float], valid: Measurement) -> peak.TryRate:
    """A server that passes below ``limit_per_s``, and in one of three runs passes 20 % above it as well."""
    assert valid.server is not None
    server = valid.server

    def try_rate(rate_per_s: float, attempt: int) -> Measurement:
        seen.append(rate_per_s)
        passed = rate_per_s <= limit_per_s * (1.2 if attempt == 0 else 1.0)
        return dataclasses.replace(
            valid,
            figures=dataclasses.replace(valid.figures, headline_value=rate_per_s + attempt),
            server=dataclasses.replace(
                server, rate_per_s=rate_per_s, over_bound=0.0 if passed else 0.5, requests=500, passed=passed
            ),
        )

    return try_rate


@pytest.mark.parametrize("guess", [3.0, 90.0, 130.0, 2000.0])
def test_the_peak_is_found_within_its_tolerance_from_any_guess(guess: float, valid: Measurement) -> None:
    seen: list[float] = []
    found = peak.find_peak(made_up(100.0, seen, valid), guess).peak
    assert found is not None
    assert found.rate_per_s <= 100.0 < found.fails_at_per_s
    assert found.fails_at_per_s / found.rate_per_s <= 1 + peak.TOLERANCE
    assert len(found.runs) == len(seen) <= 50
    # Two of three decide: one lucky run is not enough.
    assert any(run.passed and run.rate_per_s > 100 for run in found.runs)


def test_when_every_rate_fails_the_peak_is_none_at_all(valid: Measurement) -> None:
    result = peak.find_peak(made_up(0.0, [], valid), 100.0).to_dict()
    assert result["peak"]["rate_per_s"] == 0.0
    assert result["server"]["passed"] is False


def test_when_no_rate_fails_the_result_says_so(valid: Measurement) -> None:
    result = peak.find_peak(made_up(1e12, [], valid), 100.0).to_dict()
    assert result["peak"]["fails_at_per_s"] is None
    assert not result["valid"]
    assert result["invalid_reasons"][0].startswith("no limit found")


def test_the_peak_of_md1_is_where_theory_puts_it(tmp_path: Path) -> None:
    """The p99 of the time in an M/D/1 queue, by simulation of Lindley's recursion with two million arrivals."""
    bound_ms = 6 * SERVICE_S * 1000

    def p99_ms(rate_per_s: float) -> float:
        gaps = np.random.default_rng(9).exponential(1 / rate_per_s, 400_000)
        steps = SERVICE_S - gaps
        walk = np.concatenate([[0.0], np.cumsum(steps)])
        waiting_s = walk - np.minimum.accumulate(walk)
        return float(np.percentile(waiting_s + SERVICE_S, 99)) * 1000

    clock = FakeClock()
    pool = constant(clock)

    def try_rate(rate_per_s: float, attempt: int) -> Measurement:
        load = {"rate_per_s": rate_per_s, "duration_s": 5000 / rate_per_s, "seed": attempt}
        return measured(clock, pool, tmp_path, **load, max_latency_ms=bound_ms, stop_when_failed=True)

    found = peak.find_peak(try_rate, 1 / SERVICE_S).peak
    assert found is not None
    below, above = p99_ms(0.93 * found.rate_per_s), p99_ms(1.07 * found.fails_at_per_s)
    assert below < bound_ms < above


def test_a_hopeless_run_stops_early(clock: FakeClock) -> None:
    load = Load(4 / SERVICE_S, 100.0, 0, max_latency_ms=20.0, stop_when_failed=True)
    requests = serve(constant(clock), {1: ["a"]}, load, clock)
    assert requests.end_s.max() - requests.start_s[0] < 50.0
    assert np.mean(requests.latency_ms > 20.0) > 0.01


def test_requests_know_their_calls(clock: FakeClock) -> None:
    requests = serve(constant(clock), {1: ["a"], 2: ["aa"]}, Load(1.5 / SERVICE_S, 5.0, 0), clock)
    assert isinstance(requests, Requests)
    by_hand: dict[float, int] = {}
    for issued_s in requests.issued_s:
        by_hand[issued_s] = by_hand.get(issued_s, 0) + 1
    sizes = list(by_hand.values())
    assert requests.calls_by_size() == {str(size): sizes.count(size) for size in sorted(set(sizes))}
