"""How alike the results of INT8 and of FP32 are, in the terms of the task. It needs no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.runtime.tasks.base import Presenter
from cpupack.runtime.tasks.boxes import iou
from cpupack.runtime.tasks.decode import Candidates
from cpupack.runtime.tasks.detection import DetectionPresenter
from cpupack.runtime.tasks.fill import FillPresenter
from cpupack.runtime.tasks.multilabel import MultilabelPresenter
from cpupack.runtime.tasks.raw import RawPresenter
from cpupack.runtime.tasks.scores import probabilities
from cpupack.runtime.tasks.segmentation import SegmentationPresenter
from cpupack.runtime.tasks.tokens import TokensPresenter

Named = Mapping[str, npt.NDArray[Any]]
"""Outputs by name, ``(n, ...)`` each, as the model gives them."""
SAME_BOX_IOU = 0.5
_EVEN = 0.5
_ENOUGH = 20
"""So many decisions of one kind say something of their share."""


def likeness(presenter: Presenter | None, expected: Named, found: Named) -> tuple[str, float] | None:
    """Return the name and the value (0..1, 1 for equal) of what is alike, None for kinds that SQNR says enough of.

    ``expected`` are FP32's outputs, ``found`` those of INT8. Embeddings have measures of their own (``meaning``).
    """
    if isinstance(presenter, SegmentationPresenter):
        return "mean IoU of the classes", mean_iou(presenter, expected, found)
    if isinstance(presenter, DetectionPresenter):
        share = common_boxes(presenter, expected, found)
        return None if share is None else (f"same boxes (class, IoU of {SAME_BOX_IOU})", share)
    if isinstance(presenter, TokensPresenter | FillPresenter):
        return "same best label of a token" if isinstance(presenter, TokensPresenter) else "same best token", same_best(
            expected, found
        )
    return None


def same_decisions(presenter: Presenter | None, expected: Named, found: Named) -> float | None:
    """Return the share (0..1) of yes-or-no decisions that are FP32's, of the worst output. None without decisions.

    Decisions are the labels of a ``multilabel`` model, and values of ``raw`` outputs that are all from 0 to 1, as a
    sigmoid gives them: half or more is yes. The share is the mean of that of FP32's yes and that of its no, so that a
    model which never says yes does not pass where yes is rare.
    """
    if isinstance(presenter, MultilabelPresenter):
        spec = presenter.spec
        (one,), (other,) = expected.values(), found.values()
        return _same(probabilities(one, spec.scores), probabilities(other, spec.scores), spec.threshold)
    if not isinstance(presenter, RawPresenter):
        return None
    shares = [
        _same(values, found[name], _EVEN)
        for name, values in expected.items()
        if values.dtype.kind == "f" and values.size and values.min() >= 0.0 and values.max() <= 1.0
    ]
    return min(shares, default=None)


def _same(expected: npt.NDArray[Any], found: npt.NDArray[Any], threshold: float) -> float:
    yes = expected >= threshold
    same = (found >= threshold) == yes
    kinds = [same[each] for each in (yes, ~yes) if each.any()]
    if any(len(each) < _ENOUGH for each in kinds):
        return float(same.mean())
    return float(np.mean([each.mean() for each in kinds]))


def same_best(expected: Named, found: Named) -> float:
    """Return the share of tokens with the same best class. Of padding, whose outputs are zeros, nothing is counted."""
    (one,), (other,) = expected.values(), found.values()
    real = one.any(axis=-1)
    return float((one.argmax(axis=-1) == other.argmax(axis=-1))[real].mean()) if real.any() else 1.0


def mean_iou(presenter: SegmentationPresenter, expected: Named, found: Named) -> float:
    """Return the mean over FP32's classes of intersection over union of all pixels."""
    (one,), (other,) = expected.values(), found.values()
    both: dict[int, int] = {}
    either: dict[int, int] = {}
    for first, second in zip(one, other, strict=True):
        a, b = presenter.classes(first), presenter.classes(second)
        for index in np.union1d(a, b).tolist():
            in_a, in_b = a == index, b == index
            both[index] = both.get(index, 0) + int((in_a & in_b).sum())
            either[index] = either.get(index, 0) + int((in_a | in_b).sum())
    return float(np.mean([both[index] / either[index] for index in either]))


def common_boxes(presenter: DetectionPresenter, expected: Named, found: Named) -> float | None:
    """Return 2 x boxes in common / boxes of both, None where neither has any.

    A box is in common with the best of its class that overlaps by ``SAME_BOX_IOU`` and is in common with no other.
    """
    common = total = 0
    for row in range(len(next(iter(expected.values())))):
        first, second = (presenter.kept({name: each[row] for name, each in of.items()}) for of in (expected, found))
        total += len(first.boxes) + len(second.boxes)
        common += _matched(first, second)
    return 2.0 * common / total if total else None


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
