"""Metrics of tasks by name: mean average precision, overlaps of classes, errors of numbers and places, F1, recall at k.

Each compares what the runner gives, ``(n, ...)``, with targets ``(n, ...)``, by the same arithmetic as ``predict``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.accuracy import likenesses
from cpupack.artifacts import FloatModel
from cpupack.errors import RecipeError, VerificationError
from cpupack.metric import Metric, OfRows, Outputs, of_sums
from cpupack.recipe.metrics import known_metric, recall_at
from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.answers import input_size, takes_bgr
from cpupack.runtime.tasks.base import Presenter, in_rows
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.image import ImagePresenter
from cpupack.runtime.tasks.keypoints import KeypointsPresenter
from cpupack.runtime.tasks.masks import MasksPresenter
from cpupack.runtime.tasks.regression import RegressionPresenter
from cpupack.runtime.tasks.segmentation import SegmentationPresenter
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.tasks.box_metrics import NO_BOXES, detected
from cpupack.tasks.likeness import mask_counts
from cpupack.tasks.number_metrics import distances, errors, wrong_shape
from cpupack.tasks.picture_metrics import psnr, ssim
from cpupack.tasks.ranked_metrics import average_precisions, equal_error, truth_of
from cpupack.tasks.target_checks import check_classes, check_whole

Array = npt.NDArray[Any]
_ROWS_AT_ONCE = 1024
IGNORED = 255
"""The class in a mask of pixels that count for nothing."""


def presenter_of(model: FloatModel) -> Presenter:
    """Return what makes results of the model's outputs, as its wheel will. ``model`` is no classification."""
    spec = model.task or TaskSpec.of(model.kind)
    size, bgr = input_size(model.signature), takes_bgr(model.signature)
    return kinds.presenter(spec, kinds.Model(model.labels, size, model.anchors, bgr=bgr))


def task_metric(name: str, model: FloatModel, *, resampled: bool) -> Metric:
    """Return the metric of a name in ``recipe.metrics``. Raises RecipeError for a model of another kind."""
    known = known_metric(name)
    assert known is not None
    if model.kind not in (known.kind, *known.also):
        kinds_of = " or ".join(f'"{each}"' for each in (known.kind, *known.also))
        raise RecipeError(
            f'[evaluation] metric = "{name}" is for [task] kind = {kinds_of}, and the model\'s is "{model.kind}"',
            hint='name your own with metric = "python:FILE.py:function"',
        )
    presenter = presenter_of(model)
    own = model.signature.outputs[0].name

    def prepare(outputs: Outputs, targets: Array) -> OfRows:
        named = outputs if isinstance(outputs, dict) else {own: outputs}
        unknown = isinstance(presenter, KeypointsPresenter | ImagePresenter) or (
            isinstance(presenter, RegressionPresenter) and presenter.spec.maps
        )
        _check_numbers(name, targets, names=known.kind == "embedding", unknown=unknown)
        if known.kind == "embedding":
            if name == "equal_error":
                return equal_error(named[own], targets)
            return of_sums(recalls(named[own], targets, recall_at(name)), share)
        return _PREPARED[name](presenter, named, targets)

    def function(outputs: Outputs, targets: Array) -> float:
        found = prepare(outputs, targets)(np.arange(len(targets)))
        if np.isnan(found) and known.kind in _NOTHING:
            raise VerificationError(f"[evaluation] metric {name}: {_NOTHING[known.kind]}")
        return found

    return Metric(name, known.goal, function, resampled, prepare)


def _check_numbers(metric: str, targets: Array, *, names: bool, unknown: bool) -> None:
    """Raise VerificationError for targets that are no finite numbers.

    With ``names`` classes may be texts, too. With ``unknown`` NaN stands for a number that nobody knows.
    """
    if names and targets.dtype.kind == "U":
        return
    if targets.dtype.kind not in "biuf":
        raise VerificationError(
            f"[evaluation] metric {metric}: the targets are {targets.dtype}, and it compares with numbers",
            hint="give an array of numbers: np.asarray(targets, np.float32)",
        )
    good = ~np.isinf(targets) if unknown else np.isfinite(targets)
    finite = good.reshape(len(targets), -1).all(axis=1) if targets.size else np.ones(1, bool)
    if not finite.all():
        raise VerificationError(
            f"[evaluation] metric {metric}: the targets of sample {int(finite.argmin())} are not all finite",
            hint="leave out samples whose targets nobody knows",
        )


def share(counts: Array) -> float:
    """Return the first count as a share of the second, NaN of none."""
    return float(counts[0] / counts[1]) if counts[1] else float("nan")


def root_of(counts: Array) -> float:
    """Return the root of ``share``."""
    return float(np.sqrt(share(counts)))


def iou_of(counts: Array) -> float:
    """Return the mean IoU of what ``class_overlaps`` counts, NaN without any pixel."""
    both, either = counts
    return float((both[either > 0] / either[either > 0]).mean()) if either.any() else float("nan")


def dice_of(counts: Array) -> float:
    """Return the mean of twice what is common by what both have, of what ``class_overlaps`` counts."""
    both, either = counts
    seen = either > 0
    return float((2.0 * both[seen] / (both + either)[seen]).mean()) if either.any() else float("nan")


def class_overlaps(
    name: str, presenter: Presenter, outputs: Mapping[str, Array], targets: Array
) -> npt.NDArray[np.int64]:
    """Return the pixels of each sample and class ``(n, 2, classes)``: in both the result and the target, and in either.

    ``targets`` are classes ``(n, height, width)`` of the model's input, ``IGNORED`` or below 0 where none is known.
    Those of a scan are ``(n, depth, height, width)`` of its output.
    """
    if isinstance(presenter, MasksPresenter):
        return _overlaps_of_masks(name, presenter, outputs, targets)
    assert isinstance(presenter, SegmentationPresenter)
    volume = presenter.spec.volume
    if targets.ndim != 3 + volume or not targets.size:
        raise wrong_shape(name, f"classes (n, {'depth, ' * volume}height, width)", targets)
    check_whole(name, targets, "the masks")
    known = targets[(targets >= 0) & (targets != IGNORED)]
    check_classes(name, known, _classes_of_maps(presenter, outputs), "the masks")
    if set(np.unique(targets).tolist()) == {0, IGNORED}:
        raise VerificationError(
            f"[evaluation] metric {name}: the masks have 0 and {IGNORED} alone, and {IGNORED} stands for unknown",
            hint="give the class as 1",
        )
    size = int(max(targets.max(initial=0), _most_classes(presenter, outputs))) + 1
    counts = np.zeros((len(targets), 2, size), np.int64)
    height, width = targets.shape[-2:]
    for row, target in enumerate(targets.astype(np.int64)):
        found = presenter.present({key: each[row] for key, each in outputs.items()}, Frame.whole(width, height)).mask
        if found.shape != target.shape:
            raise wrong_shape(name, f"classes (n, {', '.join(map(str, found.shape))})", targets)
        known = (target >= 0) & (target != IGNORED)
        named = np.where(found[known] < 0, size, found[known])  # the model may say of a pixel that it has no class
        common = np.bincount(target[known] * (size + 1) + named, minlength=size * (size + 1)).reshape(size, size + 1)
        both = np.diag(common)
        counts[row] = both, common[:, :size].sum(axis=0) + common.sum(axis=1) - both
    return counts


def _overlaps_of_masks(
    name: str, presenter: MasksPresenter, outputs: Mapping[str, Array], targets: Array
) -> npt.NDArray[np.int64]:
    """Return what ``class_overlaps`` does of a mask for each class. ``targets`` are 0 or 1, below 0 where not known.

    They have the size of the outputs, or of the model's input: the outputs are then brought to it as ``predict`` does.
    """
    (scores,) = outputs.values()
    volume = presenter.spec.volume
    if targets.ndim != 4 + volume or targets.shape[1] != scores.shape[1]:
        raise wrong_shape(name, f"masks (n, {scores.shape[1]}, {'depth, ' * volume}height, width) of 0 and 1", targets)
    if volume and targets.shape != scores.shape:
        raise wrong_shape(name, f"masks (n, {', '.join(map(str, scores.shape[1:]))})", targets)
    if not np.isin(targets, (-1, 0, 1)).all():
        odd = targets[~np.isin(targets, (-1, 0, 1))].flat[0]
        raise VerificationError(f"[evaluation] metric {name}: the masks have {odd:g}; a pixel is 0 or 1, or -1 unknown")
    height, width = targets.shape[-2:]
    counts = np.zeros((len(targets), 2, scores.shape[1]), np.int64)
    for row, target in enumerate(targets):
        one = {key: each[row] for key, each in outputs.items()}
        found = presenter.present(one, Frame.whole(width, height)).masks & (target >= 0)
        counts[row] = mask_counts(found[None], (target == 1)[None])[0]
    return counts


def _classes_of_maps(presenter: SegmentationPresenter, outputs: Mapping[str, Array]) -> int | None:
    """Return how many classes scores (n, classes, height, width) are of, None for maps of classes."""
    (scores,) = outputs.values()
    if scores.ndim < 4 or scores.dtype.kind != "f":
        return 2 if presenter.spec.squeezed else None
    return max(int(scores.shape[1]), 2)


def _most_classes(presenter: SegmentationPresenter, outputs: Mapping[str, Array]) -> int:
    (scores,) = outputs.values()
    count = _classes_of_maps(presenter, outputs)
    return max(int(np.rint(scores.max(initial=0))), 1) if count is None else count - 1


def labels_in_common(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> npt.NDArray[np.int64]:
    """Return of each sample ``(n, 2)`` the labels that are right, and the found and the true ones together.

    ``targets`` ``(n, labels)`` are 0 or 1.
    """
    rows = in_rows(outputs)
    expected = truth_of("f1", rows, targets)
    found = np.zeros_like(expected)
    for row, values in enumerate(rows):
        for label in presenter.present({"": values}, None).labels:
            found[row, label.index] = True
    return np.stack([(found & expected).sum(axis=1), found.sum(axis=1) + expected.sum(axis=1)], axis=1)


def f1_of(counts: Array) -> float:
    """Return F1 over all labels of all samples (micro), of the sum of ``labels_in_common``."""
    right, total = counts
    return float(2.0 * right / total) if total else 1.0


def recalls(vectors: Array, classes: Array, k: int) -> npt.NDArray[np.float64]:
    """Return what ``recalled`` does, and whether the sample counts, ``(n, 2)``."""
    hits = recalled(vectors, classes, k)
    return np.stack([np.nan_to_num(hits), ~np.isnan(hits)], axis=1)


def recalled(vectors: Array, classes: Array, k: int) -> npt.NDArray[np.float64]:
    """Return for each sample whether one of its own class is among the ``k`` nearest others by the cosine, 1 or 0.

    Samples that are alone in their class do not count: they are NaN.
    """
    classes = np.asarray(classes)
    if classes.ndim != 1:
        raise wrong_shape(f"recall@{k}", "a class for each sample", classes)
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


def _sums(
    of_samples: Callable[[Presenter, Mapping[str, Array], Array], Array], value: Callable[[Array], float]
) -> Callable[[Presenter, Mapping[str, Array], Array], OfRows]:
    def prepare(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> OfRows:
        return of_sums(of_samples(presenter, outputs, targets), value)

    return prepare


_PREPARED: Mapping[str, Callable[[Presenter, Mapping[str, Array], Array], OfRows]] = {
    "map": partial(detected, slice(None)),
    "map50": partial(detected, slice(1)),
    "miou": _sums(partial(class_overlaps, "miou"), iou_of),
    "dice": _sums(partial(class_overlaps, "dice"), dice_of),
    "mae": _sums(partial(errors, "mae", 1), share),
    "rmse": _sums(partial(errors, "rmse", 2), root_of),
    "distance": _sums(distances, share),
    "f1": _sums(labels_in_common, f1_of),
    "average_precision": average_precisions,
    "psnr": _sums(psnr, share),
    "ssim": _sums(ssim, share),
}
_NOTHING = {
    "detection": NO_BOXES,
    "segmentation": "no pixel of the masks has a class",
    "regression": "no pixel of the targets has a number",
    "keypoints": "no point of the targets is known",
    "image": "no pixel of the targets is known, or too few side by side",
    "multilabel": "no sample has any label",
}
