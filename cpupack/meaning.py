"""How well INT8 embeddings keep their meaning: their directions, the order of similarities, and who is found first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpupack.accuracy import dot, likenesses
from cpupack.runtime.tasks.embedding import normalized

FloatArray = npt.NDArray[np.float32]
NEIGHBOURS = 10
"""Of each text, in recall@k: as many as a first page of results."""
FEWEST = 3
"""Texts from which there is an order of pairs. Fewer have one pair, or none."""
_MOST = 2000
"""Texts that are compared with each other: two million pairs."""


@dataclass(frozen=True)
class Meaning:
    """INT8 embeddings beside FP32's, on the same texts.

    ``mean_cosine`` and ``worst_cosine`` are between the two embeddings of a text. ``spearman`` is the rank correlation
    of the similarities of all pairs of texts. ``recall`` is the share of the ``neighbours`` nearest texts in FP32 that
    INT8 has among its own nearest, and ``label_recall`` how often a text has one of its own label among these, for FP32
    and INT8 (None without labels).
    """

    mean_cosine: float
    worst_cosine: float
    spearman: float | None
    recall: float | None
    neighbours: int
    label_recall_fp32: float | None = None
    label_recall_int8: float | None = None


def meaning_of(expected: FloatArray, actual: FloatArray, labels: npt.NDArray[np.int64] | None = None) -> Meaning:
    """Compare embeddings ``(n, ...)`` of FP32 and INT8; ``labels`` are ``(n,)``.

    Spearman and recall take three texts.
    """
    first, second = _unit(expected), _unit(actual)
    cosines = cosines_of(expected, actual)
    if len(first) < FEWEST:
        return Meaning(float(cosines.mean()), float(cosines.min()), None, None, 0)
    rows = _compared(len(first))
    before, after = (likenesses(each[rows], each[rows]) for each in (first, second))
    above = np.triu_indices(len(rows), 1)
    count = min(NEIGHBOURS, len(rows) - 1)
    wanted, found = _nearest(before, count), _nearest(after, count)
    shares: list[float | None] = [None, None]
    if labels is not None:
        own = labels[rows]
        shares = [float((own[near] == own[:, None]).any(axis=1).mean()) for near in (wanted, found)]
    return Meaning(
        float(cosines.mean()),
        float(cosines.min()),
        spearman(before[above], after[above]),
        float(np.mean(_kept(wanted, found))) / count,
        count,
        *shares,
    )


def cosines_of(expected: FloatArray, actual: FloatArray) -> npt.NDArray[np.float64]:
    """Return the cosine between the two embeddings of each text, of FP32 and INT8 ``(n, ...)``."""
    first, second = _unit(expected), _unit(actual)
    same = np.all(first == second, axis=1)
    return np.where(same, 1.0, (first * second).sum(axis=1))  # two rows of zeros are equal, and have no direction


def recalls_of(expected: FloatArray, actual: FloatArray) -> npt.NDArray[np.float64] | None:
    """Return ``Meaning.recall`` of each text that is compared, None for fewer than three texts."""
    if len(expected) < FEWEST:
        return None
    rows = _compared(len(expected))
    count = min(NEIGHBOURS, len(rows) - 1)
    near = [_nearest(likenesses(each, each), count) for each in (_unit(expected[rows]), _unit(actual[rows]))]
    return np.array(_kept(*near), np.float64) / count


def _compared(count: int) -> npt.NDArray[np.int64]:
    """Return the texts that are compared with each other: all, or as many as ``_MOST``, evenly."""
    return np.linspace(0, count - 1, min(count, _MOST)).round().astype(np.int64)


def _kept(wanted: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> list[int]:
    """Return how many of the nearest of each text are among the nearest that were found."""
    return [len(set(one) & set(other)) for one, other in zip(wanted.tolist(), found.tolist(), strict=True)]


def spearman(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Return the rank correlation of two rows of values, -1 to 1; equal values share the mean of their ranks.

    It is 1 for equal rows, and 0 where only one of them is constant.
    """
    if np.array_equal(first, second):
        return 1.0
    one, other = (_ranks(each) for each in (first, second))
    one, other = one - one.mean(), other - other.mean()
    norm = math.sqrt(dot(one, one) * dot(other, other))
    return dot(one, other) / norm if norm > 0.0 else 0.0


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[place], np.float64)


def _nearest(similarities: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Return the indices of the ``count`` nearest other texts of each; of equally near ones the first."""
    others = similarities.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argsort(-others, axis=1, kind="stable")[:, :count]


def _unit(values: FloatArray) -> npt.NDArray[np.float64]:
    return normalized(values.reshape(len(values), -1)).astype(np.float64)
