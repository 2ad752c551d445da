"""Points with names: from heat maps, or from coordinates."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .base import Labels, Outputs, Shapes, in_words, label_of, only
from .frame import Frame
from .spec import TaskSpec

if TYPE_CHECKING:
    from PIL import Image


_MOST_NAMED = 24
"""Points with a legend; that of a whole face would be longer than the image."""


@dataclass(frozen=True)
class Keypoint:
    """One point in pixels of the original image, clipped to it. ``score`` is 1 where the model gives none."""

    label: str
    index: int
    x: float
    y: float
    score: float


@dataclass(frozen=True)
class Keypoints:
    """The points whose score is at least the threshold, in the order of the output.

    ``skeleton`` has the pairs of points, by their index, that a drawing joins.
    """

    points: tuple[Keypoint, ...]
    width: int
    height: int
    skeleton: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, which: str | int) -> Keypoint:
        """Return a point by its name, or by its place in ``points``. Raises KeyError that lists the names."""
        if isinstance(which, int):
            return self.points[which]
        for one in self.points:
            if one.label == which:
                return one
        names = ", ".join(one.label for one in self.points) or "none"
        raise KeyError(f"no point {which!r} with a score of the threshold or more; there is {names}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "height": self.height,
            "points": [dataclasses.asdict(one) for one in self.points],
        }

    def text(self) -> str:
        if not self.points:
            return "  no point has a score of the threshold or more"
        width = max(len(one.label) for one in self.points)
        return "\n".join(
            f"  {one.label:<{width}}  x {one.x:7.1f}  y {one.y:7.1f}  score {one.score:.4g}" for one in self.points
        )

    def draw(self, image: Image.Image) -> Image.Image:
        from . import draw

        places = {one.index: number for number, one in enumerate(self.points)}
        lines = [(places[a], places[b]) for a, b in self.skeleton if a in places and b in places]
        drawn = draw.points(image, [(one.x, one.y, draw.colour_of(one.index)) for one in self.points], lines)
        named = [(one.index, one.label, "") for one in self.points if one.label != str(one.index)]
        return draw.legend(drawn, named) if len(named) <= _MOST_NAMED else drawn


@dataclass(frozen=True)
class KeypointsPresenter:
    """Makes ``Keypoints`` of heat maps ``(points, height, width)``, of coordinates ``(points, 2 or 3)``, or of scores
    of places across ``(points, places)`` and down (SimCC).

    The place of a heat map is its largest value, a quarter of a pixel towards the larger neighbour (as HRNet does),
    and that value is the score. Of places the best ones are taken, and the lesser of both is the score, as RTMPose has
    it. Coordinates are ``x, y`` and a score, in pixels of the model's input or 0..1 of it.
    """

    spec: TaskSpec
    labels: Labels
    input_size: tuple[int, int]
    """Width and height of the model's input."""
    needs_frame: bool = True

    def present(self, outputs: Outputs, frame: Frame | None) -> Keypoints:
        frame = Frame.whole(*self.input_size) if frame is None else frame
        rows = _from_places(outputs, frame) if len(outputs) > 1 else self._rows(only(outputs), frame)
        places = frame.to_image(rows[:, :2]).clip(0.0, (float(frame.width), float(frame.height)))
        scores = rows[:, 2] if rows.shape[1] == 3 else np.ones(len(rows))
        points = tuple(
            Keypoint(label_of(self.labels, i), i, float(places[i, 0]), float(places[i, 1]), float(scores[i]))
            for i in range(len(rows))
            if scores[i] >= self.spec.threshold and math.isfinite(places[i].sum())
        )
        return Keypoints(points, frame.width, frame.height, self.spec.skeleton)

    def _rows(self, output: npt.NDArray[Any], frame: Frame) -> npt.NDArray[np.float64]:
        """Return ``(points, 2 or 3)``: x and y in pixels of the model's input, and perhaps the score."""
        values = np.asarray(output, np.float64)
        if values.ndim == 3:
            return self._from_heat_maps(values, frame)
        if self.spec.coordinates == "normalized":
            return np.asarray(values * [frame.input_width, frame.input_height, *[1.0] * (values.shape[1] - 2)])
        return values

    @staticmethod
    def _from_heat_maps(maps: npt.NDArray[np.float64], frame: Frame) -> npt.NDArray[np.float64]:
        """Return ``(points, 3)``: x and y in pixels of the model's input, and the score."""
        count, height, width = maps.shape
        flat = np.nan_to_num(maps, nan=-np.inf).reshape(count, -1)
        best = flat.argmax(axis=1)
        rows, columns = best // width, best % width
        found = np.empty((count, 3))
        for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
            found[i, 0] = column + 0.5 + _lean(maps[i, row], column)
            found[i, 1] = row + 0.5 + _lean(maps[i, :, column], row)
            found[i, 2] = flat[i, best[i]]
        found[:, 0] *= frame.input_width / width
        found[:, 1] *= frame.input_height / height
        return found


def point_count(outputs: Shapes) -> int:
    """Return how many points the outputs have."""
    return int(next(iter(outputs.values()))[0])


def _from_places(outputs: Outputs, frame: Frame) -> npt.NDArray[np.float64]:
    """Return ``(points, 3)`` of the scores of places across and down: x and y in pixels of the input, and the score.

    Place ``i`` of ``n`` across is at ``i / n`` of the width, as SimCC's targets have it.
    """
    across, down = (np.nan_to_num(np.asarray(each, np.float64), nan=-np.inf) for each in outputs.values())
    x = across.argmax(axis=1) * (frame.input_width / across.shape[1])
    y = down.argmax(axis=1) * (frame.input_height / down.shape[1])
    return np.stack([x, y, np.minimum(across.max(axis=1), down.max(axis=1))], axis=1)


def _lean(line: npt.NDArray[np.float64], at: int) -> float:
    """Return a quarter towards the larger of the two neighbours, 0 at an edge or between equal ones."""
    if not 0 < at < len(line) - 1:
        return 0.0
    difference = line[at + 1] - line[at - 1]
    return 0.25 * float(np.sign(difference)) if math.isfinite(difference) else 0.0


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    shape: tuple[int, ...] = only(outputs) if len(outputs) == 1 else ()
    if len(shape) == 3 or (len(shape) == 2 and shape[1] in (2, 3)):
        return None
    both = list(outputs.values())
    if len(both) == 2 and all(len(each) == 2 and each[1] > 3 and each[0] == both[0][0] for each in both):
        return None
    two = len(shape) == 1 and shape[0] % 2 == 0
    flat = f". Where they are x and y in turn, return them as output.reshape(-1, {shape[0] // 2}, 2)" if two else ""
    return (
        "needs one output of shape (points, height, width), a heat map for each point, or (points, 2) or (points, 3) "
        "with x, y and a score in pixels of the input; or two outputs (points, places) with scores of places across, "
        f"then down; the model has {in_words(outputs)}{flat}"
    )
