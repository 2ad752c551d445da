"""Finds constants that rise in equal steps to the same end at any size: coordinates from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.grids import Plane, Step, divisors
from cpupack.size_terms import Fit
from cpupack.stages.quantize.native.cuts import Words, sides_of

Doubles = npt.NDArray[np.float64]
NEAR = 1e-6
"""How far a number may be from where it should, as a part of the largest one: float32 has 24 bits."""


def plane_of(
    layer: int, name: str, contents: Sequence[Words], lengths: Sequence[Sequence[int]], fit: Fit
) -> Plane | None:
    """Return the constant ``name`` of a layer, which is ``contents`` at each size, as a plane; None where it is none.

    ``lengths`` has, of each length that may be one of its sides, what it is at each size.
    """
    for sides in sides_of(contents, lengths):
        if sides[0][0] > 1:
            continue
        values = [
            one[: np.prod(side)].view("<f4").reshape(side[1:]).astype(np.float64)
            for one, side in zip(contents, sides, strict=True)
        ]
        if not all(np.isfinite(each).all() for each in values):
            continue
        flat = [_flat(each) for each in values]
        largest = max(float(np.abs(each).max()) for each in values)
        straight = [one for one in flat if one is not None]
        if len(straight) < len(flat):
            continue
        steps = _steps(np.stack(straight), np.array(sides)[:, 1:3], NEAR * largest)
        if steps is None:
            continue
        try:
            rows, columns = (
                fit.terms(np.array(one), "a side of a plane") for one in list(zip(*sides, strict=True))[1:3]
            )
        except QuantizationError:
            continue
        return Plane(layer, name, rows, columns, sides[0][3], steps[:1] if len(set(steps)) == 1 else steps)
    return None


def _flat(values: Doubles) -> Doubles | None:
    """Return first numbers and steps ``(3, channels)`` of a map ``(rows, columns, channels)``; None where it bends."""
    rows, columns, _ = values.shape
    begin = values[0, 0]
    down = (values[-1, 0] - begin) / (rows - 1) if rows > 1 else np.zeros_like(begin)
    across = (values[0, -1] - begin) / (columns - 1) if columns > 1 else np.zeros_like(begin)
    expected = begin + np.arange(rows)[:, None, None] * down + np.arange(columns)[None, :, None] * across
    near = NEAR * np.abs(values).max()
    return np.stack([begin, down, across]) if (np.abs(values - expected) <= near).all() else None


def _steps(found: Doubles, sides: npt.NDArray[np.int64], near: float) -> tuple[tuple[Step, Step, Step], ...] | None:
    """Return the law of each number of ``found`` ``(sizes, 3, channels)``; None where one has none."""
    by = np.array([divisors(*each) for each in sides.tolist()])  # (sizes, laws)
    spread = np.stack([np.ones(len(sides)), *np.maximum(sides - 1, 1).T])  # how far an error of a step goes
    whole = []
    for channel in range(found.shape[2]):
        laws = [_law(found[:, number, channel], by, near / spread[number]) for number in range(3)]
        known = [each for each in laws if each is not None]
        if len(known) < 3:
            return None
        whole.append((known[0], known[1], known[2]))
    return tuple(whole)


def _law(values: Doubles, by: Doubles, near: Doubles) -> Step | None:
    """Return the simplest law of a number at each size."""
    if (np.abs(values - values[0]) <= near).all():
        return float(values[0]), 0.0, 0
    for first in (False, True):
        for law in range(1, by.shape[1]):
            if np.ptp(by[:, law]) == 0:
                continue
            columns = np.stack([np.full(len(values), float(first)), 1 / by[:, law]], 1)
            solved = np.linalg.lstsq(columns, values, rcond=None)[0]
            if (np.abs(columns @ solved - values) <= near).all():
                return float(solved[0]), float(solved[1]), law
    return None
