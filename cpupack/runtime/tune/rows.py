"""Rows: what the search has measured so far, and the figures by which it ranks settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median_high, median_low
from typing import Any

from .noise import Fit, fit
from .space import Setting


@dataclass(frozen=True)
class Row:
    """One measurement of a setting. ``round`` is 0 for a probe, from 1 in the finals.

    ``fields`` are those of the bench's JSON, empty where the measurement failed with ``error``. ``cost_s``
    is the time that the measurement took in all.
    """

    setting: Setting
    round: int
    cost_s: float
    fields: Mapping[str, Any]
    error: str | None = None

    @property
    def throughput_per_s(self) -> float:
        return float(self.fields["throughput_per_s"])

    @property
    def p50_ms(self) -> float:
        return float(self.fields["latency_ms"]["p50"])

    @property
    def p99_ms(self) -> float:
        return float(self.fields["latency_ms"]["p99"])

    @property
    def duration_s(self) -> float | None:
        """The measured time, None where the bench did not give it."""
        return self.fields.get("duration_s")

    @property
    def disturbed(self) -> bool:
        """Whether something outside the bench took CPU time meanwhile."""
        return bool(self.fields.get("disturbed"))

    def to_dict(self) -> dict[str, Any]:
        """Return the row as tables keep it: the setting, the round, the bench's fields or the error, the cost."""
        head = {**asdict(self.setting), "round": self.round}
        if self.error is not None:
            return {**head, "error": self.error, "cost_s": self.cost_s}
        return {**head, **self.fields, **head, "cost_s": self.cost_s}


@dataclass
class Rows:
    """Every measurement in order, and the valid ones of each setting that never failed.

    ``objective`` is ``throughput`` or ``latency``; ``max_latency_ms`` is the bound on the p99, None without one.
    """

    objective: str
    max_latency_ms: float | None
    all: list[Row] = field(default_factory=list)
    good: dict[Setting, list[Row]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Keep a row. A setting that fails once is never chosen, however fast it was before."""
        failed_before = any(earlier.error is not None for earlier in self.of(row.setting))
        self.all.append(row)
        if row.error is not None:
            self.good.pop(row.setting, None)
        elif not failed_before:
            self.good.setdefault(row.setting, []).append(row)

    def of(self, setting: Setting) -> list[Row]:
        """Return every measurement of a setting, failed ones included."""
        return [row for row in self.all if row.setting == setting]

    def final_runs(self, setting: Setting) -> int:
        """Return how often a setting was measured in the finals."""
        return sum(bool(row.round) for row in self.of(setting))

    @property
    def disturbed(self) -> int:
        """The number of measurements that other work disturbed."""
        return count_disturbed(self.all)

    def value(self, setting: Setting) -> float:
        """Return the figure to maximise: samples a second, or requests a second at the p99 latency."""
        return 1000.0 / self.p99_ms(setting) if self.objective == "latency" else self.rate_per_s(setting)

    def rate_per_s(self, setting: Setting) -> float:
        """Return the median throughput; of an even number of runs the better middle one: a disturbance only slows."""
        return median_high(row.throughput_per_s for row in undisturbed(self.good[setting]))

    def p99_ms(self, setting: Setting) -> float:
        """Return the median p99; of an even number of runs the better middle one."""
        return median_low(row.p99_ms for row in undisturbed(self.good[setting]))

    def meets(self, setting: Setting) -> bool:
        """Return whether a setting has results and keeps the bound."""
        if setting not in self.good:
            return False
        return self.max_latency_ms is None or self.p99_ms(setting) <= self.max_latency_ms

    def feasible(self) -> list[Setting]:
        """Return the settings that may be chosen."""
        return [setting for setting in self.good if self.meets(setting)]

    def rank(self, setting: Setting) -> tuple[bool, float]:
        """Return a sort key: settings within the bound by value, then those above it by p99, then the rest."""
        if setting not in self.good:
            return False, -math.inf
        meets = self.meets(setting)
        return meets, self.value(setting) if meets else -self.p99_ms(setting)

    def fit(self, settings: Sequence[Setting]) -> Fit[Setting] | None:
        """Fit what the finals measured of ``settings``; None while there are too few runs to know the noise."""
        return fit(
            [
                (setting, row.round, 1000.0 / row.p99_ms if self.objective == "latency" else row.throughput_per_s)
                for setting in settings
                for row in undisturbed([row for row in self.good.get(setting, []) if row.round])
            ]
        )


def undisturbed(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows that nothing disturbed, all rows where there is none."""
    return [row for row in rows if not row.disturbed] or rows


def count_disturbed(rows: Sequence[Row]) -> int:
    """Return how many rows other work disturbed."""
    return sum(row.disturbed for row in rows)
