"""Measures how far a trial is from its gates, compares two trials, and finds the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cpupack.artifacts import Contender, Gate, Trial

SPEED_GATE = "min_speedup"
HELPED_DB = 0.1
_SMALLEST_SHARE = 1e-4
_LEAST_SHORTFALL_DB = 0.01


def shortfall_db(gates: Iterable[Gate]) -> float:
    """Return how far the gates are from holding, 0 if all hold: the sum over gates of error / allowed error in dB.

    The unit is dB because SQNR is in dB. An error of twice the allowed error is then 3 dB, for noise power, lost points
    and changed answers alike.
    """
    return sum(_gate_shortfall_db(gate) for gate in gates if not gate.passed)


def _gate_shortfall_db(gate: Gate) -> float:
    most = gate.name.startswith("max_")
    value = gate.measured
    if gate.confident and gate.ci95 is not None:  # such a gate is judged by the worse end of its interval
        value = gate.ci95[1] if most else gate.ci95[0]
    if not math.isfinite(value):
        return math.inf
    if gate.name == "min_sqnr_db":
        short = gate.bound - value
    elif most:
        short = _ratio_db(value, gate.bound)
    elif 0.0 <= value <= 1.0 and gate.bound <= 1.0:
        short = _ratio_db(1.0 - value, 1.0 - gate.bound)
    else:
        short = 10.0 * math.log10(1.0 + abs(gate.bound - value) / max(abs(gate.bound), _SMALLEST_SHARE))
    return max(short, _LEAST_SHORTFALL_DB)


def _ratio_db(error: float, allowed: float) -> float:
    return 10.0 * math.log10(max(error, _SMALLEST_SHARE) / max(allowed, _SMALLEST_SHARE))


def accurate(gates: Iterable[Gate]) -> bool:
    """Whether every gate holds, except perhaps the one on speed."""
    return all(gate.passed for gate in gates if gate.name != SPEED_GATE)


def trial_shortfall_db(trial: Trial) -> float:
    """Return ``shortfall_db`` of a trial's gates, infinite for a trial that could not be built."""
    return math.inf if trial.error is not None else shortfall_db(trial.gates)


def helped(trial: Trial, before: Trial) -> bool:
    """Whether a trial is closer to its gates, or equally close with a higher SQNR."""
    gained = trial_shortfall_db(before) - trial_shortfall_db(trial)
    if math.isnan(gained) or abs(gained) < HELPED_DB:  # inf - inf
        gained = _sqnr(trial) - _sqnr(before)
    return gained >= HELPED_DB


def closest(contenders: Sequence[Contender]) -> Contender | None:
    """Return the contender with the smallest shortfall among those that fail a gate on accuracy, or None.

    The first of equals wins. Contenders that are already too slow are left out, because no recovery makes them faster.
    """
    recoverable = [
        each
        for each in contenders
        if not accurate(each.report.gates) and all(gate.passed for gate in each.report.gates if gate.name == SPEED_GATE)
    ]
    return min(recoverable, key=lambda each: shortfall_db(each.report.gates), default=None)


def pareto_front(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Return the indices of the trials that no other trial beats.

    A trial beats another if it is at least as good in SQNR and speed, and better in one. Speeds that were not measured
    count as equal.
    """
    points = [
        (number, _sqnr(trial), trial.speedup or 0.0) for number, trial in enumerate(trials) if trial.error is None
    ]
    return tuple(
        number
        for number, sqnr, speed in points
        if not any(
            other_sqnr >= sqnr and other_speed >= speed and (other_sqnr > sqnr or other_speed > speed)
            for _, other_sqnr, other_speed in points
        )
    )


def _sqnr(trial: Trial) -> float:
    """Return the trial's SQNR, minus infinity if it has none (not built, or outputs that are not finite)."""
    return trial.sqnr_db if trial.sqnr_db is not None and not math.isnan(trial.sqnr_db) else -math.inf
