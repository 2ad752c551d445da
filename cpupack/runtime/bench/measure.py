"""Warms up, measures, judges: what every bench does with a pool, whatever the pool runs.

Knows no torch and no wall clock: both come from outside, so a fake clock drives the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..host.probe import HostProbe
from . import server, stats
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
"""With the first call, which is timed apart, three: what oneDNN and the JIT take to settle on a shape."""
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
) -> dict[str, Any]:
    """Warm up, drive a closed loop, judge.

    Returns scenario, batch_size, duration_s (every instance was busy), samples done in it, calls, throughput_per_s and
    the rest of ``closed_figures``; warmup, first_call_ms; page_faults, cpu_mhz; valid, invalid_reasons, disturbed (from
    outside the process).
    """
    first = closed_loop(pool, batches, batch_size, clock, lambda _calls, _now: False)
    warmup = warm_up(pool, batches, batch_size, clock, warmup_s)
    cpus = probe.budget().cpus
    before = read_counters(probe, cpus)
    calls = scenario.drive(pool, batches, batch_size, clock, duration_s)
    after = read_counters(probe, cpus)

    figures = closed_figures(calls, scenario.headline)
    weak = weaknesses(len(calls), scenario.min_calls, figures["duration_s"], figures["windows_per_s"])
    weak += unsettled(warmup["stable"], warmup["duration_s"])
    return {
        "scenario": scenario.name,
        "batch_size": batch_size,
        **figures,
        "warmup": warmup,
        "first_call_ms": float(first.latency_ms.max()),
        **judged(before, after, len(cpus), len(calls), weak),
    }


def measure_server(
    pool: Pool,
    cuts: Mapping[int, Sequence[Any]],
    load: Load,
    warmup_s: float | None,
    clock: Clock,
    probe: HostProbe,
) -> dict[str, Any]:
    """Warm up every size of a call, offer ``load``, judge. ``cuts`` has distinct batches for each size.

    ``warmup_s`` None means that the pool is warm already, from an earlier run of the same ``cuts``. Returns what
    ``measure`` returns, and ``server`` with what was offered, waited for, and whether it passed.
    """
    sizes = sorted(cuts) if warmup_s is not None else []
    first = [closed_loop(pool, cuts[size], size, clock, lambda _calls, _now: False) for size in sizes]
    warmups = [warm_up(pool, cuts[size], size, clock, (warmup_s or 0.0) / len(sizes)) for size in sizes]
    cpus = probe.budget().cpus
    before = read_counters(probe, cpus)
    requests = server.serve(pool, cuts, load, clock)
    after = read_counters(probe, cpus)

    figures = server_figures(requests, load)
    calls = sum(figures["server"]["calls_by_size"].values())
    weak = too_short(len(requests), server.MIN_REQUESTS, figures["duration_s"], "requests")
    weak += overload(figures["server"]["offered_per_s"], figures["server"]["served_per_s"], requests.unserved)
    weak += unsteady(_usual_service(requests), "median time of a call")
    if (late := figures["server"]["late_ms"]) is not None:
        weak += late_generator(late["p50"], figures["latency_ms"]["p50"])
    warmup = {
        "calls": sum(each["calls"] for each in warmups),
        "duration_s": sum(each["duration_s"] for each in warmups),
        "stable": all(each["stable"] for each in warmups),
    }
    weak += unsettled(warmup["stable"], warmup["duration_s"])
    return {
        "scenario": server.NAME,
        "batch_size": max(cuts),
        **figures,
        "calls": calls,
        "warmup": warmup,
        "first_call_ms": max((float(calls.latency_ms.max()) for calls in first), default=0.0),
        **judged(before, after, len(cpus), calls, weak),
    }


def closed_figures(calls: Calls, headline: str) -> dict[str, Any]:
    """Return the figures of a closed loop, ``headline`` being "throughput_per_s" or a percentile's name.

    headline, headline_value, duration_s, samples, calls, throughput_per_s, windows_per_s, latency_ms; intervals:
    throughput_ci95_per_s and latency_ci95_ms of these figures, headline_repeat95 of a second run's headline;
    percentiles [[p, ms]] and latency_histogram {edges_ms, counts}.
    """
    begin_s = float(calls.start_s.min())
    # Up to here every instance was busy; the calls that others still had under way count by their share.
    end_s = min(float(calls.end_s[calls.instance == number].max()) for number in np.unique(calls.instance))
    elapsed_s = end_s - begin_s
    samples = calls.samples_between(begin_s, end_s)
    rates = stats.window_rates(calls, begin_s, end_s, WINDOWS)
    return {
        "duration_s": elapsed_s,
        "samples": round(samples),
        "calls": len(calls),
        **_common(calls.latency_ms, headline, samples / elapsed_s, rates),
    }


def server_figures(requests: Requests, load: Load) -> dict[str, Any]:
    """Return the figures of a server run: those of ``closed_figures`` with one sample a request, and ``server``.

    ``server``: rate_per_s asked for, offered_per_s drawn, served_per_s, requests, unserved, arrivals, percentile,
    max_latency_ms, over_bound (share of the requests), passed (None without a bound), waiting_ms, waiting_ci95_ms,
    service_ms, late_ms (None when no request found an idle instance), calls_by_size.
    """
    latency_ms = requests.latency_ms
    begin_s, end_s = float(requests.start_s[0]), float(requests.end_s.max())
    arriving_s = float(requests.start_s[-1]) - begin_s
    # A request takes its time even on an idle server, so that much after the last arrival is not a queue.
    serving_s = max(end_s - begin_s - float(np.median(requests.service_ms)) / 1000.0, arriving_s)
    served = len(requests) - requests.unserved
    bound = load.max_latency_ms
    over = 0.0 if bound is None else float(np.mean(latency_ms > bound))
    by_completion = Calls(requests.start_s, requests.end_s, requests.instance, 1)
    rates = stats.window_rates(by_completion, begin_s, end_s, WINDOWS)
    waiting_ms, late_ms = requests.waiting_ms, requests.late_s * 1000.0
    return {
        "duration_s": end_s - begin_s,
        "samples": served,
        **_common(latency_ms, server.HEADLINE, served / (end_s - begin_s), rates),
        "server": {
            "rate_per_s": load.rate_per_s,
            "offered_per_s": len(requests) / arriving_s if arriving_s else load.rate_per_s,
            "served_per_s": served / serving_s if serving_s else load.rate_per_s,
            "requests": len(requests),
            "unserved": requests.unserved,
            "arrivals": "poisson",
            "percentile": server.PERCENTILE,
            "max_latency_ms": bound,
            "over_bound": None if bound is None else over,
            # By counting, so that no interpolation between two requests decides.
            "passed": None if bound is None else over <= 1.0 - server.PERCENTILE / 100.0 and not requests.unserved,
            "waiting_ms": stats.latency_summary(waiting_ms),
            "waiting_ci95_ms": {name: list(pair) for name, pair in stats.bootstrap_95(waiting_ms).items()},
            "service_ms": stats.latency_summary(requests.service_ms),
            "late_ms": stats.latency_summary(late_ms) if len(late_ms) else None,
            "calls_by_size": requests.calls_by_size(),
        },
    }


def _common(latency_ms: Floats, headline: str, throughput_per_s: float, rates: Sequence[float]) -> dict[str, Any]:
    latency = stats.latency_summary(latency_ms)
    if headline == "throughput_per_s":
        value, windows = throughput_per_s, rates
    else:
        value, windows = latency[headline], stats.window_values(latency_ms, headline, WINDOWS)
    return {
        "headline": headline,
        "headline_value": value,
        "headline_repeat95": list(stats.repeat_interval_95(value, windows)),
        "throughput_per_s": throughput_per_s,
        "throughput_ci95_per_s": list(stats.interval_95(rates)),
        "windows_per_s": list(rates),
        "latency_ms": latency,
        "latency_ci95_ms": {name: list(pair) for name, pair in stats.bootstrap_95(latency_ms).items()},
        "percentiles": stats.percentile_curve(latency_ms),
        "latency_histogram": stats.latency_histogram(latency_ms),
    }


def judged(before: Counters, after: Counters, cpus: int, calls: int, weak: Sequence[str]) -> dict[str, Any]:
    """Return what the counters tell of the measured time, and the verdict from them and from ``weak``."""
    disturbed = disturbances(before, after, cpus)
    minor, major = after.minor_faults - before.minor_faults, after.major_faults - before.major_faults
    reasons = [*weak, *disturbed]
    return {
        "page_faults": {
            "minor": minor,
            "major": major,
            "minor_per_call": minor / calls if calls else 0.0,
            "major_per_call": major / calls if calls else 0.0,
        },
        "cpu_mhz": {"begin": before.cpu_mhz, "end": after.cpu_mhz},
        "valid": not reasons,
        "invalid_reasons": reasons,
        "disturbed": bool(disturbed),
    }


def warm_up(pool: Pool, batches: Sequence[Any], batch_size: int, clock: Clock, limit_s: float) -> dict[str, Any]:
    """Run every instance in rounds until two in a row agree on the median call, or ``limit_s`` is over.

    Returns calls, duration_s, and whether it got stable. At least one round of two calls an instance runs.
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
    return {"calls": calls, "duration_s": clock.now() - begin_s, "stable": stable}


def _warm_until(end_s: float) -> Callable[[int, float], bool]:
    return lambda count, now: count < _WARM_CALLS or now < end_s


def _usual_service(requests: Requests) -> list[float]:
    """Return the median time, in ms, of the most frequent size of call in each window; none where calls are few."""
    service_ms = requests.service_ms
    sizes = requests.size[: len(service_ms)]
    usual = service_ms[sizes == np.bincount(sizes).argmax()]
    return stats.window_values(usual, "p50", WINDOWS) if len(usual) >= 20 * WINDOWS else []
