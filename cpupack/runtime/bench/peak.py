"""Searches the highest rate that a server takes within its latency bound: bracket, then bisection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import median_low

from .results import Measurement, Peak, PeakRun, ServerFigures

TOLERANCE = 0.05
"""The search ends when the lowest rate that failed is at most this share above the highest that passed."""
ATTEMPTS = 3
"""Runs of one rate, each with other arrivals. The majority decides, so two that agree are enough."""
CAPACITY_S = 1.0
"""How long the saturated pool is measured for the first guess."""

_FIRST_GUESS = 0.7
"""Share of the saturated rate that a queue of random arrivals takes at moderate latency."""
_STEP, _MOST_STEPS = 1.5, 12

TryRate = Callable[[float, int], Measurement]
"""(rate_per_s, attempt) -> result of ``measure_server``."""


def find_peak(try_rate: TryRate, capacity_per_s: float) -> Measurement:
    """Return the measurement of the best rate, with ``peak`` added; of the lowest rate tried if none passes.

    From a guess, the rate is raised or lowered by half until one rate passes and one fails. Then it is bisected
    (geometrically) to ``TOLERANCE``. Each rate is run until two of three runs agree.
    """
    runs: list[PeakRun] = []
    results: dict[float, list[Measurement]] = {}

    def passes(rate_per_s: float) -> bool:
        found = results.setdefault(rate_per_s, [])
        needed = ATTEMPTS // 2 + 1
        while True:
            passed = sum(_passed(result) for result in found)
            if passed >= needed or len(found) - passed >= needed:
                return passed >= needed
            found.append(try_rate(rate_per_s, len(found)))
            runs.append(peak_run(found[-1]))

    low, high = _bracket(passes, _FIRST_GUESS * capacity_per_s)
    while low is not None and high is not None and high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        if passes(middle):
            low = middle
        else:
            high = middle
    best = low if low is not None else min(results)
    of_best = [result for result in results[best] if _passed(result) == (low is not None)]
    typical = median_low(result.figures.headline_value for result in of_best)
    chosen = next(result for result in of_best if result.figures.headline_value == typical)
    judgement = chosen.judgement
    if low is not None and high is None:
        reason = f"no limit found: every rate up to {best:,.1f}/s passed"
        judgement = dataclasses.replace(judgement, invalid_reasons=(*judgement.invalid_reasons, reason))
    peak = Peak(low or 0.0, high, TOLERANCE, _served(chosen).max_latency_ms, tuple(runs))
    return dataclasses.replace(chosen, judgement=judgement, peak=peak)


def _bracket(passes: Callable[[float], bool], guess_per_s: float) -> tuple[float | None, float | None]:
    """Return a rate that passes and a higher one that fails, None in place of one that was not found."""
    rate, upward = guess_per_s, passes(guess_per_s)
    for _ in range(_MOST_STEPS):
        following = rate * _STEP if upward else rate / _STEP
        if passes(following) != upward:
            return (rate, following) if upward else (following, rate)
        rate = following
    return (rate, None) if upward else (None, rate)


def peak_run(result: Measurement) -> PeakRun:
    """Return the summary of one run."""
    served = _served(result)
    return PeakRun(
        rate_per_s=served.rate_per_s,
        p99_ms=result.figures.latency_ms["p99"],
        over_bound=served.over_bound,
        requests=served.requests,
        passed=_passed(result),
        valid=result.valid,
    )


def _served(result: Measurement) -> ServerFigures:
    if result.server is None:
        raise ValueError(f"a search for the highest rate measures the server scenario, not {result.scenario}")
    return result.server


def _passed(result: Measurement) -> bool:
    return bool(_served(result).passed)
