"""The steps to which values are rounded before a table of their function: chosen so that its errors cancel out.

A table gives each of 256 inputs the nearest code of the result. Near zero a SiLU has half its slope, so there the steps
of input and result may drift apart slowly, and a dozen neighbouring codes are all rounded in the same direction. Such
an error is the same at every position of a channel: no average takes it out, as it does with other rounding. A range
that is a little wider has other steps, which drift apart elsewhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpupack.stages.quantize.native.builder import covering
from cpupack.stages.quantize.native.functions import Function, results_of, table_of, useful_range
from cpupack.stages.quantize.native.program import Buffer, Size
from cpupack.statistics import ActivationStats

_WIDEST, _RANGES = 1.12, 25
"""The widest range that is tried, and how many there are up to it."""
_COMMON = 10.0
"""What an error that neighbours have in common counts beside the others: the square is averaged over so many values."""
_NEIGHBOURS = 0.5
"""The width of a neighbourhood of values, in standard deviations: channels vary in less than all of them together."""
_POINTS = 1024

Array = npt.NDArray[np.float64]


def input_grid(function: Function, stats: ActivationStats, limits: tuple[float, float], result: Buffer) -> Buffer:
    """Return a buffer with scale and zero point of the codes before a table, whose results have those of ``result``.

    ``stats`` are those of the values before the function, and ``limits`` the range that the observer has chosen.
    """
    low, high = useful_range(function, limits, result)
    values, shares = _histogram(stats)
    exact = results_of(function, values)
    mean = float(shares @ values)
    width = _NEIGHBOURS * float(shares @ (values - mean) ** 2) ** 0.5
    begins, ends = (np.searchsorted(values, values + side * width / 2) for side in (-1, 1))
    grids = [covering(Size(1, 1, 1), (low * wider, high * wider)) for wider in np.linspace(1.0, _WIDEST, _RANGES)]
    return min(grids, key=lambda grid: _error(function, grid, result, values, shares, exact, begins, ends))


def _histogram(stats: ActivationStats) -> tuple[Array, Array]:
    """Return at most ``_POINTS`` values in order, and the share that each has of all."""
    edges, counts = stats.occupied()
    together = -(-len(counts) // _POINTS)
    begins = np.arange(0, len(counts), together)
    sums = np.add.reduceat(counts, begins)
    centers = np.add.reduceat(counts * (edges[:-1] + edges[1:]) / 2.0, begins) / np.maximum(sums, 1.0)
    seen = sums > 0
    return centers[seen], sums[seen] / sums.sum()


def _error(
    function: Function, grid: Buffer, result: Buffer, values: Array, shares: Array, exact: Array,
    begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64],
) -> float:  # fmt: skip
    """Return the mean squared error of a table's results, where an error that neighbours share counts more."""
    codes = np.clip(np.rint(values / grid.scale) + grid.zero_point, 0, 255).astype(np.int64)
    found = (table_of(function, grid, result)[codes].astype(np.float64) - result.zero_point) * result.scale
    errors = shares * (found - exact)
    error_before, share_before = (np.concatenate([[0.0], np.cumsum(each)]) for each in (errors, shares))
    ends = np.maximum(ends, begins + 1)
    common = (error_before[ends] - error_before[begins]) / np.maximum(share_before[ends] - share_before[begins], 1e-12)
    return float(errors @ (found - exact) + _COMMON * (shares @ common**2))
