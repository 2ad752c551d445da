"""Where the pixels of a map that a model gave lie in the original image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .frame import Frame


@dataclass(frozen=True)
class Part:
    """The seen ``window`` of the original, and how a map of ``size`` (rows, columns) gets there."""

    frame: Frame
    window: tuple[int, int, int, int]
    size: tuple[int, ...]

    @classmethod
    def of(cls, frame: Frame, size: tuple[int, ...]) -> Part:
        """Return how a map of ``size`` that a model gave for an image gets into the image."""
        return cls(frame, frame.seen(), size)

    def in_whole(self, values: npt.NDArray[Any], unseen: float) -> npt.NDArray[Any]:
        """Return values of the window as a map of the whole original, with ``unseen`` around it."""
        left, top, right, bottom = self.window
        whole = np.full((self.frame.height, self.frame.width), unseen, values.dtype)
        whole[top:bottom, left:right] = values
        return whole

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
