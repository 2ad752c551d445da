"""From a model's scores to probabilities. All in float64, so that no score overflows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def softmax(logits: Floats, axis: int = -1) -> npt.NDArray[np.float64]:
    """Return the probabilities of logits along an axis."""
    wide = logits.astype(np.float64)
    exponents: npt.NDArray[np.float64] = np.exp(wide - wide.max(axis=axis, keepdims=True))
    exponents /= exponents.sum(axis=axis, keepdims=True)
    return exponents


def sigmoid(logits: Floats) -> npt.NDArray[np.float64]:
    """Return 1 / (1 + exp(-logits)) without overflow: of numbers below zero exp alone is used."""
    wide = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def probabilities(scores: Floats, meaning: str) -> npt.NDArray[np.float64]:
    """Return each score as a probability of its own: sigmoid of ``logits``; ``probabilities`` stay as they are."""
    return sigmoid(scores) if meaning == "logits" else np.asarray(scores, np.float64)


def best_first(scores: Floats, count: int) -> npt.NDArray[np.intp]:
    """Return the indices of the ``count`` highest of one row of scores, the first of equal ones first.

    All where there are not so many. Only those are sorted: of 1000 scores all would take four times as long.
    """
    low = -scores
    if 4 * count < len(low):
        bound = np.partition(low, count - 1)[count - 1]
        if not np.isnan(bound):
            found = np.flatnonzero(low <= bound)
            return found[np.argsort(low[found], kind="stable")[:count]]
    return np.argsort(low, kind="stable")[:count]
