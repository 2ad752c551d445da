"""Constants that grow with the image: the places of a grid, anchors and strides of a detector.

Such a constant is a few patches one after the other, one for each level and coordinate. In a patch, a number is a first
one and steps by the row and by the column, so the patch of another size follows from its rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpupack.runtime.engine.grids import Grid, Patch
from cpupack.runtime.open_sizes import Terms

Floats = npt.NDArray[np.float32]
_MOST_PATCHES = 64
_MOST_TOGETHER = 64
"""Numbers of one place: four of each of nine anchors, and what fills them up."""
_FILLED = 16
"""A constant may end with fewer zeros than this, which no layer reads: constants begin at multiples of 64 bytes."""


@dataclass(frozen=True)
class _Found:
    """A patch of one size."""

    rows: int
    columns: int
    steps: tuple[tuple[float, float, float], ...]


def grid_of(
    layer: int, name: str, contents: Sequence[Floats], terms: Callable[[npt.NDArray[np.int64]], Terms | None]
) -> Grid | None:
    """Return the constant ``name`` of a layer, which is ``contents`` at each size, as a grid; None where it is none.

    ``terms`` returns how a number that it is given for each size changes, None for a number that changes in another
    way.
    """
    for together in range(1, _MOST_TOGETHER + 1):
        found = [_patches(each, together) for each in contents]
        if any(each is None for each in found) or len({len(each or ()) for each in found}) > 1:
            continue
        patches = [_patch(each, terms) for each in zip(*(each or () for each in found), strict=True)]
        if all(each is not None for each in patches):
            return Grid(layer, name, tuple(each for each in patches if each is not None))
    return None


def _patch(found: Sequence[_Found], terms: Callable[[npt.NDArray[np.int64]], Terms | None]) -> Patch | None:
    if len({each.steps for each in found}) > 1:
        return None  # it is another grid at another size: normalized by it, for example
    rows, columns = (terms(np.array([getattr(each, side) for each in found])) for side in ("rows", "columns"))
    return None if rows is None or columns is None else Patch(rows, columns, found[0].steps)


def _patches(content: Floats, together: int) -> list[_Found] | None:
    """Return what a constant consists of, ``together`` numbers at each place; None where that is too much."""
    last = int(np.flatnonzero(content)[-1]) + 1 if content.any() else len(content)
    end = min(-(-last // together), len(content) // together)  # without what fills the constant up
    if last > end * together or len(content) - end * together >= max(_FILLED, together):
        return None
    places = content[: end * together].reshape(-1, together).astype(np.float64)
    if not np.isfinite(places).all():
        return None
    found: list[_Found] = []
    first = 0
    while first < len(places):
        if len(found) == _MOST_PATCHES:
            return None
        found.append(_first_patch(places[first:]))
        first += found[-1].rows * found[-1].columns
    return found


def _first_patch(places: npt.NDArray[np.float64]) -> _Found:
    begin = places[0]
    across = places[1] - begin if len(places) > 1 else np.zeros_like(begin)
    columns = _equal(places, begin + np.arange(len(places))[:, None] * across)
    whole = len(places) // columns
    lines = places[: whole * columns].reshape(whole, columns, -1)
    down = lines[1, 0] - begin if whole > 1 else np.zeros_like(begin)
    rows = _equal(lines, lines[0] + np.arange(whole)[:, None, None] * down)
    if columns == 1 or rows == 1:
        down = np.zeros_like(begin)
    steps = tuple((float(a), float(b), float(c)) for a, b, c in zip(begin, down, across, strict=True))
    return _Found(rows, columns, steps)


def _equal(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> int:
    """Return how many of the first entries are as expected: one at least."""
    same = (found == expected.astype(np.float32)).reshape(len(found), -1).all(axis=1)
    return len(same) if same.all() else max(1, int(same.argmin()))
