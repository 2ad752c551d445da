"""Boxes with labels, in pixels of the original image."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import decode, turned
from .base import Labels, Outputs, Shapes, in_words, label_of, only
from .boxes import areas, clipped, nms_by_class, to_corners
from .decode import Anchors, Candidates
from .frame import Frame
from .scores import probabilities, softmax
from .spec import LAST, TaskSpec

if TYPE_CHECKING:
    from PIL import Image

BOXES, SCORES, CENTERNESS, ROIS = "boxes", "scores", "centerness", "rois"
"""The names of a detector's outputs. Only FCOS has the third one, and only Faster R-CNN the last."""
LABELS = "labels"
"""The output with the class of each box, where the model has chosen it: ``scores`` is then that of this class."""
OBJECTNESS = "objectness"
"""The output with the score of any object at all, where it is apart from those of the classes."""
_SEEN = 0.25
"""The least share of a box that is in the image, and not in a border that preprocessing added: less of it is none."""
MOST_OF_A_CLASS = 1000
"""Candidates of each class that are compared with each other. Detectors with anchors have their own number."""


Values = npt.NDArray[np.float32]
Corners = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Detection:
    """One object. The box is in pixels of the original image, and inside it. ``score`` is 0..1.

    A turned box has its four ``corners`` too, which may lie outside the image, and the ``angle`` of its first side in
    radians, clockwise; ``box`` is then the upright box around it.
    """

    label: str
    index: int
    score: float
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    corners: tuple[tuple[float, float], ...] | None = None
    angle: float | None = None

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
                {
                    "label": one.label,
                    "index": one.index,
                    "score": one.score,
                    "box": list(one.box),
                    **({} if one.corners is None else {"corners": [list(each) for each in one.corners]}),
                    **({} if one.angle is None else {"angle": one.angle}),
                }
                for one in self.found
            ],
        }

    def text(self) -> str:
        if not self.found:
            return "  nothing was found"
        width = max(len(one.label) for one in self.found)
        return "\n".join(
            f"  {one.score:7.2%}  {one.label:<{width}}  "
            f"({one.xmin:.1f}, {one.ymin:.1f}) to ({one.xmax:.1f}, {one.ymax:.1f})"
            + ("" if one.angle is None else f", turned by {math.degrees(one.angle):.0f} degrees")
            for one in self.found
        )

    def draw(self, image: Image.Image) -> Image.Image:
        from . import draw

        rows = [(one.corners or one.box, one.index, one.label, f"{one.score:.0%}") for one in self.found]
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
        kept = dataclasses.replace(self, input_size=(frame.input_width, frame.input_height)).kept(outputs)
        corners = frame.to_image(turned.corners_of(kept.boxes)) if self.spec.angle else None
        whole = (
            frame.to_image(kept.boxes.reshape(-1, 2, 2)).reshape(-1, 4) if corners is None else turned.hulls_of(corners)
        )
        boxes = whole.clip(0.0, (float(frame.width), float(frame.height)) * 2)
        seen = areas(boxes) >= _SEEN * areas(whole)
        found = [
            self._detection(box, kept.scores[row], int(kept.classes[row]), None if corners is None else corners[row])
            for row, box in enumerate(boxes)
            if seen[row] and box[2] > box[0] and box[3] > box[1]
        ]
        return Detections(tuple(found), frame.width, frame.height)

    def _detection(self, box: Corners, score: float, index: int, corners: Corners | None) -> Detection:
        xmin, ymin, xmax, ymax = (float(each) for each in box)
        found = Detection(label_of(self.labels, index), index, float(score), xmin, ymin, xmax, ymax)
        if corners is None:
            return found
        places = tuple((float(x), float(y)) for x, y in corners)
        return dataclasses.replace(found, corners=places, angle=turned.angle_of(corners))

    def kept(self, outputs: Outputs) -> Candidates:
        """Return the boxes that remain, best first, as corners in pixels of the model's input, or ``turned``."""
        candidates = self._of_each_class(self._candidates(outputs))
        classes = candidates.classes
        if self.spec.class_agnostic:
            candidates = candidates.best(MOST_OF_A_CLASS)
            classes = np.zeros_like(candidates.classes)
        rows = nms_by_class(candidates.boxes, candidates.scores, classes, self.spec.nms_iou)
        rows = rows[: self.spec.max_detections]
        return Candidates(candidates.boxes[rows], candidates.scores[rows], candidates.classes[rows])

    @property
    def first_class(self) -> int:
        """The first class that can be found: 1 where class 0 stands for nothing."""
        return int(self.spec.background is True or self.spec.decoder in (decode.SSD, decode.FASTER_RCNN))

    def with_threshold(self, threshold: float) -> DetectionPresenter:
        """Return the same with another threshold, such as the low one that a mean average precision needs."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, threshold=threshold, thresholds=()))

    def _of_each_class(self, found: Candidates) -> Candidates:
        """Return the candidates above the thresholds of their classes; all are above the lowest one."""
        if not self.spec.thresholds:
            return found
        good = found.scores > np.array(self.spec.thresholds, np.float32)[found.classes]
        return Candidates(found.boxes[good], found.scores[good], found.classes[good])

    def _candidates(self, outputs: Outputs) -> Candidates:
        threshold = self.spec.threshold
        if self.spec.decoder:
            assert self.anchors is not None
            return decode.candidates(self.spec.decoder, outputs, self.anchors, self.input_size, threshold)
        boxes, scores, objects = parts(outputs, self.spec)
        if LABELS in outputs:
            return self._of_labels(boxes, scores, objects, np.rint(outputs[LABELS]).astype(np.int64).reshape(-1))
        softmaxed = self.spec.background and self.spec.scores == "logits"
        chances = softmax(scores) if softmaxed else probabilities(scores, self.spec.scores)
        if objects is not None:
            chances = chances * probabilities(objects, self.spec.scores)
        first, end = self.first_class, chances.shape[1] - int(self.spec.background == LAST)
        corners = self._in_pixels(boxes)
        chosen = chances[:, first:end].astype(np.float32)
        if self.spec.background == LAST:  # DETR's queries have one object each, of the best class
            chosen = np.where(np.arange(end - first) == chosen.argmax(axis=1)[:, None], chosen, np.float32(0.0))
        return Candidates.joined(decode.per_class(corners, chosen, threshold, MOST_OF_A_CLASS, first), boxes.shape[1])

    def _of_labels(
        self, boxes: Values, scores: Values, objects: Values | None, labels: npt.NDArray[np.int64]
    ) -> Candidates:
        """Return the boxes whose classes the model has chosen. A class below the first one is no object."""
        wide = probabilities(scores, self.spec.scores)
        if objects is not None:
            wide = wide * probabilities(objects, self.spec.scores)
        chances: Values = np.where(labels >= self.first_class, wide[:, 0], 0.0).astype(np.float32)
        corners = self._in_pixels(boxes)
        found = []
        for index in np.unique(labels[chances > self.spec.threshold]):
            where = np.flatnonzero((labels == index) & (chances > self.spec.threshold))
            found.append(Candidates(corners[where], chances[where], labels[where]).best(MOST_OF_A_CLASS))
        return Candidates.joined(found, boxes.shape[1])

    def _in_pixels(self, boxes: Values) -> Values:
        """Return boxes of the model as corners in pixels of its input, clipped to it, or as ``turned`` ones."""
        if not self.spec.angle:
            return clipped(to_corners(boxes, self.spec.box_format, *self.input_size), *self.input_size)
        found = boxes.astype(np.float32)
        if self.spec.box_format.endswith("_normalized"):
            found[:, :4] *= np.array([*self.input_size, *self.input_size], np.float32)
        return found


def parts(outputs: Outputs, spec: TaskSpec) -> tuple[Values, Values, Values | None]:
    """Return boxes ``(n, 4)``, scores ``(n, classes)``, and the objectness ``(n, 1)`` where the model has one.

    Boxes with an angle are ``(n, 5)``, with the angle last.
    """
    if len(outputs) == 1:
        whole = only(outputs) if spec.layout == "rows" else only(outputs).T
        boxes, scores = whole[:, :4], whole[:, 4:]
        if spec.angle == "last":
            boxes, scores = np.concatenate([boxes, scores[:, -1:]], axis=1), scores[:, :-1]
        elif spec.angle:
            boxes, scores = whole[:, :5], whole[:, 5:]
    else:
        boxes, scores = (
            each.T if spec.layout == "columns" and each.ndim == 2 else each
            for each in (outputs[BOXES], outputs[SCORES])
        )
        scores = scores[:, None] if scores.ndim == 1 else scores
    if OBJECTNESS in outputs:
        return boxes, scores, outputs[OBJECTNESS].reshape(-1, 1)
    if not spec.objectness:
        return boxes, scores, None
    if scores.shape[1] == 1:  # a model of one class may have no score for it
        return boxes, np.full_like(scores, np.inf if spec.scores == "logits" else 1.0), scores
    return boxes, scores[:, 1:], scores[:, :1]


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    if _columns_of(outputs) is not None:
        return None
    return (
        f'needs two outputs, "{BOXES}" of shape (n, 4) or, with an angle, (n, 5), and "{SCORES}" of shape (n, classes) '
        f'or (n,), or one of shape (n, 4 + classes), or the same with a column for each box; "{OBJECTNESS}" of shape '
        f'(n,) or (n, 1) may be another one, and beside "{SCORES}" (n,) the classes "{LABELS}" (n,); the model has '
        f"{in_words(outputs)}. "
        "Boxes of other numbers are of kind raw"
    )


def wrong_angle(spec: TaskSpec, outputs: Shapes) -> str | None:
    """Return what the setting ``angle`` must be for these outputs, None where it fits."""
    if spec.angle and not spec.box_format.startswith("cxcywh"):
        return 'is of boxes that have a middle: set box_format = "cxcywh" or "cxcywh_normalized"'
    if spec.decoder or len(outputs) == 1:
        return None
    numbers = outputs[BOXES][_columns_of(outputs) is False]
    if (numbers == 5) == bool(spec.angle):
        return None
    if spec.angle:
        return f'is set, and "{BOXES}" has {numbers} numbers for each box; the angle is the fifth'
    return (
        f'is not set, and "{BOXES}" has five numbers for each box: set "fifth" if the last one is an angle in radians'
    )


def layout_of(outputs: Shapes) -> str | None:
    """Return whether each box is a row or a column of outputs that fit, None where it may be either."""
    if len(outputs) > 1:
        return "columns" if _columns_of(outputs) else "rows"
    first, second = only(outputs)
    return "rows" if first <= 4 or first >= second else None


def label_count(outputs: Shapes, spec: TaskSpec) -> int:
    """Return how many classes have names: those with scores, but for a last one that stands for nothing.

    0 is any number: nothing says how many the model chooses from.
    """
    if LABELS in outputs:
        return 0
    if len(outputs) == 1:
        count = only(outputs)[spec.layout == "rows"] - 4 - bool(spec.angle)
    else:
        scores = outputs[SCORES]
        count = 1 if len(scores) == 1 else scores[spec.layout == "rows"]
    inside = spec.objectness and OBJECTNESS not in outputs
    return int(max(count - inside, 1) - (spec.background == LAST))


def _columns_of(outputs: Shapes) -> bool | None:
    """Return whether each box is a column of the outputs, None where they are no boxes and scores. One output may have
    either where it has more than four rows."""
    if len(outputs) == 1:
        shape = only(outputs)
        return False if len(shape) == 2 and shape[1] > 4 else None
    boxes, scores = outputs.get(BOXES, ()), outputs.get(SCORES, ())
    if set(outputs) - {OBJECTNESS, LABELS} != {BOXES, SCORES} or len(boxes) != 2 or len(scores) not in (1, 2):
        return None
    if LABELS in outputs and not outputs[LABELS] == scores == (math.prod(scores),):
        return None
    for columns in (False, True):
        count = boxes[columns]
        fits = boxes[not columns] in (4, 5) and scores[len(scores) - 1 if columns else 0] == count
        if fits and outputs.get(OBJECTNESS, (count,)) in {(count,), (count, 1), (1, count)}:
            return columns
    return None
