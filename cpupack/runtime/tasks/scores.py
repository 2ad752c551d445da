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
