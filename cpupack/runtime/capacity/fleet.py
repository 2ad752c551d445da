"""How many replicas of which shape carry a rate within a latency bound when some of them fail, and what that costs.

The model has two parts. The balancer in front of the replicas sends each request to one of them at random, so each
replica has a Poisson stream of its own (a Poisson process split at random), and queues of replicas are not shared. Each
replica is the queue of ``queueing.py``: M/D/c at batch 1, with bulk service above it. A balancer that knows who is free
does better, so the number is on the safe side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import InputError
from .planning import HTTP_MS, Candidate, highest_load, load_of, share
from .profiles import CallTime, Profile

SERVER_MS = 1.0
"""Time of the server for a request beside the kernels where both share one CPU (benchmarks/results/fleet-*.jsonl).

Its CPU time is 0.2 to 0.5 ms. On one CPU each turn between the event loop and the instance costs the caches, too.
"""
MOST_REPLICAS = 1_000_000
MODEL = (
    "the balancer chooses a replica at random, so each replica is a queue of its own, with Poisson arrivals (M/D/c at "
    f"batch 1, bulk service above); the server and the decoding of images lengthen calls, by {SERVER_MS:g} ms and "
    f"--decode-ms for each request; {HTTP_MS:g} ms of the bound are left for HTTP"
)
_HOURS_S = 3600.0


@dataclass(frozen=True)
class FleetOptions:
    """What a fleet must do: ``spare`` replicas may fail at once, ``decode_ms`` is the time to decode a request's image.

    ``cost_per_cpu_hour`` is in any currency, None without. ``images`` is a job without a bound on latency. Raises
    InputError for an impossible value.
    """

    spare: int = 1
    decode_ms: float = 0.0
    cost_per_cpu_hour: float | None = None
    images: float = 1e9

    def __post_init__(self) -> None:
        if not 0 <= self.spare <= 1000:
            raise InputError(f"--spare {self.spare}: expected a whole number, 0 to 1000")
        if not 0 <= self.decode_ms <= 60_000:
            raise InputError(f"--decode-ms {self.decode_ms:g}: expected milliseconds, 0 to 60000")
        if self.cost_per_cpu_hour is not None and not 0 <= self.cost_per_cpu_hour < math.inf:
            raise InputError(f"--cost-per-cpu-hour {self.cost_per_cpu_hour:g}: expected a number from 0")
        if not 1 <= self.images < math.inf:
            raise InputError(f"--images {self.images:g}: expected a number from 1")


@dataclass(frozen=True)
class Fleet:
    """``replicas`` of one shape carry the rate, ``spare`` of them may fail.

    ``each`` is a replica when all run, ``degraded`` one after ``spare`` failures. ``peak_per_s`` is what one carries
    within the bound. ``cpus`` are those of all.
    """

    replicas: int
    spare: int
    each: Candidate
    degraded: Candidate
    peak_per_s: float
    cost_per_hour: float | None

    @property
    def cpus(self) -> int:
        return self.replicas * self.each.cores

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``plan --fleet --json`` has for a fleet."""
        return {**dataclasses.asdict(self), "cpus": self.cpus, "cpus_of_a_replica": self.each.cores}


@dataclass(frozen=True)
class Job:
    """``images`` samples as fast as the CPUs run, each at the measured full rate of the best layout.

    ``cost`` is None without a price. ``hours_on_fleet`` is the time of the fleet that was planned, None without one.
    """

    images: float
    per_cpu_per_s: float
    cpu_hours: float
    cost: float | None
    hours_on_fleet: float | None


def plan_fleet(
    measured: Sequence[Profile], rate_per_s: float, max_latency_ms: float, options: FleetOptions
) -> tuple[Fleet, ...]:
    """Return the cheapest fleet of each size of a replica, fewest CPUs first; none where no shape holds the bound.

    Of fleets with equal CPUs the one with larger replicas comes later: losing a small one costs less.
    """
    replicas_of = [served(profile, options) for profile in measured]
    found: dict[int, Fleet] = {}
    for profile in _shapes(replicas_of):
        peak = _peak(profile, max_latency_ms - HTTP_MS)
        if peak is None:
            continue
        fleet = _of(profile, peak, rate_per_s, max_latency_ms - HTTP_MS, options)
        cores = peak.cores
        if cores not in found or _order(fleet) < _order(found[cores]):
            found[cores] = fleet
    return tuple(sorted(found.values(), key=_order))


def job(measured: Sequence[Profile], options: FleetOptions, fleet: Fleet | None) -> Job:
    """Return what ``options.images`` samples take. Batches fill here, because nobody waits for an answer."""
    best = max(
        1000.0 * call.size / (call.mean_ms + call.size * options.decode_ms) / profile.threads
        for profile in measured
        for call in profile.calls
    )
    cpu_hours = options.images / best / _HOURS_S
    price = options.cost_per_cpu_hour
    return Job(
        options.images,
        best,
        cpu_hours,
        None if price is None else price * cpu_hours,
        None if fleet is None else cpu_hours / fleet.cpus,
    )


@lru_cache(maxsize=256)
def _peak(profile: Profile, bound_ms: float) -> Candidate | None:
    """Return what one replica carries: kept, because it costs most, and other rates ask for it again."""
    return highest_load([profile], bound_ms)


def _of(profile: Profile, peak: Candidate, rate_per_s: float, bound_ms: float, options: FleetOptions) -> Fleet:
    """Return the fleet of one shape: as many as carry the rate, and the spare ones beside them."""
    needed, degraded = share(peak, profile, rate_per_s, bound_ms)
    replicas = needed + options.spare
    if replicas > MOST_REPLICAS:
        raise InputError(
            f"--rate {rate_per_s:g} needs {replicas:,} replicas; more than {MOST_REPLICAS:,} are not planned"
        )
    return Fleet(
        replicas,
        options.spare,
        load_of(profile, peak.instances, peak.batch_size, rate_per_s / replicas),
        degraded,
        peak.rate_per_s,
        None if options.cost_per_cpu_hour is None else options.cost_per_cpu_hour * replicas * peak.cores,
    )


def served(profile: Profile, options: FleetOptions) -> Profile:
    """Return the profile with what a server adds to each sample of a call."""
    extra_ms = SERVER_MS + options.decode_ms
    calls = tuple(
        CallTime(call.size, call.mean_ms + call.size * extra_ms, call.p99_ms + call.size * extra_ms)
        for call in profile.calls
    )
    return dataclasses.replace(profile, calls=calls)


def _shapes(measured: Sequence[Profile]) -> Iterator[Profile]:
    """Yield each layout with all its instances, with half of them, and so on down to one.

    The times were measured with all instances busy. They hold for a part of the host, because other replicas keep the
    rest of it busy.
    """
    for profile in measured:
        instances = profile.instances
        while instances >= 1:
            yield dataclasses.replace(profile, instances=instances)
            instances //= 2


def _order(fleet: Fleet) -> tuple[int, int, float]:
    return fleet.cpus, fleet.each.cores, fleet.degraded.p99_ms
