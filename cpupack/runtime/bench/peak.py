"""The search for the highest rate that a server takes within its latency bound: bracket, then bisection."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median_low
from typing import Any

TOLERANCE = 0.05
"""The search ends when the lowest rate that failed is at most this share above the highest that passed."""
ATTEMPTS = 3
"""Runs of one rate, with different arrivals; most of them decide, so two that agree are enough."""
CAPACITY_S = 1.0
"""How long the saturated pool is measured for the first guess."""

_FIRST_GUESS = 0.7
"""Of the saturated rate: what a queue of random arrivals takes at moderate latency."""
_STEP, _MOST_STEPS = 1.5, 12

TryRate = Callable[[float, int], dict[str, Any]]
"""(rate_per_s, attempt) -> result of ``measure_server``."""


def find_peak(try_rate: TryRate, capacity_per_s: float) -> dict[str, Any]:
    """Return the result of the best rate, with ``peak`` added.

    From a guess, the rate is raised or lowered by half until one passes and one fails, then bisected (geometrically) to
    ``TOLERANCE``. Each rate runs until two of three runs agree. ``peak``: rate_per_s (0 when even the lowest tried
    fails; the result is then that rate's), fails_at_per_s (None when nothing failed), tolerance, max_latency_ms, runs.
    """
    runs: list[dict[str, Any]] = []
    results: dict[float, list[dict[str, Any]]] = {}

    def passes(rate_per_s: float) -> bool:
        found = results.setdefault(rate_per_s, [])
        needed = ATTEMPTS // 2 + 1
        while True:
            passed = sum(bool(result["server"]["passed"]) for result in found)
            if passed >= needed or len(found) - passed >= needed:
                return passed >= needed
            found.append(try_rate(rate_per_s, len(found)))
            runs.append(row(found[-1]))

    low, high = _bracket(passes, _FIRST_GUESS * capacity_per_s)
    while low is not None and high is not None and high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        if passes(middle):
            low = middle
        else:
            high = middle
    best = low if low is not None else min(results)
    of_best = [result for result in results[best] if result["server"]["passed"] == (low is not None)]
    typical = median_low(result["headline_value"] for result in of_best)
    chosen = next(result for result in of_best if result["headline_value"] == typical)
    reasons = list(chosen["invalid_reasons"])
    if low is not None and high is None:
        reasons.append(f"no limit found: every rate up to {best:,.1f}/s passed")
    return {
        **chosen,
        "valid": not reasons,
        "invalid_reasons": reasons,
        "peak": {
            "rate_per_s": low or 0.0,
            "fails_at_per_s": high,
            "tolerance": TOLERANCE,
            "max_latency_ms": chosen["server"]["max_latency_ms"],
            "runs": runs,
        },
    }


def _bracket(passes: Callable[[float], bool], guess_per_s: float) -> tuple[float | None, float | None]:
    """Return a rate that passes and a higher one that fails; None for the one that was not found."""
    rate, upward = guess_per_s, passes(guess_per_s)
    for _ in range(_MOST_STEPS):
        following = rate * _STEP if upward else rate / _STEP
        if passes(following) != upward:
            return (rate, following) if upward else (following, rate)
        rate = following
    return (rate, None) if upward else (None, rate)


def row(result: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of one run."""
    return {
        "rate_per_s": result["server"]["rate_per_s"],
        "p99_ms": result["latency_ms"]["p99"],
        "over_bound": result["server"]["over_bound"],
        "requests": result["server"]["requests"],
        "passed": result["server"]["passed"],
        "valid": result["valid"],
    }


def row_text(run: dict[str, Any]) -> str:
    """Return one run as a line."""
    verdict = "PASS" if run["passed"] else "FAIL"
    return f"{run['rate_per_s']:,.1f} requests/s: p99 {run['p99_ms']:.1f} ms, {run['over_bound']:.2%} late, {verdict}"
