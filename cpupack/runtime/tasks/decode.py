"""From a detector's outputs to candidate boxes: the arithmetic of torchvision's detectors.

``boxes`` are offsets from the anchors ``(anchors, 4)``, ``scores`` are logits ``(anchors, classes)``. FCOS also has
``centerness`` ``(anchors, 1)``, the logit of how near to an object's middle the anchor is. Faster R-CNN has no anchors
here: ``rois`` ``(n, 4)`` are the boxes that its first stage proposes, ``boxes`` ``(n, 4 * classes)`` are offsets of
each class from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import array_in
from ..errors import IntegrityError
from ..files import UNREADABLE
from .boxes import Floats, clipped
from .scores import probabilities, softmax

SSD, RETINANET, FCOS, FASTER_RCNN = "ssd", "retinanet", "fcos", "faster_rcnn"
DECODERS = (SSD, RETINANET, FCOS, FASTER_RCNN)

_MOST_GROWTH = np.float32(math.log(1000.0 / 16))
"""The largest logarithm of a box's size over its anchor's, as torchvision bounds it."""
_LEAST_SIDE = np.float32(1e-2)
"""Pixels: torchvision drops the boxes of Faster R-CNN that are narrower or lower."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """What a detector's outputs are relative to.

    ``boxes`` is float32 ``(anchors, 4)``: corners in pixels of the input. ``weights`` divide the four offsets.
    ``levels`` are the numbers of anchors of each feature map. ``top_k`` candidates are kept: of each class (SSD), or of
    each level (RetinaNet, FCOS).
    """

    boxes: Floats
    weights: tuple[float, float, float, float]
    levels: tuple[int, ...]
    top_k: int

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what ``read_anchors`` reads back from the file."""
        return {
            "anchors": self.boxes,
            "weights": np.array(self.weights, np.float64),
            "levels": np.array(self.levels, np.int64),
            "top_k": np.array(self.top_k, np.int64),
        }


@dataclass(frozen=True, eq=False)
class Candidates:
    """Boxes ``(n, 4)`` as corners in pixels of the input, with a score (0..1) and a class each.

    Boxes with an angle are ``(n, 5)``, as ``turned`` has them.
    """

    boxes: Floats
    scores: Floats
    classes: npt.NDArray[np.int64]

    def best(self, count: int) -> Candidates:
        """Return the ``count`` with the best scores, best first."""
        rows = np.argsort(-self.scores, kind="stable")[:count]
        return Candidates(self.boxes[rows], self.scores[rows], self.classes[rows])

    @classmethod
    def joined(cls, parts: list[Candidates], numbers: int = 4) -> Candidates:
        """Return the candidates of all parts, whose boxes have so many numbers."""
        if not parts:
            return cls(np.empty((0, numbers), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
        return cls(
            np.concatenate([each.boxes for each in parts]),
            np.concatenate([each.scores for each in parts]),
            np.concatenate([each.classes for each in parts]),
        )


def read_anchors(path: Path) -> Anchors:
    """Read the constants of a detector. Raises IntegrityError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            one, two, three, four = array_in(found, "weights").tolist()
            return Anchors(
                np.asarray(found["anchors"], np.float32),
                (one, two, three, four),
                tuple(array_in(found, "levels").tolist()),
                int(array_in(found, "top_k").item()),
            )
    except UNREADABLE as error:
        raise IntegrityError(f"cannot read the detector's constants {path}: {error}") from error


def moved(anchors: Floats, offsets: Floats, weights: tuple[float, ...]) -> Floats:
    """Return the anchors ``(n, 4)`` moved and resized by the offsets ``(n, 4)``."""
    size = anchors[:, 2:] - anchors[:, :2]
    middle = anchors[:, :2] + np.float32(0.5) * size
    divided = offsets / np.array(weights, np.float32)
    new_middle = divided[:, :2] * size + middle
    half = np.float32(0.5) * (np.exp(np.minimum(divided[:, 2:], _MOST_GROWTH)) * size)
    return np.concatenate([new_middle - half, new_middle + half], axis=1)


def around(anchors: Floats, offsets: Floats) -> Floats:
    """Return boxes ``(n, 4)`` that reach from the middles of the anchors ``(n, 4)`` left, up, right and down.

    The offsets ``(n, 4)`` are in sizes of the anchor.
    """
    size = anchors[:, 2:] - anchors[:, :2]
    middle = np.float32(0.5) * (anchors[:, :2] + anchors[:, 2:])
    return np.concatenate([middle - offsets[:, :2] * size, middle + offsets[:, 2:] * size], axis=1)


def candidates(
    decoder: str, outputs: Mapping[str, Floats], anchors: Anchors, size: tuple[int, int], threshold: float
) -> Candidates:
    """Return the candidates of a detector of ``DECODERS``, whose outputs have the names ``boxes``, ``scores`` ...

    ``size`` is the width and height of the input.
    """
    offsets, logits = outputs["boxes"], outputs["scores"]
    if decoder == SSD:
        return _ssd(offsets, logits, anchors, size, threshold)
    if decoder == FASTER_RCNN:
        return _of_proposals(outputs["rois"], offsets, logits, anchors, size, threshold)
    if decoder == RETINANET:
        chances = probabilities(logits, "logits")
        return _by_level(offsets, chances, anchors, size, threshold, lambda a, b: moved(a, b, anchors.weights))
    chances = np.sqrt(probabilities(logits, "logits") * probabilities(outputs["centerness"], "logits"))
    return _by_level(offsets, chances, anchors, size, threshold, around)


def _ssd(offsets: Floats, logits: Floats, anchors: Anchors, size: tuple[int, int], threshold: float) -> Candidates:
    """Return SSD's candidates: softmax over the classes, of which 0 is the background, the best ``top_k`` of each."""
    boxes = clipped(moved(anchors.boxes, offsets, anchors.weights), *size)
    chances = softmax(logits).astype(np.float32)
    return Candidates.joined(per_class(boxes, chances[:, 1:], threshold, anchors.top_k, first=1))


def _of_proposals(
    rois: Floats, offsets: Floats, logits: Floats, anchors: Anchors, size: tuple[int, int], threshold: float
) -> Candidates:
    """Return Faster R-CNN's candidates: each class has offsets of its own from the proposed box.

    Rows whose first corner is negative are no proposals: the image has fewer than others may have.
    """
    real = np.flatnonzero(rois[:, 0] >= 0.0)
    boxes, chances = rois[real], softmax(logits[real]).astype(np.float32)
    by_class = offsets[real].reshape(len(real), logits.shape[1], 4)
    found = []
    for index in np.flatnonzero((chances > threshold).any(axis=0)):
        if index == 0:
            continue  # the background
        rows = np.flatnonzero(chances[:, index] > threshold)
        corners = clipped(moved(boxes[rows], by_class[rows, index], anchors.weights), *size)
        large = ((corners[:, 2:] - corners[:, :2]) >= _LEAST_SIDE).all(axis=1)
        found.append(
            Candidates(corners[large], chances[rows[large], index], np.full(int(large.sum()), index, np.int64))
        )
    return Candidates.joined(found)


def per_class(boxes: Floats, chances: Floats, threshold: float, top_k: int, first: int = 0) -> list[Candidates]:
    """Return the best ``top_k`` boxes above the threshold of each class. Column 0 is the class ``first``."""
    found = []
    for column in np.flatnonzero((chances > threshold).any(axis=0)):
        where = np.flatnonzero(chances[:, column] > threshold)
        best = where[np.argsort(-chances[where, column], kind="stable")[:top_k]]
        classes = np.full(len(best), column + first, np.int64)
        found.append(Candidates(boxes[best], chances[best, column], classes))
    return found


def _by_level(
    offsets: Floats,
    chances: npt.NDArray[np.float64],
    anchors: Anchors,
    size: tuple[int, int],
    threshold: float,
    boxes_of: Callable[[Floats, Floats], Floats],
) -> Candidates:
    """Return the best ``top_k`` pairs of box and class above the threshold of each level."""
    count = chances.shape[1]
    found, begin = [], 0
    for level in anchors.levels:
        rows = slice(begin, begin + level)
        begin += level
        these = chances[rows].reshape(-1).astype(np.float32)
        where = np.flatnonzero(these > threshold)
        best = where[np.argsort(-these[where], kind="stable")[: anchors.top_k]]
        box = best // count
        boxes = boxes_of(anchors.boxes[rows][box], offsets[rows][box])
        found.append(Candidates(clipped(boxes, *size), these[best], (best % count).astype(np.int64)))
    return Candidates.joined(found)
