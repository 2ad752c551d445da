"""Rows of a detector's proposals, brought to one order: two engines propose the same boxes, but not in the same order.

Row i of one answer and row i of another are different boxes wherever two scores were nearly equal. So each box of the
first answer is compared with the box of the second one that overlaps it most.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_TINY = np.float32(1e-12)


def nearest_rows(reference: Floats, actual: Floats) -> npt.NDArray[np.int64]:
    """Return for each box ``(n, 4)`` of one image the row of the other boxes that overlaps it most, -1 for no box.

    A row whose first corner is negative is no box. Without any other box all are -1.
    """
    rows = np.full(len(reference), -1, np.int64)
    real, others = np.flatnonzero(reference[:, 0] >= 0.0), np.flatnonzero(actual[:, 0] >= 0.0)
    if len(real) and len(others):
        rows[real] = others[_overlaps(reference[real], actual[others]).argmax(axis=1)]
    return rows


def of_boxes(values: Floats, boxes: Floats) -> Floats:
    """Return ``values`` ``(n, ...)`` of one image, with zeros in rows that are no boxes."""
    return _where(boxes[:, 0] >= 0.0, values)


def in_order(values: Floats, rows: npt.NDArray[np.int64]) -> Floats:
    """Return ``values`` ``(n, ...)`` of one image in the order that ``nearest_rows`` gives, zeros where it is -1."""
    return _where(rows >= 0, values[np.maximum(rows, 0)])


def _where(real: npt.NDArray[np.bool_], values: Floats) -> Floats:
    found: Floats = np.where(real.reshape(-1, *[1] * (values.ndim - 1)), values, np.float32(0.0))
    return found


def _overlaps(one: Floats, other: Floats) -> Floats:
    """Return intersection over union of each pair, ``(len(one), len(other))``."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    sides = np.maximum(high - low, np.float32(0.0))
    common = sides[..., 0] * sides[..., 1]
    areas = [(each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (one, other)]
    found: Floats = common / np.maximum(areas[0][:, None] + areas[1][None, :] - common, _TINY)
    return found
