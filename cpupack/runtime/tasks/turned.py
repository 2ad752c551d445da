"""Boxes with an angle: their corners, and their overlaps.

A box is (x, y, width, height, angle): its middle, its sides, and by how many radians it is turned. A positive angle
turns from the x axis towards the y axis, which is clockwise in an image. All sums are float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SLACK = 1e-9
"""Two edges that are nearer, as shares of the longest side, are one edge, which counts once."""


def corners_of(boxes: npt.NDArray[Any]) -> Floats:
    """Return the corners ``(n, 4, 2)`` of boxes ``(n, 5)``: of one that is not turned the upper left one first, then
    clockwise."""
    wide = np.asarray(boxes, np.float64)
    cosine, sine = np.cos(wide[:, 4]), np.sin(wide[:, 4])
    across = 0.5 * wide[:, 2, None] * np.stack([cosine, sine], axis=1)
    down = 0.5 * wide[:, 3, None] * np.stack([-sine, cosine], axis=1)
    middle = wide[:, :2]
    return np.stack(
        [middle - across - down, middle + across - down, middle + across + down, middle - across + down], axis=1
    )


def hulls_of(corners: npt.NDArray[Any]) -> Floats:
    """Return the upright boxes ``(n, 4)`` (xmin, ymin, xmax, ymax) around corners ``(n, 4, 2)``."""
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def meet(hull: Floats, hulls: Floats) -> npt.NDArray[np.bool_]:
    """Return which of upright boxes ``(n, 4)`` have an area in common with one ``(4,)``."""
    return np.asarray(((hull[:2] < hulls[:, 2:]) & (hulls[:, :2] < hull[2:])).all(axis=1))


def angle_of(corners: npt.NDArray[Any]) -> float:
    """Return by how many radians the first side of corners ``(4, 2)`` is turned, from -pi to pi."""
    (x, y), (end_x, end_y) = corners[:2]
    return float(np.arctan2(end_y - y, end_x - x))


def iou(box: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the overlaps (intersection over union, 0..1) of one box ``(5,)`` with others ``(n, 5)``.

    Boxes without an area overlap nothing.
    """
    areas = np.abs(np.asarray(others, np.float64)[:, 2:4].prod(axis=1))
    area = abs(float(box[2]) * float(box[3]))
    found = np.zeros(len(others), np.float32)
    one, many = corners_of(np.asarray(box)[None]), corners_of(others)
    hull, hulls = hulls_of(one), hulls_of(many)
    near = meet(hull[0], hulls) & (areas > 0) & (area > 0)
    if near.any():
        common = _common_areas(one, many[near])
        found[near] = common / (area + areas[near] - common)
    return found


def _common_areas(one: Floats, others: Floats) -> Floats:
    """Return the areas ``(n,)`` that a box ``(1, 4, 2)`` has in common with others ``(n, 4, 2)``.

    By Green's theorem: the border of what is common is the part of each border that lies in the other box. Where both
    borders lie on each other, that of the first one counts.
    """
    origin = one.mean(axis=1, keepdims=True)  # sums of small numbers keep their last digits
    first, second = one - origin, others - origin
    slack = _SLACK * float(np.abs(second).max())
    return np.maximum(_swept(first, second, slack) + _swept(second, first, -slack), 0.0)


def _swept(borders: Floats, boxes: Floats, slack: float) -> Floats:
    """Return the area that the origin and the parts of borders ``(n, 4, 2)`` inside boxes ``(n, 4, 2)`` span.

    What lies outside by less than ``slack`` is inside; with a negative one, what lies on an edge is outside. Either may
    have one row for all.
    """
    begin, end = borders, np.roll(borders, -1, axis=1)
    sides = np.roll(boxes, -1, axis=1) - boxes
    lengths = np.linalg.norm(sides, axis=2)[:, None]
    inside_at = [
        _cross(sides[:, None], point[:, :, None] - boxes[:, None]) / lengths + slack for point in (begin, end)
    ]  # (n, borders, sides): the distance of a point from a side, positive inside
    low, high = inside_at
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = low / (low - high)  # the share of a border at which it meets a side
    enters = np.where((low < 0) & (high >= 0), crossing, 0.0).max(axis=2)
    leaves = np.where((low >= 0) & (high < 0), crossing, 1.0).min(axis=2)
    seen = ~((low < 0) & (high < 0)).any(axis=2) & (leaves > enters)
    along = end - begin
    first, last = begin + enters[..., None] * along, begin + leaves[..., None] * along
    area: Floats = 0.5 * np.where(seen, _cross(first, last), 0.0).sum(axis=1)
    return area


def _cross(one: Floats, other: Floats) -> Floats:
    found: Floats = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
    return found
