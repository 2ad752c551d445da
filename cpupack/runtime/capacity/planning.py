"""Which setting carries a rate of requests within a latency bound, or how many hosts would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..bench.server import shapes_up_to
from ..bench.text import layout_text
from .profiles import CallTime, Profile
from .queueing import REQUESTS, simulate

MAX_UTILISATION = 0.8
"""Largest share of the saturated rate to plan for: above it, a little more load makes queues much longer."""
HTTP_MS = 1.0
"""Allowance for what is neither decoding nor the model, when a server's promise is checked and a rate is planned."""
_RATE_STEP = 0.01
"""Precision of the highest rate, as a share of the rate at full utilisation."""

MODEL = (
    f"requests arrive at random (Poisson); a free instance takes the waiting ones, up to the batch size, as "
    f"`bench --scenario server` does; calls take the time that tuning measured (at batch 1 this is the queue M/D/c); "
    f"{REQUESTS:,} requests are simulated; the time by which the p99 of a call exceeds its mean is added; "
    f"utilisation is at most {MAX_UTILISATION:.0%}"
)


@dataclass(frozen=True)
class Candidate:
    """A setting under a load of ``rate_per_s``, which is the share ``utilisation`` of ``capacity_per_s``.

    ``p99_ms`` is from arrival to answer; ``waiting_ms`` is the mean time until a request's call begins.
    """

    threads: int
    instances: int
    batch_size: int
    rate_per_s: float
    capacity_per_s: float
    utilisation: float
    waiting_ms: float
    p99_ms: float

    @property
    def cores(self) -> int:
        return self.threads * self.instances

    def __str__(self) -> str:
        return f"{layout_text(self.threads, self.instances)}, batch up to {self.batch_size}"


@dataclass(frozen=True)
class CapacityPlan:
    """The answer for one rate and bound, without facts of the host.

    ``feasible`` means that one host is enough. ``setting`` is that of each host. It and ``hosts`` are None where no
    number of hosts would do. ``peak_per_s`` is the highest rate of one host within the bound.
    """

    rate_per_s: float
    max_latency_ms: float
    feasible: bool
    setting: Candidate | None
    hosts: int | None
    peak_per_s: float
    reasons: tuple[str, ...]


def plan_capacity(measured: Sequence[Profile], rate_per_s: float, max_latency_ms: float) -> CapacityPlan:
    """Return the cheapest setting that carries the rate within the bound, or the number of hosts that do."""
    found = [
        candidate
        for profile in measured
        for call in profile.calls
        if (candidate := _fewest_instances(profile, call, rate_per_s, max_latency_ms)) is not None
    ]
    best, peak = min(found, key=_cost, default=None), highest_load(measured, max_latency_ms)
    if best is not None:
        reasons = (f"{best} is the smallest setting that does: {_why(best)}.", *_alternatives(best, found, measured))
        peak_per_s = max(rate_per_s, peak.rate_per_s if peak else 0.0)
        return CapacityPlan(rate_per_s, max_latency_ms, True, best, 1, peak_per_s, reasons)
    if peak is None:
        fastest = min((call for one in measured for call in one.calls), key=lambda call: call.p99_ms)
        reason = (
            f"The fastest call measured, of {fastest.size} samples, has a p99 of {fastest.p99_ms:.1f} ms even without "
            "waiting, so no number of hosts helps. Smaller batches or more threads may: tune with --objective latency."
        )
        return CapacityPlan(rate_per_s, max_latency_ms, False, None, None, 0.0, (reason,))
    profile = next(one for one in measured if (one.threads, one.instances) == (peak.threads, peak.instances))
    hosts, each = share(peak, profile, rate_per_s, max_latency_ms)
    reasons = (
        f"This host carries {peak.rate_per_s:.1f}/s at most: {peak}, {_why(peak)}.",
        f"{hosts} hosts like this carry {rate_per_s:g}/s, {rate_per_s / hosts:.1f}/s each: {_why(each)}.",
    )
    return CapacityPlan(rate_per_s, max_latency_ms, False, each, hosts, peak.rate_per_s, reasons)


def _fewest_instances(profile: Profile, call: CallTime, rate_per_s: float, max_latency_ms: float) -> Candidate | None:
    """Return the setting with the fewest instances that carries the rate in batches of at most ``call.size``, or None.

    With fewer busy instances than were measured, each is at least as fast, so the measured times hold as bounds.
    """
    low = math.ceil(rate_per_s * call.mean_ms / 1000.0 / call.size / MAX_UTILISATION)
    high = profile.instances
    if low > high:
        return None
    best = load_of(profile, high, call.size, rate_per_s)
    if best.p99_ms > max_latency_ms:
        return None
    low = max(1, low)
    while low < high:
        middle = (low + high) // 2
        tried = load_of(profile, middle, call.size, rate_per_s)
        if tried.p99_ms <= max_latency_ms:
            best, high = tried, middle
        else:
            low = middle + 1
    return best


def highest_load(measured: Sequence[Profile], max_latency_ms: float) -> Candidate | None:
    """Return the setting that carries the highest rate within the bound, at that rate; None where there is none."""
    best: Candidate | None = None
    pairs = [(profile, call) for profile in measured for call in profile.calls]
    for profile, call in sorted(pairs, key=lambda pair: _saturated_per_s(*pair), reverse=True):
        most_per_s = MAX_UTILISATION * _saturated_per_s(profile, call)
        if best is not None and most_per_s <= best.rate_per_s:
            break
        found = _highest_rate(profile, call.size, most_per_s, max_latency_ms)
        if found is not None and (best is None or found.rate_per_s > best.rate_per_s):
            best = found
    return best


def _highest_rate(profile: Profile, size: int, most_per_s: float, max_latency_ms: float) -> Candidate | None:
    """Return the highest rate up to ``most_per_s`` within the bound, by bisection."""
    at_most = load_of(profile, profile.instances, size, most_per_s)
    if at_most.p99_ms <= max_latency_ms:
        return at_most
    best = None
    low, high = 0.0, most_per_s
    while high - low > _RATE_STEP * most_per_s:
        middle = (low + high) / 2
        tried = load_of(profile, profile.instances, size, middle)
        if tried.p99_ms <= max_latency_ms:
            best, low = tried, middle
        else:
            high = middle
    return best


def load_of(profile: Profile, instances: int, size: int, rate_per_s: float) -> Candidate:
    """Return a layout with ``instances`` and batches up to ``size`` at a rate, with the times of the queueing model."""
    of_size = next(call for call in profile.calls if call.size == size)
    call_s = {shape: profile.call_ms(shape) / 1000.0 for shape in shapes_up_to(size)}
    queue = simulate(rate_per_s, instances, call_s)
    capacity_per_s = 1000.0 * size * instances / of_size.mean_ms
    return Candidate(
        threads=profile.threads,
        instances=instances,
        batch_size=size,
        rate_per_s=rate_per_s,
        capacity_per_s=capacity_per_s,
        utilisation=rate_per_s / capacity_per_s,
        waiting_ms=1000.0 * float(np.mean(queue.waiting_s)),
        p99_ms=1000.0 * float(np.percentile(queue.latency_s, 99)) + of_size.p99_ms - of_size.mean_ms,
    )


def share(peak: Candidate, profile: Profile, rate_per_s: float, max_latency_ms: float) -> tuple[int, Candidate]:
    """Return how many like ``peak`` carry the rate within the bound when they share it evenly, and the load of one.

    Less load is hardly ever slower. Where smaller batches make it so, a few more are tried.
    """
    fewest = math.ceil(rate_per_s / peak.rate_per_s)
    for number in range(fewest, 2 * fewest + 10):
        each = load_of(profile, peak.instances, peak.batch_size, min(rate_per_s / number, peak.rate_per_s))
        if each.p99_ms <= max_latency_ms:
            break
    return number, each


def _saturated_per_s(profile: Profile, call: CallTime) -> float:
    return 1000.0 * call.size * profile.instances / call.mean_ms


def _cost(candidate: Candidate) -> tuple[int, int, float]:
    """Return what to minimise: cores first, then the batch, then the latency."""
    return candidate.cores, candidate.batch_size, candidate.p99_ms


def _why(candidate: Candidate) -> str:
    if candidate.utilisation >= 1.0:
        return f"overloaded, {candidate.rate_per_s:g}/s arrive and {candidate.capacity_per_s:.1f}/s can be served"
    return f"utilisation {candidate.utilisation:.0%}, p99 {candidate.p99_ms:.1f} ms"


def _alternatives(best: Candidate, found: Sequence[Candidate], measured: Sequence[Profile]) -> list[str]:
    """Return a sentence on one instance less, and one on the setting of lowest latency where that is another one."""
    reasons = []
    if best.instances > 1:
        full = next(
            one
            for one in measured
            if one.threads == best.threads
            and one.instances >= best.instances
            and any(call.size == best.batch_size for call in one.calls)
        )
        fewer = load_of(full, best.instances - 1, best.batch_size, best.rate_per_s)
        reasons.append(f"With one instance less: {_why(fewer)}.")
    quickest = min(found, key=lambda one: one.p99_ms)
    if quickest.p99_ms < 0.9 * best.p99_ms:
        reasons.append(f"{quickest} would answer sooner: {_why(quickest)}.")
    return reasons
