"""Finds constants that are a table of the model, resized to the size of a map."""

from __future__ import annotations

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
_MOST_ALONE = 8
_MOST_SIDE = 1024


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
    for (height, width), kind in itertools.product(grids, KINDS):
        if height > rows or width > columns:
            continue
        back = [np.linalg.pinv(matrix(kind, one, other)) for one, other in ((height, rows), (width, columns))]
        table = np.einsum("hr,rkc,wk->hwc", back[0], largest.astype(np.float64), back[1], optimize=True)
        stored = table.astype(np.float32)
        if all(_near(stretch(stored, kind, *each.shape[:2]), each) for each in (largest, *found.maps)):
            return kind, stored
    return None


def _near(one: npt.NDArray[np.float64], other: Floats) -> bool:
    return bool((np.abs(one - other) <= CLOSE * np.abs(other).max()).all())
