"""Judges whether a measurement can be believed: what else the machine did meanwhile, and how steady it was."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..host import cgroup
from ..host.frequency import cpu_mhz
from ..host.probe import HostProbe

MIN_DURATION_S = 1.0
MAX_WINDOW_SPREAD = 0.10
"""(largest - smallest) / mean of the windows' rates; an idle host stays below 0.03."""
MAX_OTHERS = 0.10
"""Share of the allowed CPUs' time that other processes may take."""
MAX_STOLEN = 0.01
"""Share of the allowed CPUs' time that the hypervisor may take."""
MAX_THROTTLED = 0.01
"""Share of the measured time that the control group may hold the process back."""
MAX_CLOCK_CHANGE = 0.10
"""Change of the CPUs' frequency from the start of the measured time to its end, as a share."""
MIN_SERVED = 0.95
"""Share of the offered rate that a server must keep up with while requests arrive."""
MAX_LATE_SHARE = 0.10
"""Median lateness of the load generator, as a share of the median latency it is part of."""

_MORE = {
    "calls": "raise --duration or lower --batch-size",
    "requests": "raise --duration",
    "queries": "raise --duration",
}


@dataclass(frozen=True)
class Counters:
    """The kernel's counters at one moment, all in seconds except ``throttled_count``.

    ``busy_s`` and ``stolen_s`` are of the allowed CPUs and all processes, None where there is no /proc/stat;
    ``own_s`` is this process's CPU time. Page faults are this process's, without I/O (minor) and with (major);
    ``cpu_mhz`` is the mean frequency of the allowed CPUs, None where the kernel does not report it.
    """

    wall_s: float
    own_s: float
    busy_s: float | None
    stolen_s: float | None
    throttled_count: int
    throttled_s: float
    minor_faults: int = 0
    major_faults: int = 0
    cpu_mhz: float | None = None


def read_counters(probe: HostProbe, cpus: frozenset[int]) -> Counters:
    """Read the counters now."""
    ticks = probe.cpu_ticks(cpus)
    count, seconds = cgroup.throttling(probe.root)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Counters(
        wall_s=time.monotonic(),
        own_s=time.process_time(),
        busy_s=ticks[0] if ticks else None,
        stolen_s=ticks[1] if ticks else None,
        throttled_count=count,
        throttled_s=seconds,
        minor_faults=usage.ru_minflt,
        major_faults=usage.ru_majflt,
        cpu_mhz=cpu_mhz(probe.root, cpus),
    )


def disturbances(before: Counters, after: Counters, cpus: int) -> list[str]:
    """Return a sentence for each thing outside the process that spoils the measurement between the two moments."""
    wall_s = after.wall_s - before.wall_s
    available_s = wall_s * cpus
    if available_s <= 0:
        return []
    found = []
    throttled_s = after.throttled_s - before.throttled_s
    if throttled_s > MAX_THROTTLED * wall_s:
        count = after.throttled_count - before.throttled_count
        found.append(
            f"CPU throttled by cgroup: held back {count} times, {throttled_s:.2f} s of {wall_s:.1f} s; "
            "use fewer threads or raise the quota"
        )
    if before.stolen_s is not None and after.stolen_s is not None:
        stolen = (after.stolen_s - before.stolen_s) / available_s
        if stolen > MAX_STOLEN:
            found.append(f"stolen time: the hypervisor took {stolen:.0%} of the CPUs (limit {MAX_STOLEN:.0%})")
    if before.busy_s is not None and after.busy_s is not None:
        others = (after.busy_s - before.busy_s - (after.own_s - before.own_s)) / available_s
        if others > MAX_OTHERS:
            found.append(f"busy host: other processes used {others * cpus:.1f} of {cpus} CPUs (limit {MAX_OTHERS:.0%})")
    if before.cpu_mhz and after.cpu_mhz:
        change = after.cpu_mhz / before.cpu_mhz - 1
        if abs(change) > MAX_CLOCK_CHANGE:
            found.append(
                f"CPU frequency moved: {before.cpu_mhz:,.0f} MHz at the start, {after.cpu_mhz:,.0f} MHz at the end "
                f"(limit {MAX_CLOCK_CHANGE:.0%}); let the host warm up or fix its clock"
            )
    return found


def weaknesses(calls: int, min_calls: int, duration_s: float, rates: Sequence[float]) -> list[str]:
    """Return a sentence for each reason to doubt the measurement itself. ``rates`` are those of equal windows."""
    return too_short(calls, min_calls, duration_s) + unsteady(rates, "throughput")


def too_short(calls: int, min_calls: int, duration_s: float, unit: str = "calls") -> list[str]:
    """Return a sentence for each way in which a measurement is too short."""
    found = []
    if duration_s < 0.99 * MIN_DURATION_S:  # the first call starts some microseconds after the clock
        found.append(f"too short: measured {duration_s:.2f} s (at least {MIN_DURATION_S:g} s)")
    if calls < min_calls:
        found.append(f"too short: {calls} {unit} (at least {min_calls}); {_MORE[unit]}")
    return found


def unsteady(values: Sequence[float], of: str) -> list[str]:
    """Return a sentence when a figure differs too much between equal windows, because the host was noisy."""
    mean = sum(values) / len(values) if values else 0.0
    spread = (max(values) - min(values)) / mean if mean > 0 else 0.0
    if spread <= MAX_WINDOW_SPREAD:
        return []
    return [
        f"unstable windows: the {of} of {len(values)} equal windows differs by {spread:.0%} "
        f"(limit {MAX_WINDOW_SPREAD:.0%})"
    ]


def unsettled(stable: bool, warmup_s: float) -> list[str]:
    """Return a sentence when the warm-up ended before call times had settled."""
    return [] if stable else [f"not warm: call times had not settled after {warmup_s:.1f} s; raise --warmup"]


def overload(offered_per_s: float, served_per_s: float, unserved: int) -> list[str]:
    """Return a sentence when requests came faster than they were served, so latency grows with the duration."""
    if served_per_s >= MIN_SERVED * offered_per_s and not unserved:
        return []
    left = f", {unserved:,} requests were never served" if unserved else ""
    return [
        f"overloaded: {served_per_s:,.1f} of {offered_per_s:,.1f} requests a second were served{left}; the queue grew "
        "for as long as requests came, so the latencies depend on the duration; lower --rate"
    ]


def late_generator(late_ms: float, latency_ms: float) -> list[str]:
    """Return a sentence when the load generator, not the model, makes up much of the median latency."""
    if late_ms <= MAX_LATE_SHARE * latency_ms:
        return []
    return [
        f"late load generator: requests that found an idle instance were handed over {late_ms:.2f} ms after their "
        f"arrival (median), and the median latency is {latency_ms:.2f} ms (limit {MAX_LATE_SHARE:.0%} of it); leave a "
        "CPU free for the load generator"
    ]


def late_client(late_ms: float, latency_ms: float) -> list[str]:
    """Return a sentence when the client of a server, not the server, makes up much of the latency at p99."""
    if late_ms <= MAX_LATE_SHARE * latency_ms:
        return []
    return [
        f"late client: requests were sent up to {late_ms:.2f} ms after their time (p99), and the latency at p99 is "
        f"{latency_ms:.2f} ms (limit {MAX_LATE_SHARE:.0%} of it); leave a CPU free for the client"
    ]


def other_place(host: Mapping[str, Any], built_on: Mapping[str, Any], built_torch: str | None) -> list[str]:
    """Return a sentence for each way in which this host differs from the build's, or is unsteady.

    ``host`` is ``host.describe()``; ``built_on`` the manifest's ``build.host``; ``built_torch`` its torch version.
    """
    found = []
    isa = built_on.get("isa")
    if isa and host.get("isa") and isa != host["isa"]:
        found.append(f"other ISA than the build: {host['isa']} here, {isa} there; other kernels run")
    torch = host.get("torch")
    if torch and built_torch and _release(torch) != _release(built_torch):
        found.append(f"other torch than the build: {torch} here, {built_torch} there; install torch=={built_torch}")
    governor = host.get("governor")
    if governor and governor != "performance":
        found.append(f"governor: the CPU frequency governor is {governor!r}, so the clock follows the load")
    return found


def _release(version: str) -> str:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return match.group() if match else version
