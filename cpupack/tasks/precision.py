"""COCO's mean average precision. Boxes are matched once; what of them counts is a matter of the samples that are drawn.

pycocotools matches the boxes. Precision over recall is computed here as it does, because intervals take it for some
thousand draws of the samples.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import VerificationError
from cpupack.runtime.tasks.boxes import iou

Array = npt.NDArray[Any]
TURNED = "turned"
"""The numbers of a turned box beside the upright box around it."""
MOST_OF_AN_IMAGE = 100
"""Boxes of an image and class that count, the best first."""


@dataclass(frozen=True, eq=False)
class Matched:
    """What was found of one class in one image, the best first.

    ``right`` and ``counted`` ``(ious, n)`` say of each box whether it is that of an object, and whether it counts: what
    lies in a crowd does not. ``objects`` is how many there are to be found.
    """

    scores: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]
    objects: int


@dataclass(frozen=True, eq=False)
class Matches:
    """``by_class`` has for each class what was found in each image, None where it is neither found nor there.

    ``recalls`` are the points at which precision is taken.
    """

    by_class: tuple[tuple[Matched | None, ...], ...]
    recalls: npt.NDArray[np.float64]

    def mean_average_precision(self, rows: npt.NDArray[np.int64], ious: slice) -> float:
        """Return the mean over ``ious`` and the classes that ``rows`` of images have, NaN where they have none."""
        found = []
        for images in self.by_class:
            drawn = [one for row in rows.tolist() if (one := images[row]) is not None]
            objects = sum(one.objects for one in drawn)
            if objects:
                found.append(self._precisions(drawn, objects, ious))
        return float(np.mean(found)) if found else float("nan")

    def _precisions(self, drawn: Sequence[Matched], objects: int, ious: slice) -> npt.NDArray[np.float64]:
        """Return the largest precision ``(ious, recalls)`` with at least each recall, 0 for those that none has."""
        order = np.argsort(-np.concatenate([one.scores for one in drawn]), kind="stable")
        right, counted = (
            np.concatenate([getattr(one, name)[ious] for one in drawn], axis=1)[:, order]
            for name in ("right", "counted")
        )
        hits = np.cumsum(right & counted, axis=1, dtype=np.float64)
        misses = np.cumsum(~right & counted, axis=1, dtype=np.float64)
        recall, precision = hits / objects, hits / (hits + misses + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
        places = [np.searchsorted(one, self.recalls, side="left") for one in recall]
        return np.take_along_axis(best, np.stack(places), axis=1)


def matches(truths: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], images: int) -> Matches:
    """Match boxes as COCO does.

    Each is a dict of ``image_id`` (from 0 to ``images``), ``category_id``, ``bbox`` and ``area``; true ones have
    ``iscrowd``, and found ones a ``score``. Turned boxes have their numbers, too, and overlap as such. Raises
    VerificationError without pycocotools.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError as error:
        raise VerificationError(
            "[evaluation] metric map needs pycocotools", hint='pip install "cpupack[metrics]"'
        ) from error
    categories = [{"id": each} for each in sorted({one["category_id"] for one in (*truths, *found)})]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        sides = []
        for boxes in (truths, found):
            side = COCO()
            side.dataset = {
                "images": [{"id": row} for row in range(images)],
                "annotations": [{"iscrowd": 0, **each, "id": number} for number, each in enumerate(boxes, 1)],
                "categories": categories,
            }
            side.createIndex()
            sides.append(side)
        judged = COCOeval(*sides, "bbox")
        if truths and TURNED in truths[0]:
            judged.computeIoU = lambda image, category: _overlaps(judged, (image, category))
        judged.params.areaRng, judged.params.areaRngLbl = judged.params.areaRng[:1], judged.params.areaRngLbl[:1]
        judged.params.maxDets = [MOST_OF_AN_IMAGE]
        judged.evaluate()
    each = [_matched(one) for one in judged.evalImgs]
    return Matches(
        tuple(tuple(each[start : start + images]) for start in range(0, len(each), images)),
        np.asarray(judged.params.recThrs, np.float64),
    )


def _overlaps(judged: Any, key: tuple[int, int]) -> Any:
    """Return what ``COCOeval.computeIoU`` does, of turned boxes: those found, best first, with the true ones."""
    true, found = judged._gts[key], judged._dts[key]
    order = np.argsort([-one["score"] for one in found], kind="mergesort")[:MOST_OF_AN_IMAGE]
    if not len(true) or not len(order):
        return []
    numbers = np.stack([one[TURNED] for one in true])
    return np.stack([iou(found[row][TURNED], numbers) for row in order]).astype(np.float64)


def _matched(one: dict[str, Any] | None) -> Matched | None:
    if one is None:
        return None
    return Matched(
        np.asarray(one["dtScores"], np.float64),
        np.asarray(one["dtMatches"]) != 0,
        np.asarray(one["dtIgnore"]) == 0,
        int(np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)),
    )
