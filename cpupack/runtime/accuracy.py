"""How close two outputs are: the measures that the build and ``verify`` share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Interval = tuple[float, float]
"""The lower and the upper end of an interval."""
_TOGETHER = 2**22
"""Values that are taken as float64 at a time: maps of classes have billions, and three copies would not fit."""


def parts(values: Array) -> Iterator[slice]:
    """Yield slices of samples (axis 0), one at least, of so many values that float64 copies of them are small."""
    count = len(values)
    together = max(1, _TOGETHER // max(1, values.size // max(1, count)))
    for first in range(0, count, together):
        yield slice(first, first + together)


def sqnr_db(reference: Array, actual: Array) -> float:
    """Return 10 log10(sum(reference^2) / sum((reference - actual)^2)) over all values.

    Infinite when they are equal, minus infinity without any signal and for values that are not finite.
    """
    reference, actual = np.atleast_1d(reference, actual)
    signal = noise = 0.0
    for some in parts(reference):
        exact = reference[some].astype(np.float64)
        signal += float(np.square(exact).sum())
        noise += float(np.square(exact - actual[some]).sum())
    if noise == 0.0:
        return math.inf
    if signal == 0.0 or not math.isfinite(noise):
        return -math.inf
    return 10.0 * math.log10(signal / noise)


def agreement(reference: Array, actual: Array) -> float:
    """Return the share of samples (of pixels, for maps) on which both choose the same class; axis 1 is the classes."""
    axis = min(1, reference.ndim - 1)
    return float(np.mean(reference.argmax(axis=axis) == actual.argmax(axis=axis)))
