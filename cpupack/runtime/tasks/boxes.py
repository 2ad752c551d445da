"""Boxes: their formats, overlaps, and the suppression of those that overlap a better one.

All sums are float32 in torchvision's order, so that the same boxes are kept as by ``torchvision.ops``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import turned

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


def to_corners(boxes: Floats, box_format: str, width: int, height: int) -> Floats:
    """Return boxes ``(n, 4)`` of a format of ``spec.BOX_FORMATS`` as corners (xmin, ymin, xmax, ymax) in pixels.

    ``width`` and ``height`` are those of the model's input, of which normalized boxes are shares.
    """
    name, _, normalized = box_format.partition("_")
    found = boxes.astype(np.float32)
    if normalized:
        found *= np.array([width, height, width, height], np.float32)
    if name == "xyxy":
        return found
    first, size = found[:, :2], found[:, 2:]
    low = first if name == "xywh" else first - np.float32(0.5) * size
    return np.concatenate([low, low + size], axis=1)


def clipped(boxes: Floats, width: int, height: int) -> Floats:
    """Return boxes with no corner outside an image of this size."""
    found: Floats = boxes.clip(0.0, np.array([width, height, width, height], np.float32))
    return found


def areas(boxes: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Return the areas ``(n,)`` of boxes ``(n, 4)`` as corners."""
    found: npt.NDArray[np.floating[Any]] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return found


def iou(box: Floats, others: Floats) -> Floats:
    """Return the overlaps (intersection over union, 0..1) of one box ``(4,)`` with others ``(n, 4)``, as corners.

    Boxes with an angle are ``(5,)`` and ``(n, 5)``, as ``turned`` has them.
    """
    if others.shape[1] == 5:
        return turned.iou(box, others)
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    size = np.maximum(high - low, np.float32(0.0))
    common = size[:, 0] * size[:, 1]
    area = (box[2] - box[0]) * (box[3] - box[1])
    other_areas = areas(others)
    with np.errstate(divide="ignore", invalid="ignore"):  # two boxes without area have no overlap: NaN, never above
        found: Floats = common / (area + other_areas - common)
    return found


def nms(boxes: Floats, scores: npt.NDArray[Any], most_iou: float) -> Indices:
    """Return the indices of the boxes that no better box overlaps by more than ``most_iou``, best first."""
    order = np.argsort(-scores, kind="stable")
    hulls = turned.hulls_of(turned.corners_of(boxes)) if boxes.shape[1] == 5 else None
    kept = []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(best)
        if hulls is None:
            order = order[~(iou(boxes[best], boxes[order]) > most_iou)]
        elif (near := turned.meet(hulls[best], hulls[order])).any():  # those of turned boxes take longer
            near[near] = iou(boxes[best], boxes[order[near]]) > most_iou
            order = order[~near]
    return np.array(kept, np.intp)


def nms_by_class(boxes: Floats, scores: npt.NDArray[Any], classes: npt.NDArray[Any], most_iou: float) -> Indices:
    """Return what ``nms`` keeps of each class by itself, best first."""
    kept = [
        where[nms(boxes[where], scores[where], most_iou)]
        for where in (np.flatnonzero(classes == index) for index in np.unique(classes))
    ]
    found = np.concatenate(kept) if kept else np.empty(0, np.intp)
    return found[np.argsort(-scores[found], kind="stable")]
