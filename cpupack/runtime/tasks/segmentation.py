"""A class for every pixel: the map in the size of the original image, and how much of it each class covers.

A scan has a class for every voxel of the model's output.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .base import Labels, Outputs, Shapes, in_words, label_of, only
from .frame import Frame
from .placing import Part
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
    preprocessing left none. Of a scan it is ``(depth, height, width)``. ``shares`` lists the classes that occur, the
    largest first."""

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

    def npy(self) -> bytes:
        """Return the mask as a file of numpy."""
        out = io.BytesIO()
        np.save(out, self.mask)
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        *depth, height, width = self.mask.shape
        name, file = ("mask_npy", self.npy()) if depth else ("mask_png", self.png())
        return {
            "width": width,
            "height": height,
            **({"depth": depth[0]} if depth else {}),
            "classes": [{"label": one.label, "index": one.index, "share": one.share} for one in self.shares],
            name: base64.b64encode(file).decode("ascii"),
        }

    def text(self) -> str:
        size = " x ".join(map(str, self.mask.shape[::-1]))
        rows = [f"  {one.share:7.2%}  {one.label}" for one in self.shares]
        return "\n".join([f"  {size} {'pixels' if self.mask.ndim == 2 else 'voxels'}", *rows])

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the mask over the image with a legend; of a scan the slice in its middle."""
        from . import draw

        mask = self.mask if self.mask.ndim == 2 else self.mask[len(self.mask) // 2]
        if image.size != mask.shape[::-1]:
            image = image.resize(mask.shape[::-1])
        rows = [(one.index, one.label, f"{one.share:.1%}") for one in self.shares if one.index > 0]
        return draw.legend(draw.blended(image, mask), rows)


@dataclass(frozen=True)
class SegmentationPresenter:
    """Makes a ``Segmentation`` of scores ``(classes, height, width)``.

    One class alone, ``(1, height, width)``, is the probability of class 1 against class 0. A map ``(height, width)``
    of whole numbers holds classes already; floats with fractions or less than -1 among them, or where the build has
    seen such (``squeezed``), are one class alone without its dimension. A scan (``volume``) has scores
    ``(classes, depth, height, width)``, or integers ``(depth, height, width)``, and no image that it lies in.
    """

    spec: TaskSpec
    labels: Labels
    needs_frame: bool = True

    def present(self, outputs: Outputs, frame: Frame | None) -> Segmentation:
        scores = self._with_classes(np.asarray(only(outputs)))
        classes = self.classes(scores) if frame is None or self.spec.volume else self._in_image(scores, frame)
        seen = classes[classes != UNSEEN]
        indices, counts = np.unique(seen, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        shares = tuple(
            ClassShare(self._label(int(indices[i])), int(indices[i]), float(counts[i] / seen.size)) for i in order
        )
        return Segmentation(classes, shares)

    def classes(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Return the class of each pixel of the output, int32 ``(height, width)``, or of each voxel."""
        scores = self._with_classes(scores)
        if scores.ndim == 2 or scores.dtype.kind != "f":
            return scores.round().astype(np.int32)
        if len(scores) == 1:
            return (probabilities(scores[0], self.spec.scores) >= self.spec.threshold).astype(np.int32)
        return np.asarray(scores.argmax(axis=0), np.int32)

    def _with_classes(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return scores of one class, ``(height, width)``, as ``(1, height, width)``, and others as they are: float32.

        Integers and truth values are classes, and what is below 0 among them is none: int32. A dimension of one class
        before them, as ``argmax(1, keepdim=True)`` leaves it, goes.
        """
        if scores.dtype.kind != "f":
            classes = np.maximum(scores.astype(np.int32), UNSEEN)
            return classes[0] if classes.ndim == 3 and len(classes) == 1 and not self.spec.volume else classes
        floats = np.asarray(scores, np.float32)
        if scores.ndim != 2:
            return floats
        return floats[None] if self.spec.squeezed or holds_scores(floats) else floats

    def _label(self, index: int) -> str:
        if self.labels and index >= len(self.labels):  # a map that the model made itself may hold anything
            return f"class {index}"
        return label_of(self.labels, index) if self.labels else f"class {index}"

    def _in_image(self, scores: npt.NDArray[np.float32], frame: Frame) -> npt.NDArray[np.int32]:
        part = Part.of(frame, scores.shape[-2:])
        if scores.ndim == 2:
            found = part.nearest(self.classes(scores))
        elif len(scores) == 1:
            smooth = part.smooth(probabilities(scores[0], self.spec.scores).astype(np.float32))
            found = (smooth >= self.spec.threshold).astype(np.int32)
        else:
            found = _best(scores, part)
        return part.in_whole(found, UNSEEN)


def holds_scores(maps: npt.NDArray[Any]) -> bool:
    """Return whether maps ``(..., height, width)`` hold scores of one class, and no classes.

    No class is below ``UNSEEN``, so whole numbers below it are scores too: of a model that limits its logits, say.
    """
    return bool((maps != np.rint(maps)).any() or (maps < UNSEEN).any())


def _best(scores: npt.NDArray[np.float32], part: Part) -> npt.NDArray[np.int32]:
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
    if len(outputs) == 1 and len(only(outputs)) in (2, 3, 4):
        return None
    return (
        "needs one output of shape (classes, height, width), (1, height, width) for one class against the rest, or "
        "(height, width) of classes, or of a scan (classes, depth, height, width); the model has "
        f"{in_words(outputs)}"
    )


def is_volume(shape: tuple[int, ...], dtype: str) -> bool:
    """Return whether an output of a segmentation has voxels: scores of four dimensions, or classes of three."""
    return len(shape) == 4 or (dtype != "float32" and len(shape) == 3 and shape[0] > 1)


def label_count(outputs: Shapes, spec: TaskSpec) -> int:
    """Return how many labels the output has room for, 0 for any number."""
    shape = only(outputs)
    chosen = len(shape) == 2 or (spec.volume and len(shape) == 3)
    return 0 if chosen else max(2, shape[0])
