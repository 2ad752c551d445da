"""Warms up, measures and judges: what every bench does with a pool, whatever the pool runs.

It knows no torch and no wall clock. The pool and the clock come from outside, so a fake clock drives the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..host.probe import HostProbe
from . import server, stats
from .results import ClockMhz, Figures, Judgement, Measurement, PageFaults, ServerFigures, Warmup
from .scenarios import Clock, Pool, Scenario, closed_loop
from .server import Load, Requests
from .stats import Calls, Floats
from .verdict import (
    Counters,
    disturbances,
    late_generator,
    overload,
    read_counters,
    too_short,
    unsettled,
    unsteady,
    weaknesses,
)

WINDOWS = 5

_WARM_CALLS = 2
"""Calls of a warm-up round at least. With the first call, timed on its own, these are the three that oneDNN and the JIT
need to settle on a shape."""
_WARM_ROUND_S = 0.2
_WARM_TOLERANCE = 0.05


def measure(
    pool: Pool,
    batches: Sequence[Any],
    batch_size: int,
    scenario: Scenario,
    duration_s: float,
    warmup_s: float,
    clock: Clock,
    probe: HostProbe,
) -> Measurement:
    """Warm up, drive a closed loop, judge."""
    first = closed_loop(pool, batches, batch_size, clock, lambda _calls, _now: False)
    warmup = warm_up(pool, batches, batch_size, clock, warmup_s)
    cpus = probe.budget().cpus
    before = read_counters(probe, cpus)
    calls = scenario.drive(pool, batches, batch_size, clock, duration_s)
    after = read_counters(probe, cpus)

    figures = closed_figures(calls, scenario.headline)
    weak = weaknesses(len(calls), scenario.min_calls, figures.duration_s, figures.windows_per_s)
    weak += unsettled(warmup.stable, warmup.duration_s)
    return Measurement(
        scenario=scenario.name,
        batch_size=batch_size,
        figures=figures,
        warmup=warmup,
        first_call_ms=float(first.latency_ms.max()),
        judgement=judged(before, after, len(cpus), len(calls), weak),
    )


def measure_server(
    pool: Pool,
    cuts: Mapping[int, Sequence[Any]],
    load: Load,
    warmup_s: float | None,
    clock: Clock,
    probe: HostProbe,
) -> Measurement:
    """Warm up every size of a call, offer ``load``, judge. ``cuts`` has distinct batches for each size.

    ``warmup_s`` None means that the pool is warm already, from an earlier run of the same ``cuts``.
    """
    sizes = sorted(cuts) if warmup_s is not None else []
    first = [closed_loop(pool, cuts[size], size, clock, lambda _calls, _now: False) for size in sizes]
    warmup = in_all([warm_up(pool, cuts[size], size, clock, (warmup_s or 0.0) / len(sizes)) for size in sizes])
    cpus = probe.budget().cpus
    before = read_counters(probe, cpus)
    requests = server.serve(pool, cuts, load, clock)
    after = read_counters(probe, cpus)

    figures, served = server_figures(requests, load)
    weak = too_short(len(requests), server.MIN_REQUESTS, figures.duration_s, "requests")
    weak += overload(served.offered_per_s, served.served_per_s, requests.unserved)
    weak += unsteady(_usual_service(requests), "median time of a call")
    if served.late_ms is not None:
        weak += late_generator(served.late_ms["p50"], figures.latency_ms["p50"])
    weak += unsettled(warmup.stable, warmup.duration_s)
    return Measurement(
        scenario=server.NAME,
        batch_size=max(cuts),
        figures=figures,
        warmup=warmup,
        first_call_ms=max((float(calls.latency_ms.max()) for calls in first), default=0.0),
        judgement=judged(before, after, len(cpus), figures.calls, weak),
        server=served,
    )


def closed_figures(calls: Calls, headline: str) -> Figures:
    """Return the figures of a closed loop; ``headline`` is "throughput_per_s" or a percentile's name."""
    begin_s = float(calls.start_s.min())
    # Every instance was busy until then. Calls that other instances still had under way count by their share.
    end_s = min(float(calls.end_s[calls.instance == number].max()) for number in np.unique(calls.instance))
    elapsed_s = end_s - begin_s
    samples = calls.samples_between(begin_s, end_s)
    rates = stats.window_rates(calls, begin_s, end_s, WINDOWS)
    return _figures(elapsed_s, round(samples), len(calls), calls.latency_ms, headline, samples / elapsed_s, rates)


def server_figures(requests: Requests, load: Load) -> tuple[Figures, ServerFigures]:
    """Return the figures of a server run, one sample a request, and those that only a server has."""
    latency_ms = requests.latency_ms
    begin_s, end_s = float(requests.start_s[0]), float(requests.end_s.max())
    arriving_s = float(requests.start_s[-1]) - begin_s
    # A request takes its time even on an idle server, so that much time after the last arrival is no queue.
    serving_s = max(end_s - begin_s - float(np.median(requests.service_ms)) / 1000.0, arriving_s)
    count = len(requests) - requests.unserved
    bound = load.max_latency_ms
    over = 0.0 if bound is None else float(np.mean(latency_ms > bound))
    by_completion = Calls(requests.start_s, requests.end_s, requests.instance, 1)
    rates = stats.window_rates(by_completion, begin_s, end_s, WINDOWS)
    waiting_ms, late_ms = requests.waiting_ms, requests.late_s * 1000.0
    served = ServerFigures(
        rate_per_s=load.rate_per_s,
        offered_per_s=len(requests) / arriving_s if arriving_s else load.rate_per_s,
        served_per_s=count / serving_s if serving_s else load.rate_per_s,
        requests=len(requests),
        unserved=requests.unserved,
        arrivals="poisson",
        percentile=server.PERCENTILE,
        max_latency_ms=bound,
        over_bound=None if bound is None else over,
        # Decided by counting requests, not by interpolating between two of them.
        passed=None if bound is None else over <= 1.0 - server.PERCENTILE / 100.0 and not requests.unserved,
        waiting_ms=stats.latency_summary(waiting_ms),
        waiting_ci95_ms=stats.bootstrap_95(waiting_ms),
        service_ms=stats.latency_summary(requests.service_ms),
        late_ms=stats.latency_summary(late_ms) if len(late_ms) else None,
        calls_by_size=requests.calls_by_size(),
    )
    duration_s, calls = end_s - begin_s, sum(served.calls_by_size.values())
    return _figures(duration_s, count, calls, latency_ms, server.HEADLINE, count / duration_s, rates), served


def _figures(
    duration_s: float,
    samples: int,
    calls: int,
    latency_ms: Floats,
    headline: str,
    throughput_per_s: float,
    rates: Sequence[float],
) -> Figures:
    latency = stats.latency_summary(latency_ms)
    if headline == "throughput_per_s":
        value, windows = throughput_per_s, rates
    else:
        value, windows = latency[headline], stats.window_values(latency_ms, headline, WINDOWS)
    return Figures(
        duration_s=duration_s,
        samples=samples,
        calls=calls,
        headline=headline,
        headline_value=value,
        headline_repeat95=stats.repeat_interval_95(value, windows),
        throughput_per_s=throughput_per_s,
        throughput_ci95_per_s=stats.interval_95(rates),
        windows_per_s=tuple(rates),
        latency_ms=latency,
        latency_ci95_ms=stats.bootstrap_95(latency_ms),
        percentiles=stats.percentile_curve(latency_ms),
        latency_histogram=stats.latency_histogram(latency_ms),
    )


def judged(before: Counters, after: Counters, cpus: int, calls: int, weak: Sequence[str]) -> Judgement:
    """Return what the counters say about the measured time, and the verdict from them and from ``weak``."""
    disturbed = disturbances(before, after, cpus)
    minor, major = after.minor_faults - before.minor_faults, after.major_faults - before.major_faults
    return Judgement(
        page_faults=PageFaults(minor, major, minor / calls if calls else 0.0, major / calls if calls else 0.0),
        cpu_mhz=ClockMhz(before.cpu_mhz, after.cpu_mhz),
        invalid_reasons=(*weak, *disturbed),
        disturbed=bool(disturbed),
    )


def warm_up(pool: Pool, batches: Sequence[Any], batch_size: int, clock: Clock, limit_s: float) -> Warmup:
    """Run every instance in rounds until two rounds in a row have nearly equal medians, or ``limit_s`` is over.

    At least one round runs, with at least two calls of each instance.
    """
    begin_s = clock.now()
    calls, stable, last = 0, False, math.nan
    while not stable:
        round_s = clock.now()
        done = closed_loop(pool, batches, batch_size, clock, _warm_until(round_s + _WARM_ROUND_S))
        calls += len(done)
        median = float(np.median(done.latency_ms))
        stable = abs(median - last) <= _WARM_TOLERANCE * last
        last = median
        now = clock.now()
        if now - begin_s + (now - round_s) > limit_s:
            break
    return Warmup(calls, clock.now() - begin_s, stable)


def in_all(parts: Sequence[Warmup]) -> Warmup:
    """Return several warm-ups, of one size of a call each, as one."""
    return Warmup(
        calls=sum(part.calls for part in parts),
        duration_s=sum(part.duration_s for part in parts),
        stable=all(part.stable for part in parts),
    )


def _warm_until(end_s: float) -> Callable[[int, float], bool]:
    return lambda count, now: count < _WARM_CALLS or now < end_s


def _usual_service(requests: Requests) -> list[float]:
    """Return the median time in ms of the most frequent size of call in each window; empty where calls are few."""
    service_ms = requests.service_ms
    sizes = requests.size[: len(service_ms)]
    usual = service_ms[sizes == np.bincount(sizes).argmax()]
    return stats.window_values(usual, "p50", WINDOWS) if len(usual) >= 20 * WINDOWS else []
