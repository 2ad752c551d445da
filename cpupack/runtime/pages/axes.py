"""The axes of charts: which place a value has, as a share of the axis' length, and which ticks are labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDE = 20.0
"""A range whose ends differ by more than this factor is drawn on a logarithmic axis."""

_DECADE = 8.0
_PERCENT_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_MAX_GAP = 0.35
"""Room after the last percentile for 100 %, which has no place on a logarithmic tail; in decades."""


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``, linear or logarithmic, with labelled ticks ``(value, text)``."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where ``value`` lies: 0 at the low end, 1 at the high one, within both."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))


@dataclass(frozen=True)
class PercentAxis:
    """Percentiles on a scale that stretches the tail: each further nine takes the same room.

    As in HdrHistogram's plots: the place of ``p`` is log10(1 / (1 - p / 100)); 100 is the right edge.
    """

    label: str
    last: float

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        shown = [(p, f"{p:g} %") for p in _PERCENT_TICKS if p <= self.last]
        return (*shown, (100.0, "max"))

    def place(self, value: float) -> float:
        """Return where percentile ``value`` lies, 0 to 1."""
        end = _nines(self.last) + _MAX_GAP
        return 1.0 if value > self.last else _nines(value) / end


def _nines(percent: float) -> float:
    return -math.log10(1.0 - percent / 100.0)


def linear(label: str, values: Sequence[float], *, zero: bool = True, room: float = 0.0) -> Axis:
    """Return a linear axis over finite ``values``, from 0 with ``zero``.

    ``room`` is left at the top, and at the bottom where that is not 0, as a share of the range.
    """
    low, high = (min(0.0, *values), max(0.0, *values)) if zero else (min(values), max(values))
    low -= 0.0 if zero else (high - low) * room
    high += (high - low) * room
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return Axis(label, ticks[0], ticks[-1], tuple((tick, tick_text(tick, step)) for tick in ticks))


def spread(label: str, values: Sequence[float]) -> Axis:
    """Return a logarithmic axis where ``values`` are above 0 and span more than ``WIDE``, else a linear one from 0."""
    low, high = min(values), max(values)
    if low <= 0.0 or high / low <= WIDE:
        return linear(label, values, room=0.04)
    return logarithmic(label, low / 1.15, high * 1.15)


def logarithmic(label: str, low: float, high: float) -> Axis:
    """Return a logarithmic axis that ends exactly at ``low`` and ``high``, both above 0."""
    if high < low * 1.05:
        low, high = low / 1.05, high * 1.05
    if high / low >= _DECADE:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [(factor * 10.0**power, factor * 10.0**power) for power in decades for factor in (1, 2, 5)]
    else:  # round numbers, since 1, 2 and 5 times a power of ten may have none here
        step = _step(high - low)
        ticks = [(number * step, step) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    shown = tuple((tick, tick_text(tick, step)) for tick, step in ticks if low <= tick <= high)
    return Axis(f"{label}, logarithmic", low, high, shown, log=True)


def tick_text(value: float, step: float) -> str:
    """Return ``value`` with as many decimals as ``step`` has, thousands separated."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:,.{decimals}f}"


def _step(span: float) -> float:
    """Return the 1, 2 or 5 times a power of ten that divides ``span`` into 4 to 9 parts."""
    power: float = 10.0 ** math.floor(math.log10(span))
    for factor in (0.1, 0.2, 0.5, 1.0):
        if span / (power * factor) <= 6.0:
            return power * factor
    return power * 2.0
