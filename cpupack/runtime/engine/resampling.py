"""The windows and weights of ``OP_RESAMPLE`` for other sizes than those that the build measured.

They are what torch's own functions give. The build compares them, byte for byte, at each size that it lowers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

NEGLIGIBLE = 1e-9
"""A weight that rounding leaves of zero; whether it leaves any depends on the CPU that torch runs on."""
Doubles = npt.NDArray[np.float64]
Window = tuple[int, list[float]]
"""Where a window begins, and its weights."""


def linear(length: int, result: int) -> list[Window]:
    """Return the windows of linear interpolation, without ``align_corners``."""
    places: Doubles = np.maximum(length / result * (np.arange(result, dtype=np.float64) + 0.5) - 0.5, 0.0)
    return _between(places, length)


def linear_corners(length: int, result: int) -> list[Window]:
    """Return the windows of linear interpolation with ``align_corners``."""
    step = (length - 1) / (result - 1) if result > 1 else 0.0
    return _between(step * np.arange(result, dtype=np.float64), length)


def nearest(length: int, result: int) -> list[Window]:
    """Return the windows of ``nearest``, whose step torch has in float32."""
    step = np.float32(length) / np.float32(result)
    places = np.floor(np.arange(result).astype(np.float32) * step).astype(int)
    return [(int(each), [1.0]) for each in np.minimum(places, length - 1)]


def nearest_exact(length: int, result: int) -> list[Window]:
    """Return the windows of ``nearest-exact``."""
    step = np.float32(length) / np.float32(result)
    places = np.floor((np.arange(result).astype(np.float32) + np.float32(0.5)) * step).astype(int)
    return [(int(each), [1.0]) for each in np.minimum(places, length - 1)]


def adaptive(length: int, result: int) -> list[Window]:
    """Return the windows of an adaptive average."""
    bounds = [(place * length // result, -(-(place + 1) * length // result)) for place in range(result)]
    return [(begin, [1.0 / (end - begin)] * (end - begin)) for begin, end in bounds]


def cubic(length: int, result: int) -> list[Window]:
    """Return the windows of bicubic interpolation, without ``align_corners``."""
    return _between_four(length / result * (np.arange(result, dtype=np.float64) + 0.5) - 0.5, length)


def cubic_corners(length: int, result: int) -> list[Window]:
    """Return the windows of bicubic interpolation with ``align_corners``."""
    step = (length - 1) / (result - 1) if result > 1 else 0.0
    return _between_four(step * np.arange(result, dtype=np.float64), length)


def cubic_antialiased(length: int, result: int) -> list[Window]:
    """Return the windows of bicubic interpolation with ``antialias``, which are wider where values become fewer."""
    step = length / result
    wider = max(step, 1.0)
    found: list[Window] = []
    for center in (step * (np.arange(result, dtype=np.float64) + 0.5)).tolist():
        begin = max(int(center - 2 * wider + 0.5), 0)
        end = min(int(center + 2 * wider + 0.5), length)
        weights = _cubic((np.arange(begin, end) - center + 0.5) / wider, -0.5)
        found.append((begin, (weights / weights.sum()).tolist()))
    return found


KINDS: dict[str, Callable[[int, int], list[Window]]] = {
    each.__name__: each
    for each in (linear, linear_corners, nearest, nearest_exact, adaptive, cubic, cubic_corners, cubic_antialiased)
}


def matrix(kind: str, length: int, result: int) -> Doubles:
    """Return what multiplies ``length`` values to make ``result`` of them."""
    found: Doubles = np.zeros((result, length))
    for row, (begin, weights) in zip(found, KINDS[kind](length, result), strict=True):
        row[begin : begin + len(weights)] = weights
    return found


def windows(
    kind: str, lengths: tuple[int, int, int], results: tuple[int, int, int], factor: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return the windows ``(places, 3)`` and the weights of a layer, by rows, columns and frames.

    ``lengths`` and ``results`` are rows, columns and frames of its input and of its result. The weights of rows are
    times ``factor``.
    """
    table: list[tuple[int, int, int]] = []
    weights: list[float] = []
    for number, (length, result) in enumerate(zip(lengths, results, strict=True)):
        for begin, own in KINDS[kind](length, result):
            table.append((begin, len(own), len(weights)))
            weights += [each * factor for each in own] if number == 0 else own
    return np.array(table, np.int32), np.array(weights, np.float32)


def _between(places: Doubles, length: int) -> list[Window]:
    first = np.minimum(places.astype(int), length - 1)
    share = np.clip(places - first, 0.0, 1.0)
    found: list[Window] = []
    for begin, late in zip(first.tolist(), share.tolist(), strict=True):
        if begin == length - 1 or late <= NEGLIGIBLE:
            found.append((begin, [1.0]))
        elif late >= 1.0 - NEGLIGIBLE:
            found.append((begin + 1, [1.0]))
        else:
            found.append((begin, [1.0 - late, late]))
    return found


def _between_four(places: Doubles, length: int) -> list[Window]:
    """Return windows of four neighbours. Beyond an end the last value counts again."""
    found: list[Window] = []
    for place in places.tolist():
        four = math.floor(place) + np.arange(-1, 3)
        whole = np.zeros(length)
        np.add.at(whole, np.clip(four, 0, length - 1), _cubic(place - four, -0.75))
        used = np.flatnonzero(whole)
        found.append((int(used[0]), whole[used[0] : used[-1] + 1].tolist()))
    return found


def _cubic(distances: Doubles, bend: float) -> Doubles:
    """Return the weights of values at distances (R. Keys, Cubic convolution interpolation, 1981)."""
    x = np.abs(distances)
    near = ((bend + 2) * x - (bend + 3)) * x * x + 1
    far = ((bend * x - 5 * bend) * x + 8 * bend) * x - 4 * bend
    found: Doubles = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return found
