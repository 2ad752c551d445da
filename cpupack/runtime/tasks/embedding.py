"""Vectors of length 1, whose product says how similar two inputs are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, RunnerError
from .base import Outputs, Shapes, in_words, only
from .frame import Frame

if TYPE_CHECKING:
    from PIL import Image

_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Embedding:
    """``vector`` is float32 ``(dimensions,)`` of length 1, or all zeros where the model's output was."""

    vector: npt.NDArray[np.float32]

    def cosine(self, other: Embedding) -> float:
        """Return the cosine between two embeddings, from -1 (opposite) to 1 (alike). Raises InputError."""
        if self.vector.shape != other.vector.shape:
            raise InputError(f"embeddings have {len(self.vector)} and {len(other.vector)} dimensions")
        return float(np.dot(self.vector.astype(np.float64), other.vector.astype(np.float64)))

    def to_dict(self) -> dict[str, Any]:
        return {"embedding": self.vector.tolist()}

    def text(self) -> str:
        shown = ", ".join(f"{value:.4f}" for value in self.vector[:_SHOWN])
        more = ", ..." if len(self.vector) > _SHOWN else ""
        return f"  {len(self.vector)} dimensions: {shown}{more}"

    def draw(self, image: Image.Image) -> None:
        return None


@dataclass(frozen=True)
class EmbeddingPresenter:
    """Makes an ``Embedding`` of the one output, whatever its shape."""

    needs_frame: bool = False

    def present(self, outputs: Outputs, frame: Frame | None) -> Embedding:
        row = np.asarray(only(outputs), np.float32).reshape(1, -1)
        if not np.isfinite(row).all():
            raise RunnerError("the model's output is not finite, so it has no direction and no embedding")
        return Embedding(normalized(row)[0])


def normalized(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return rows ``(n, dimensions)`` of length 1. A row of zeros stays as it is."""
    wide = rows.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return (wide / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    shape: tuple[int, ...] = only(outputs) if len(outputs) == 1 else ()
    if len([size for size in shape if size > 1]) == 1:
        return None
    return f"needs one output of shape (dimensions,), with at least two dimensions; the model has {in_words(outputs)}"
