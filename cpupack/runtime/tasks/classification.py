"""One class out of several: the most probable ones with their softmax probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import Labels, label_of
from .scores import best_first, softmax


@dataclass(frozen=True)
class Prediction:
    """One class with its probability (0..1). ``label`` is the class's number where the model has no labels."""

    label: str
    index: int
    probability: float


def top(scores: npt.NDArray[np.float32], top_k: int, labels: Labels, meaning: str = "logits") -> list[Prediction]:
    """Return the ``top_k`` most probable classes of one row of scores, which are ``logits`` or ``probabilities``."""
    chances = softmax(scores) if meaning == "logits" else scores.astype(np.float64)
    return [Prediction(label_of(labels, i), i, float(chances[i])) for i in best_first(scores, top_k).tolist()]


def to_dicts(found: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return predictions as JSON-ready values."""
    return [{"label": one.label, "index": one.index, "probability": one.probability} for one in found]


def text(found: Sequence[Prediction], *, named: bool) -> str:
    """Return a table of classes, the most probable first."""
    width = max(len(one.label) for one in found)
    return "\n".join(
        f"  {rank:>2}  {one.probability:7.2%}  "
        + (f"{one.label:<{width}}  (class {one.index})" if named else f"class {one.index}")
        for rank, one in enumerate(found, start=1)
    )
