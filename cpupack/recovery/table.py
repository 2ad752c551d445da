"""Trials as lines of text, at most 67 columns wide unless a label is longer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from cpupack.artifacts import Recovery, Trial
from cpupack.recovery.closeness import trial_shortfall_db

_SHOWN = 5
_LABEL = 30
_ERROR = 67 - _LABEL - 3


def recovery_table(recovery: Recovery) -> list[str]:
    """Return one line for each trial: ``*`` marks the Pareto front, ``>`` the winner."""
    lines = [_heading(recovery.trials)]
    for number, trial in enumerate(recovery.trials):
        mark = ">" if number == recovery.winner else "*" if number in recovery.pareto else " "
        lines.append(_line(trial, mark))
    return lines


def closest_table(trials: Sequence[Trial], shown: int = _SHOWN) -> list[str]:
    """Return a line for each of the trials that are closest to their gates."""
    ranked = sorted(trials, key=lambda trial: (trial_shortfall_db(trial), -_number(trial.sqnr_db)))[:shown]
    return [_heading(ranked), *(_line(trial, " ") for trial in ranked)]


def _heading(trials: Sequence[Trial]) -> str:
    labelled = any(trial.drop is not None for trial in trials)
    return f"  {'setting':<{_LABEL}} {'SQNR dB':>7} {'drop' if labelled else 'same':>6}  {'speed':>5}  gates"


def _line(trial: Trial, mark: str) -> str:
    if trial.error is not None:
        why = textwrap.shorten(trial.error.splitlines()[0], _ERROR, placeholder=" ...")
        return f"{mark} {trial.label:<{_LABEL}} {why}"
    share = trial.drop if trial.drop is not None else trial.agreement
    speed = f"{trial.speedup:.2f}x" if trial.speedup is not None else "-"
    failed = ", ".join(gate.name for gate in trial.gates if not gate.passed)
    sqnr = f"{_number(trial.sqnr_db):.1f}"
    return f"{mark} {trial.label:<{_LABEL}} {sqnr:>7} {_number(share):>6.1%}  {speed:>5}  {failed or 'hold'}"


def _number(value: float | None) -> float:
    return -math.inf if value is None else value
