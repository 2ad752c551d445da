"""How close two outputs are: the measures that the build and ``verify`` share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Interval = tuple[float, float]
"""The lower and the upper end of an interval."""


def sqnr_db(reference: Array, actual: Array) -> float:
    """Return 10 log10(sum(reference^2) / sum((reference - actual)^2)) over all values.

    Infinite when they are equal, minus infinity without any signal and for values that are not finite.
    """
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - actual).sum())
    if noise == 0.0:
        return math.inf
    if signal == 0.0 or not math.isfinite(noise):
        return -math.inf
    return 10.0 * math.log10(signal / noise)


def agreement(reference: Array, actual: Array) -> float:
    """Return the share of samples (of pixels, for maps) on which both choose the same class; axis 1 is the classes."""
    axis = min(1, reference.ndim - 1)
    return float(np.mean(reference.argmax(axis=axis) == actual.argmax(axis=axis)))
