"""Metrics of tasks by name: mean average precision, mean IoU, mean absolute error, F1, recall at k.

Each compares what the runner gives, ``(n, ...)``, with targets ``(n, ...)``, by the same arithmetic as ``predict``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.accuracy import likenesses
from cpupack.artifacts import FloatModel
from cpupack.errors import RecipeError, VerificationError
from cpupack.metric import Metric, Outputs, Sums
from cpupack.recipe.metrics import known_metric, recall_at
from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.answers import input_size
from cpupack.runtime.tasks.base import Presenter
from cpupack.runtime.tasks.detection import DetectionPresenter, label_count
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.regression import RegressionPresenter
from cpupack.runtime.tasks.segmentation import SegmentationPresenter
from cpupack.runtime.tasks.spec import TaskSpec

Array = npt.NDArray[Any]
_LOW_SCORE = 0.01
"""Boxes with less do not take part in a mean average precision; COCO takes the 100 best of an image."""
_ROWS_AT_ONCE = 1024
IGNORED = 255
"""The class in a mask of pixels that count for nothing."""


def presenter_of(model: FloatModel) -> Presenter:
    """Return what makes results of the model's outputs, as its wheel will. ``model`` is no classification."""
    spec = model.task or TaskSpec.of(model.kind)
    return kinds.presenter(spec, kinds.Model(model.labels, input_size(model.signature), model.anchors))


def task_metric(name: str, model: FloatModel, *, resampled: bool) -> Metric:
    """Return the metric of a name in ``recipe.metrics``. Raises RecipeError for a model of another kind."""
    known = known_metric(name)
    assert known is not None
    if known.kind != model.kind:
        raise RecipeError(
            f'[evaluation] metric = "{name}" is for [task] kind = "{known.kind}", and the model\'s is "{model.kind}"',
            hint='name your own with metric = "python:FILE.py:function"',
        )
    presenter = presenter_of(model)
    own = model.signature.outputs[0].name

    def by_name(outputs: Outputs) -> Mapping[str, Array]:
        return outputs if isinstance(outputs, dict) else {own: outputs}

    def found(outputs: Outputs, targets: Array) -> npt.NDArray[np.float64]:
        hits = recalled(by_name(outputs)[own], targets, recall_at(name))
        return np.stack([np.nan_to_num(hits), ~np.isnan(hits)], axis=1)

    def overlaps(outputs: Outputs, targets: Array) -> npt.NDArray[np.int64]:
        return class_overlaps(presenter, by_name(outputs), targets)

    def function(outputs: Outputs, targets: Array) -> float:
        if known.kind == "embedding":
            return share(found(outputs, targets).sum(axis=0))
        return _FUNCTIONS[name](presenter, by_name(outputs), targets)

    sums = {"embedding": Sums(found, share), "segmentation": Sums(overlaps, iou_of)}.get(known.kind)
    return Metric(name, known.goal, function, resampled, sums)


def share(counts: Array) -> float:
    """Return the first count as a share of the second, NaN of none."""
    return float(counts[0] / counts[1]) if counts[1] else float("nan")


def mean_iou(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> float:
    """Return the mean over classes of intersection over union of all pixels, without classes that occur nowhere."""
    found = iou_of(class_overlaps(presenter, outputs, targets).sum(axis=0))
    if np.isnan(found):
        raise VerificationError("[evaluation] metric miou: no pixel of the masks has a class")
    return found


def iou_of(counts: Array) -> float:
    """Return the mean IoU of what ``class_overlaps`` counts, NaN without any pixel."""
    both, either = counts
    return float((both[either > 0] / either[either > 0]).mean()) if either.any() else float("nan")


def class_overlaps(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> npt.NDArray[np.int64]:
    """Return the pixels of each sample and class ``(n, 2, classes)``: in both the result and the target, and in either.

    ``targets`` are classes ``(n, height, width)`` of the model's input, ``IGNORED`` or below 0 where none is known.
    """
    assert isinstance(presenter, SegmentationPresenter)
    if targets.ndim != 3:
        raise _wrong("miou", "classes (n, height, width)", targets)
    _check_classes("miou", targets[(targets >= 0) & (targets != IGNORED)], _classes_of_maps(outputs), "the masks")
    if set(np.unique(targets).tolist()) == {0, IGNORED}:
        raise VerificationError(
            f"[evaluation] metric miou: the masks have 0 and {IGNORED} alone, and {IGNORED} stands for unknown",
            hint="give the class as 1",
        )
    size = int(max(targets.max(initial=0), _most_classes(outputs))) + 1
    counts = np.zeros((len(targets), 2, size), np.int64)
    height, width = targets.shape[1:]
    for row, target in enumerate(targets.astype(np.int64)):
        found = presenter.present({name: each[row] for name, each in outputs.items()}, Frame.whole(width, height)).mask
        known = (target >= 0) & (target != IGNORED)
        pairs = target[known] * size + np.clip(found[known], 0, size - 1)
        common = np.bincount(pairs, minlength=size * size).reshape(size, size)
        counts[row] = np.diag(common), common.sum(axis=0) + common.sum(axis=1) - np.diag(common)
    return counts


def _check_classes(metric: str, given: Array, count: int | None, where: str) -> None:
    """Raise VerificationError where targets have a class that the model does not: no result could ever equal it."""
    most = int(given.max(initial=0))
    if count is not None and most >= count:
        raise VerificationError(
            f"[evaluation] metric {metric}: {where} have class {most}, and the model has the classes 0 to {count - 1}",
            hint="number the classes as the model does",
        )


def _classes_of_maps(outputs: Mapping[str, Array]) -> int | None:
    """Return how many classes scores (n, classes, height, width) are of, None for maps of classes."""
    (scores,) = outputs.values()
    return max(int(scores.shape[1]), 2) if scores.ndim == 4 else None


def _most_classes(outputs: Mapping[str, Array]) -> int:
    (scores,) = outputs.values()
    return int(max(scores.shape[1] - 1, 1)) if scores.ndim == 4 else int(np.rint(scores.max(initial=0)))


def mean_absolute_error(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> float:
    """Return the mean of |value - target|, in the units of the values: outputs are scaled as ``predict`` does."""
    assert isinstance(presenter, RegressionPresenter)
    (rows,) = outputs.values()
    found = np.array([[value.value for value in presenter.present({"": row}, None).values] for row in rows])
    expected = np.asarray(targets, np.float64).reshape(len(targets), -1)
    if expected.shape != found.shape:
        raise _wrong("mae", f"{found.shape[1]} values for each sample", targets)
    return float(np.abs(found - expected).mean())


def f1(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> float:
    """Return F1 over all labels of all samples (micro). ``targets`` ``(n, labels)`` are 0 or 1."""
    (rows,) = outputs.values()
    given = np.asarray(targets).reshape(len(targets), -1)
    if not np.isin(given, (0, 1)).all():
        raise VerificationError(
            f"[evaluation] metric f1: the targets have {given[~np.isin(given, (0, 1))][0]:g}; a label is 0 or 1",
            hint="leave out samples with labels that nobody knows",
        )
    expected = given.astype(bool)
    if expected.shape != (len(rows), int(np.prod(rows.shape[1:]))):
        raise _wrong("f1", f"{int(np.prod(rows.shape[1:]))} truth values for each sample", targets)
    found = np.zeros_like(expected)
    for row, values in enumerate(rows):
        for label in presenter.present({"": values}, None).labels:
            found[row, label.index] = True
    right = int((found & expected).sum())
    total = int(found.sum() + expected.sum())
    return 2.0 * right / total if total else 1.0


def recalled(vectors: Array, classes: Array, k: int) -> npt.NDArray[np.float64]:
    """Return for each sample whether one of its own class is among the ``k`` nearest others by the cosine, 1 or 0.

    Samples that are alone in their class do not count: they are NaN.
    """
    classes = np.asarray(classes)
    if classes.ndim != 1:
        raise _wrong(f"recall@{k}", "a class for each sample", classes)
    _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
    asked = np.flatnonzero(counts[numbers] > 1)
    if not len(asked):
        raise VerificationError(f"[evaluation] metric recall@{k}: no class has two samples")
    flat = np.asarray(vectors, np.float64).reshape(len(vectors), -1)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    hits = np.full(len(classes), np.nan)
    for start in range(0, len(asked), _ROWS_AT_ONCE):
        rows = asked[start : start + _ROWS_AT_ONCE]
        likeness = likenesses(unit[rows], unit)
        likeness[np.arange(len(rows)), rows] = -np.inf
        near = np.argsort(-likeness, axis=1, kind="stable")[:, :k]
        hits[rows] = (classes[near] == classes[rows, None]).any(axis=1)
    return hits


def mean_average_precision(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> float:
    """Return COCO's mean average precision, over IoU from 0.5 to 0.95."""
    return _coco(presenter, outputs, targets, 0)


def mean_average_precision_50(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> float:
    """Return COCO's mean average precision at an IoU of 0.5."""
    return _coco(presenter, outputs, targets, 1)


def _coco(presenter: Presenter, outputs: Mapping[str, Array], targets: Array, number: int) -> float:
    """Return one of pycocotools' statistics.

    ``targets`` ``(n, most, 5)`` are xmin, ymin, xmax, ymax in pixels of the model's input, and the class, below 0 where
    an image has fewer boxes. A sixth column is 1 for a box around a crowd.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError as error:
        raise VerificationError(
            "[evaluation] metric map needs pycocotools", hint='pip install "cpupack[metrics]"'
        ) from error
    assert isinstance(presenter, DetectionPresenter)
    if targets.ndim != 3 or targets.shape[2] not in {5, 6}:
        raise _wrong("map", "boxes (n, most, 5): two corners in pixels of the input, and the class", targets)
    shapes = {name: each.shape[1:] for name, each in outputs.items()}
    _check_classes("map", targets[..., 4], label_count(shapes, presenter.spec), "the boxes")
    if presenter.first_class and (targets[..., 4] == 0).any():
        raise VerificationError(
            "[evaluation] metric map: the boxes have class 0, which stands for nothing, so none could be found",
            hint="number the classes from 1, or give [model] labels with a first one for nothing",
        )
    _check_boxes(np.asarray(targets, np.float64), presenter.input_size)
    presenter = presenter.with_threshold(_LOW_SCORE)
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for row, boxes in enumerate(np.asarray(targets, np.float64)):
        for box in boxes[boxes[:, 4] >= 0]:
            crowd = int(box[5]) if len(box) == 6 else 0
            truths.append({"id": len(truths) + 1, "image_id": row, "iscrowd": crowd, **_boxed(box[:4], int(box[4]))})
        kept = presenter.kept({name: each[row] for name, each in outputs.items()})
        for box, score, index in zip(kept.boxes, kept.scores, kept.classes.tolist(), strict=True):
            found.append({"image_id": row, "score": float(score), **_boxed(box, index)})
    if not truths:
        raise VerificationError("[evaluation] metric map: the targets have no boxes")
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and tables
        truth = COCO()
        truth.dataset = {
            "images": [{"id": row} for row in range(len(targets))],
            "annotations": truths,
            "categories": [{"id": each} for each in sorted({one["category_id"] for one in truths + found})],
        }
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(found), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return float(judged.stats[number])


def _check_boxes(targets: Array, size: tuple[int, int]) -> None:
    """Raise VerificationError for boxes that are no two corners in an input of ``size`` (width, height).

    A corner may lie outside, but some of each box must be inside.
    """
    boxes = targets[targets[..., 4] >= 0][:, :4]
    needed = f"two corners (xmin, ymin, xmax, ymax) in pixels of the model's input of {size[0]} x {size[1]}"
    for wrong, what in (
        (~np.isfinite(boxes).all(axis=1), "is not finite"),
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
    left, top, right, bottom = (float(each) for each in box)
    width, height = right - left, bottom - top
    return {"bbox": [left, top, width, height], "area": width * height, "category_id": index}


def _wrong(name: str, needed: str, targets: Array) -> VerificationError:
    return VerificationError(
        f"[evaluation] metric {name} compares with {needed}; the targets have shape {targets.shape}"
    )


_FUNCTIONS: Mapping[str, Callable[[Presenter, Mapping[str, Array], Array], float]] = {
    "map": mean_average_precision,
    "map50": mean_average_precision_50,
    "miou": mean_iou,
    "mae": mean_absolute_error,
    "f1": f1,
}
