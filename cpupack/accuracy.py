"""How close INT8 outputs are to FP32 ones, and how often both are right. Plain functions on arrays."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def sqnr_db(reference: FloatArray, actual: FloatArray) -> float:
    """Return 10 log10(sum(reference^2) / sum((reference - actual)^2)) over all values; infinite when they are equal."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - actual).sum())
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def cosine(reference: FloatArray, actual: FloatArray) -> float:
    """Return the cosine of the angle between the two outputs, all samples as one vector."""
    a, b = reference.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0.0 else float(np.array_equal(a, b))


def agreement(reference: FloatArray, actual: FloatArray) -> float:
    """Return the share of samples on which both choose the same class (first axis samples, last axis classes)."""
    return float(np.mean(reference.argmax(axis=-1) == actual.argmax(axis=-1)))


def top_k(outputs: FloatArray, labels: npt.NDArray[np.int64], k: int) -> float:
    """Return the share of samples ``(n, classes)`` whose label ``(n,)`` is among the ``k`` largest outputs."""
    chosen = np.argpartition(-outputs, min(k, outputs.shape[1]) - 1, axis=1)[:, :k]
    return float(np.mean((chosen == labels[:, None]).any(axis=1)))
