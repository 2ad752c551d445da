"""A class for every pixel: the map in the size of the original image, and how much of it each class covers."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .base import Labels, Outputs, Shapes, in_words, label_of, only
from .frame import Frame
from .scores import probabilities
from .spec import TaskSpec

if TYPE_CHECKING:
    from PIL import Image

UNSEEN = -1
"""The class of pixels that the model never saw, because preprocessing cut them off."""
_BYTE, _WORD = 255, 65535
"""What stands for ``UNSEEN`` in a PNG of 8 bits, and of 16."""


@dataclass(frozen=True)
class ClassShare:
    """How much of the seen pixels a class covers (0..1)."""

    label: str
    index: int
    share: float


@dataclass(frozen=True, eq=False)
class Segmentation:
    """``mask`` is int32 ``(height, width)`` of the original image: a class for each pixel, -1 where the crop of the
    preprocessing left none. ``shares`` lists the classes that occur, the largest first."""

    mask: npt.NDArray[np.int32]
    shares: tuple[ClassShare, ...]

    def png(self) -> bytes:
        """Return the mask as a grey PNG whose values are the classes.

        It has 8 bits, and 255 where no class is known. With a class above 254 it has 16 bits, and 65535.
        """
        from PIL import Image

        wide = self.mask.size and int(self.mask.max()) >= _BYTE
        unknown = _WORD if wide else _BYTE
        values = np.where(self.mask == UNSEEN, unknown, self.mask).astype(np.uint16 if wide else np.uint8)
        out = io.BytesIO()
        Image.fromarray(values).save(out, "PNG")
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        height, width = self.mask.shape
        return {
            "width": width,
            "height": height,
            "classes": [{"label": one.label, "index": one.index, "share": one.share} for one in self.shares],
            "mask_png": base64.b64encode(self.png()).decode("ascii"),
        }

    def text(self) -> str:
        height, width = self.mask.shape
        rows = [f"  {one.share:7.2%}  {one.label}" for one in self.shares]
        return "\n".join([f"  {width} x {height} pixels", *rows])

    def draw(self, image: Image.Image) -> Image.Image:
        from . import draw

        if image.size != self.mask.shape[::-1]:
            image = image.resize(self.mask.shape[::-1])
        rows = [(one.index, one.label, f"{one.share:.1%}") for one in self.shares if one.index > 0]
        return draw.legend(draw.blended(image, self.mask), rows)


@dataclass(frozen=True)
class SegmentationPresenter:
    """Makes a ``Segmentation`` of scores ``(classes, height, width)``.

    One class alone, ``(1, height, width)``, is the probability of class 1 against class 0. A map ``(height, width)``
    of whole numbers holds classes already; floats with fractions or less than -1 among them, or where the build has
    seen such (``squeezed``), are one class alone without its dimension.
    """

    spec: TaskSpec
    labels: Labels
    needs_frame: bool = True

    def present(self, outputs: Outputs, frame: Frame | None) -> Segmentation:
        scores = self._with_classes(np.asarray(only(outputs)))
        classes = self.classes(scores) if frame is None else self._in_image(scores, frame)
        seen = classes[classes != UNSEEN]
        indices, counts = np.unique(seen, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        shares = tuple(
            ClassShare(self._label(int(indices[i])), int(indices[i]), float(counts[i] / seen.size)) for i in order
        )
        return Segmentation(classes, shares)

    def classes(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Return the class of each pixel of the output, int32 ``(height, width)``."""
        scores = self._with_classes(scores)
        if scores.ndim == 2:
            return scores.round().astype(np.int32)
        if len(scores) == 1:
            return (probabilities(scores[0], self.spec.scores) >= self.spec.threshold).astype(np.int32)
        return np.asarray(scores.argmax(axis=0), np.int32)

    def _with_classes(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return scores of one class, ``(height, width)``, as ``(1, height, width)``, and anything else as it is.

        Integers and truth values are classes, and what is below 0 among them is none.
        """
        floats = np.asarray(scores, np.float32)
        if scores.ndim != 2:
            return floats
        if scores.dtype.kind != "f":
            return np.maximum(floats, np.float32(UNSEEN))
        return floats[None] if self.spec.squeezed or holds_scores(floats) else floats

    def _label(self, index: int) -> str:
        if self.labels and index >= len(self.labels):  # a map that the model made itself may hold anything
            return f"class {index}"
        return label_of(self.labels, index) if self.labels else f"class {index}"

    def _in_image(self, scores: npt.NDArray[np.float32], frame: Frame) -> npt.NDArray[np.int32]:
        left, top, right, bottom = frame.seen()
        part = _Part(frame, (left, top, right, bottom), scores.shape[-2:])
        if scores.ndim == 2:
            found = part.nearest(self.classes(scores))
        elif len(scores) == 1:
            smooth = part.smooth(probabilities(scores[0], self.spec.scores).astype(np.float32))
            found = (smooth >= self.spec.threshold).astype(np.int32)
        else:
            found = _best(scores, part)
        whole = np.full((frame.height, frame.width), UNSEEN, np.int32)
        whole[top:bottom, left:right] = found
        return whole


@dataclass(frozen=True)
class _Part:
    """The seen ``window`` of the original, and how a map of ``size`` (rows, columns) gets there."""

    frame: Frame
    window: tuple[int, int, int, int]
    size: tuple[int, ...]

    def smooth(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return a map of numbers, bilinear between the middles of its pixels."""
        from PIL import Image

        left, top, right, bottom = self.window
        if self.size == (bottom - top, right - left) == (self.frame.input_height, self.frame.input_width):
            return values
        image = Image.fromarray(np.ascontiguousarray(values))
        resized = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=self._box())
        return np.asarray(resized, np.float32)

    def nearest(self, classes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return a map of classes, each pixel that of the nearest one."""
        left, top, right, bottom = self.window
        x0, y0, x1, y1 = self._box()
        columns = x0 + (np.arange(right - left) + 0.5) * (x1 - x0) / (right - left)
        rows = y0 + (np.arange(bottom - top) + 0.5) * (y1 - y0) / (bottom - top)
        height, width = self.size
        picked: npt.NDArray[np.int32] = classes[
            rows.astype(int).clip(0, height - 1)[:, None], columns.astype(int).clip(0, width - 1)
        ]
        return picked

    def _box(self) -> tuple[float, float, float, float]:
        """Return the window in pixels of the map, not beyond its edges."""
        left, top, right, bottom = self.window
        corners = self.frame.to_input(np.array([[left, top], [right, bottom]], np.float64))
        height, width = self.size
        corners *= (width / self.frame.input_width, height / self.frame.input_height)
        (x0, y0), (x1, y1) = corners.clip(0.0, (width, height))
        return float(x0), float(y0), float(x1), float(y1)


def holds_scores(maps: npt.NDArray[Any]) -> bool:
    """Return whether maps ``(..., height, width)`` hold scores of one class, and no classes.

    No class is below ``UNSEEN``, so whole numbers below it are scores too: of a model that limits its logits, say.
    """
    return bool((maps != np.rint(maps)).any() or (maps < UNSEEN).any())


def _best(scores: npt.NDArray[np.float32], part: _Part) -> npt.NDArray[np.int32]:
    """Return the class with the largest interpolated score.

    Only classes that win some pixel of the output take part. Interpolating all of many classes to a large photo would
    take seconds.
    """
    present = np.unique(scores.argmax(axis=0))
    best = part.smooth(scores[present[0]])
    found = np.full(best.shape, present[0], np.int32)
    best = best.copy()
    for index in present[1:]:
        values = part.smooth(scores[index])
        better = values > best
        found[better] = index
        best[better] = values[better]
    return found


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    if len(outputs) == 1 and len(only(outputs)) in (2, 3):
        return None
    return (
        "needs one output of shape (classes, height, width), (1, height, width) for one class against the rest, or "
        f"(height, width) of classes; the model has {in_words(outputs)}"
    )


def label_count(outputs: Shapes) -> int:
    """Return how many labels the output has room for, 0 for any number."""
    shape = only(outputs)
    return 0 if len(shape) == 2 else max(2, shape[0])
