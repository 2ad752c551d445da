"""Where a point of the model's input lies in the original image, and the other way round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..images.spec import PreprocessSpec

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Frame:
    """The size of an image, upright, and how preprocessing made the model's input from it.

    All coordinates are continuous: pixel ``i`` reaches from ``i`` to ``i + 1``. A point is ``(x, y)``. ``resized`` is
    the size after the resize. ``left`` and ``top`` are where the crop begins in it, negative where a border was added.
    """

    width: int
    height: int
    input_width: int
    input_height: int
    resized_width: float
    resized_height: float
    left: float = 0.0
    top: float = 0.0

    @classmethod
    def whole(cls, width: int, height: int) -> Frame:
        """Return the frame of an input that nothing was done to: coordinates stay as they are."""
        return cls(width, height, width, height, width, height)

    @classmethod
    def of(cls, width: int, height: int, spec: PreprocessSpec) -> Frame:
        """Return the frame of an upright image of ``width`` x ``height`` pixels."""
        from ..images.preprocess import border_before, crop_offset, crop_size, resized_size

        new_width, new_height = resized_size(width, height, spec)
        crop = crop_size(spec)
        if crop is None:
            return cls(width, height, new_width, new_height, new_width, new_height)
        rows, columns = crop
        left, top = (
            crop_offset(size, kept) if size >= kept else -border_before(kept - size, spec)
            for size, kept in ((new_width, columns), (new_height, rows))
        )
        return cls(width, height, columns, rows, new_width, new_height, left, top)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the original per pixel of the input, across and down."""
        return self.width / self.resized_width, self.height / self.resized_height

    def to_image(self, points: Floats) -> npt.NDArray[np.float64]:
        """Return points ``(..., 2)`` of the input in pixels of the original. They may lie outside it."""
        moved: npt.NDArray[np.float64] = np.asarray(points, np.float64) + np.array([self.left, self.top])
        scaled: npt.NDArray[np.float64] = moved * np.array(self.scale)
        return scaled

    def to_input(self, points: Floats) -> npt.NDArray[np.float64]:
        """Return points ``(..., 2)`` of the original in pixels of the input."""
        moved: npt.NDArray[np.float64] = np.asarray(points, np.float64) / np.array(self.scale) - np.array(
            [self.left, self.top]
        )
        return moved

    def boxes_to_image(self, boxes: Floats) -> npt.NDArray[np.float64]:
        """Return boxes ``(n, 4)`` (xmin, ymin, xmax, ymax) of the input in the original, clipped to it."""
        corners = self.to_image(np.asarray(boxes).reshape(-1, 2, 2))
        return corners.clip(0.0, (float(self.width), float(self.height))).reshape(-1, 4)

    def boxes_to_input(self, boxes: Floats) -> npt.NDArray[np.float64]:
        """Return boxes ``(n, 4)`` of the original in the input, clipped to what the model sees."""
        corners = self.to_input(np.asarray(boxes).reshape(-1, 2, 2))
        return corners.clip(0.0, (float(self.input_width), float(self.input_height))).reshape(-1, 4)

    def seen(self) -> tuple[int, int, int, int]:
        """Return the part of the original that the model saw, as whole pixels (left, top, right, bottom).

        A pixel counts where its middle was seen. At least one does.
        """
        corners = self.to_image(np.array([[0.0, 0.0], [self.input_width, self.input_height]]))
        low = np.ceil(corners[0] - 0.5).astype(int)
        high = np.ceil(corners[1] - 0.5).astype(int)
        size = np.array([self.width, self.height])
        low = low.clip(0, size - 1)
        high = np.maximum(high.clip(0, size), low + 1)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])
