"""How close INT8 outputs are to FP32 ones, and how often both are right. Plain functions on arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpupack.runtime.accuracy import agreement, sqnr_db

__all__ = ["agreement", "cosine", "sqnr_db", "top_k"]

FloatArray = npt.NDArray[np.float32]


def cosine(reference: FloatArray, actual: FloatArray) -> float:
    """Return the cosine of the angle between the two outputs, all samples as one vector."""
    a, b = reference.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0.0 else float(np.array_equal(a, b))


def top_k(outputs: FloatArray, labels: npt.NDArray[np.int64], k: int) -> float:
    """Return the share of samples ``(n, classes)`` whose label ``(n,)`` is among the ``k`` largest outputs."""
    chosen = np.argpartition(-outputs, min(k, outputs.shape[1]) - 1, axis=1)[:, :k]
    return float(np.mean((chosen == labels[:, None]).any(axis=1)))
