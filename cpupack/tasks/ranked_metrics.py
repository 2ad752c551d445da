"""Metrics of an order: how early the true labels come, and how well likeness parts equal from other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.accuracy import likenesses
from cpupack.errors import VerificationError
from cpupack.metric import OfRows
from cpupack.runtime.tasks.base import Presenter, in_rows
from cpupack.tasks.number_metrics import wrong_shape

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_MOST = 5000
"""Samples of which all pairs are compared: 12.5 million pairs."""


def truth_of(name: str, rows: Array, targets: Array) -> npt.NDArray[np.bool_]:
    """Return the true labels ``(n, labels)`` for outputs ``rows`` of this shape.

    Raises VerificationError for targets of another shape, or other numbers than 0 and 1.
    """
    given = np.asarray(targets).reshape(len(targets), -1)
    if not np.isin(given, (0, 1)).all():
        raise VerificationError(
            f"[evaluation] metric {name}: the targets have {given[~np.isin(given, (0, 1))][0]:g}; a label is 0 or 1",
            hint="leave out samples with labels that nobody knows",
        )
    if given.shape != rows.shape:
        raise wrong_shape(name, f"{rows.shape[1]} truth values for each sample", targets)
    return given.astype(bool)


def average_precisions(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> OfRows:
    """Return the mean over the labels of average precision (as scikit-learn has it), as a function of the samples.

    Labels that no sample has do not count; without any the mean is NaN. It does not depend on the threshold.
    """
    rows = in_rows(outputs)
    truth = truth_of("average_precision", rows, targets)

    def mean(chosen: npt.NDArray[np.int64]) -> float:
        scores, given = rows[chosen], truth[chosen]
        found = [_precision(scores[:, each], given[:, each]) for each in np.flatnonzero(given.any(axis=0))]
        return float(np.mean(found)) if found else float("nan")

    return mean


def _precision(scores: Array, truth: npt.NDArray[np.bool_]) -> float:
    """Return the sum of precision times gained recall over the thresholds; equal scores have one threshold."""
    order = np.argsort(-scores, kind="stable")
    hits, last = np.cumsum(truth[order]), _last_of_equal(scores[order])
    precision = hits[last] / (last + 1)
    return float((np.diff(hits[last], prepend=0) * precision).sum() / hits[-1])


def equal_error(vectors: Array, classes: Array) -> OfRows:
    """Return the equal error rate of verification over all pairs of samples, as a function of the samples.

    A pair is taken for one class where its cosine is a threshold or more. At the threshold where as large a share of
    pairs of one class is refused as of others is accepted, that share is the rate. It is NaN where a draw has no pair
    of one class, or none of two.
    """
    given = np.asarray(classes)
    if given.ndim != 1:
        raise wrong_shape("equal_error", "a class for each sample", given)
    if len(given) > _MOST:
        raise VerificationError(
            f"[evaluation] metric equal_error compares all pairs of {len(given):,} samples",
            hint=f"set [evaluation] samples to at most {_MOST}",
        )
    _, numbers, counts = np.unique(given, return_inverse=True, return_counts=True)
    if len(counts) < 2 or counts.max() < 2:
        raise VerificationError(
            "[evaluation] metric equal_error needs pairs of samples of one class, and of two",
            hint="give at least two classes, one of them with two samples",
        )
    flat = np.asarray(vectors, np.float64).reshape(len(vectors), -1)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    one, other = np.triu_indices(len(given), 1)
    cosines = likenesses(unit, unit)[one, other]
    order = np.argsort(-cosines, kind="stable")
    one, other, last = one[order], other[order], _last_of_equal(cosines[order])
    same = numbers[one] == numbers[other]

    def rate(chosen: npt.NDArray[np.int64]) -> float:
        drawn = np.bincount(chosen, minlength=len(given)).astype(np.float64)
        weights = drawn[one] * drawn[other]
        accepted = [np.cumsum(np.where(kind, weights, 0.0)) for kind in (same, ~same)]
        if not all(each[-1] for each in accepted):
            return float("nan")
        refused, wrong = 1.0 - accepted[0][last] / accepted[0][-1], accepted[1][last] / accepted[1][-1]
        best = int(np.abs(refused - wrong).argmin())
        return float((refused[best] + wrong[best]) / 2.0)

    return rate


def _last_of_equal(ordered: Array) -> npt.NDArray[np.intp]:
    """Return the last place of each run of equal values."""
    return np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
