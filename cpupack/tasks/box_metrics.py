"""COCO's mean average precision of what a detector finds, and what is refused of the true boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import VerificationError
from cpupack.metric import OfRows
from cpupack.runtime.tasks.base import Presenter
from cpupack.runtime.tasks.detection import DetectionPresenter, label_count
from cpupack.runtime.tasks.turned import corners_of, hulls_of
from cpupack.tasks.number_metrics import wrong_shape
from cpupack.tasks.precision import TURNED, matches
from cpupack.tasks.target_checks import check_classes, check_whole

Array = npt.NDArray[Any]
NO_BOXES = "the targets have no boxes"
_LOW_SCORE = 0.01
"""Boxes with less do not take part in a mean average precision; COCO takes the 100 best of an image."""


def detected(ious: slice, presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> OfRows:
    """Return COCO's mean average precision over ``ious`` of 0.5, 0.55 to 0.95, as a function of the images.

    ``targets`` ``(n, most, 5)`` are xmin, ymin, xmax, ymax in pixels of the model's input, and the class, below 0 where
    an image has fewer boxes. A sixth column is 1 for a box around a crowd. Turned boxes are ``(n, most, 6)``: middle,
    width, height, angle in radians, and the class.
    """
    assert isinstance(presenter, DetectionPresenter)
    turned = bool(presenter.spec.angle)
    if turned:
        if targets.ndim != 3 or targets.shape[2] != 6:
            raise wrong_shape("map", "boxes (n, most, 6): middle, width, height, angle in radians, class", targets)
        angles, targets = targets[..., 4], np.delete(targets, 4, axis=2)
    elif targets.ndim != 3 or targets.shape[2] not in {5, 6}:
        raise wrong_shape("map", "boxes (n, most, 5): two corners in pixels of the input, and the class", targets)
    check_whole("map", targets[..., 4], "the classes of boxes")
    if targets.shape[2] == 6 and not np.isin(targets[..., 5][targets[..., 4] >= 0], (0, 1)).all():
        raise VerificationError("[evaluation] metric map: the sixth number of a box says whether it is a crowd, 0 or 1")
    shapes = {name: each.shape[1:] for name, each in outputs.items()}
    check_classes("map", targets[..., 4], label_count(shapes, presenter.spec) or None, "the boxes")
    if presenter.first_class and (targets[..., 4] == 0).any():
        raise VerificationError(
            "[evaluation] metric map: the boxes have class 0, which stands for nothing, so none could be found",
            hint="number the classes from 1, or give [model] labels with a first one for nothing",
        )
    if turned:
        _check_turned(np.asarray(targets, np.float64), angles)
    else:
        _check_boxes(np.asarray(targets, np.float64), presenter.input_size)
    presenter = presenter.with_threshold(_LOW_SCORE)
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for row, boxes in enumerate(np.asarray(targets, np.float64)):
        for place in np.flatnonzero(boxes[:, 4] >= 0):
            box = boxes[place]
            crowd = int(box[5]) if len(box) == 6 else 0
            numbers = [*box[:4], angles[row, place]] if turned else box[:4]
            truths.append({"image_id": row, "iscrowd": crowd, **_boxed(np.asarray(numbers), int(box[4]))})
        kept = presenter.kept({name: each[row] for name, each in outputs.items()})
        for box, score, index in zip(kept.boxes, kept.scores, kept.classes.tolist(), strict=True):
            found.append({"image_id": row, "score": float(score), **_boxed(box, index)})
    if not truths:
        raise VerificationError(f"[evaluation] metric map: {NO_BOXES}")
    matched = matches(truths, found, len(targets))
    return lambda rows: matched.mean_average_precision(rows, ious)


def _check_turned(targets: Array, angles: Array) -> None:
    """Raise VerificationError for turned boxes without sides, and for angles that are no radians."""
    real = targets[..., 4] >= 0
    sides = targets[real][:, 2:4]
    if (sides <= 0).any():
        box = [round(float(each), 2) for each in targets[real][(sides <= 0).any(axis=1)][0][:4]]
        raise VerificationError(
            f"[evaluation] metric map: the box {box} has no width and height",
            hint="turned boxes are x and y of the middle, width, height, angle in radians, and the class",
        )
    if np.abs(angles[real]).max(initial=0) > 2 * np.pi:
        raise VerificationError(
            f"[evaluation] metric map: a box is turned by {np.abs(angles[real]).max():g}, which is more than a turn",
            hint="angles are in radians: np.deg2rad(degrees)",
        )


def _check_boxes(targets: Array, size: tuple[int, int]) -> None:
    """Raise VerificationError for boxes that are no two corners in an input of ``size`` (width, height).

    A corner may lie outside, but some of each box must be inside.
    """
    boxes = targets[targets[..., 4] >= 0][:, :4]
    needed = f"two corners (xmin, ymin, xmax, ymax) in pixels of the model's input of {size[0]} x {size[1]}"
    for wrong, what in (
        ((boxes[:, :2] > boxes[:, 2:]).any(axis=1), "has its second corner before the first"),
        (((boxes[:, :2] >= size) | (boxes[:, 2:] <= 0)).any(axis=1), "lies outside the input"),
    ):
        if wrong.any():
            box = [round(float(each), 2) for each in boxes[wrong][0]]
            raise VerificationError(f"[evaluation] metric map: the box {box} {what}", hint=f"boxes are {needed}")
    if boxes.size and min(size) > 1 and boxes.max() <= 1:
        raise VerificationError(
            "[evaluation] metric map: all boxes are from 0 to 1, so they look like shares of the input",
            hint=f"boxes are {needed}",
        )


def _boxed(box: Array, index: int) -> dict[str, Any]:
    """Return a box as COCO has it: of a turned one the upright box around it, and beside it its own numbers."""
    left, top, right, bottom = (float(each) for each in (hulls_of(corners_of(box[None]))[0] if len(box) == 5 else box))
    width, height = right - left, bottom - top
    found = {"bbox": [left, top, width, height], "area": width * height, "category_id": index}
    return {**found, TURNED: box} if len(box) == 5 else found
