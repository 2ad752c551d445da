"""Tells whether one setting is really faster than another, or whether the difference is noise.

Settings are measured in rounds, each of them once a round, so whatever slows the host for a while slows all of them.
This is a randomized block design with rounds as blocks (NIST/SEMATECH e-Handbook of Statistical Methods, 5.3.3.2). The
additive model ``log(value) = setting + round + noise`` is fitted by least squares; missing measurements are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key", bound=Hashable)

_T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)
"""One-sided 95 % quantiles of Student's t by degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2)."""
_NORMAL95 = 1.645


@dataclass(frozen=True)
class Fit(Generic[Key]):
    """Fitted settings. ``level`` has the logarithm of each setting's value, ``covariance`` is that of the levels.

    ``noise`` is the standard deviation of one measurement as a share, estimated with ``degrees`` of freedom.
    """

    level: dict[Key, float]
    noise: float
    degrees: int
    covariance: npt.NDArray[np.float64]

    def gain(self, one: Key, other: Key) -> float:
        """Return by what share ``one`` is better than ``other``; negative when worse."""
        return math.exp(self.level[one] - self.level[other]) - 1.0

    def margin(self, one: Key, other: Key) -> float:
        """Return the share by which ``one`` must be better, so that chance explains it in at most 1 of 20 cases."""
        keys = list(self.level)
        a, b = keys.index(one), keys.index(other)
        variance = self.covariance[a, a] + self.covariance[b, b] - 2 * self.covariance[a, b]
        return math.exp(_t95(self.degrees) * math.sqrt(max(0.0, float(variance)))) - 1.0

    def beats(self, one: Key, other: Key) -> bool:
        """Return whether ``one`` is better than ``other`` by more than the noise."""
        return self.gain(one, other) > self.margin(one, other)


def fit(measured: Sequence[tuple[Key, int, float]]) -> Fit[Key] | None:
    """Fit ``(setting, round, value above 0)``; None while there are too few values to know the noise.

    At least two settings and two rounds are needed, because a single measurement of each shows no noise.
    """
    keys = list(dict.fromkeys(key for key, _, _ in measured))
    rounds = list(dict.fromkeys(number for _, number, _ in measured))
    degrees = len(measured) - (len(keys) + len(rounds) - 1)
    if len(keys) < 2 or degrees < 1:
        return None
    # One round is the reference, so the levels are those of that round.
    design = np.zeros((len(measured), len(keys) + len(rounds) - 1))
    for row, (key, number, _) in enumerate(measured):
        design[row, keys.index(key)] = 1.0
        if number != rounds[0]:
            design[row, len(keys) + rounds.index(number) - 1] = 1.0
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    values = np.log([value for _, _, value in measured])
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ values
    residual = values - design @ found
    variance = float(residual @ residual) / degrees
    level = dict(zip(keys, map(float, found), strict=False))
    covariance = np.asarray(variance * inverse[: len(keys), : len(keys)], np.float64)
    return Fit(level, math.sqrt(variance), degrees, covariance)


def _t95(degrees: int) -> float:
    return _T95[degrees - 1] if degrees <= len(_T95) else _NORMAL95 * (1 + 1 / (4 * degrees) * (_NORMAL95**2 + 1))
