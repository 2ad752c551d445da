"""Whether a measurement can be believed: what else the machine did meanwhile, and how steady it was."""

from __future__ import annotations

import time
from dataclasses import dataclass

from . import cgroup
from .host import HostProbe

MIN_DURATION_S = 1.0
MAX_WINDOW_SPREAD = 0.10
"""(largest - smallest) / mean of the windows' rates; an idle host stays below 0.03."""
MAX_OTHERS = 0.10
"""Share of the allowed CPUs' time that other processes may take."""
MAX_STOLEN = 0.01
"""Share of the allowed CPUs' time that the hypervisor may take."""
MAX_THROTTLED = 0.01
"""Share of the measured time that the control group may hold the process back."""


@dataclass(frozen=True)
class Counters:
    """The kernel's counters at one moment, all in seconds except ``throttled_count``.

    ``busy_s`` and ``stolen_s`` are of the allowed CPUs and all processes, None where there is no /proc/stat;
    ``own_s`` is this process's CPU time.
    """

    wall_s: float
    own_s: float
    busy_s: float | None
    stolen_s: float | None
    throttled_count: int
    throttled_s: float


def read_counters(probe: HostProbe, cpus: frozenset[int]) -> Counters:
    """Read the counters now."""
    ticks = probe.cpu_ticks(cpus)
    count, seconds = cgroup.throttling(probe.root)
    return Counters(
        wall_s=time.monotonic(),
        own_s=time.process_time(),
        busy_s=ticks[0] if ticks else None,
        stolen_s=ticks[1] if ticks else None,
        throttled_count=count,
        throttled_s=seconds,
    )


def disturbances(before: Counters, after: Counters, cpus: int) -> list[str]:
    """Return a sentence for each thing outside the process that spoils what was measured between the two."""
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
    return found


def weaknesses(calls: int, min_calls: int, duration_s: float, rates: list[float]) -> list[str]:
    """Return a sentence for each reason to doubt the measurement itself."""
    found = []
    if duration_s < 0.99 * MIN_DURATION_S:  # the first call starts microseconds after the clock does
        found.append(f"too short: measured {duration_s:.2f} s (at least {MIN_DURATION_S:g} s)")
    if calls < min_calls:
        found.append(f"too short: {calls} calls (at least {min_calls}); raise --duration or lower --batch-size")
    mean = sum(rates) / len(rates)
    if mean > 0:
        spread = (max(rates) - min(rates)) / mean
        if spread > MAX_WINDOW_SPREAD:
            found.append(
                f"unstable windows: the throughput of {len(rates)} equal windows differs by {spread:.0%} "
                f"(limit {MAX_WINDOW_SPREAD:.0%})"
            )
    return found
