"""Any number of labels at once: each has a probability of its own, and those above a threshold are given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .base import Labels, Outputs, Shapes, are_heads, in_one_row, in_words, label_of, only
from .classification import Prediction
from .frame import Frame
from .scores import probabilities
from .spec import TaskSpec

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Multilabel:
    """The labels whose probability is at least ``threshold``, the most probable first, and all probabilities.

    ``probabilities`` is float64 ``(labels,)``. ``threshold`` is a tuple where each label has its own.
    """

    labels: tuple[Prediction, ...]
    probabilities: npt.NDArray[np.float64]
    threshold: float | tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "labels": [dataclasses.asdict(one) for one in self.labels],
            "threshold": list(self.threshold) if isinstance(self.threshold, tuple) else self.threshold,
            "probabilities": self.probabilities.tolist(),
        }

    def text(self) -> str:
        if not self.labels and isinstance(self.threshold, tuple):
            return "  no label has its threshold's probability or more"
        if not self.labels:
            return f"  no label has a probability of {self.threshold:g} or more"
        return "\n".join(f"  {one.probability:7.2%}  {one.label}" for one in self.labels)

    def draw(self, image: Image.Image) -> None:
        return None


@dataclass(frozen=True)
class MultilabelPresenter:
    """Makes a ``Multilabel`` of one row of scores, or of those of several heads."""

    spec: TaskSpec
    labels: Labels
    needs_frame: bool = False

    def present(self, outputs: Outputs, frame: Frame | None) -> Multilabel:
        chances = probabilities(in_one_row(outputs), self.spec.scores)
        order = np.argsort(-chances, kind="stable")
        least = self.spec.least_scores(len(chances))
        found = [i for i in order if chances[i] >= least[i]]
        named = tuple(Prediction(label_of(self.labels, i), int(i), float(chances[i])) for i in found)
        return Multilabel(named, chances, self.spec.thresholds or self.spec.threshold)


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    if are_heads(outputs) or (len(outputs) == 1 and len(only(outputs)) == 1):
        return None
    return (
        "needs one output of shape (labels,), or several, with a score for each label; the model has "
        f"{in_words(outputs)}"
    )
