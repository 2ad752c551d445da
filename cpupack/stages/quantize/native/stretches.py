"""Finds constants that are a table of the model, resized to the size of a map."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.resampling import KINDS, matrix
from cpupack.runtime.engine.stretched import stretch
from cpupack.runtime.open_sizes import Terms
from cpupack.size_terms import Fit
from cpupack.stages.quantize.native.cuts import FILLED, Words

Floats = npt.NDArray[np.float32]
Grid = tuple[int, int]
CLOSE = 2e-5
"""How far a number may be from torch's, as a part of the largest one: torch finds places in float32."""
_CERTAIN = 1e-6
"""A part of the largest power that rounding to float32 leaves far below."""
_MOST_ALONE = 8
_MOST_SIDE, _LONGEST_MAP = 1024, 1 << 14


@dataclass(frozen=True)
class Laid:
    """A constant as ``alone`` places, and a map of ``rows`` x ``columns`` x ``channels`` at each size."""

    alone: int
    channels: int
    rows: Terms
    columns: Terms
    maps: tuple[Floats, ...]
    first: Floats


def grids_of(tensors: Iterable[torch.Tensor]) -> tuple[Grid, ...]:
    """Return the rows and columns that tables of positions among a model's tensors may have."""
    found = dict[Grid, None]()
    for each in tensors:
        shape = [size for size in each.shape if size > 1]
        if len(shape) == 3:  # channels and a map, in either order
            found |= dict.fromkeys([(shape[1], shape[2]), (shape[0], shape[1])])
        elif len(shape) == 2:  # places and channels
            for size in shape:
                found[1, size] = None
                for alone in range(_MOST_ALONE + 1):
                    side = math.isqrt(max(size - alone, 0))
                    if side > 1 and side * side == size - alone:
                        found[side, side] = None
    return tuple(each for each in found if max(each) <= _MOST_SIDE)


def laid(contents: Sequence[Words], lengths: Sequence[Sequence[int]], fit: Fit) -> Iterator[Laid]:
    """Yield how a constant, ``contents`` at each size, may be laid out as a map."""
    distinct = dict.fromkeys(tuple(each) for each in lengths)
    growing = [each for each in distinct if len(set(each)) > 1]
    ones = (1,) * len(contents)
    fixed = [each[0] for each in distinct if len(set(each)) == 1]
    for rows, columns, channels in itertools.product([ones, *growing], growing, dict.fromkeys([*fixed, 1])):
        places = [a * b for a, b in zip(rows, columns, strict=True)]
        alone = min(len(one) // channels - own for one, own in zip(contents, places, strict=True))
        ends = [channels * (alone + own) for own in places]
        if not 0 <= alone <= _MOST_ALONE or any(
            not 0 <= len(one) - end < FILLED or one[end:].any() for one, end in zip(contents, ends, strict=True)
        ):
            continue
        first = channels * alone
        if any(not np.array_equal(one[:first], contents[0][:first]) for one in contents):
            continue
        maps = tuple(
            one[first:end].view("<f4").reshape(a, b, channels)
            for one, end, a, b in zip(contents, ends, rows, columns, strict=True)
        )
        try:
            terms = [fit.terms(np.array(each), "a side of a map") for each in (rows, columns)]
        except QuantizationError:
            continue
        if all(np.isfinite(each).all() for each in maps):
            yield Laid(alone, channels, terms[0], terms[1], maps, contents[0][:first].view("<f4"))


def table_behind(found: Laid, largest: Floats, grids: Sequence[Grid]) -> tuple[str, Floats] | None:
    """Return how a map is made by resizing a table, and that table; None where it is not.

    ``largest`` is the map of the largest size, of which the table is computed, and has to be no larger.
    """
    rows, columns, _ = largest.shape
    if max(rows, columns) > _LONGEST_MAP:
        return None
    fewest = [_rank(largest.swapaxes(0, axis)) for axis in range(2)]
    for (height, width), kind in itertools.product(grids, KINDS):
        if not fewest[0] <= height <= rows or not fewest[1] <= width <= columns:
            continue
        back = [_back(kind, one, other) for one, other in ((height, rows), (width, columns))]
        table = np.einsum("hr,rkc,wk->hwc", back[0], largest.astype(np.float64), back[1], optimize=True)
        stored = table.astype(np.float32)
        if all(_near(stretch(stored, kind, *each.shape[:2]), each) for each in (largest, *found.maps)):
            return kind, stored
    return None


def _rank(lines: Floats) -> int:
    """Return of how many lines all are sums, at least: a table that is resized has no fewer."""
    flat = lines.reshape(len(lines), -1).astype(np.float64)
    if min(flat.shape) > _MOST_SIDE:
        return 0  # it would take longer than to look at all tables
    powers = np.linalg.eigvalsh(flat @ flat.T if len(flat) < flat.shape[1] else flat.T @ flat)
    return int((powers > _CERTAIN * powers[-1]).sum())


@functools.lru_cache(maxsize=256)
def _back(kind: str, length: int, result: int) -> npt.NDArray[np.float64]:
    """Return what makes ``length`` places of the ``result`` places that they are resized to."""
    there = matrix(kind, length, result)
    try:
        return np.asarray(np.linalg.solve(there.T @ there, there.T), np.float64)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.pinv(there), np.float64)


def _near(one: npt.NDArray[np.float64], other: Floats) -> bool:
    return bool((np.abs(one - other) <= CLOSE * np.abs(other).max()).all())
