"""A mask for each class by itself: a pixel of the original image may have several classes, or none.

So may a voxel of a scan, in the model's output.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .base import Labels, Outputs, Shapes, in_words, only
from .frame import Frame
from .placing import Part
from .scores import probabilities
from .segmentation import ClassShare
from .spec import TaskSpec

if TYPE_CHECKING:
    from PIL import Image

Truth = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Masks:
    """``masks`` is bool ``(classes, height, width)`` of the original image, False where the crop of the preprocessing
    left none. Of a scan it is ``(classes, depth, height, width)``. ``found`` lists the classes that have a pixel, the
    largest first; a share is that of the seen pixels."""

    masks: Truth
    found: tuple[ClassShare, ...]
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Truth:
        """Return the mask of a class, without the first dimension. Raises KeyError that lists the names."""
        if name not in self.names:
            raise KeyError(f"no mask {name!r}; there is {', '.join(self.names)}")
        mask: Truth = self.masks[self.names.index(name)]
        return mask

    def png(self, index: int) -> bytes:
        """Return the mask of a class as a grey PNG: 255 where it is, else 0."""
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(self.masks[index].astype(np.uint8) * np.uint8(255)).save(out, "PNG")
        return out.getvalue()

    def npy(self, index: int) -> bytes:
        """Return the mask of a class as a file of numpy."""
        out = io.BytesIO()
        np.save(out, self.masks[index])
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        _, *depth, height, width = self.masks.shape
        name, file_of = ("mask_npy", self.npy) if depth else ("mask_png", self.png)
        return {
            "width": width,
            "height": height,
            **({"depth": depth[0]} if depth else {}),
            "masks": [
                {
                    "label": one.label,
                    "index": one.index,
                    "share": one.share,
                    name: base64.b64encode(file_of(one.index)).decode("ascii"),
                }
                for one in self.found
            ],
        }

    def text(self) -> str:
        size, what = self.masks.shape[:0:-1], "pixel" if self.masks.ndim == 3 else "voxel"
        rows = [f"  {one.share:7.2%}  {one.label}" for one in self.found] or [f"  no class has a {what}"]
        return "\n".join([f"  {' x '.join(map(str, size))} {what}s", *rows])

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the masks over the image with a legend; of a scan the slice in its middle.

        Where several lie, their colours are mixed.
        """
        from . import draw

        masks = self.masks if self.masks.ndim == 3 else self.masks[:, self.masks.shape[1] // 2]
        size = masks.shape[:0:-1]
        if image.size != size:
            image = image.resize(size)
        rows = [(one.index, one.label, f"{one.share:.1%}") for one in self.found]
        return draw.legend(draw.overlaid(image, [(index, masks[index]) for index, _, _ in rows]), rows)


@dataclass(frozen=True)
class MasksPresenter:
    """Makes ``Masks`` of scores ``(classes, height, width)``, of which each is compared with the threshold.

    A scan (``volume``) has scores ``(classes, depth, height, width)``, and no image that it lies in.
    """

    spec: TaskSpec
    labels: Labels
    needs_frame: bool = True

    def present(self, outputs: Outputs, frame: Frame | None) -> Masks:
        masks, seen = self._truth_of(np.asarray(only(outputs))), None
        if frame is not None and not self.spec.volume:
            scores = probabilities(np.asarray(only(outputs)), self.spec.scores).astype(np.float32)
            part = Part.of(frame, scores.shape[-2:])
            pairs = zip(scores, self.spec.least_scores(len(scores)), strict=True)
            masks = np.stack([part.in_whole(part.smooth(each) >= least, False) for each, least in pairs])
            left, top, right, bottom = part.window
            seen = (right - left) * (bottom - top)
        names = self.labels or tuple(f"class {index}" for index in range(len(masks)))
        shares = masks.reshape(len(masks), -1).sum(axis=1) / (seen or masks[0].size)
        order = [index for index in np.argsort(-shares, kind="stable").tolist() if shares[index] > 0]
        return Masks(masks, tuple(ClassShare(names[i], i, float(shares[i])) for i in order), names)

    def truth(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Truth:
        """Return which pixels of the outputs ``(n, classes, height, width)`` of several samples are of each class.

        Those of scans have a depth before the height.
        """
        return np.stack(
            [self._truth_of(each) for each in only(outputs)]
        )  # probabilities of all would be twice as large

    def _truth_of(self, scores: npt.NDArray[Any]) -> Truth:
        least = np.array(self.spec.least_scores(len(scores))).reshape(-1, *(1,) * (scores.ndim - 1))
        return np.asarray(probabilities(scores, self.spec.scores) >= least)


def misfit(outputs: Shapes) -> str | None:
    """Return which outputs the kind needs, None where it has them."""
    if len(outputs) == 1 and len(only(outputs)) in (3, 4):
        return None
    return (
        "needs one output of shape (classes, height, width), with scores of each class by itself, or of a scan "
        f"(classes, depth, height, width); the model has {in_words(outputs)}"
    )
