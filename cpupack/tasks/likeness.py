"""How alike the results of INT8 and of FP32 are, in the terms of the task. It needs no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.metric import OfRows, of_sums
from cpupack.runtime.tasks.base import Presenter, in_rows
from cpupack.runtime.tasks.boxes import iou
from cpupack.runtime.tasks.decode import Candidates
from cpupack.runtime.tasks.detection import DetectionPresenter
from cpupack.runtime.tasks.fill import FillPresenter
from cpupack.runtime.tasks.masks import MasksPresenter
from cpupack.runtime.tasks.multilabel import MultilabelPresenter
from cpupack.runtime.tasks.raw import RawPresenter
from cpupack.runtime.tasks.scores import probabilities
from cpupack.runtime.tasks.segmentation import SegmentationPresenter
from cpupack.runtime.tasks.tokens import TokensPresenter

Named = Mapping[str, npt.NDArray[Any]]
"""Outputs by name, ``(n, ...)`` each, as the model gives them."""
Thresholds = float | npt.NDArray[np.float64]
SAME_BOX_IOU = 0.5
_EVEN = 0.5
_ENOUGH = 20
"""So many decisions of one kind say something of their share."""


def likeness(presenter: Presenter | None, expected: Named, found: Named) -> tuple[str, float] | None:
    """Return the name and the value (0..1, 1 for equal) of what is alike, None for kinds that SQNR says enough of.

    ``expected`` are FP32's outputs, ``found`` those of INT8. Embeddings have measures of their own (``meaning``).
    """
    measure = likeness_of_rows(presenter, expected, found)
    if measure is None:
        return None
    name, of_rows = measure
    value = of_rows(_all(expected))
    return None if np.isnan(value) else (name, value)


def likeness_of_rows(presenter: Presenter | None, expected: Named, found: Named) -> tuple[str, OfRows] | None:
    """Return the name of what ``likeness`` measures, and the value as a function of the samples: NaN without any."""
    if isinstance(presenter, SegmentationPresenter):
        return "mean IoU of the classes", of_sums(class_counts(presenter, expected, found), _mean_iou)
    if isinstance(presenter, MasksPresenter):
        counts = mask_counts(presenter.truth(expected), presenter.truth(found))
        return "mean IoU of the masks", of_sums(counts, lambda each: _mean_iou(each) if each[1].any() else 1.0)
    if isinstance(presenter, DetectionPresenter):
        name = f"same boxes (class, IoU of {SAME_BOX_IOU})"
        return name, of_sums(box_counts(presenter, expected, found), _share)
    if isinstance(presenter, TokensPresenter | FillPresenter):
        name = "same best label of a token" if isinstance(presenter, TokensPresenter) else "same best token"
        return name, of_sums(best_counts(expected, found), lambda counts: _share(counts) if counts[1] else 1.0)
    return None


def same_decisions(presenter: Presenter | None, expected: Named, found: Named) -> float | None:
    """Return the share (0..1) of yes-or-no decisions that are FP32's, of the worst output. None without decisions.

    Decisions are the labels of a ``multilabel`` model, the pixels of ``masks``, and values of ``raw`` outputs that are
    all from 0 to 1, as a sigmoid gives them: half or more is yes. The share is the mean of that of FP32's yes and that
    of its no, so that a model which never says yes does not pass where yes is rare.
    """
    of_rows = decisions_of_rows(presenter, expected, found)
    return None if of_rows is None else of_rows(_all(expected))


def decisions_of_rows(presenter: Presenter | None, expected: Named, found: Named) -> OfRows | None:
    """Return ``same_decisions`` as a function of the samples, None without decisions."""
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any], Thresholds]]
    if isinstance(presenter, MasksPresenter):
        pairs = [(presenter.truth(expected), presenter.truth(found), _EVEN)]
    elif isinstance(presenter, MultilabelPresenter):
        spec = presenter.spec
        one, other = in_rows(expected), in_rows(found)
        least = np.array(spec.least_scores(one.shape[1]))
        pairs = [(probabilities(one, spec.scores), probabilities(other, spec.scores), least)]
    elif isinstance(presenter, RawPresenter):
        pairs = [
            (values, found[name], _EVEN)
            for name, values in expected.items()
            if values.dtype.kind == "f" and values.size and values.min() >= 0.0 and values.max() <= 1.0
        ]
    else:
        return None
    each = [of_sums(_decision_counts(*pair), _of_both_kinds) for pair in pairs]
    return (lambda rows: min(one(rows) for one in each)) if each else None


def _decision_counts(
    expected: npt.NDArray[Any], found: npt.NDArray[Any], threshold: Thresholds
) -> npt.NDArray[np.int64]:
    """Return of each sample ``(n, 2, 2)`` how many of FP32's yes and of its no are the same, and how many there are.

    ``threshold`` is a number, or one for each value of the last dimension.
    """
    yes = (expected >= threshold).reshape(len(expected), -1)
    same = (found >= threshold).reshape(yes.shape) == yes
    return np.stack([np.stack([(same & each).sum(axis=1), each.sum(axis=1)], axis=1) for each in (yes, ~yes)], axis=1)


def _of_both_kinds(counts: npt.NDArray[Any]) -> float:
    kinds = [each for each in counts if each[1]]
    if any(each[1] < _ENOUGH for each in kinds):
        return _share(counts.sum(axis=0))
    return float(np.mean([_share(each) for each in kinds]))


def best_counts(expected: Named, found: Named) -> npt.NDArray[np.int64]:
    """Return of each sample ``(n, 2)`` the tokens with the same best class, and all tokens.

    Of padding, whose outputs are zeros, nothing is counted.
    """
    (one,), (other,) = expected.values(), found.values()
    real = one.any(axis=-1)
    same = (one.argmax(axis=-1) == other.argmax(axis=-1)) & real
    return np.stack([each.reshape(len(one), -1).sum(axis=1) for each in (same, real)], axis=1)


def class_counts(presenter: SegmentationPresenter, expected: Named, found: Named) -> npt.NDArray[np.int64]:
    """Return of each sample and class ``(n, 2, classes)`` the pixels that both, and that either of both have."""
    (one,), (other,) = expected.values(), found.values()
    found_in: list[dict[int, tuple[int, int]]] = []
    for first, second in zip(one, other, strict=True):
        a, b = presenter.classes(first), presenter.classes(second)
        masks = ((index, a == index, b == index) for index in np.union1d(a, b).tolist())
        found_in.append({index: (int((in_a & in_b).sum()), int((in_a | in_b).sum())) for index, in_a, in_b in masks})
    known = sorted(set().union(*found_in))
    return np.array([np.transpose([of.get(index, (0, 0)) for index in known]) for of in found_in], np.int64)


def mask_counts(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return of each sample and class ``(n, 2, classes)`` the pixels that both, and that either of both masks have.

    Masks are ``(n, classes, height, width)``, those of scans have a depth before the height.
    """
    places = tuple(range(2, one.ndim))
    return np.stack([(one & other).sum(axis=places), (one | other).sum(axis=places)], axis=1)


def _mean_iou(counts: npt.NDArray[Any]) -> float:
    both, either = counts
    return float((both[either > 0] / either[either > 0]).mean())


def box_counts(presenter: DetectionPresenter, expected: Named, found: Named) -> npt.NDArray[np.int64]:
    """Return of each sample ``(n, 2)`` 2 x boxes in common, and the boxes of both.

    A box is in common with the best of its class that overlaps by ``SAME_BOX_IOU`` and is in common with no other.
    """
    counts = np.zeros((len(next(iter(expected.values()))), 2), np.int64)
    for row in range(len(counts)):
        first, second = (presenter.kept({name: each[row] for name, each in of.items()}) for of in (expected, found))
        counts[row] = 2 * _matched(first, second), len(first.boxes) + len(second.boxes)
    return counts


def common_boxes(presenter: DetectionPresenter, expected: Named, found: Named) -> float | None:
    """Return the share of ``box_counts`` over all samples, None where neither has any box."""
    common, total = box_counts(presenter, expected, found).sum(axis=0)
    return float(common / total) if total else None


def _share(counts: npt.NDArray[Any]) -> float:
    return float(counts[0] / counts[1]) if counts[1] else float("nan")


def _all(outputs: Named) -> npt.NDArray[np.int64]:
    return np.arange(len(next(iter(outputs.values()))))


def _matched(first: Candidates, second: Candidates) -> int:
    free = np.ones(len(second.boxes), bool)
    count = 0
    for box, index in zip(first.boxes, first.classes, strict=True):
        open_ones = np.flatnonzero(free & (second.classes == index))
        if not len(open_ones):
            continue
        overlaps = np.nan_to_num(iou(box, second.boxes[open_ones]))
        best = int(overlaps.argmax())
        if overlaps[best] >= SAME_BOX_IOU:
            free[open_ones[best]] = False
            count += 1
    return count
