"""Boxes with labels, in pixels of the original image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import decode
from .base import Labels, Outputs, Shapes, in_words, label_of, only
from .boxes import clipped, nms_by_class, to_corners
from .decode import Anchors, Candidates
from .frame import Frame
from .scores import probabilities, softmax
from .spec import TaskSpec

if TYPE_CHECKING:
    from PIL import Image

BOXES, SCORES, CENTERNESS, ROIS = "boxes", "scores", "centerness", "rois"
"""The names of a detector's outputs. Only FCOS has the third one, and only Faster R-CNN the last."""
MOST_OF_A_CLASS = 1000
"""Candidates of each class that are compared with each other. Detectors with anchors have their own number."""


@dataclass(frozen=True)
class Detection:
    """One object. Corners are in pixels of the original image, and inside it. ``score`` is 0..1."""

    label: str
    index: int
    score: float
    xmin: float
    ymin: float
    xmax: float
    ymax: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The corners (xmin, ymin, xmax, ymax)."""
        return self.xmin, self.ymin, self.xmax, self.ymax


@dataclass(frozen=True)
class Detections:
    """What was found in one image of ``width`` x ``height`` pixels, the best score first. It may be nothing."""

    found: tuple[Detection, ...]
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, number: int) -> Detection:
        return self.found[number]

    def to_dict(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "height": self.height,
            "detections": [
                {"label": one.label, "index": one.index, "score": one.score, "box": list(one.box)} for one in self.found
            ],
        }

    def text(self) -> str:
        if not self.found:
            return "  nothing was found"
        width = max(len(one.label) for one in self.found)
        return "\n".join(
            f"  {one.score:7.2%}  {one.label:<{width}}  "
            f"({one.xmin:.1f}, {one.ymin:.1f}) to ({one.xmax:.1f}, {one.ymax:.1f})"
            for one in self.found
        )

    def draw(self, image: Image.Image) -> Image.Image:
        from . import draw

        rows = [(one.box, draw.colour_of(one.index), f"{one.label} {one.score:.0%}") for one in self.found]
        return draw.boxes(image, rows[::-1])  # the best on top


@dataclass(frozen=True)
class DetectionPresenter:
    """Makes ``Detections`` of boxes and scores.

    ``input_size`` is the width and height of the model's input, for inputs that are no images and for normalized boxes.
    """

    spec: TaskSpec
    labels: Labels
    input_size: tuple[int, int]
    anchors: Anchors | None = None
    needs_frame: bool = True

    def present(self, outputs: Outputs, frame: Frame | None) -> Detections:
        frame = Frame.whole(*self.input_size) if frame is None else frame
        kept = self.kept(outputs)
        corners = frame.boxes_to_image(kept.boxes)
        found = [
            Detection(label_of(self.labels, index), index, float(score), *(float(each) for each in box))
            for box, score, index in zip(corners, kept.scores, kept.classes.tolist(), strict=True)
            if box[2] > box[0] and box[3] > box[1]  # others lie in a border that preprocessing added
        ]
        return Detections(tuple(found), frame.width, frame.height)

    def kept(self, outputs: Outputs) -> Candidates:
        """Return the boxes that remain, best first, as corners in pixels of the model's input."""
        candidates = self._candidates(outputs)
        rows = nms_by_class(candidates.boxes, candidates.scores, candidates.classes, self.spec.nms_iou)
        rows = rows[: self.spec.max_detections]
        return Candidates(candidates.boxes[rows], candidates.scores[rows], candidates.classes[rows])

    def with_threshold(self, threshold: float) -> DetectionPresenter:
        """Return the same with another threshold, such as the low one that a mean average precision needs."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, threshold=threshold))

    def _candidates(self, outputs: Outputs) -> Candidates:
        threshold = self.spec.threshold
        if self.spec.decoder:
            assert self.anchors is not None
            return decode.candidates(self.spec.decoder, outputs, self.anchors, self.input_size, threshold)
        boxes, scores = _parts(outputs)
        softmaxed = self.spec.background and self.spec.scores == "logits"
        chances = softmax(scores) if softmaxed else probabilities(scores, self.spec.scores)
        first = 1 if self.spec.background else 0
        corners = clipped(to_corners(boxes, self.spec.box_format, *self.input_size), *self.input_size)
        chosen = chances[:, first:].astype(np.float32)
        return Candidates.joined(decode.per_class(corners, chosen, threshold, MOST_OF_A_CLASS, first))


def _parts(outputs: Outputs) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return boxes ``(n, 4)`` and scores ``(n, classes)``."""
    if len(outputs) == 1:
        rows = only(outputs)
        return rows[:, :4], rows[:, 4:]
    boxes, scores = outputs[BOXES], outputs[SCORES]
    return boxes, scores[:, None] if scores.ndim == 1 else scores


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    if len(outputs) == 1:
        shape = only(outputs)
        fits = len(shape) == 2 and shape[1] > 4
    else:
        boxes, scores = outputs.get(BOXES, ()), outputs.get(SCORES, ())
        fits = set(outputs) == {BOXES, SCORES} and len(boxes) == 2 and boxes[1] == 4 and len(scores) in (1, 2)
        fits = fits and boxes[0] == scores[0]
    if fits:
        return None
    return (
        f'needs two outputs, "{BOXES}" of shape (n, 4) and "{SCORES}" of shape (n, classes) or (n,), or one of shape '
        f"(n, 4 + classes); the model has {in_words(outputs)}"
    )


def label_count(outputs: Shapes) -> int:
    """Return how many classes have scores."""
    if len(outputs) == 1:
        return int(only(outputs)[1]) - 4
    scores = outputs[SCORES]
    return 1 if len(scores) == 1 else int(scores[1])
